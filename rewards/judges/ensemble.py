"""Several judges as one, with their disagreement beside the value."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.rewards.component import TOTAL
from rlprompt.rewards.judges.parts import Composite, LoadPart, Part, Value, make_part, values_of
from rlprompt.types import Failure, Json

COMBINE = ("mean", "median", "min")
DISAGREEMENT = "disagreement"
TOO_FEW = "too-few"


class Ensemble(Composite):
    """The mean, median or minimum of several rewards; records `disagreement` and the value of each member.

    The disagreement is the standard deviation over the members that gave a value, divided by their number (not by one
    less). The ensemble abstains where too few members gave one, or where they disagree too much. Where a member failed,
    the pair failed: what is left would be another ensemble.

    Args:
        members: two or more rewards, {name, weight, kwargs} each; the weights are those of the mean.
        combine: "mean", "median" or "min".
        max_disagreement: abstain above it; None never does.
        at_least: members that must give a value; by default all.

    Raises:
        ConfigError: an argument out of range.
    """

    gold_not_ordered: ClassVar[bool] = True

    def __init__(
        self,
        members: Sequence[Part],
        combine: str = "mean",
        *,
        max_disagreement: float | None = None,
        at_least: int | None = None,
        load_part: LoadPart | None = None,
    ) -> None:
        if isinstance(members, str) or not isinstance(members, Sequence) or len(members) < 2:
            raise ConfigError("ensemble: members must be a list of two rewards or more")
        if combine not in COMBINE:
            raise ConfigError(f"ensemble: combine must be {', '.join(COMBINE)}, got {combine!r}")
        if max_disagreement is not None and not 0 <= max_disagreement < math.inf:
            raise ConfigError(f"ensemble: max_disagreement must be at least 0, got {max_disagreement}")
        self.at_least = len(members) if at_least is None else at_least
        if not 1 <= self.at_least <= len(members):
            raise ConfigError(f"ensemble: at_least must be from 1 to {len(members)}, got {at_least}")
        self.members = _numbered(members, load_part)
        weights = [member.weight for member in self.members]
        if combine == "mean" and min(weights) <= 0:
            raise ConfigError(f"ensemble: the weights of members must be above 0, got {min(weights):g}")
        if combine != "mean" and set(weights) != {1.0}:
            raise ConfigError(f"ensemble: weights are for combine: mean, not {combine}; remove them")
        super().__init__(self.members)
        self.combine = combine
        self.max_disagreement = max_disagreement
        self._weights = weights
        self._counts: Counter[str] = Counter()
        self.also_records = (DISAGREEMENT, *(member.name for member in self.members))

    @property
    def abstentions(self) -> dict[str, int]:
        """How often it abstained itself ("disagreement", "too-few"), and its members had no verdict, by kind."""
        return {**super().abstentions, **{kind: number for kind, number in self._counts.items() if number}}

    def run_metrics(self) -> dict[str, float]:
        """Returns its own abstentions, and the numbers of the members."""
        own = {f"abstained/{kind}": float(number) for kind, number in self._counts.items()}
        return {"abstained": float(self._counts.total()), **own, **super().run_metrics()}

    def state_dict(self) -> Json:
        """Returns the members' states and the counts."""
        return {"members": super().state_dict(), "counts": dict(self._counts)}

    def load_state_dict(self, state: Json) -> None:
        """Restores what `state_dict` returned; raises CheckpointError for something else."""
        try:
            super().load_state_dict(state["members"])
            self._counts = Counter({str(kind): int(number) for kind, number in state["counts"].items()})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's state of an ensemble cannot be read: {error!r}") from error

    def __call__(self, **arguments: Sequence[Any]) -> dict[str, list[Value]]:
        """Scores N pairs; the keywords are those of every reward."""
        everyone = range(len(arguments["outputs"]))
        by_member = [values_of(member, arguments, everyone) for member in self.members]
        rows = [self._combine(list(row)) for row in zip(*by_member, strict=True)]
        found: dict[str, list[Value]] = {
            TOTAL: [value for value, _ in rows],
            DISAGREEMENT: [spread for _, spread in rows],
        }
        for member, values in zip(self.members, by_member, strict=True):
            found[member.name] = [None if isinstance(value, Failure) else value for value in values]
        return found

    def _combine(self, row: list[Value]) -> tuple[Value, float | None]:
        """Returns value and disagreement of one pair."""
        for value in row:
            if isinstance(value, Failure):
                return value, None
        known = [(value, weight) for value, weight in zip(row, self._weights, strict=True) if isinstance(value, float)]
        values = [value for value, _ in known]
        spread = statistics.pstdev(values) if values else None
        if spread is None or len(values) < self.at_least:
            self._counts[TOO_FEW] += 1
            return None, spread
        if self.max_disagreement is not None and spread > self.max_disagreement:
            self._counts[DISAGREEMENT] += 1
            return None, spread
        if self.combine == "mean":
            return math.fsum(v * w for v, w in known) / math.fsum(w for _, w in known), spread
        return (statistics.median(values) if self.combine == "median" else min(values)), spread


def _numbered(members: Sequence[Part], load: LoadPart | None) -> list[Any]:
    """Loads the members; a name that occurs again becomes "name#2", "name#3", ..."""
    seen: dict[str, int] = {}
    parts = []
    for member in members:
        name = str(member.get("name", "member")) if isinstance(member, dict) else getattr(member, "name", "member")
        seen[name] = number = seen.get(name, 0) + 1
        parts.append(make_part("ensemble", member, name if number == 1 else f"{name}#{number}", load))
    names = [part.name for part in parts]
    if len(set(names)) < len(names) or DISAGREEMENT in names or TOTAL in names:
        raise ConfigError(f"ensemble: members need names of their own, got {', '.join(names)}")
    return parts
