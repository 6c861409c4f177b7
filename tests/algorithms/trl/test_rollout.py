"""Rewrites of single inputs: groups of one input, pairs scored in one call, contexts of different lengths."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlprompt.algorithms.trl.policy_gradient import train
from rlprompt.algorithms.trl.rloo import make
from rlprompt.algorithms.trl.rollout import Rollout
from rlprompt.config import RunConfig, parse_config
from rlprompt.errors import ConfigError
from rlprompt.policies import build_policy
from rlprompt.registry import resolve
from rlprompt.scoring import build_scorer


def make_config(**sections: Any) -> RunConfig:
    """Two inputs a step, three rewrites of each."""
    data: dict[str, Any] = {
        "seed": 5,
        "task": {"name": "planted", "shots": 4, "dev_shots": 4},
        "target": {"name": "planted:separable", "kwargs": {"length": 2, "vocabulary": 20}},
        "policy": {"kind": "causal-lm", "model": "planted-20", "kwargs": {"lora": {"r": 2, "targets": ["c_attn"]}}},
        "env": {
            "kind": "rewrite",
            "level": "instance",
            "meta_prompt": "w01 {input} w02",
            "chat": False,
            "prompt_length": 3,
            "num_envs": 6,
            "rewrites_per_input": 3,
        },
        "algorithm": {"name": "rloo", "lr": 0.05, "iterations": 2},
    }
    for key, value in sections.items():
        data[key] = {**data[key], **value}
    return parse_config(data)


class Run:
    """The part of a run that the rollout reads, on the planted target."""

    folder = Path()

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.scorer = build_scorer(config)
        self.policy = build_policy(config.policy, prompt_length=config.env.prompt_length, seed=config.seed)
        self.calls: list[int] = []
        self.ended: list[dict[str, Any]] = []

    def restored_state(self) -> None:
        return None

    def stop_reason(self) -> None:
        return None

    def end_iteration(self, iteration: int, **values: Any) -> None:
        self.ended.append(values)


def test_rewrites_of_one_input_stand_side_by_side_and_are_scored_on_it() -> None:
    run = Run(make_config())
    rollout = Rollout(run)  # type: ignore[arg-type]
    assert rollout.group_size == 3
    read, written = rollout.write(0)
    assert read[0] == read[1] == read[2]
    assert read[3] == read[4] == read[5]
    assert rollout.readings.inputs is not None
    drawn = run.scorer.draw_inputs(0, 2)
    assert [example.id for example in rollout.readings.inputs] == [drawn[0].id] * 3 + [drawn[1].id] * 3
    assert read[0][0] == 1
    assert read[0][-1] == 2
    rewards = rollout.score(0, written)
    assert rollout.scores.row_example_ids == tuple(example.id for example in rollout.readings.inputs)
    assert rewards == rollout.scores.mean_rewards.tolist()
    pairs = set(zip(rollout.scores.prompts, rollout.scores.row_example_ids, strict=True))
    assert run.scorer.ledger.snapshot()["used"]["calls"] == len(pairs)


def test_the_baseline_is_that_of_the_input() -> None:
    run = Run(make_config())
    trainers = []

    def kept(*args: Any) -> Any:
        trainers.append(make(*args))
        return trainers[0]

    train(run, kept)  # type: ignore[arg-type]
    assert len(run.ended) == 2
    rewards = run.ended[-1]["training_rewards"].reshape(2, 3)
    assert np.ptp(rewards) > 1
    baselines = (rewards.sum(axis=1, keepdims=True) - rewards) / 2  # the mean of the two others for the same input
    advantages = list(trainers[0]._logs["advantages"])
    np.testing.assert_allclose(advantages, (rewards - baselines).ravel(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"turns": 2, "meta_prompt": "{input} {feedback}"}, "set env.turns to 1"),
        ({"step_reward": "difference"}, "env.step_reward to terminal"),
        ({"rewrites_per_input": 1}, "env.rewrites_per_input must be at least 2"),
        ({"meta_prompt": "w01"}, "input"),
    ],
)
def test_what_does_not_fit_is_refused(env: dict[str, Any], message: str) -> None:
    run = Run(make_config(env=env))
    with pytest.raises(ConfigError, match=message):
        train(run, make)  # type: ignore[arg-type]
    assert run.ended == []


@pytest.mark.parametrize("fit", ["rloo", "sft"])
def test_dropout_is_refused(fit: str) -> None:
    lora = {"r": 2, "targets": ["c_attn"], "dropout": 0.1}
    run = Run(make_config(policy={"kwargs": {"lora": lora}}, algorithm={"name": fit}))
    with pytest.raises(ConfigError, match=f"lora.dropout is 0.1, but {fit} trains without dropout"):
        resolve("algorithms", fit)(run)
