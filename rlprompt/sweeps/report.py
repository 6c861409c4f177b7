"""How a sweep goes and what came of it: its trials' rows, the best one, and a line of progress."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlprompt.runs.result import read_result
from rlprompt.sweeps.budget import Grant
from rlprompt.sweeps.plan import say_parameters, say_value, trial_name
from rlprompt.sweeps.trials import SweepFolder
from rlprompt.types import Json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

_SECONDS_BETWEEN_LOOKS, _SECONDS_BETWEEN_LINES = 1.0, 10.0
_TAIL_BYTES = 1 << 16
METRICS = ("dev_accuracy", "dev_reward")


@dataclass(frozen=True)
class TrialRow:
    """What came of one trial."""

    trial: str
    """Its folder."""
    parameters: Json
    status: str
    """How its run stopped; "error" where it failed, "unfinished" where it was killed, "waiting" before it began."""
    budget_ended: bool
    """Whether the sweep's budget stopped it."""
    dev_accuracy: float | None = None
    dev_reward: float | None = None
    best_prompt: str | None = None
    iterations: int | None = None
    target_calls: int | None = None
    """What its run has used; None where it was killed before it could tell."""
    unreturned_calls: int = 0
    """Calls that it was granted, and that nobody knows to be used: they count as spent."""
    failure: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to do; a trial that the sweep stopped goes on when the sweep is resumed."""
        return self.status in ("done", "wall") or (self.status == "budget" and not self.budget_ended)

    def to_json(self) -> Json:
        """Returns the row as `sweep.json` holds it."""
        return asdict(self)


def read_row(
    folder: SweepFolder, number: int, parameters: Json, grants: Mapping[str, Grant], failure: str | None
) -> TrialRow:
    """Returns what the folder of a trial tells of it."""
    name = trial_name(number)
    grant, run = grants.get(name, Grant()), folder.trial(number)
    common: dict[str, Any] = {"trial": name, "parameters": parameters, "failure": failure}
    if not run.result.exists():
        begun = run.config.exists()
        status = "error" if failure is not None else "unfinished" if begun else "waiting"
        if status == "waiting" and grant.refused:  # already the check of its rewards was too much
            return TrialRow(**common, status="budget", budget_ended=True)
        return TrialRow(**common, status=status, budget_ended=False, unreturned_calls=grant.unreturned_calls)
    result = read_result(run)
    return TrialRow(
        **common,
        status=result.stop_reason if failure is None else "error",
        budget_ended=result.stop_reason == "budget" and grant.refused,
        dev_accuracy=result.dev_accuracy,
        dev_reward=result.dev_reward,
        best_prompt=result.best_prompt,
        iterations=result.iterations,
        target_calls=result.target_calls,
        unreturned_calls=grant.unreturned_calls,
    )


def best_row(rows: Sequence[TrialRow], metric: str) -> TrialRow | None:
    """Returns the best trial by a number on dev; ties go to the other number, then to the earlier trial."""
    other = METRICS[1 - METRICS.index(metric)]

    def rank(row: TrialRow) -> tuple[float, float]:
        first, second = getattr(row, metric), getattr(row, other)
        return (-float("inf") if first is None else first), (-float("inf") if second is None else second)

    scored = [row for row in rows if row.dev_accuracy is not None or row.dev_reward is not None]
    return max(scored, key=rank, default=None)  # max returns the first of equals


def table(rows: Sequence[TrialRow], best: TrialRow | None) -> list[list[str]]:
    """Returns the cells of a table for people, header first; parameters that never vary are left out."""
    varying = [
        key
        for key in (rows[0].parameters if rows else ())
        if any(row.parameters[key] != rows[0].parameters[key] for row in rows)
    ]
    lines = [["", "trial", *varying, "dev accuracy", "dev reward", "iterations", "calls", "ended"]]
    for row in rows:
        numbers = ["-" if value is None else f"{value:.4f}" for value in (row.dev_accuracy, row.dev_reward)]
        calls = "-" if row.target_calls is None else f"{row.target_calls:,}"
        if row.unreturned_calls:
            calls += f" (+{row.unreturned_calls:,} unreturned)"
        iterations = "-" if row.iterations is None else str(row.iterations)
        values = [say_value(row.parameters[key]) for key in varying]
        mark = "*" if row is best else ""
        lines.append([mark, row.trial, *values, *numbers, iterations, calls, row.status])
    return lines


class SweepDisplay:
    """Shows on standard error how the trials go: one live line on a terminal, a line now and then elsewhere.

    Args:
        folder: of the sweep.
        console: where to write; standard error by default.
    """

    def __init__(self, folder: SweepFolder, console: Console | None = None) -> None:
        from rich.console import Console

        self._folder = folder
        self._console = console if console is not None else Console(stderr=True)
        self._live: Live | None = None
        self._looked = self._told = 0.0
        self._line = ""

    def start(self) -> None:
        """Begins to show."""
        from rich.live import Live

        if self._console.is_terminal:
            self._live = Live(console=self._console)
            self._live.start()

    def update(self, rows: Sequence[TrialRow], best: TrialRow | None, left: str) -> None:
        """Shows the newest line.

        Args:
            rows: of all trials.
            best: the best one so far.
            left: what is left of the budget, in words; empty without one.
        """
        from rich.text import Text

        self._line = progress_line(rows, best, left, running=self._running(rows))
        if self._live is not None:
            self._live.update(Text(self._line, no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() - self._told >= _SECONDS_BETWEEN_LINES:
            self._console.print(self._line, highlight=False, markup=False, soft_wrap=True)
            self._told = time.monotonic()

    def is_due(self) -> bool:
        """Returns whether it is time to look at the trials again."""
        if time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS:
            return False
        self._looked = time.monotonic()
        return True

    def stop(self) -> None:
        """Leaves the last line standing."""
        if self._live is not None:
            self._live.stop()

    def _running(self, rows: Sequence[TrialRow]) -> list[str]:
        said = []
        for number, row in enumerate(rows):
            if row.status == "unfinished":
                done = last_iteration(self._folder.trial(number).events)
                said.append(f"{row.trial} at iteration {0 if done is None else done + 1}")
        return said


def progress_line(rows: Sequence[TrialRow], best: TrialRow | None, left: str, *, running: Sequence[str]) -> str:
    """Returns one line of progress.

    >>> row = TrialRow("trial-000", {"seed": 1}, "done", False, dev_accuracy=0.75)
    >>> progress_line([row, TrialRow("trial-001", {"seed": 2}, "waiting", False)], row, "1,000 calls left", running=[])
    '1 of 2 trials ended · best trial-000 seed=1 dev accuracy 0.7500 · 1,000 calls left'
    """
    ended = sum(row.status not in ("waiting", "unfinished") for row in rows)
    parts = [f"{ended} of {len(rows)} trials ended", *running]
    if best is not None:
        name = next(name for name in METRICS if getattr(best, name) is not None)
        number = f"{name.replace('_', ' ')} {getattr(best, name):.4f}"
        parts.append(f"best {best.trial} {say_parameters(best.parameters)} {number}")
    return " · ".join([*parts, left] if left else parts)


def last_iteration(events: Path) -> int | None:
    """Returns the number of the newest iteration in a run's events, which may be growing; None before the first."""
    try:
        with events.open("rb") as file:
            file.seek(max(file.seek(0, 2) - _TAIL_BYTES, 0))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:  # cut by the tail, or half-written
            continue
        if isinstance(event, dict) and event.get("event") == "iteration":
            return int(event["iteration"])
    return None
