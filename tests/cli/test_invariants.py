"""T6: what must not change what a run learns, by the command line: losses of each iteration and final weights agree.

Where rows are added up in another order the last bits may differ; everything else is equal to the last bit.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray_sessions import one_ray_with

from rlprompt.algorithms import chunks
from rlprompt.cli.main import main
from rlprompt.policies import load_policy

pytestmark = [pytest.mark.slow, pytest.mark.ray]

LM = {
    "policy": {"kind": "causal-lm", "model": "planted-20", "kwargs": {"lora": {"r": 2, "targets": ["c_attn"]}}},
    "env": {"prompt_length": 3, "num_envs": 8, "eos": True, "action": "sequence"},
    "stabilisers": [{"name": "leave-one-out", "kwargs": {"scale": "std"}}],
    "target": {"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 20}},
    "algorithm": {"name": "ppo", "lr": 1e-3, "iterations": 2, "epochs": 1, "kl_coeff": 0.1, "baseline": "critic"},
}


@dataclass(frozen=True)
class Trajectory:
    """What a run learnt."""

    metrics: list[dict[str, Any]]
    """Of each iteration, times left out."""
    weights: dict[str, torch.Tensor]
    """At the end; they hold all gradients."""


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    with one_ray_with(num_env_runners=2):
        yield


@pytest.fixture
def trajectory(small_config: Callable[..., Path], tmp_path: Path) -> Callable[..., Trajectory]:
    """Trains with overrides."""

    def run(*overrides: str) -> Trajectory:
        before = set((tmp_path / "runs").glob("*/*"))
        assert main(["train", str(small_config(**LM)), "--quiet", *overrides]) == 0
        (folder,) = set((tmp_path / "runs").glob("*/*")) - before
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        metrics = [
            {name: value for name, value in event["metrics"].items() if not name.startswith("time/")}
            for event in events
            if event["event"] == "iteration"
        ]
        return Trajectory(metrics, load_policy(folder).trainable_state())

    return run


def check(found: Trajectory, expected: Trajectory, tolerances: tuple[float, float]) -> None:
    """Compares the metrics of both iterations, each within its tolerance."""
    assert len(found.metrics) == len(expected.metrics) == 2
    for one, other, tolerance in zip(found.metrics, expected.metrics, tolerances, strict=True):
        assert one.keys() == other.keys()
        assert {"loss/policy", "reward/mean"} <= one.keys()
        for name, value in other.items():
            np.testing.assert_allclose(one[name], value, rtol=0, atol=tolerance, err_msg=name)


def check_equal(found: Trajectory, expected: Trajectory) -> None:
    check(found, expected, (0.0, 0.0))
    assert all(torch.equal(found.weights[name], weight) for name, weight in expected.weights.items())


def test_t6_workers_cache_and_runs_of_rows_change_no_loss_and_no_weight(
    trajectory: Callable[..., Trajectory], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RLPROMPT_CACHE_DIR", str(tmp_path / "cache"))
    plain = trajectory()
    check_equal(trajectory("ray.num_env_runners=2"), plain)
    for _ in range(2):  # an empty cache, then a full one
        check_equal(trajectory("target.cache=on"), plain)
    assert (tmp_path / "cache" / "answers.sqlite").is_file()
    other = trajectory("algorithm.entropy_coeff=0.01")
    with pytest.raises(AssertionError):  # the comparison sees what does change something
        check_equal(other, plain)
    monkeypatch.setattr(chunks, "TOKENS_WITH_GRADIENT", 8)  # of one context and at most two prompts
    monkeypatch.setattr(chunks, "TOKENS_WITHOUT_GRADIENT", 8)
    # Adam makes full steps of gradients that are nothing but rounding, so the second iteration is only close.
    check(trajectory(), plain, (1e-5, 1e-3))
