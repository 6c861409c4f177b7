"""`sweep`: many runs over the values of some keys, with one budget, and the best of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import yaml

from rlprompt.config import RunConfig
from rlprompt.errors import ConfigError, RunError
from rlprompt.overrides import apply_overrides
from rlprompt.runs.folder import (
    check_writable,
    new_folder,
    only_writer,
    read_json,
    remove,
    utc_stamp,
    write_bytes,
    write_json,
)
from rlprompt.runs.result import EXIT_CODES
from rlprompt.runs.signals import StopSignals
from rlprompt.sweeps.budget import read_grants
from rlprompt.sweeps.plan import check_trials, draw_trials
from rlprompt.sweeps.report import SweepDisplay, TrialRow, best_row, read_row, table
from rlprompt.sweeps.settings import MAY_CHANGE, SweepConfig, parse_sweep
from rlprompt.sweeps.trials import Job, SweepFolder
from rlprompt.types import Json

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_SAVES = 30.0


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended.

    Attributes:
        folder: the sweep's folder; its trials are run folders in it.
        metric: "dev_accuracy" or "dev_reward".
        rows: one per trial.
        best: the best trial on dev; None where none was scored there.
        stop_reason: "done"; "budget" or "wall" where the sweep's own limits ended it; "failures" where a trial failed;
            "stop-file", "interrupt" or "terminated".
        granted_calls: what the trials have of the budget, together: used, and not returned.
        seconds: wall-clock time of all sessions.
    """

    folder: Path
    metric: str
    rows: tuple[TrialRow, ...]
    best: TrialRow | None
    stop_reason: str
    granted_calls: int
    seconds: float

    @property
    def exit_code(self) -> int:
        """What the command line exits with."""
        return EXIT_CODES.get(self.stop_reason, 1)

    def table(self) -> list[list[str]]:
        """Returns the cells of a table for people, header first."""
        return table(self.rows, self.best)

    def __str__(self) -> str:
        """Says it in a few lines."""
        failures = [f"{row.trial} failed: {row.failure}" for row in self.rows if row.failure is not None]
        best = "no trial was scored on dev"
        if self.best is not None:
            best = f"best trial {self.best.trial} on {self.metric}: rlprompt eval {self.folder / self.best.trial}"
        ended = sum(row.is_finished for row in self.rows)
        return "\n".join(
            [
                *failures,
                best,
                f"{ended} of {len(self.rows)} trials finished, {self.granted_calls:,} calls of the budget, "
                f"{self.seconds:.0f} s; stopped: {self.stop_reason}",
                f"sweep folder: {self.folder}",
            ]
        )

    def to_json(self) -> Json:
        """Returns what `sweep.json` holds: no paths."""
        return {
            "metric": self.metric,
            "best": None if self.best is None else self.best.trial,
            "stop_reason": self.stop_reason,
            "exit_code": self.exit_code,
            "granted_calls": self.granted_calls,
            "seconds": self.seconds,
            "trials": [row.to_json() for row in self.rows],
        }


def sweep(
    settings: SweepConfig | None = None,
    *,
    resume: str | Path | None = None,
    changes: Sequence[str] = (),
    progress: bool = True,
    allow_modules: Sequence[str] = (),
    search_path: str | Path | None = None,
) -> SweepResult:
    """Runs the trials of a sweep, and finds the best one on dev.

    In the main thread, Ctrl-C and SIGTERM stop the trials after the iteration in progress, a second one at once.

    Args:
        settings: of the sweep; None takes those of the resumed one.
        resume: the folder of a sweep to go on with: its finished trials are left alone, the others go on from their
            checkpoints.
        changes: `KEY=VALUE` of what a resumed sweep may have other values of, where `settings` is None.
        progress: whether to show progress on standard error.
        allow_modules: modules that names of the form my_module:my_name may come from.
        search_path: the folder of the user's configuration; modules beside it are allowed too.

    Raises:
        ConfigError: a trial's configuration is not valid, or the sweep is not the resumed one. Nothing was trained.
        RunError: the sweep's folder cannot be written or read.
    """
    saved = None if resume is None else load_saved(SweepFolder(Path(resume).resolve()), changes)
    if settings is None:
        if saved is None:
            raise ConfigError("a sweep needs its settings, or a folder to resume")
        settings = saved.settings
    base, trials = draw_trials(settings)
    settings = settings.model_copy(update={"base": base.model_dump(mode="json")})
    if saved is not None:
        trials = _continued(saved, settings, trials)
    configs = check_trials(base, settings, trials)
    folder = _new_folder(base, settings) if saved is None else saved.folder
    search_path = None if search_path is None else Path(search_path).resolve()
    dumped = tuple(config.model_dump(mode="json") for config in configs)
    job = Job(folder, dumped, tuple(allow_modules), search_path, Path.cwd())
    with only_writer(folder.root):
        write_bytes(folder.settings, _dump(settings).encode())
        return _Session(job, settings, base, trials, 0.0 if saved is None else saved.seconds).run(progress)


