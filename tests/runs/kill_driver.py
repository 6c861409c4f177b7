"""Run by the test of `kill -9`: makes runs of the tiny algorithm and kills each at a different durable operation.

Usage: kill_driver.py FOLDER [--checkpoint-every=N] POINTS. A forked child per point is killed by SIGKILL just before
its n-th write, sync, rename or target call; POINTS "count" makes one whole run and prints how many operations that
has. Each child has a folder of its own, FOLDER/<point>. A point "n+m" resumes after the n-th and is killed again at
the m-th. What the target was asked and answered stands in FOLDER/<point>/answered, one text a line.
"""

from __future__ import annotations

import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import safetensors.numpy
import tiny_algorithm

import rlprompt.scoring
from rlprompt.runs import train
from rlprompt.targets.planted import PlantedTarget

LOADED_BEFORE_FORKING = (pyarrow.parquet, safetensors.numpy, rlprompt.scoring)
STUB = types.ModuleType("rlprompt.policies")
STUB.build_policy = tiny_algorithm.build_policy  # type: ignore[attr-defined]
sys.modules["rlprompt.policies"] = STUB
COUNT = {"done": 0, "kill_at": -1}
OVERRIDES: list[str] = []
ANSWERED: list[Path] = []
"""Where the answered texts are written."""


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        COUNT["done"] += 1
        if COUNT["done"] == COUNT["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)

    return call


def written_down(run: Callable[..., Any]) -> Callable[..., Any]:
    def call(target: Any, requests: Any) -> Any:
        outputs = run(target, requests)
        with ANSWERED[-1].open("a") as file:
            for request, output in zip(requests, outputs, strict=True):
                if output.failure is None:
                    file.write(f"{request.rendered.text!r}\n")
        return outputs

    return call


def work(folder: Path, kill_at: int) -> None:
    COUNT.update(done=0, kill_at=kill_at)
    config = tiny_algorithm.make_config(folder, OVERRIDES)
    folder.mkdir(parents=True, exist_ok=True)
    ANSWERED.append(folder / "answered")
    before = sorted((folder / "tiny").glob("*"))
    train(
        config, resume=before[0] if before else None, progress=False, search_path=Path(tiny_algorithm.__file__).parent
    )


def in_child(folder: Path, kill_at: int) -> int:
    child = os.fork()
    if child == 0:
        work(folder, kill_at)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    folder, points = Path(sys.argv[1]), sys.argv[2:]
    if points[0].startswith("--checkpoint-every="):
        OVERRIDES.append(f"run.checkpoint_every={points.pop(0).partition('=')[2]}")
    os.fsync = counted(lambda _: None)  # a killed process loses nothing that it has written
    os.replace, os.rename = counted(os.replace), counted(os.rename)
    PlantedTarget.run = counted(written_down(PlantedTarget.run))  # type: ignore[method-assign]
    if points == ["count"]:
        work(folder / "count", -1)
        sys.stdout.write(str(COUNT["done"]))
        return
    for point in points:
        codes = [in_child(folder / point, int(kill_at)) for kill_at in point.split("+")]
        if codes[0] != -signal.SIGKILL:
            raise SystemExit(f"point {point} was not killed: {codes}")


if __name__ == "__main__":
    main()
