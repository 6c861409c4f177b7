"""A small stateful algorithm and a policy without torch, for the tests of runs: seconds matter here, not learning."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from rlprompt.config import RunConfig, parse_config
from rlprompt.seeding import generator
from rlprompt.types import RunContext

HOOKS: list[Callable[[int, str], None]] = []
"""Called with (iteration, "before" or "after" scoring), to disturb a run in the middle of an iteration."""

VOCABULARY, LENGTH = 10, 2


class TablePolicy:
    """A table of weights (LENGTH, VOCABULARY)."""

    def __init__(self) -> None:
        self.table = np.zeros((LENGTH, VOCABULARY), dtype=np.float32)

    def trainable_state(self) -> dict[str, np.ndarray]:
        return {"table": self.table.copy()}

    def load_trainable_state(self, state: dict[str, np.ndarray]) -> None:
        self.table = np.array(state["table"])

    def save(self, folder: Path, extra: dict[str, Any] | None = None) -> None:
        folder.mkdir(parents=True)
        (folder / "policy.safetensors").write_bytes(safetensors.numpy.save(self.trainable_state()))
        (folder / "policy.json").write_text(json.dumps({"kind": "table", "extra": extra or {}}))


def build_policy(config: Any, **_: Any) -> TablePolicy:
    """Stands in for `rlprompt.policies.build_policy`."""
    return TablePolicy()


def fit(run: RunContext) -> None:
    """REINFORCE with momentum on the table; every draw is keyed by the iteration."""
    policy, scorer, config = run.policy, run.scorer, run.config
    momentum, history = np.zeros((LENGTH, VOCABULARY)), []
    start = 0
    if (restored := run.restored_state()) is not None:
        start, state = restored
        momentum, history = state["momentum"], state["history"]
    for iteration in range(start, config.algorithm.iterations):
        if run.stop_reason() is not None:
            return
        _disturb(iteration, "before")
        weights = np.exp(policy.table.astype(np.float64))
        chances = weights / weights.sum(axis=1, keepdims=True)
        rng = generator(config.seed, "tiny", iteration)
        tokens = np.array([[rng.choice(VOCABULARY, p=row) for row in chances] for _ in range(config.env.num_envs)])
        prompts = [" ".join(f"w{token:02d}" for token in row) for row in tokens]
        scores = scorer.score(prompts, scorer.minibatch(iteration, config.env.examples_per_step))
        rewards = scorer.stabilise(scores)
        for row, reward in zip(tokens, rewards, strict=True):
            momentum[np.arange(LENGTH), row] += reward
        policy.load_trainable_state({"table": policy.table + 0.1 * momentum.astype(np.float32)})
        momentum *= 0.5
        _disturb(iteration, "after")
        history.append(float(rewards.mean()))
        run.end_iteration(
            iteration,
            scores=scores,
            metrics={"reward/training": history[-1], "loss": float("nan"), "time/iteration_s": rng.random()},
            state=functools.partial(dict, momentum=momentum, history=history),
        )


def _disturb(iteration: int, where: str) -> None:
    for hook in HOOKS:
        hook(iteration, where)


def make_config(folder: Path, overrides: tuple[str, ...] | list[str] = ()) -> RunConfig:
    """A run of 7 iterations of 4 prompts on 4 of 8 train examples; dev has 8 examples."""
    data = {
        "name": "tiny",
        "seed": 3,
        "task": {"name": "planted", "shots": 4, "dev_shots": 4},
        "target": {
            "name": "planted:separable",
            "kwargs": {"length": LENGTH, "vocabulary": VOCABULARY, "noise": 0.5, "failure_rate": 0.02},
        },
        "policy": {"kind": "categorical", "model": f"planted-{VOCABULARY}"},
        "env": {"prompt_length": LENGTH, "num_envs": 4, "examples_per_step": 4},
        "stabilisers": [{"name": "running-normalisation"}],
        "algorithm": {"name": "tiny_algorithm:fit", "iterations": 7},
        "selection": {"top": 3, "every": 3},
        "run": {"dir": str(folder), "checkpoint_every": 2, "keep": 2, "tensorboard": False},
    }
    return parse_config(data, list(overrides))
