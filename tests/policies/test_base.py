"""What all policies share, on those with frozen features: scoring, the reference, writers."""

import copy
from typing import Any

import pytest
import torch

from rlprompt.config import PolicyConfig
from rlprompt.errors import CheckpointError, RunError
from rlprompt.policies import FeaturePolicy, build_policy

CONTEXT = torch.tensor([[3, 1], [50, -1]])
TOKENS = torch.tensor([[4, 1, 5], [9, 2, -1]])


def build(kind: str, **kwargs: Any) -> FeaturePolicy:
    kwargs |= {"hidden": 8, "mode": "residual"} if kind == "lm-adaptor" else {}
    policy = build_policy(
        PolicyConfig(kind=kind, model="planted-50", dtype="float32", kwargs=kwargs), prompt_length=3, seed=0
    )
    assert isinstance(policy, FeaturePolicy)
    return policy


def shift(policy: FeaturePolicy) -> None:
    with torch.no_grad():
        for index, parameter in enumerate(policy.trainable.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))


@pytest.mark.parametrize("kind", ["lm-adaptor", "categorical"])
class TestFeaturePolicies:
    def test_evaluate_is_the_head_on_the_features_with_gradient(self, kind: str) -> None:
        policy = build(kind)
        shift(policy)
        features = policy.features(CONTEXT, TOKENS)
        logits, values = policy.evaluate(CONTEXT, TOKENS)
        assert torch.equal(logits, policy.logits(features))
        assert torch.equal(values, policy.values(features))
        (logits.square().sum() + values.square().sum()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.trainable.parameters())

    def test_the_reference_is_the_start_until_it_is_frozen_again(self, kind: str) -> None:
        policy = build(kind)
        start = policy.evaluate(CONTEXT, TOKENS)[0].detach()
        assert torch.equal(policy.reference_logits(CONTEXT, TOKENS), start)
        shift(policy)
        now = policy.evaluate(CONTEXT, TOKENS)[0].detach()
        assert not torch.equal(now, start)
        reference = policy.reference_logits(CONTEXT, TOKENS)
        assert torch.equal(reference, start)
        assert not reference.requires_grad
        policy.freeze_reference()
        assert torch.equal(policy.reference_logits(CONTEXT, TOKENS), now)

    def test_a_reference_can_be_kept_and_restored_and_is_neither_trained_nor_saved(self, kind: str) -> None:
        policy = build(kind)
        shift(policy)
        policy.freeze_reference()
        expected, state = policy.reference_logits(CONTEXT, TOKENS), policy.reference_state()
        other = build(kind)
        other.load_reference_state(state)
        assert torch.equal(other.reference_logits(CONTEXT, TOKENS), expected)
        assert {name.split(".")[0] for name in policy.state_dict()} == {"head"}
        assert [id(p) for p in policy.parameters()] == [id(p) for p in policy.trainable.parameters()]
        state.popitem()
        with pytest.raises(CheckpointError, match="missing or not expected"):
            other.load_reference_state(state)

    def test_a_copy_has_a_reference_of_its_own(self, kind: str) -> None:
        policy = build(kind)
        start = policy.reference_logits(CONTEXT, TOKENS)
        twin = copy.deepcopy(policy)
        shift(twin)
        twin.freeze_reference()
        assert torch.equal(policy.reference_logits(CONTEXT, TOKENS), start)

    def test_a_writer_sees_what_evaluate_sees(self, kind: str) -> None:
        policy = build(kind, top_k=3)
        shift(policy)
        logits, _ = policy.evaluate(CONTEXT, TOKENS)
        writer = policy.writer(CONTEXT)
        mask = torch.ones(2, 51, dtype=torch.bool)
        mask[:, :20] = False
        for step in range(3):
            found = writer.next_logits(TOKENS[:, step - 1] if step else None)
            assert torch.allclose(found, logits[:, step], atol=1e-4)
            kept = writer.sampling_logits(found, mask)
            expected = (logits[:, step, 20:].topk(3).indices + 20).sort().values
            assert kept.isfinite().nonzero()[:, 1].view(2, 3).tolist() == expected.tolist()
            assert torch.equal(policy.next_logits(CONTEXT, TOKENS[:, :step], mask), kept)

    def test_there_is_nothing_to_draw_from_before_the_first_logits(self, kind: str) -> None:
        writer = build(kind).writer(CONTEXT)
        with pytest.raises(RunError, match="call next_logits first"):
            writer.sampling_logits(torch.zeros(2, 51), torch.ones(2, 51, dtype=torch.bool))
