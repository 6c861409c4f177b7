"""The adaptor on a frozen LM: what it computes, what it trains, and that caching changes nothing."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig
from transformers import Gemma2ForCausalLM as Gemma2
from transformers import LlamaForCausalLM as Llama

from rlprompt.config import MaskConfig, PolicyConfig
from rlprompt.errors import ConfigError
from rlprompt.masks import decode, static_mask
from rlprompt.models import load_frozen
from rlprompt.policies import PromptPolicy, build_policy
from rlprompt.policies.frozen import KEPT_CONTEXTS, FrozenLM
from rlprompt.policies.lm_adaptor import LMAdaptorPolicy
from rlprompt.policies.sampling import write_prompts

EOS = 50
TINY = {
    "vocab_size": 51,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": EOS,
}


def build(model: str = "planted-50", length: int = 4, seed: int = 0, **kwargs: Any) -> LMAdaptorPolicy:
    config = PolicyConfig(model=model, dtype="float32", kwargs={"hidden": 32, **kwargs})
    policy = build_policy(config, prompt_length=length, seed=seed)
    assert isinstance(policy, LMAdaptorPolicy)
    return policy


def on_tiny(kind: str) -> LMAdaptorPolicy:
    """A policy on a small random model with large weights, so that a wrong position or mask shows."""
    policy = build()
    if kind == "gpt2":
        return policy
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any
        if kind == "llama":
            model = Llama(LlamaConfig(**TINY, initializer_range=0.5))
        elif kind == "gemma3":  # layers that see the last 3 tokens only
            layers = ["sliding_attention", "full_attention", "sliding_attention"]
            model = Gemma3ForCausalLM(Gemma3TextConfig(**TINY, sliding_window=3, layer_types=layers))
        else:  # soft-capped logits
            model = Gemma2(Gemma2Config(**TINY, final_logit_softcapping=2.0, initializer_range=0.5))
    policy.frozen = FrozenLM(model.eval().requires_grad_(False), 51)
    policy.whole_model = model  # kept for comparison
    policy.head = type(policy.head)(16, 32, seed=0)
    return policy


def words(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 50, shape))


RAGGED = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, -1, -1], [3, 1, 4, 1, 5], [EOS, -1, -1, -1, -1]])


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "gemma3"])
class TestFeatures:
    def test_they_are_the_hidden_states_of_one_plain_forward_pass_per_row(self, kind: str) -> None:
        policy = on_tiny(kind)
        tokens = words(4, 4)
        features = policy.features(RAGGED, tokens)
        for row in range(4):
            context = RAGGED[row][RAGGED[row] >= 0]
            whole = torch.cat([context, tokens[row, :-1]]).unsqueeze(0)
            plain = policy.frozen.body(input_ids=whole).last_hidden_state[0, len(context) - 1 :]
            assert torch.allclose(features[row], plain, atol=1e-4, rtol=0)

    def test_sampling_step_by_step_sees_what_teacher_forcing_sees(self, kind: str) -> None:
        policy = on_tiny(kind)
        tokens = words(4, 4)
        features = policy.features(RAGGED, tokens)
        for step in range(4):
            stepped = policy.next_features(RAGGED, tokens[:, :step])
            assert torch.allclose(stepped, features[:, step], atol=1e-4, rtol=0)

    def test_what_was_written_last_is_never_read(self, kind: str) -> None:
        policy = on_tiny(kind)
        tokens = words(4, 4)
        changed = tokens.clone()
        changed[:, -1] = -1
        assert torch.equal(policy.features(RAGGED, tokens), policy.features(RAGGED, changed))

    def test_tokens_that_were_not_written_change_nothing_before_them(self, kind: str) -> None:
        policy = on_tiny(kind)
        tokens = words(4, 4)
        features = policy.features(RAGGED, tokens)
        tokens[:, 2:] = -1
        assert torch.equal(policy.features(RAGGED, tokens)[:, :3], features[:, :3])


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_the_output_layer_gives_the_models_own_logits(kind: str) -> None:
    policy = on_tiny(kind)
    context = torch.tensor([[3, 1, 4]])
    hidden = policy.next_features(context, torch.empty(1, 0, dtype=torch.long))
    plain = policy.whole_model(input_ids=context).logits[:, -1]
    assert torch.allclose(policy.frozen.project(hidden), plain, atol=1e-5)


class TestCaching:
    def test_a_context_is_computed_once_and_each_new_token_once(self) -> None:
        policy = on_tiny("llama")
        context, tokens = torch.tensor([[3, 1, 4]] * 6), words(6, 4)
        for step in range(4):
            policy.next_features(context, tokens[:, :step])
        assert policy.frozen.tokens_computed == 3 + 6 * 3
        policy.next_features(context, tokens[:, :3])  # the same question again
        assert policy.frozen.tokens_computed == 3 + 6 * 3
        policy.features(context, tokens)
        assert policy.frozen.tokens_computed == 3 + 2 * 6 * 3

    def test_several_tokens_at_once_or_other_tokens_are_computed_as_they_should(self) -> None:
        policy = on_tiny("llama")
        context, tokens, others = torch.tensor([[3, 1, 4]] * 2), words(2, 4), words(2, 4, seed=1)
        policy.next_features(context, tokens[:, :1])
        jumped = policy.next_features(context, tokens[:, :3])
        assert torch.allclose(jumped, policy.features(context, tokens)[:, 3], atol=1e-5)
        other = policy.next_features(context, others[:, :3])  # does not extend what was read
        assert torch.allclose(other, policy.features(context, others)[:, 3], atol=1e-5)
        back = policy.next_features(context, others[:, :2])  # shorter than what was read
        assert torch.allclose(back, policy.features(context, others)[:, 2], atol=1e-5)
        moved = policy.next_features(context + 1, others[:, :2])
        assert torch.allclose(moved, policy.features(context + 1, others)[:, 2], atol=1e-5)

    def test_old_contexts_are_forgotten(self) -> None:
        policy = on_tiny("llama")
        empty = torch.empty(1, 0, dtype=torch.long)
        for first in range(50):
            for second in range(2):
                policy.next_features(torch.tensor([[first, second]]), empty)
        before = policy.frozen.tokens_computed
        assert before == 200
        policy.next_features(torch.tensor([[49, 1]]), empty)
        assert policy.frozen.tokens_computed == before
        policy.next_features(torch.tensor([[0, 0]]), empty)
        assert policy.frozen.tokens_computed == before + 2
        assert KEPT_CONTEXTS < 100

    def test_more_tokens_than_the_model_has_positions_are_refused(self) -> None:
        policy = on_tiny("llama")
        with pytest.raises(ConfigError, match=r"reads at most 32 tokens.* have 33; shorten policy\.context"):
            policy.features(words(1, 30), words(1, 4))


class TestHead:
    def test_replace_starts_almost_uniform_and_residual_at_the_models_own_distribution(self) -> None:
        context, tokens = torch.tensor([[EOS]]), words(1, 4)
        replace, residual = build(mode="replace"), build(mode="residual")
        features = replace.features(context, tokens)
        uniform = torch.full((51,), -float(np.log(51)))
        assert torch.allclose(torch.log_softmax(replace.logits(features), -1), uniform, atol=1e-3)
        model = load_frozen("planted-50", dtype="float32", device="cpu")
        plain = model(input_ids=torch.cat([context, tokens[:, :-1]], dim=1)).logits
        assert torch.allclose(residual.logits(features), plain, atol=1e-3)
        assert not torch.allclose(torch.log_softmax(plain, -1), uniform, atol=0.1)

    def test_weights_start_as_published_and_values_at_zero(self) -> None:
        policy = build(hidden=2048)
        state = policy.trainable_state()
        # Xavier-uniform with gain 1e-4: bound 1e-4 * sqrt(6 / (32 + 2048)) = 5.37e-6, for both layers
        for name in ("expand", "contract"):
            assert (state[f"{name}.bias"] == -1e-4).all()
            largest = state[f"{name}.weight"].abs().max().item()
            assert 5.3e-6 < largest < 5.38e-6
        features = policy.features(torch.tensor([[EOS]]), words(1, 4))
        assert policy.values(features).tolist() == [[0.0] * 4]

    def test_starting_weights_depend_on_the_seed_and_on_no_global_state(self) -> None:
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        first = build(seed=3).trainable_state()
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(2)
        again, other = build(seed=3).trainable_state(), build(seed=4).trainable_state()
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["expand.weight"], other["expand.weight"])

    def test_the_frozen_model_is_neither_trained_nor_saved_nor_copied(self) -> None:
        policy = build()
        names = {"head.expand", "head.contract", "head.value"}
        assert {name.rpartition(".")[0] for name in policy.state_dict()} == names
        assert {name.rpartition(".")[0] for name, _ in policy.named_parameters()} == names
        twin = copy.deepcopy(policy)
        assert twin.frozen is policy.frozen
        with torch.no_grad():
            twin.head.expand.weight.add_(1.0)
        assert not torch.equal(twin.head.expand.weight, policy.head.expand.weight)

    def test_a_copy_does_not_continue_the_others_reading(self) -> None:
        policy = on_tiny("llama")
        context, tokens = torch.tensor([[3, 1, 4]]), words(1, 4)
        policy.next_features(context, tokens[:, :1])
        twin = copy.deepcopy(policy)
        twin.next_features(context, tokens[:, :2])
        expected = policy.features(context, tokens)
        assert torch.allclose(policy.next_features(context, tokens[:, :3]), expected[:, 3], atol=1e-5)
        assert torch.allclose(twin.next_features(context, tokens[:, :3]), expected[:, 3], atol=1e-5)

    def test_gradients_reach_the_head_only_and_another_head_may_stand_in(self) -> None:
        policy = build(mode="residual")
        reference = copy.deepcopy(policy.head).requires_grad_(False)
        features = policy.features(torch.tensor([[EOS]]), words(1, 4))
        assert not features.requires_grad
        loss = policy.logits(features).square().mean() + (policy.values(features) - 1).square().mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.head.parameters())
        torch.optim.SGD(policy.parameters(), lr=0.1).step()
        assert not torch.equal(policy.logits(features), policy.logits(features, head=reference))
        assert (policy.values(features) != 0).all()
        assert (policy.values(features, head=reference) == 0).all()


class TestSamplingLogits:
    def test_truncation_works_within_the_mask(self) -> None:
        policy = build(mode="residual", top_k=3)
        features = policy.next_features(torch.tensor([[EOS]]), torch.empty(1, 0, dtype=torch.long))
        logits = policy.logits(features)
        mask = torch.zeros(1, 51, dtype=torch.bool)
        mask[:, 10:20] = True
        kept = torch.isfinite(policy.sampling_logits(features, logits, mask))[0].nonzero().flatten().tolist()
        assert kept == sorted((logits[0, 10:20].topk(3).indices + 10).tolist())

    def test_fluent_mode_keeps_the_plain_models_favourites_whatever_the_head_says(self) -> None:
        policy = build(mode="replace", fluent_top_k=2, top_k=None)
        with torch.no_grad():
            policy.head.contract.bias.normal_(generator=torch.Generator().manual_seed(0))
        features = policy.next_features(torch.tensor([[EOS]]), torch.empty(1, 0, dtype=torch.long))
        plain = policy.frozen.project(features)
        mask = torch.ones(1, 51, dtype=torch.bool)
        mask[0, plain.argmax()] = False
        kept = policy.sampling_logits(features, policy.logits(features), mask)
        expected = plain[0].topk(3).indices[1:]  # the favourite is masked
        assert sorted(torch.isfinite(kept)[0].nonzero().flatten().tolist()) == sorted(expected.tolist())

    def test_top_p_counts_only_where_top_k_is_none(self) -> None:
        mask = torch.ones(1, 51, dtype=torch.bool)
        counts = []
        for top_k in (5, None):
            policy = build(mode="replace", top_k=top_k, top_p=0.5)
            features = policy.next_features(torch.tensor([[EOS]]), torch.empty(1, 0, dtype=torch.long))
            kept = policy.sampling_logits(features, policy.logits(features), mask)
            counts.append(int(torch.isfinite(kept).sum()))
        assert counts == [5, 26]  # 26 of 51 almost equal probabilities reach 0.5


class TestContext:
    def test_an_empty_context_is_the_eos_token_where_there_is_no_bos(self) -> None:
        policy = build()
        assert policy.context_ids("") == [EOS]
        assert policy.context_ids("w03 w01") == [3, 1]
        tokens = words(1, 4)
        empty = policy.features(torch.full((1, 2), -1), tokens)
        assert torch.equal(empty, policy.features(torch.tensor([[EOS]]), tokens))


class TestMistakes:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"mode": "add"}, r"policy\.kwargs of 'lm-adaptor': mode: .*'replace' or 'residual'.*got 'add'"),
            ({"hidden": 0}, "hidden: .*greater than or equal to 1, got 0"),
            ({"temperature": 0}, "temperature: .*greater than 0, got 0"),
            ({"top_p": 1.5}, "top_p: .*less than or equal to 1, got 1.5"),
            ({"fluent_topk": 3}, "unknown key 'fluent_topk'; did you mean 'fluent_top_k'"),
        ],
    )
    def test_a_wrong_argument_is_one_line_that_says_what_to_do(self, kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            build(**kwargs)
        assert "\n" not in str(caught.value)

    def test_a_model_with_fewer_rows_than_its_tokenizer_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="scores 51 tokens but its tokenizer has 60"):
            FrozenLM(load_frozen("planted-50", dtype="float32", device="cpu"), 60)


@pytest.fixture(scope="module")
def smollm2() -> PromptPolicy:
    config = PolicyConfig(dtype="float32", kwargs={"mode": "residual", "hidden": 64})
    return build_policy(config, prompt_length=5, seed=0)


class TestSmolLM2:
    def test_sampling_and_teacher_forcing_agree_and_write_english(self, smollm2: PromptPolicy) -> None:
        context = torch.tensor([smollm2.context_ids("I watched the film last night. In one word, it was")] * 4)
        allowed = static_mask(smollm2.tokenizer, MaskConfig(), eos=False)
        uniforms = np.random.default_rng(0).random((4, 5))
        tokens = write_prompts(
            smollm2,
            context,
            static_mask=allowed,
            eos_id=None,
            no_repeat=False,
            length=5,
            uniforms=uniforms,
        )
        features = smollm2.features(context, tokens)
        for step in range(5):
            stepped = smollm2.next_features(context, tokens[:, :step])
            assert torch.allclose(stepped, features[:, step], atol=1e-4, rtol=1e-5)
        assert all(decode(smollm2.tokenizer, row).isprintable() for row in tokens.tolist())
        logp = torch.log_softmax(smollm2.logits(features), -1).gather(-1, tokens.unsqueeze(-1))
        assert logp.mean().item() > -6.0  # uniform would be -10.8

    def test_in_bfloat16_features_and_logits_are_float32_and_close(self, smollm2: PromptPolicy, tmp_path: Path) -> None:
        config = PolicyConfig(dtype="bfloat16", kwargs={"mode": "residual", "hidden": 64})
        half = build_policy(config, prompt_length=5, seed=0)
        context = torch.tensor([smollm2.context_ids("In one word, it was")])
        tokens = torch.empty(1, 0, dtype=torch.long)
        features, exact = half.next_features(context, tokens), smollm2.next_features(context, tokens)
        assert features.dtype == half.logits(features).dtype == torch.float32
        probabilities = torch.softmax(half.logits(features), -1)
        assert (probabilities - torch.softmax(smollm2.logits(exact), -1)).abs().max() < 0.05

    def test_an_empty_context_is_the_bos_token(self, smollm2: PromptPolicy) -> None:
        assert smollm2.context_ids("") == [smollm2.tokenizer.bos_token_id]
