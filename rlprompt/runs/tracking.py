"""Who is told what happens in a run: the callback protocol, and TensorBoard's adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rlprompt.types import Json


class Callback(Protocol):
    """Follows a run. Exceptions of a callback end the run."""

    def on_start(self, iteration: int) -> None:
        """The session begins with this iteration (0, or more after a resume)."""

    def on_iteration(self, iteration: int, metrics: Mapping[str, float], status: Json) -> None:
        """An iteration ended and is recorded.

        Args:
            iteration: its number, from 0.
            metrics: its numbers, flat names.
            status: `best` (or None), `num_prompts` scored in it, `duration_s`, `used_calls`, `calls_left` (or None).
        """

    def on_checkpoint(self, iteration: int) -> None:
        """A checkpoint was written after this iteration."""

    def on_end(self) -> None:
        """The session is over; nothing follows."""


class TensorBoard:
    """Writes the metrics of every iteration as TensorBoard scalars.

    Args:
        folder: where the event files go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def on_start(self, iteration: int) -> None:
        """Opens a file; what older files say of this iteration and later ones is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        purge = iteration if iteration > 0 else None
        self._writer = SummaryWriter(str(self._folder), purge_step=purge)  # type: ignore[no-untyped-call]  # untyped there

    def on_iteration(self, iteration: int, metrics: Mapping[str, float], status: Json) -> None:
        """Writes the finite metrics and the best scores so far."""
        best = status["best"] or {}
        scores = {f"best/{name}": value for name, value in best.items() if isinstance(value, float)}
        numbers = {**metrics, **scores, "budget/used_calls": status["used_calls"]}
        for name, value in numbers.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, iteration)

    def on_checkpoint(self, iteration: int) -> None:
        """Makes what was written visible."""
        self._writer.flush()

    def on_end(self) -> None:
        """Closes the file."""
        self._writer.close()
