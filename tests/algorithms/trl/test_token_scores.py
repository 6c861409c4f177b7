"""Chunks: the gradients through them are those of the whole batch, for any loss, and their order is the batch's."""

from typing import Any

import pytest
import torch
from toy import make_config

from rlprompt.algorithms import chunks
from rlprompt.algorithms.trl.model import PolicyModel
from rlprompt.algorithms.trl.token_scores import TokenScores, added, cut, joined_scores, products, score
from rlprompt.masks import static_mask
from rlprompt.policies import build_policy

CONTEXT = torch.tensor([[0, 1, 2], [1, -1, -1], [1, -1, -1], [2, 0, -1], [0, 1, 2]])
TOKENS = torch.tensor([[1, 2, -1], [0, 1, 2], [2, -1, -1], [1, 1, 1], [0, -1, -1]])


def make_model(**more: Any) -> PolicyModel:
    kwargs = {"lora": {"r": 2, "targets": ["c_attn"]}}
    config = make_config(policy={"kind": "causal-lm", "model": "planted-3", "dtype": "float32", "kwargs": kwargs})
    policy = build_policy(config.policy, prompt_length=3, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable.parameters():  # an adapter that begins at 0 has no gradient of one half
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    allowed = static_mask(policy.tokenizer, config.env.mask, eos=False)
    return PolicyModel(policy, allowed=allowed, eos_id=None, no_repeat=False, **more)


def any_loss(found: TokenScores) -> torch.Tensor:
    weights = torch.linspace(-1.0, 2.0, len(found.log_probs))
    return (found.log_probs.exp() * weights).sum() + 0.3 * found.entropy.square().sum()


def test_the_gradient_through_chunks_is_that_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    model.entropy_gradient = True
    parameters = [one for one in model.trainable.parameters() if one.requires_grad]
    whole = score(cut(CONTEXT, TOKENS, 4, gradient=True)[0], model.log_softmax, entropy_gradient=True)
    expected = torch.autograd.grad(any_loss(whole), parameters, allow_unused=True)
    monkeypatch.setattr(chunks, "TOKENS_WITH_GRADIENT", 8)
    assert len(cut(CONTEXT, TOKENS, 4, gradient=True)) > 2
    found = model.token_scores(CONTEXT, TOKENS)
    torch.testing.assert_close(found.log_probs.detach(), whole.log_probs.detach())
    torch.testing.assert_close(found.entropy.detach(), whole.entropy.detach())
    assert found.is_top1.tolist() == whole.is_top1.tolist()
    any_loss(found).backward()
    compared = 0
    for parameter, gradient in zip(parameters, expected, strict=True):
        if gradient is None:  # the value head has no part in it
            assert parameter.grad is None
        else:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient)
            compared += int(gradient.abs().max() > 1e-4)
    assert compared > 2


def test_on_a_gpu_a_batch_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    log_softmax = PolicyModel.log_softmax

    def watching(self: PolicyModel, context: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tokens))
        return log_softmax(self, context, tokens)

    monkeypatch.setattr(chunks, "TOKENS_WITH_GRADIENT", 8)
    monkeypatch.setattr(PolicyModel, "log_softmax", watching)
    model = make_model()
    model.token_scores(CONTEXT, TOKENS)
    assert len(sizes) > 2
    sizes.clear()
    monkeypatch.setattr(PolicyModel, "device", torch.device("cuda"))  # said, but computed here
    model.token_scores(CONTEXT, TOKENS)
    assert sizes == [5]


def test_the_reference_and_what_is_asked_without_gradient_have_none() -> None:
    reference = make_model(reference=True).token_scores(CONTEXT, TOKENS)
    with torch.no_grad():
        plain = make_model().token_scores(CONTEXT, TOKENS)
    assert not reference.log_probs.requires_grad
    assert not plain.log_probs.requires_grad
    assert not torch.equal(reference.log_probs, plain.log_probs)  # its adapter is off


def test_gradients_are_added_in_the_order_of_the_chunks() -> None:
    big, small = torch.tensor([2.0**24]), torch.tensor([1.0])
    total, other = added([[big, None], [small, None], [-big, small]])
    assert total is not None
    assert other is not None
    assert float(total) == 0.0  # 2**24 + 1 is 2**24 in float32; in another order it would be 1
    assert float(other) == 1.0
    assert added([[None], [None]]) == [None]


def test_a_part_of_the_loss_that_is_not_there_costs_no_gradient() -> None:
    weight = torch.tensor([2.0], requires_grad=True)
    scores = TokenScores(weight * 3, (weight * 5).detach(), torch.tensor([True]))
    assert [float(one) for one in products(scores, (torch.ones(1), torch.ones(1)), [weight]) if one is not None] == [3]
    assert products(scores, (None, torch.ones(1)), [weight]) == [None]


def test_scores_of_several_chunks_stand_side_by_side() -> None:
    one = TokenScores(torch.tensor([-1.0]), torch.tensor([0.5]), torch.tensor([True]))
    two = TokenScores(torch.tensor([-2.0, -3.0]), torch.tensor([0.1, 0.2]), torch.tensor([False, True]))
    joined = joined_scores([one, two])
    assert joined.log_probs.tolist() == [-1.0, -2.0, -3.0]
    assert joined.is_top1.tolist() == [True, False, True]
