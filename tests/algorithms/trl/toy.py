"""A run in memory for the tests of the TRL algorithms: rewards come from a table, so that gradients are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlprompt.config import RunConfig, parse_config
from rlprompt.policies import build_policy
from rlprompt.seeding import generator
from rlprompt.types import Example, Failure, FloatArray, Scores, TargetOutput


def make_config(**sections: Any) -> RunConfig:
    """A categorical policy that writes two of three words, eight prompts a step."""
    data: dict[str, Any] = {
        "seed": 3,
        "policy": {"kind": "categorical", "model": "planted-3"},
        "env": {"prompt_length": 2, "num_envs": 8},
        "algorithm": {"name": "rloo", "lr": 0.05, "iterations": 4, "grad_clip": 1000.0},
    }
    for key, value in sections.items():
        data[key] = {**data[key], **value} if isinstance(data.get(key), dict) else value
    return parse_config(data)


class ToyScorer:
    """Scores prompts by a function; calls are counted, nothing is asked."""

    def __init__(self, reward: Callable[[str], float], fails: Callable[[str, int], bool]) -> None:
        self.reward, self.fails = reward, fails
        self.target_seconds = 0.0
        self.calls = 0

    def minibatch(self, iteration: int, size: int | None) -> tuple[Example, ...]:
        return (Example(id="train/0", input="text"),)

    def score(self, prompts: list[str], examples: Any, *, contexts: Any = None, **_: Any) -> Scores:
        failed = np.array([self.fails(prompt, place) for place, prompt in enumerate(prompts)])[:, None]
        rewards = np.where(failed, 0.0, np.array([self.reward(prompt) for prompt in prompts])[:, None])
        failure = Failure("target", "timeout", "no answer")
        self.calls += len(prompts)
        return Scores(
            prompts=tuple(prompts),
            example_ids=("train/0",),
            components={"table": rewards},
            rewards=rewards,
            correct=np.full(rewards.shape, np.nan),
            valid=~failed,
            outputs=tuple((TargetOutput(failure=failure if bad else None),) for bad in failed[:, 0]),
            failures=tuple((int(place), 0, failure) for place in np.flatnonzero(failed[:, 0])),
        )

    def stabilise(self, scores: Scores) -> FloatArray:
        return np.where(scores.valid, scores.rewards, 0.0).sum(axis=1)


class ToyRun:
    """What an algorithm asks of a run, kept in memory."""

    name = "toy"

    def __init__(
        self,
        config: RunConfig,
        reward: Callable[[str], float] = len,
        *,
        fails: Callable[[str, int], bool] = lambda prompt, place: False,
        folder: Path = Path(),
        data: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.folder, self.data = config, folder, data
        self.scorer = ToyScorer(reward, fails)
        self.policy: Any = build_policy(config.policy, prompt_length=config.env.prompt_length, seed=config.seed)
        self.restored: tuple[int, dict[str, Any]] | None = None
        self.iterations: list[dict[str, Any]] = []
        self.stop_after: int | None = None

    def restored_state(self) -> tuple[int, dict[str, Any]] | None:
        return self.restored

    def stop_reason(self) -> str | None:
        return "interrupt" if self.stop_after is not None and len(self.iterations) >= self.stop_after else None

    def end_iteration(self, iteration: int, *, scores: Any, metrics: Any, state: Any, training_rewards: Any) -> None:
        weights = self.policy.trainable_state()
        self.iterations.append(
            {
                "iteration": iteration,
                "scores": scores,
                "metrics": dict(metrics),
                "state": state(),
                "rewards": training_rewards,
                "weights": weights,
            }
        )


def table(seed: int, words: int, spread: float) -> FloatArray:
    """Rewards of `words` one-word prompts, normal with the given standard deviation."""
    return generator(seed, "toy-rewards").normal(0.0, spread, size=words)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    """Writes a JSONL file and returns its path as a configuration has it."""
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def resumed(make: Callable[[], ToyRun], fit: Callable[[Any], None], after: int) -> tuple[ToyRun, ToyRun]:
    """Returns a run that was left alone, and one that was stopped and goes on in new objects from what was saved."""
    from rlprompt.runs.checkpoints import decode, encode

    whole, first, second = make(), make(), make()
    fit(whole)
    first.stop_after = after
    fit(first)
    assert len(first.iterations) == after < len(whole.iterations)
    saved = decode(*encode(first.iterations[-1]["state"]))  # what a checkpoint makes of it
    second.policy.load_trainable_state(first.iterations[-1]["weights"])
    second.restored = (after, saved)
    fit(second)
    second.iterations = first.iterations + second.iterations
    return whole, second


def assert_same(one: ToyRun, other: ToyRun) -> None:
    """Compares events and weights of two runs, times left out."""
    assert [entry["iteration"] for entry in one.iterations] == [entry["iteration"] for entry in other.iterations]
    for first, second in zip(one.iterations, other.iterations, strict=True):
        timeless = [
            {name: value for name, value in entry["metrics"].items() if not name.startswith("time/")}
            for entry in (first, second)
        ]
        assert repr(timeless[0]) == repr(timeless[1])  # NaN is NaN here
        assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
