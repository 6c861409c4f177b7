"""One trial of a sweep: an ordinary run, in a folder of the sweep's, that goes on where it has begun before."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass
from pathlib import Path

from rlprompt.config import parse_config
from rlprompt.errors import BudgetExceededError, RLPromptError
from rlprompt.runs.folder import RunFolder, remove, write_bytes
from rlprompt.runs.signals import StopFile
from rlprompt.runs.training import train
from rlprompt.runs.trial import Trial
from rlprompt.sweeps.budget import Meter, Share
from rlprompt.sweeps.plan import trial_name
from rlprompt.types import Json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepFolder:
    """The paths of one sweep."""

    root: Path

    @property
    def settings(self) -> Path:
        """The sweep file, with its base inside."""
        return self.root / "sweep.yaml"

    @property
    def state(self) -> Path:
        """The trials, their parameters and what came of them."""
        return self.root / "sweep.json"

    @property
    def budget(self) -> Path:
        """What each trial has been granted."""
        return self.root / "budget.json"

    @property
    def stop(self) -> Path:
        """A file that stops all trials after the iteration in progress; the user may make it."""
        return self.root / "STOP"

    @property
    def tune(self) -> Path:
        """What Tune writes while it works."""
        return self.root / ".tmp-tune"

    def trial(self, number: int) -> RunFolder:
        """The run folder of a trial."""
        return RunFolder(self.root / trial_name(number))

    def error(self, number: int) -> Path:
        """The traceback of a trial that ended with a bug."""
        return self.root / f"{trial_name(number)}.error.txt"


@dataclass(frozen=True)
class Job:
    """What a process has to know to run any trial of a sweep."""

    folder: SweepFolder
    configs: tuple[Json, ...]
    allow_modules: tuple[str, ...]
    search_path: Path | None
    directory: Path
    """Where the user stands."""


def run_trial(job: Job, number: int, meter: Meter) -> tuple[str | None, int]:
    """Runs a trial, or goes on with it; returns why it failed, if it did, and the exit code of the failure.

    Nothing happens where the sweep is told to stop already.
    """
    stop = StopFile(job.folder.stop)
    stop.hold()
    if stop.reason is not None:
        return None, 0
    meter.open(trial_name(number))
    trial = Trial(job.folder.trial(number), Share(meter, trial_name(number)), stop)
    remove(job.folder.error(number))
    try:
        train(
            parse_config(job.configs[number], source=trial_name(number)),
            progress=False,
            allow_modules=job.allow_modules,
            search_path=job.search_path,
            trial=trial,
        )
    except RLPromptError as error:
        if isinstance(error.__cause__, BudgetExceededError):  # already the check of its rewards was too much
            return None, 0
        return str(error), error.exit_code
    except Exception as error:  # a bug, perhaps in the user's own reward: the other trials go on
        logger.exception("%s failed", trial_name(number))
        write_bytes(job.folder.error(number), traceback.format_exc().encode())
        return f"{type(error).__name__}: {error} (see {job.folder.error(number).name})", 1
    return None, 0
