"""Run by the kill tests: sessions of one PPO run, each killed at its point and resumed by the next, the last one not.

Usage: ppo_kill_driver.py FOLDER MODE POINT ...   MODE is algorithm.mode; a point is rollout, update, checkpoint, ahead
Writes FOLDER/answered, the texts that the target has answered. Libraries are imported once; sessions are forks.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlprompt.algorithms.rllib.ahead import AheadRollouts
from rlprompt.algorithms.rllib.learner import PromptLearner
from rlprompt.config import RunConfig, parse_config
from rlprompt.runs import checkpoints, train
from rlprompt.targets.planted import PlantedTarget


def make_config(folder: Path, mode: str = "sync") -> RunConfig:
    """A few iterations of 8 prompts of three tokens on 4 train examples."""
    return parse_config(
        {
            "name": "ppo",
            "seed": 3,
            "task": {"name": "planted", "shots": 2, "dev_shots": 2},
            "target": {"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 20, "noise": 0.5}},
            "policy": {"kind": "categorical", "model": "planted-20"},
            "env": {"prompt_length": 3, "num_envs": 8, "action": "sequence"},
            "stabilisers": [{"name": "running-normalisation"}],
            "algorithm": {"name": "ppo", "lr": 0.05, "iterations": 8 if mode == "async" else 5, "mode": mode},
            "selection": {"top": 2},
            "run": {"dir": str(folder), "checkpoint_every": 1, "tensorboard": False},
        }
    )


def killing(function: Callable[..., Any], after: int) -> Callable[..., Any]:
    """The function, but this process is killed where it is called for the time after so many."""
    calls = iter(range(after))

    def call(*arguments: Any, **keywords: Any) -> Any:
        if next(calls, None) is None:
            for thread in threading.enumerate():  # what the target has answered is written down by then
                if thread.name.startswith("iteration-") and thread is not threading.current_thread():
                    thread.join()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)

    return call


def arm(point: str | None) -> None:
    """Sets the point at which this session is killed, in its second iteration."""
    if point == "rollout":
        PlantedTarget.run = killing(PlantedTarget.run, 1)  # type: ignore[method-assign]
    elif point == "update":
        PromptLearner.postprocess_gradients = killing(PromptLearner.postprocess_gradients, 3)
    elif point == "checkpoint":
        checkpoints.replace_folder = killing(checkpoints.replace_folder, 1)  # type: ignore[attr-defined]
    elif point == "ahead":  # scored, and not learnt from
        AheadRollouts.prepare = killing(AheadRollouts.prepare, 2)  # type: ignore[method-assign]


def session(folder: Path, mode: str, point: str | None) -> None:
    """One process: a new run, or the one that is there."""
    run = PlantedTarget.run

    def written_down(target: PlantedTarget, requests: Any) -> Any:
        outputs = run(target, requests)
        with (folder / "answered").open("a") as file:
            file.writelines(repr(request.rendered.text) + "\n" for request in requests)
        return outputs

    PlantedTarget.run = written_down  # type: ignore[method-assign]
    arm(point)
    before = sorted((folder / "ppo").glob("*"))
    train(make_config(folder, mode), resume=before[0] if before else None, progress=False)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    for point in (*sys.argv[3:], None):
        child = os.fork()
        if child == 0:
            session(folder, sys.argv[2], point)
            sys.stdout.flush()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != (0 if point is None else -signal.SIGKILL):
            raise SystemExit(f"the session to be killed at {point} ended with {code}")


if __name__ == "__main__":
    main()
