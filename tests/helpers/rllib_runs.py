"""What the tests of the RLlib engine share: configurations of small runs, and what the engine reads of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rlprompt.algorithms.rllib.engine import Engine
from rlprompt.config import RunConfig, parse_config
from rlprompt.policies import build_policy
from rlprompt.runs import load_run, train
from rlprompt.scoring import build_scorer

TOKENS: dict[str, Any] = {
    "seed": 3,
    "task": {"name": "planted", "shots": 4, "dev_shots": 4},
    "target": {"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 50}},
    "policy": {"kind": "lm-adaptor", "model": "planted-50", "kwargs": {"hidden": 16, "top_k": None}},
    "env": {"prompt_length": 3, "num_envs": 8},
    "stabilisers": [{"name": "leave-one-out", "kwargs": {"scale": "std"}}],
    "algorithm": {"name": "ppo", "lr": 1e-2, "iterations": 4, "epochs": 2},
    "run": {"tensorboard": False, "checkpoint_every": 2},
}
"""PPO of an adaptor that writes three tokens."""


def merged(base: dict[str, Any], overrides: dict[str, Any]) -> RunConfig:
    """Returns a configuration with some keys of some sections replaced; lists are replaced whole."""
    sections = dict(base)
    for key, value in overrides.items():
        sections[key] = {**sections[key], **value} if isinstance(sections.get(key), dict) else value
    return parse_config(sections)


class FakeRun:
    """The part of a run that the engine reads."""

    def __init__(self, config: RunConfig, *, search_path: Path | None = None) -> None:
        self.config = config
        self.scorer = build_scorer(config, search_path=search_path)
        self.policy = build_policy(
            config.policy, prompt_length=config.env.prompt_length, seed=config.seed, search_path=search_path
        )
        self.goes_ahead = True

    def begin_ahead(self, num_prompts: int) -> bool:
        """Whether the next iteration may be scored before this one is recorded."""
        return self.goes_ahead

    def end_ahead(self) -> None:
        """Nothing is reported here."""


def found_by(config: RunConfig, folder: Path) -> tuple[Any, ...]:
    """Everything that a run finds: prompts with rewards and ends, what it learns of them, spending, the choice."""
    settings = config.run.model_copy(update={"dir": str(folder)})
    result = train(config.model_copy(update={"run": settings}), progress=False)
    events = [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]
    metrics = [
        {name: value for name, value in event["metrics"].items() if not name.startswith("time/")}
        for event in events
        if "metrics" in event
    ]
    records = [
        repr((record.prompt, record.phase, record.iteration, record.raw_reward, record.training_reward))
        for record in load_run(result.folder).prompts()
    ]
    weights = [path.read_bytes() for path in sorted((result.folder / "best").rglob("*.safetensors"))]
    assert weights
    return records, metrics, result.target_calls, result.stop_reason, result.best_prompt, weights


def weights_after(engine: Engine, iterations: range) -> dict[str, torch.Tensor]:
    """Plays some iterations; returns what was learnt by then."""
    for iteration in iterations:
        engine.iterate(iteration)
    head: dict[str, torch.Tensor] = engine.state()["head"]
    return {name: value.clone() for name, value in head.items()}
