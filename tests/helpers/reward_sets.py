"""Sets of rewards, and texts to run them on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlprompt.config import RewardConfig
from rlprompt.rewards import Component, RewardResult, RewardSet
from rlprompt.types import Failure, TargetOutput

NAN = math.nan


def make_set(*rewards: Callable[..., Any], weights: Sequence[float] = (), timeout: float = 5.0) -> RewardSet:
    return RewardSet(
        [
            Component(f"r{index}", reward, weights[index] if weights else 1.0, timeout_seconds=timeout)
            for index, reward in enumerate(rewards)
        ]
    )


def run(rewards: RewardSet, texts: Sequence[str | None] = ("a", "b", "c"), **columns: list[Any]) -> RewardResult:
    """Runs the rewards on texts; None stands for a failed target call."""
    failed = TargetOutput(failure=Failure("target", "timeout", "too slow"))
    return rewards(
        prompts=["context"] * len(texts),
        completions=[f"prompt {index}" for index in range(len(texts))],
        outputs=[failed if text is None else TargetOutput(text=text) for text in texts],
        references=["a"] * len(texts),
        columns={"input": [f"input {index}" for index in range(len(texts))], **columns},
    )


def fixed(*values: Any) -> Callable[..., Any]:
    def reward(*, outputs: list[TargetOutput], **columns: list[Any]) -> Any:
        return list(values)

    return reward


def assert_values(got: Any, expected: Sequence[float]) -> None:
    np.testing.assert_array_equal(got, np.array(expected))


def module(folder: Path, name: str, text: str) -> Path:
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


def load(folder: Path, name: str, **kwargs: Any) -> RewardSet:
    return RewardSet.from_config([RewardConfig(name=name, kwargs=kwargs)], search_path=folder)
