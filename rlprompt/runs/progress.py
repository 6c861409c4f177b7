"""The progress display on standard error: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rlprompt.types import Json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

_SECONDS_BETWEEN_LINES = 2.0


class ProgressDisplay:
    """Shows iteration, rate, best score, budget left and remaining time.

    Args:
        iterations: how many the run has in all.
        console: where to write; standard error by default.
    """

    def __init__(self, iterations: int, console: Console | None = None) -> None:
        from rich.console import Console

        self._iterations = iterations
        self._console = console if console is not None else Console(stderr=True)
        self._live: Live | None = None
        self._first = 0
        self._started = time.monotonic()
        self._last_line = 0.0
        self._line = ""
        self._shown = ""

    def on_start(self, iteration: int) -> None:
        """Begins to count the time."""
        from rich.live import Live
        from rich.text import Text

        self._first, self._started = iteration, time.monotonic()
        if self._console.is_terminal:
            self._live = Live(Text(f"iteration {iteration}/{self._iterations}"), console=self._console)
            self._live.start()

    def on_iteration(self, iteration: int, metrics: Mapping[str, float], status: Json) -> None:
        """Shows the newest line."""
        from rich.text import Text

        done = iteration + 1 - self._first
        per_iteration = (time.monotonic() - self._started) / done
        self._line = progress_line(
            iteration + 1, self._iterations, status, seconds_left=per_iteration * (self._iterations - iteration - 1)
        )
        if self._live is not None:
            self._live.update(Text(self._line, no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._say()

    def on_checkpoint(self, iteration: int) -> None:
        """Shows nothing."""

    def on_end(self) -> None:
        """Leaves the last line standing."""
        if self._live is not None:
            self._live.stop()
        elif self._line != self._shown:
            self._say()

    def _say(self) -> None:
        self._console.print(self._line, highlight=False, markup=False, soft_wrap=True)
        self._last_line, self._shown = time.monotonic(), self._line


def progress_line(completed: int, iterations: int, status: Json, *, seconds_left: float) -> str:
    """Returns one line of progress.

    >>> progress_line(3, 40, {"best": {"prompt": "It was", "dev_accuracy": 0.75}, "num_prompts": 16,
    ...     "duration_s": 2.0, "calls_left": 12000}, seconds_left=74)
    "iteration 3/40 · 8.0 prompts/s · best dev accuracy 0.750 'It was' · 12,000 calls left · 1:14 to go"
    """
    parts = [f"iteration {completed}/{iterations}"]
    if status["duration_s"] > 0:
        parts.append(f"{status['num_prompts'] / status['duration_s']:.1f} prompts/s")
    best = status["best"]
    if best is not None:
        names = {"dev_accuracy": "dev accuracy", "dev_reward": "dev reward", "train_reward": "train reward"}
        name = next((name for name in names if best.get(name) is not None), None)
        score = "" if name is None else f"{names[name]} {best[name]:.3f} "
        parts.append(f"best {score}{'' if best['prompt'] is None else repr(best['prompt'])}".rstrip())
    if status["calls_left"] is not None:
        parts.append(f"{status['calls_left']:,} calls left")
    minutes, seconds = divmod(round(seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    return " · ".join([*parts, f"{clock} to go"])
