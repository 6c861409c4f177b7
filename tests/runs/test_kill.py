"""`kill -9` at any point, then `--resume`: the same events, tables and state as a run that was left alone.

And the target is asked nothing that it has answered before the kill.
"""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlprompt.runs import RunResult, load_run, train
from rlprompt.runs.checkpoints import load_checkpoint
from rlprompt.runs.events import comparable
from rlprompt.runs.folder import RunFolder, read_json
from rlprompt.targets.planted import PlantedTarget

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork, no SIGKILL")
HERE = Path(__file__).parent


def drive(folder: Path, *points: str) -> str:
    done = subprocess.run(
        [sys.executable, str(HERE / "kill_driver.py"), str(folder), *points],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def everything(root: Path) -> dict[str, Any]:
    """All that two equal runs must share: events, tables, state, result; NaN as None, so that == works."""
    import pyarrow.parquet as pq

    folder = RunFolder(root)
    saved = load_run(root)
    iteration, newest = folder.checkpoints()[-1]
    state = load_checkpoint(newest)
    result = read_json(folder.result, "the result")
    for values in (state, result):
        values.pop("seconds")
    tables = {
        path.relative_to(root).as_posix(): pq.read_table(path).to_pylist()
        for table in ("prompts", "outputs")
        for _, path in folder.parts(table)
    }
    best = {path.name: path.read_bytes() for path in folder.best.iterdir()}
    return {
        "events": [comparable(event) for event in saved.events()],
        "checkpoints": [number for number, _ in folder.checkpoints()],
        "iteration": iteration,
        "state": plain(state),
        "result": result,
        "tables": tables,
        "best": best,
        "files": sorted(path.relative_to(root).as_posix() for path in root.rglob("*")),
    }


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    return None if isinstance(value, float) and math.isnan(value) else value


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that targets of this process have answered, as the driver writes them down."""
    texts: list[str] = []
    run = PlantedTarget.run

    def counting(target: PlantedTarget, requests: Any) -> Any:
        outputs = run(target, requests)
        pairs = zip(requests, outputs, strict=True)
        texts.extend(repr(request.rendered.text) for request, output in pairs if output.failure is None)
        return outputs

    monkeypatch.setattr(PlantedTarget, "run", counting)
    return texts


def test_t4_a_killed_and_resumed_run_equals_one_that_was_left_alone(
    tmp_path: Path, start: Callable[..., RunResult], answered: list[str]
) -> None:
    whole = everything(start(folder=tmp_path / "whole").folder)
    asked_alone = sorted(answered)
    assert len(set(asked_alone)) == len(asked_alone) > 50
    operations = int(drive(tmp_path / "driven", "count"))
    assert operations > 100
    step = operations // 8
    # The start of a session takes 9 operations: points from 12 on lie in the work itself.
    points = [str(number) for number in range(12, operations, step)] + [f"{operations // 2}+30"]
    drive(tmp_path / "driven", *points)
    for point in points:
        folder = tmp_path / "driven" / point
        (run,) = (folder / "tiny").iterdir()
        answered.clear()
        start(folder=folder, resume=run)
        found = everything(run)
        for name, expected in whole.items():
            assert found[name] == expected, f"killed at {point} of {operations}: {name}"
        # Each pair once, before the kill or after it: nothing was asked twice, nothing was left out.
        asked = (folder / "answered").read_text().splitlines() + answered
        assert sorted(asked) == asked_alone, f"killed at {point} of {operations}"


def test_t4_a_run_killed_between_two_checkpoints_asks_for_nothing_twice(
    tmp_path: Path, start: Callable[..., RunResult], answered: list[str]
) -> None:
    """No checkpoint within the run: all that the session before the kill has paid for stands in the journal only."""
    overrides = ("run.checkpoint_every=100",)
    whole = everything(start(*overrides, folder=tmp_path / "whole").folder)
    asked_alone = sorted(answered)
    drive(tmp_path / "driven", "--checkpoint-every=100", "80")
    (run,) = (tmp_path / "driven" / "80" / "tiny").iterdir()
    assert RunFolder(run).checkpoints() == []
    before = (tmp_path / "driven" / "80" / "answered").read_text().splitlines()
    assert len(before) > 20
    answered.clear()
    start(*overrides, folder=tmp_path / "driven" / "80", resume=run)
    assert sorted(before + answered) == asked_alone
    assert everything(run) == whole


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(
    ("mode", "points"),
    [("sync", ("rollout", "update", "checkpoint")), ("async", ("ahead", "rollout", "update", "checkpoint"))],
)
def test_t4_ppo_killed_in_a_rollout_an_update_and_a_checkpoint_equals_one_that_was_left_alone(
    mode: str, points: tuple[str, ...], tmp_path: Path, answered: list[str]
) -> None:
    """The fixed points of the matrix whose random moments are those of experiments/reliability/kills.py."""
    done = subprocess.run(
        [sys.executable, str(HERE / "ppo_kill_driver.py"), str(tmp_path / "killed"), mode, *points],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("ppo_kill_driver", HERE / "ppo_kill_driver.py")
    assert spec is not None
    assert spec.loader is not None
    driver = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(driver)
    expected = everything(train(driver.make_config(tmp_path / "alone", mode), progress=False).folder)
    (run,) = (tmp_path / "killed" / "ppo").iterdir()
    found = everything(run)
    for name, value in expected.items():
        assert found[name] == value, name
    assert len(expected["best"]) == 2
    assert sorted((tmp_path / "killed" / "answered").read_text().splitlines()) == sorted(answered)


def test_the_comparison_sees_a_difference(tmp_path: Path, start: Callable[..., RunResult]) -> None:
    one = everything(start(folder=tmp_path / "one").folder)
    other = everything(start("seed=4", folder=tmp_path / "other").folder)
    assert one["events"] != other["events"]
    assert one["state"] != other["state"]