@dataclass(frozen=True)
class SavedSweep:
    """A sweep's folder, read."""

    folder: SweepFolder
    settings: SweepConfig
    trials: list[Json]
    """The parameters of each."""
    seconds: float


def load_saved(folder: SweepFolder, changes: Sequence[str] = ()) -> SavedSweep:
    """Reads the folder of a sweep, with some settings changed.

    Raises:
        RunError: no such folder, or a damaged one.
        ConfigError: a change of what may not change.
    """
    if not folder.settings.is_file() or not folder.state.is_file():
        raise RunError(f"{folder.root} is no sweep: it has no sweep.yaml and sweep.json; give the folder of a sweep")
    data = yaml.safe_load(folder.settings.read_text(encoding="utf-8"))
    changed = apply_overrides(data, list(changes))
    for key in changed:
        if changed[key] != data.get(key) and key in SweepConfig.model_fields and key not in MAY_CHANGE:
            raise ConfigError(f"cannot resume with another {key}; only {', '.join(MAY_CHANGE)} may change")
    state = read_json(folder.state, "the sweep")
    try:
        trials, seconds = [row["parameters"] for row in state["trials"]], float(state["seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder.state} is damaged: {error!r}") from error
    if not folder.budget.exists() and any(folder.trial(number).config.exists() for number in range(len(trials))):
        raise RunError(f"{folder.budget} is missing, and without it nobody knows what the sweep has spent; put it back")
    return SavedSweep(folder, parse_sweep(changed, source=str(folder.settings)), trials, seconds)


def _continued(saved: SavedSweep, settings: SweepConfig, trials: list[Json]) -> list[Json]:
    """Returns the trials of a resumed sweep: those that it has, as they were drawn, and further draws behind them.

    Raises:
        ConfigError: the settings are those of another sweep.
    """
    before, now = saved.settings.model_dump(mode="json"), settings.model_dump(mode="json")
    for key in before:
        if key not in MAY_CHANGE and before[key] != now[key]:
            raise ConfigError(
                f"cannot resume: {key} is not what {saved.folder.root} was started with; only "
                f"{', '.join(MAY_CHANGE)} may change"
            )
    if len(trials) < len(saved.trials):
        raise ConfigError(f"cannot resume: the sweep has {len(saved.trials)} trials already; samples may only grow")
    return [*saved.trials, *trials[len(saved.trials) :]]


def _new_folder(base: RunConfig, settings: SweepConfig) -> SweepFolder:
    name = settings.name if settings.name is not None else f"{base.name}-sweep"
    parent = check_writable(base.model_copy(update={"name": name})).parent
    return SweepFolder(new_folder(parent.resolve(), f"{name}-{utc_stamp()}"))


def _dump(settings: SweepConfig) -> str:
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Session:
    """One session of a sweep; the watch of its trials."""

    def __init__(
        self, job: Job, settings: SweepConfig, base: RunConfig, trials: Sequence[Json], seconds_before: float
    ) -> None:
        self._job, self._settings, self._base, self._trials = job, settings, base, trials
        by = base.selection.by
        self._metric = settings.metric if settings.metric is not None else f"dev_{by}"
        self._seconds_before, self._started = seconds_before, time.monotonic()
        self._failures: dict[int, tuple[str, int]] = {}
        self._signals = StopSignals()
        self._display: SweepDisplay | None = None
        self._wall = False
        self._saved = 0.0
        self._rows = [self._read(number) for number in range(len(trials))]

    def run(self, progress: bool) -> SweepResult:
        """Runs what is not finished."""
        folder = self._job.folder
        remove(folder.stop)
        todo = [number for number, row in enumerate(self._rows) if not row.is_finished]
        self._save("running")
        if progress:
            self._display = SweepDisplay(folder)
        with ExitStack() as stack:
            if todo:
                from rlprompt.sweeps.tuning import join_for

                join_for(self._settings, self._base.ray.address)
                stack.enter_context(self._signals)
                if self._display is not None:
                    stack.callback(self._display.stop)
                    self._display.start()
                self._work(todo)
                self._show()
        self._rows = [self._read(number) for number in range(len(self._trials))]
        result = self._save(self._reason())
        self._refuse_hopeless()
        return result

    def step(self) -> None:
        """Passes a signal, or the end of the time, on to the trials, and shows how they go."""
        self._signals.hold()
        limit, stop = self._settings.budget.max_wall_s, self._job.folder.stop
        self._wall = self._wall or (limit is not None and self._seconds() >= limit)
        if (self._signals.reason is not None or self._wall) and not stop.exists():
            # At the end of the time a trial still chooses on dev, as a run does; after Ctrl-C that can wait.
            write_bytes(stop, (self._signals.reason or "stop-file").encode())
        if time.monotonic() - self._saved >= _SECONDS_BETWEEN_SAVES:
            self._save("running")  # so that a killed sweep knows how much of its time is gone
        if self._display is not None and self._display.is_due():
            self._show()

    def ended(self, number: int, failure: str | None, exit_code: int) -> None:
        """Takes in what came of a trial."""
        if failure is not None:
            self._failures[number] = (failure, exit_code)
            logger.warning("trial %d failed: %s", number, failure)
        self._rows[number] = self._read(number)
        self._save("running")

    def _work(self, todo: Sequence[int]) -> None:
        from rlprompt.sweeps.tuning import run_with_tune

        try:
            run_with_tune(self._job, todo, self._settings, self)
        except KeyboardInterrupt:  # the second Ctrl-C
            import ray

            ray.shutdown()  # and its processes with it: what they have not saved is in their journals

    def _read(self, number: int) -> TrialRow:
        folder = self._job.folder
        failure = self._failures.get(number, (None, 0))[0]
        return read_row(folder, number, self._trials[number], read_grants(folder.budget), failure)

    def _reason(self) -> str:
        if self._signals.reason is not None:
            return self._signals.reason
        if self._wall and not all(row.is_finished for row in self._rows):
            return "wall"
        if self._job.folder.stop.exists():
            return "stop-file"
        if any(row.status in ("error", "failures", "unfinished") for row in self._rows):
            return "failures"
        return "budget" if any(row.budget_ended for row in self._rows) else "done"

    def _refuse_hopeless(self) -> None:
        """Says what is wrong where no trial could begin.

        Raises:
            ConfigError: every trial's configuration was refused, or the budget is too small for any.
        """
        if len(self._failures) == len(self._rows) and all(code == 2 for _, code in self._failures.values()):
            number, (message, _) = min(self._failures.items())
            raise ConfigError(f"{self._rows[number].trial}: {message}")
        if all(row.budget_ended and not row.target_calls for row in self._rows):
            raise ConfigError(
                "the budget of the sweep is too small for one iteration and the choice on dev of any trial; raise "
                "budget.max_target_calls, or lower env.num_envs, env.examples_per_step or selection.top"
            )

    def _result(self, reason: str) -> SweepResult:
        grants = read_grants(self._job.folder.budget)
        return SweepResult(
            folder=self._job.folder.root,
            metric=self._metric,
            rows=tuple(self._rows),
            best=best_row(self._rows, self._metric),
            stop_reason=reason,
            granted_calls=sum(grant.granted[0] for grant in grants.values()),
            seconds=self._seconds(),
        )

    def _save(self, reason: str) -> SweepResult:
        result, self._saved = self._result(reason), time.monotonic()
        write_json(self._job.folder.state, result.to_json())
        return result

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _show(self) -> None:
        if self._display is None:
            return
        for number, row in enumerate(self._rows):
            if row.status == "waiting" and self._job.folder.trial(number).config.exists():
                self._rows[number] = self._read(number)
        result = self._result("running")
        limit = self._settings.budget.max_target_calls
        left = "" if limit is None else f"{limit - result.granted_calls:,} calls left"
        self._display.update(self._rows, result.best, left)
