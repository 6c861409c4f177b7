"""What a sweep gives to each of its runs: a folder, a part of the shared budget, and a sign to stop."""

from __future__ import annotations

from dataclasses import dataclass

from rlprompt.runs.folder import RunFolder
from rlprompt.runs.signals import StopSignals
from rlprompt.types import SharedBudget


@dataclass(frozen=True)
class Trial:
    """A run's place in a sweep."""

    folder: RunFolder
    """Where the run is kept; one that has begun there goes on."""
    shared: SharedBudget
    signals: StopSignals
