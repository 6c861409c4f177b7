"""Truncation, draws and the writing loop."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from rlprompt.config import MaskConfig, PolicyConfig
from rlprompt.errors import ConfigError, RunError
from rlprompt.masks import static_mask
from rlprompt.policies import PromptPolicy, build_policy
from rlprompt.policies.sampling import draw, filter_top_k, filter_top_p, greedy, write_prompts

INF = float("inf")
ALMOST_ONE = float(np.nextafter(1.0, 0.0))


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


class TestTruncation:
    def test_top_k_keeps_the_k_largest_and_what_ties_with_the_last_of_them(self) -> None:
        kept = filter_top_k(torch.tensor([[3.0, 1.0, 2.0, 2.0], [0.0, -INF, 5.0, 4.0]]), 2)
        assert kept.tolist() == [[3.0, -INF, 2.0, 2.0], [-INF, -INF, 5.0, 4.0]]

    def test_top_k_beyond_the_vocabulary_or_the_allowed_tokens_changes_nothing(self) -> None:
        logits = torch.tensor([[1.0, -INF, -INF]])
        assert filter_top_k(logits, 5).tolist() == logits.tolist()
        assert filter_top_k(logits, 2).tolist() == logits.tolist()

    @pytest.mark.parametrize(
        ("p", "kept"), [(0.4, [0]), (0.5, [0]), (0.6, [0, 2]), (0.85, [0, 1, 2]), (1.0, [0, 1, 2])]
    )
    def test_top_p_keeps_the_fewest_tokens_that_reach_p(self, p: float, kept: list[int]) -> None:
        # probabilities in order: 0.5 (id 0), 0.3125 (id 2), 0.1875 (id 1): sums 0.5, 0.8125, 1; id 3 is forbidden
        logits = logs(0.5, 0.1875, 0.3125, 0.0)
        assert torch.isfinite(filter_top_p(logits, p))[0].nonzero().flatten().tolist() == kept


class TestDraw:
    @pytest.mark.parametrize(
        ("uniform", "token"), [(0.0, 1), (0.24, 1), (0.25, 2), (0.74, 2), (0.75, 4), (ALMOST_ONE, 4)]
    )
    def test_the_cumulative_distribution_is_inverted_over_allowed_tokens(self, uniform: float, token: int) -> None:
        # cumulative: 0 | 0.25 | 0.75 | 0.75 | 1 | 1; tokens 0, 3 and 5 are forbidden
        assert draw(logs(0.0, 0.25, 0.5, 0.0, 0.25, 0.0), np.array([uniform])).tolist() == [token]

    def test_a_forbidden_token_is_never_drawn_however_close_the_uniform_is_to_one(self) -> None:
        generator = torch.Generator().manual_seed(0)
        logits = 10 * torch.randn(200, 1000, generator=generator)
        forbidden = torch.rand(200, 1000, generator=generator) < 0.5
        forbidden[:, -3:] = True
        masked = logits.masked_fill(forbidden, -INF)
        for uniform in (0.0, 0.5, ALMOST_ONE, 1.0):
            tokens = draw(masked, np.full(200, uniform))
            assert not forbidden.gather(1, tokens.unsqueeze(1)).any()

    def test_a_row_does_not_depend_on_its_neighbours(self) -> None:
        logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
        uniforms = np.random.default_rng(1).random(5)
        alone = [draw(logits[row : row + 1], uniforms[row : row + 1]).item() for row in range(5)]
        assert draw(logits, uniforms).tolist() == alone

    def test_frequencies_follow_the_probabilities(self) -> None:
        # An even grid of uniforms must hit each token in exact proportion.
        grid = (np.arange(1000) + 0.5) / 1000
        drawn = draw(logs(0.1, 0.2, 0.7).expand(1000, -1), grid)
        assert torch.bincount(drawn).tolist() == [100, 200, 700]

    def test_greedy_takes_the_most_probable_allowed_token_and_the_lowest_of_equals(self) -> None:
        assert greedy(torch.tensor([[-INF, 2.0, 2.0], [0.0, 1.0, -INF]])).tolist() == [1, 1]

    @pytest.mark.parametrize("choose", [greedy, lambda logits: draw(logits, np.array([0.5]))], ids=["greedy", "draw"])
    @pytest.mark.parametrize(
        ("logits", "message"),
        [([-INF, -INF], "no token may be written"), ([0.0, float("nan")], "not finite"), ([0.0, INF], "not finite")],
    )
    def test_a_row_without_choice_or_with_broken_numbers_is_an_error(
        self, choose: Callable[[torch.Tensor], torch.Tensor], logits: list[float], message: str
    ) -> None:
        with pytest.raises(RunError, match=message):
            choose(torch.tensor([logits]))


@pytest.fixture(scope="module")
def policy() -> PromptPolicy:
    return build_policy(PolicyConfig(kind="categorical", model="planted-50"), prompt_length=4, seed=0)


@pytest.fixture(scope="module")
def context() -> torch.Tensor:
    return torch.full((6, 1), 50)


def mask_of(policy: PromptPolicy, *, eos: bool = False) -> np.ndarray:
    return static_mask(policy.tokenizer, MaskConfig(), eos=eos)


class TestWritePrompts:
    def test_a_uniform_table_writes_what_the_uniforms_say(self, policy: PromptPolicy, context: torch.Tensor) -> None:
        # 50 equally probable words: uniform u writes word floor(50 u).
        uniforms = np.random.default_rng(0).random((6, 4))
        tokens = write_prompts(
            policy,
            context,
            static_mask=mask_of(policy),
            eos_id=None,
            no_repeat=False,
            length=4,
            uniforms=uniforms,
        )
        assert tokens.tolist() == np.floor(uniforms * 50).astype(int).tolist()

    def test_nothing_is_repeated_where_that_is_forbidden(self, policy: PromptPolicy, context: torch.Tensor) -> None:
        tokens = write_prompts(
            policy,
            context,
            static_mask=mask_of(policy),
            eos_id=None,
            no_repeat=True,
            length=4,
            uniforms=np.zeros((6, 4)),
        )
        assert tokens.tolist() == [[0, 1, 2, 3]] * 6

    def test_a_prompt_never_begins_with_eos_and_only_waits_after_it(
        self, policy: PromptPolicy, context: torch.Tensor
    ) -> None:
        # Id 50 is EOS, the last token: uniforms close to 1 write it wherever it is allowed.
        uniforms = np.full((6, 4), ALMOST_ONE)
        uniforms[0, 1:] = 0.0
        tokens = write_prompts(
            policy,
            context,
            static_mask=mask_of(policy, eos=True),
            eos_id=50,
            no_repeat=False,
            length=4,
            uniforms=uniforms,
        )
        assert tokens.tolist() == [[49, 0, 0, 0]] + [[49, 50, 50, 50]] * 5

    def test_writing_stops_early_when_all_have_ended(
        self, policy: PromptPolicy, context: torch.Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps: list[int] = []
        monkeypatch.setattr(
            type(policy),
            "next_features",
            lambda self, context, tokens: (
                steps.append(tokens.shape[1]) or torch.full((len(tokens), 1), tokens.shape[1])
            ),
        )
        tokens = write_prompts(
            policy,
            context,
            static_mask=mask_of(policy, eos=True),
            eos_id=50,
            no_repeat=False,
            length=4,
            uniforms=np.full((6, 4), ALMOST_ONE),
        )
        assert steps == [0, 1]
        assert tokens.tolist() == [[49, 50, 50, 50]] * 6

    def test_without_uniforms_the_most_probable_tokens_are_written(self, context: torch.Tensor) -> None:
        policy = build_policy(PolicyConfig(kind="categorical", model="planted-50"), prompt_length=3, seed=0)
        table = torch.zeros(3, 51)
        for position, word in enumerate((7, 3, 9)):
            table[position, word] = 1.0
        policy.load_trainable_state({"table": table, "value": torch.zeros(3)})
        tokens = write_prompts(
            policy, context, static_mask=mask_of(policy), eos_id=None, no_repeat=False, length=3, uniforms=None
        )
        assert tokens.tolist() == [[7, 3, 9]] * 6

    def test_uniforms_of_the_wrong_shape_are_refused(self, policy: PromptPolicy, context: torch.Tensor) -> None:
        with pytest.raises(ConfigError, match=r"shape \(6, 4\), got \(6, 3\)"):
            write_prompts(
                policy,
                context,
                static_mask=mask_of(policy),
                eos_id=None,
                no_repeat=False,
                length=4,
                uniforms=np.zeros((6, 3)),
            )
