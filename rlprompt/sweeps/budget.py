"""The ledger that the trials of a sweep share: what each of them has been granted, on disk before it is spent.

A trial asks for a grant before it spends: before each iteration for that and for its final choice on dev, so that it
can always end with a choice. The grants of all trials together never pass the sweep's budget. A trial that ends, in
whatever way, says what it has used, and the rest goes back to the others. One that is killed says nothing: its grant
stays, and counts as spent. When it is resumed it spends on from that grant, and keeps the whole of it even if it needs
less in the end: nobody knows how much of it was spent before the kill.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from rlprompt.config import BudgetConfig
from rlprompt.errors import BudgetExceededError, RunError
from rlprompt.runs.folder import read_json, write_json

PICO = 10**12
_NOTHING = (0, 0, 0)
Amounts = tuple[int, int, int]
"""Calls, tokens, picodollars."""


@dataclass
class Grant:
    """What one trial has been granted, in all its sessions."""

    granted: Amounts = _NOTHING
    used: Amounts = _NOTHING
    """As the trial said when it last ended."""
    kept: Amounts = _NOTHING
    """What was granted when its newest session began: that is never given back."""
    refused: bool = False
    """Whether its newest session was refused more."""

    @property
    def unreturned_calls(self) -> int:
        """Calls that are granted and not known to be used."""
        return max(self.granted[0] - self.used[0], 0)


class Meter(Protocol):
    """`SweepBudget`, or the same in another process."""

    limits_cost: bool

    def open(self, trial: str) -> None:
        """Begins a session of a trial."""

    def grant(self, trial: str, amounts: Amounts) -> str | None:
        """Raises a trial's grant to at least these totals; returns why not, or None."""

    def settle(self, trial: str, amounts: Amounts) -> None:
        """Ends a session of a trial, which has used so much in all."""


class SweepBudget:
    """The grants of all trials, kept in a file.

    Args:
        limits: what all trials may spend together; `max_wall_s` is the sweep's to watch.
        path: the file; what it holds already counts.

    Raises:
        RunError: the file is damaged.
    """

    def __init__(self, limits: BudgetConfig, path: Path) -> None:
        self.limits_cost = limits.max_cost_usd is not None
        self._limits = {
            "max_target_calls": limits.max_target_calls,
            "max_target_tokens": limits.max_target_tokens,
            "max_cost_usd": None if limits.max_cost_usd is None else math.floor(limits.max_cost_usd * PICO),
        }
        self._path = path
        self.grants = read_grants(path)

    def open(self, trial: str) -> None:
        """Begins a session of a trial: what it was granted before is its own for good."""
        grant = self.grants.setdefault(trial, Grant())
        grant.kept, grant.refused = grant.granted, False
        self._save()

    def grant(self, trial: str, amounts: Amounts) -> str | None:
        """Raises a trial's grant to at least these totals; returns why not, or None."""
        mine = self.grants[trial]
        wanted = _largest(mine.granted, amounts)
        for place, (name, limit) in enumerate(self._limits.items()):
            others = sum(grant.granted[place] for key, grant in self.grants.items() if key != trial)
            if limit is not None and wanted[place] > mine.granted[place] and others + wanted[place] > limit:
                mine.refused = True
                self._save()
                unit = PICO if name == "max_cost_usd" else 1
                told = [round(amount / unit, 6) for amount in (wanted[place], others, limit)]
                return (
                    "budget.{} of the sweep would be overdrawn: {:g} wanted in all, and the other trials have {:g} of "
                    "{:g}; raise the limit and resume".format(name, *told)
                )
        if wanted != mine.granted:
            mine.granted = wanted
            self._save()
        return None

    def settle(self, trial: str, amounts: Amounts) -> None:
        """Ends a session of a trial, which has used so much in all."""
        mine = self.grants[trial]
        mine.used = amounts
        mine.granted = _largest(amounts, mine.kept)
        self._save()

    def _save(self) -> None:
        write_json(
            self._path, {"limits": self._limits, "trials": {key: asdict(one) for key, one in self.grants.items()}}
        )


class Share:
    """The shared budget as the ledger of one trial sees it; a `rlprompt.types.SharedBudget`."""

    def __init__(self, meter: Meter, trial: str) -> None:
        self._meter = meter
        self._trial = trial

    @property
    def limits_cost(self) -> bool:
        """Whether money is limited."""
        return self._meter.limits_cost

    def grant(self, calls: int, tokens: int, cost_pico: int) -> None:
        """Raises the trial's grant to these totals; BudgetExceededError where the others have the rest."""
        refusal = self._meter.grant(self._trial, (calls, tokens, cost_pico))
        if refusal is not None:
            raise BudgetExceededError(refusal)

    def settle(self, calls: int, tokens: int, cost_pico: int) -> None:
        """Tells what the trial has spent, and gives the rest back."""
        self._meter.settle(self._trial, (calls, tokens, cost_pico))


def read_grants(path: Path) -> dict[str, Grant]:
    """Returns the grants by trial; none where there is no file.

    Raises:
        RunError: the file is damaged.
    """
    if not path.exists():
        return {}
    values = read_json(path, "the sweep's ledger")
    try:
        return {
            str(name): Grant(
                granted=_amounts(row["granted"]),
                used=_amounts(row["used"]),
                kept=_amounts(row["kept"]),
                refused=bool(row["refused"]),
            )
            for name, row in values["trials"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path} is damaged ({error!r}); without it nobody knows what the sweep has spent") from error


def _amounts(values: list[int]) -> Amounts:
    calls, tokens, cost_pico = map(int, values)
    return calls, tokens, cost_pico


def _largest(one: Amounts, other: Amounts) -> Amounts:
    return max(one[0], other[0]), max(one[1], other[1]), max(one[2], other[2])
