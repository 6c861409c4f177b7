"""One-word prompts, so that the best policy is known: the start's probabilities times exp(reward / lambda)."""

from typing import Any

import numpy as np
import pytest
from toy import ToyRun, make_config, table

from rlprompt.registry import resolve

WEIGHT = 0.5
REWARDS = table(0, 6, 1.0)
BEST = np.exp(REWARDS / WEIGHT) / np.exp(REWARDS / WEIGHT).sum()


def distance(algorithm: dict[str, Any]) -> float:
    """Total variation between the trained policy and the best one; the uniform start is 0.35 away."""
    config = make_config(
        policy={"model": "planted-6"},
        env={"prompt_length": 1, "num_envs": 64},
        algorithm={"lr": 0.15, "iterations": 60, "kl_coeff": WEIGHT, **algorithm},
    )
    run = ToyRun(config, lambda prompt: float(REWARDS[int(prompt[1:])]))
    resolve("algorithms", config.algorithm.name)(run)
    weights = np.exp(run.policy.head.table.detach().numpy()[0, :6].astype(np.float64))
    return 0.5 * float(np.abs(weights / weights.sum() - BEST).sum())


def test_the_start_is_far_from_the_best_policy() -> None:
    assert 0.5 * np.abs(1 / 6 - BEST).sum() == pytest.approx(0.351, abs=1e-3)


@pytest.mark.parametrize("algorithm", [{"name": "rloo"}, {"name": "grpo"}], ids=str)
def test_rloo_and_exact_grpo_reach_it(algorithm: dict[str, Any]) -> None:
    assert distance(algorithm) < 0.05


def test_grpo_with_rewards_scaled_by_their_group_does_not() -> None:
    assert distance({"name": "grpo", "scale_rewards": "group"}) > 0.2
