"""The closed form of KL-regularised training against numbers computed by hand."""

import numpy as np
import pytest
import torch

from rlprompt.config import PolicyConfig
from rlprompt.errors import ConfigError
from rlprompt.evaluation.closed_form import (
    all_prompts,
    optimal_probabilities,
    prompt_log_probabilities,
    total_variation,
)
from rlprompt.policies import build_policy

MASK = np.array([True, True, False, True])  # tokens 0 and 1, and 3 as EOS


def test_all_prompts_of_fixed_length_are_listed_in_order() -> None:
    words = np.array([True, False, True])
    assert all_prompts(words, 2).tolist() == [[0, 0], [0, 2], [2, 0], [2, 2]]


def test_prompts_that_end_early_are_padded_and_never_empty() -> None:
    # After one word: EOS, or one of two words. 2 * (1 + 2) = 6 prompts.
    assert all_prompts(MASK, 2, eos_id=3).tolist() == [[0, 0], [0, 1], [0, 3], [1, 0], [1, 1], [1, 3]]
    # Three tokens: a word then EOS (2), two words then EOS (4), three words (8).
    longer = all_prompts(MASK, 3, eos_id=3)
    assert len(longer) == 14
    assert [0, 3, -1] in longer.tolist()


def test_a_token_is_not_repeated_where_that_is_forbidden() -> None:
    assert all_prompts(np.ones(3, dtype=bool), 2, no_repeat=True).tolist() == [
        [0, 1],
        [0, 2],
        [1, 0],
        [1, 2],
        [2, 0],
        [2, 1],
    ]


def test_too_many_prompts_are_refused() -> None:
    with pytest.raises(ConfigError, match="more than 26 prompts"):
        all_prompts(np.ones(3, dtype=bool), 3, limit=26)
    assert len(all_prompts(np.ones(3, dtype=bool), 3, limit=27)) == 27


def test_log_probabilities_are_those_of_the_table() -> None:
    # Position 0: odds 1 : 3 of tokens 0 and 1. Position 1 with EOS: odds 1 : 1 : 2 of tokens 0, 1 and EOS (2).
    policy = build_policy(PolicyConfig(kind="categorical", model="planted-2"), prompt_length=2, seed=0)
    with torch.no_grad():
        policy.head.table.copy_(torch.log(torch.tensor([[1.0, 3.0, 9.0], [1.0, 1.0, 2.0]])))
    mask = np.ones(3, dtype=bool)
    prompts = all_prompts(mask, 2, eos_id=2)
    assert prompts.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    probabilities = np.exp(prompt_log_probabilities(policy, [2], prompts, mask, eos_id=2))
    np.testing.assert_allclose(probabilities, [1 / 16, 1 / 16, 2 / 16, 3 / 16, 3 / 16, 6 / 16], rtol=1e-6)


def test_the_reference_is_the_policy_that_training_began_with() -> None:
    policy = build_policy(PolicyConfig(kind="categorical", model="planted-2"), prompt_length=1, seed=0)
    with torch.no_grad():
        policy.head.table[0, 0] = 5.0
    mask = np.array([True, True, False])
    prompts = all_prompts(mask, 1)
    start = prompt_log_probabilities(policy, [2], prompts, mask, reference=True)
    np.testing.assert_allclose(np.exp(start), [0.5, 0.5])
    assert np.exp(prompt_log_probabilities(policy, [2], prompts, mask))[0] > 0.99


@pytest.mark.parametrize("kind", ["lm-adaptor", "causal-lm"])
def test_probabilities_of_all_prompts_add_up_to_one(kind: str) -> None:
    policy = build_policy(PolicyConfig(kind=kind, model="planted-4"), prompt_length=3, seed=0)
    mask = np.ones(5, dtype=bool)
    prompts = all_prompts(mask, 3, eos_id=4, no_repeat=True)
    logp = prompt_log_probabilities(policy, [4, 1], prompts, mask, eos_id=4, no_repeat=True)
    assert np.exp(logp).sum() == pytest.approx(1.0, abs=1e-6)


def test_the_optimum_weighs_the_reference_by_the_exponential_of_the_reward() -> None:
    # reference (1/2, 1/4, 1/4), rewards (0, 1, 2) and lambda = 1 / ln 2: weights 1/2, 1/4 * 2, 1/4 * 4 -> 1 : 1 : 2
    reference = np.log([0.5, 0.25, 0.25])
    optimum = optimal_probabilities(reference, np.array([0.0, 1.0, 2.0]), 1 / np.log(2))
    np.testing.assert_allclose(optimum, [0.25, 0.25, 0.5])


def test_the_optimum_has_the_largest_reward_less_kl() -> None:
    rewards, reference, coefficient = np.array([0.0, 1.0, 0.3]), np.array([0.2, 0.3, 0.5]), 0.4

    def objective(policy: np.ndarray) -> float:
        return float(policy @ rewards - coefficient * (policy @ np.log(policy / reference)))

    optimum = optimal_probabilities(np.log(reference), rewards, coefficient)
    # At the optimum the objective is lambda log sum(reference exp(reward / lambda)).
    assert objective(optimum) == pytest.approx(coefficient * np.log(reference @ np.exp(rewards / coefficient)))
    for moved in ([0.01, -0.01, 0.0], [0.0, 0.01, -0.01], [-0.01, 0.0, 0.01]):
        assert objective(optimum + np.array(moved)) < objective(optimum)


def test_without_kl_there_is_no_such_distribution() -> None:
    with pytest.raises(ConfigError, match="must be above 0, got 0"):
        optimal_probabilities(np.zeros(2), np.zeros(2), 0.0)


def test_total_variation_is_half_the_summed_difference() -> None:
    assert total_variation(np.array([1.0, 0.0, 0.0]), np.array([0.5, 0.25, 0.25])) == 0.5
    assert total_variation(np.array([0.2, 0.8]), np.array([0.2, 0.8])) == 0.0
