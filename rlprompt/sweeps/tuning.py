"""The trials of a sweep under Ray Tune.

Tune decides when and where a trial runs, and starts it again where its process was lost. It does not resume a sweep:
its own restore reads pickles, which can run code, and knows nothing of a run's checkpoints. What is left to do follows
from the trials' folders, and a trial that begins in a folder where there is a run already goes on with it. Tune's own
files are thrown away.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlprompt.config import BudgetConfig
from rlprompt.ray_session import Workers, join_ray
from rlprompt.runs.folder import remove
from rlprompt.sweeps.budget import Amounts, Meter, SweepBudget
from rlprompt.sweeps.settings import SweepConfig
from rlprompt.sweeps.trials import Job, run_trial

_TUNE = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: trials save, and end as interrupted
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths of a configuration are relative to where the user stands
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints, whatever it is told
}


class Watch(Protocol):
    """Is told how a sweep goes, in the process that started it."""

    def step(self) -> None:
        """Comes several times a second."""

    def ended(self, number: int, failure: str | None, exit_code: int) -> None:
        """A trial has ended; `failure` says why it failed."""


def run_with_tune(job: Job, numbers: Sequence[int], settings: SweepConfig, watch: Watch) -> None:
    """Runs trials under Ray Tune, and returns when all of them have ended."""
    actor = _start_meter(settings.budget, job.folder.budget)
    each = {"cpu": settings.cpus_per_trial, "gpu": settings.gpus_per_trial}
    meter = RemoteMeter(actor, settings.budget.max_cost_usd is not None)
    trainable = tune.with_parameters(_trainable, job=job, meter=meter)
    remove(job.folder.tune)
    try:
        with _environment(_TUNE):
            tune.Tuner(
                tune.with_resources(trainable, each),
                param_space={"trial": tune.grid_search(list(numbers))},
                # Processes are used again: the next trial finds the libraries and the models loaded.
                tune_config=tune.TuneConfig(max_concurrent_trials=settings.max_concurrent, reuse_actors=True),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(job.folder.tune),
                    verbose=0,
                    callbacks=[_Callback(watch)],
                    failure_config=tune.FailureConfig(max_failures=settings.max_trial_restarts),
                ),
            ).fit()
    finally:
        if ray.is_initialized():
            ray.kill(actor)
        remove(job.folder.tune)


def join_for(settings: SweepConfig, address: str) -> None:
    """Joins, or starts, a Ray that has room for the trials; raises ConfigError where there is none."""
    join_ray(
        address,
        [
            Workers(
                settings.max_concurrent,
                settings.cpus_per_trial,
                settings.gpus_per_trial,
                "trials at once",
                fewer="max_concurrent",
                smaller="{}s_per_trial",
            )
        ],
    )


class RemoteMeter:
    """The budget of a sweep, kept by a Ray actor: trials on any machine ask the same one."""

    def __init__(self, actor: Any, limits_cost: bool) -> None:
        self._actor = actor
        self.limits_cost = limits_cost

    def open(self, trial: str) -> None:
        """Begins a session of a trial."""
        self._ask("open", trial)

    def grant(self, trial: str, amounts: Amounts) -> str | None:
        """Raises a trial's grant to at least these totals; returns why not, or None."""
        refusal: str | None = self._ask("grant", trial, amounts)
        return refusal

    def settle(self, trial: str, amounts: Amounts) -> None:
        """Ends a session of a trial, which has used so much in all."""
        self._ask("settle", trial, amounts)

    def _ask(self, method: str, *arguments: Any) -> Any:
        return ray.get(getattr(self._actor, method).remote(*arguments))


def _start_meter(limits: BudgetConfig, path: Path) -> Any:
    """Starts the actor beside the driver, whose disk has the file.

    One that is lost comes back and reads the file; calls are of totals, so that repeating them is harmless.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(SweepBudget).options(**options).remote(limits, path)


def _trainable(config: Mapping[str, Any], job: Job, meter: Meter) -> dict[str, Any]:
    """What Tune calls in a process of its own."""
    if job.directory.is_dir():
        os.chdir(job.directory)
    failure, exit_code = run_trial(job, config["trial"], meter)
    return {"failure": failure, "exit_code": exit_code}


class _Callback(tune.Callback):  # type: ignore[misc]
    """Tells a watch what Tune tells."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __reduce__(self) -> Any:
        """Tune pickles its callbacks for a restore that nobody asks for; a watch cannot be pickled."""
        return tune.Callback, ()

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """Comes several times a second."""
        self._watch.step()

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """The trainable has returned."""
        found = trial.last_result
        self._watch.ended(trial.config["trial"], found.get("failure"), found.get("exit_code", 0))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Its process was lost once too often."""
        lost = f"its process was lost {trial.num_failures} times; resume the sweep to go on"
        self._watch.ended(trial.config["trial"], lost, 1)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
