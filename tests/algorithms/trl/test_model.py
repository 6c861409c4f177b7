"""The model that TRL sees: log-probabilities under the masks, whatever the padding, and nothing frozen in it."""

from typing import Any

import numpy as np
import pytest
import torch
from toy import make_config

from rlprompt.algorithms.trl.model import IGNORED, PolicyModel, TokenizerView, packed, pad_id
from rlprompt.masks import static_mask
from rlprompt.policies import build_policy

EOS = 3


def make_model(kind: str = "categorical", *, eos: bool = False, no_repeat: bool = False, **more: Any) -> PolicyModel:
    kwargs = {"lora": {"r": 2, "targets": ["c_attn"]}} if kind == "causal-lm" else {}
    config = make_config(policy={"kind": kind, "model": "planted-3", "kwargs": kwargs}, env={"eos": eos})
    policy = build_policy(config.policy, prompt_length=3, seed=0)
    allowed = static_mask(policy.tokenizer, config.env.mask, eos=eos)
    return PolicyModel(policy, allowed=allowed, eos_id=EOS if eos else None, no_repeat=no_repeat, **more)


def labelled(ids: list[int], scored: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    row = torch.tensor([ids])
    labels = row.clone()
    labels[:, :-scored] = IGNORED
    return row, torch.ones_like(row), labels


def test_log_probabilities_and_entropy_by_hand() -> None:
    model = make_model()
    with torch.no_grad():
        model.policy.head.table[:, :3] = torch.log(torch.tensor([[1.0, 2.0, 1.0], [4.0, 1.0, 1.0], [1.0, 1.0, 1.0]]))
        model.policy.head.table[:, EOS] = 9.0  # forbidden: has no share
    output = model(*labelled([0, 0, 1, 0], scored=2))
    assert output.log_probs[0].tolist() == pytest.approx([0, np.log(1 / 2), np.log(2 / 3)])
    first = -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25))
    second = -(4 / 6 * np.log(4 / 6) + 2 / 6 * np.log(1 / 6))
    assert output.entropy[0].tolist() == pytest.approx([0, first, second])
    assert output.is_top1[0].tolist() == [0, 1, 1]
    assert output.label_mask[0].tolist() == [False, True, True]
    assert float(output.loss.detach()) == pytest.approx(-(np.log(1 / 2) + np.log(2 / 3)) / 2)


def test_eos_may_not_be_first_and_a_word_may_not_come_twice() -> None:
    ended = make_model(eos=True)(*labelled([0, 1, EOS], scored=2))
    assert ended.log_probs[0].exp().tolist() == pytest.approx([1 / 3, 1 / 4])
    different = make_model(eos=True, no_repeat=True)(*labelled([0, 1, 2, EOS], scored=3))
    assert different.log_probs[0].exp().tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 2])  # two words and EOS; one


def test_t6_padding_on_either_side_changes_nothing() -> None:
    model = make_model("causal-lm").eval()
    alone = model(*labelled([0, 1, 2, 0, 1], scored=2))
    ids = torch.tensor([[9, 9, 0, 1, 2, 0, 1, 9], [0, 1, 2, 0, 2, 1, 1, 2]]).clamp(max=EOS)
    attention = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 0], [1] * 8])
    labels = ids.masked_fill(attention == 0, IGNORED)
    labels[:, :5] = IGNORED
    both = model(ids, attention, labels)
    torch.testing.assert_close(both.log_probs[0, 4:6], alone.log_probs[0, 2:4], atol=1e-6, rtol=0)
    assert both.log_probs[0, [0, 1, 2, 3, 6]].tolist() == [0] * 5


def test_the_log_probability_of_a_prompt_is_the_sum_over_its_tokens() -> None:
    model = make_model("causal-lm").eval()
    output = model(*labelled([0, 1, 2, 0, 1], scored=2))
    whole = model.prompt_logp(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, -1]]))
    assert float(whole) == pytest.approx(float(output.log_probs.detach().sum()), abs=1e-5)


def test_the_reference_stays_and_only_trained_tensors_are_registered() -> None:
    model = make_model("causal-lm").eval()
    reference = make_model("causal-lm", reference=True)
    reference._policy = model._policy
    row = labelled([0, 1, 2, 0, 1], scored=2)
    before = reference(*row).log_probs
    assert torch.equal(before, model(*row).log_probs)
    trained = dict(model.named_parameters())
    assert {name.removeprefix("trainable.") for name in trained} == set(model.policy.trainable_state())
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.5)
    assert torch.equal(before, reference(*row).log_probs)
    assert not torch.equal(before, model(*row).log_probs)
    assert not before.requires_grad
    assert list(reference.parameters()) == []


def test_the_policy_never_drops_anything_out() -> None:
    model = make_model("causal-lm")
    assert model.train().training
    assert not model.policy.training


def test_ids_are_packed_to_the_left() -> None:
    kept = torch.tensor([[False, True, False, True], [False, False, False, True]])
    assert packed(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), kept).tolist() == [[2, 4], [8, -1]]


def test_a_view_changes_nothing_on_the_tokenizer() -> None:
    class Bare:
        eos_token_id = None

        def __len__(self) -> int:
            return 5

    bare = Bare()
    view = TokenizerView(bare)
    assert view.pad_token is not None  # so TRL sets none
    assert (view.pad_token_id, view.eos_token_id, len(view), pad_id(bare)) == (0, None, 5, 0)
    assert not hasattr(bare, "pad_token")
    with pytest.raises(AttributeError, match="has no 'added_tokens_encoder'"):
        _ = view.added_tokens_encoder
