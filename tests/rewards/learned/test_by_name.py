"""All four learnt rewards, named in a configuration: the check before a run passes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from preference_pairs import count_of, planted_texts, ruled_pairs

from rlprompt.config import PolicyConfig, RewardConfig
from rlprompt.rewards import RewardSet, check_rewards
from rlprompt.tasks.planted import planted_task

PAIRS = ruled_pairs(planted_texts, count_of("w03"), 20)


def features(folder: Path) -> dict[str, Any]:
    from rlprompt.rewards.learned.feature_model import train_feature_model

    train_feature_model(PAIRS, folder)
    return {"model": str(folder)}


def language_model(folder: Path) -> dict[str, Any]:
    from rlprompt.algorithms.trl.reward_model import RewardModelConfig, train_reward_model

    train_reward_model(PAIRS, folder, RewardModelConfig(model="planted-10", device="cpu", dtype="float32"))
    return {"model": str(folder), "device": "cpu"}


def head(folder: Path) -> dict[str, Any]:
    from rlprompt.algorithms.preference_head import train_preference_head
    from rlprompt.policies import build_policy

    config = PolicyConfig(kind="causal-lm", model="planted-10", dtype="float32")
    policy = build_policy(config, prompt_length=4, seed=0)
    policy.save(folder)
    train_preference_head(policy, PAIRS, folder)
    return {"model": str(folder), "device": "cpu"}


def success(folder: Path) -> dict[str, Any]:
    from rlprompt.rewards.learned.success_training import LoggedOutcome, train_success_model

    outcomes = [LoggedOutcome(pair.reading, text, text == pair.chosen) for pair in PAIRS for text in (pair.chosen, "w")]
    train_success_model(outcomes, folder, classifiers=("logistic-0.01",), resamples=2, device="cpu")
    return {"model": str(folder), "device": "cpu"}


@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("feature-model", features),
        ("reward-model", language_model),
        ("preference-head", head),
        ("success-model", success),
    ],
)
def test_the_check_passes_it(name: str, train: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    rewards = RewardSet.from_config([RewardConfig(name=name, kwargs=train(tmp_path))])
    (check,) = check_rewards(rewards, planted_task(), prompt="w03 w04")
    assert check.gold is not None
    assert check.gold == check.wrong == check.empty  # they look at the prompt, not at the answer
