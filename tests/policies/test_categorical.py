"""The table policy."""

import copy
import math

import pytest
import torch

from rlprompt.config import PolicyConfig
from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.policies import PromptPolicy, build_policy


def build(**kwargs: object) -> PromptPolicy:
    config = PolicyConfig(kind="categorical", model="planted-50", kwargs=kwargs)
    return build_policy(config, prompt_length=3, seed=0)


def test_it_starts_uniform_with_value_zero_and_ignores_the_context() -> None:
    policy = build()
    tokens = torch.tensor([[4, 5, 6], [7, -1, -1]])
    features = policy.features(torch.tensor([[50], [1]]), tokens)
    assert policy.vocabulary_size == 51
    assert features.shape == (2, 3, 1)
    assert policy.logits(features).shape == (2, 3, 51)
    assert torch.log_softmax(policy.logits(features), -1)[1, 2, 3].item() == pytest.approx(-math.log(51))
    assert policy.values(features).tolist() == [[0.0] * 3] * 2
    assert torch.equal(features, policy.features(torch.tensor([[2], [3]]), tokens))


def test_features_of_the_next_token_are_those_of_teacher_forcing() -> None:
    policy = build()
    context, tokens = torch.tensor([[50], [50]]), torch.tensor([[4, 5, 6], [7, 8, 9]])
    features = policy.features(context, tokens)
    for step in range(3):
        assert torch.equal(policy.next_features(context, tokens[:, :step]), features[:, step])


def test_each_position_has_its_own_row_and_gradient() -> None:
    policy = build()
    features = policy.features(torch.tensor([[50]]), torch.tensor([[1, 2, 3]]))
    policy.logits(features)[0, 1, 7].backward()
    gradient = dict(policy.head.named_parameters())["table"].grad
    assert gradient is not None
    assert gradient.nonzero().tolist() == [[1, 7]]


def test_another_head_may_stand_in() -> None:
    policy = build()
    other = copy.deepcopy(policy.head)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(2.0)
    features = policy.features(torch.tensor([[50]]), torch.tensor([[1, 2, 3]]))
    assert policy.logits(features, head=other)[0, 0, 0].item() == 2.0
    assert policy.values(features, head=other)[0, 0].item() == 2.0
    assert policy.logits(features)[0, 0, 0].item() == 0.0


def test_temperature_and_bias_shape_the_logits_and_top_k_only_the_samples() -> None:
    policy = build(temperature=2.0, logit_bias=-10.0, top_k=1)
    with torch.no_grad():
        dict(policy.head.named_parameters())["table"][0, 4] = 6.0
    features = policy.features(torch.tensor([[50]]), torch.tensor([[1, 2, 3]]))[:, 0]
    logits = policy.logits(features)
    assert logits[0, :6].tolist() == [-10.0, -10.0, -10.0, -10.0, -7.0, -10.0]  # 6 / 2 - 10
    sampled = policy.sampling_logits(features, logits, torch.ones(1, 51, dtype=torch.bool))
    assert torch.isfinite(sampled).nonzero().tolist() == [[0, 4]]


def test_a_copy_has_its_own_head_and_the_same_tokenizer() -> None:
    policy = build()
    twin = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in twin.head.parameters():
            parameter.add_(1.0)
    assert twin.tokenizer is policy.tokenizer
    assert all((value == 0).all() for value in policy.trainable_state().values())


def test_an_unknown_argument_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown key 'top_q'; did you mean 'top_p' or 'top_k'"):
        build(top_q=0.5)


def test_an_unknown_kind_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown polic\w+ .categoric.; did you mean .categorical."):
        build_policy(PolicyConfig(kind="categoric"), prompt_length=3, seed=0)


@pytest.mark.parametrize("length", [0, 5000])
def test_a_length_out_of_range_is_refused(length: int) -> None:
    config = PolicyConfig(kind="categorical", model="planted-50")
    with pytest.raises(ConfigError, match=f"prompt_length must be from 1 to 4096, got {length}"):
        build_policy(config, prompt_length=length, seed=0)
