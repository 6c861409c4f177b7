"""Scored candidates, the groups that are compared, and what a builder makes of one group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlprompt.errors import ConfigError

REWARD = "reward"
"""Name of the combined score."""
RELATIVE, ABSOLUTE = 1e-9, 1e-12
"""Scores that differ by no more are equal: a sum in another order must not break a tie."""


@dataclass(frozen=True)
class Candidate:
    """One text that a policy wrote, with its scores."""

    text: str
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """By criterion; None or NaN where one abstained or failed."""
    reward: float | None = None
    """The combined score; NaN where it abstained or failed, None where none was computed."""
    example_id: str = ""
    """The example that it was written for; "" at task level."""
    input: str = ""
    """The text that it rewrites; "" at task level."""
    context: str = ""
    """What the policy read, where that is known."""
    iteration: int = 0
    index: int = 0
    """Its place in the iteration."""
    failed: bool = False
    """Whether the target or a reward failed on it: it is in no pair, whatever its scores are."""
    count: int = 1
    """Answers that its scores are means over; weighs them where a text was scored more than once."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What single builders ask for: "response", "naive_response", "reference", "draft", "critique", "revises"."""

    def value(self, score: str) -> float | None:
        """Returns a score by name; None where it is missing, NaN or infinite."""
        found = self.reward if score == REWARD and self.reward is not None else self.scores.get(score)
        return None if found is None or not math.isfinite(found) else float(found)

    @property
    def naive(self) -> str:
        """What it rewrites: the input, at task level the draft instruction."""
        return self.input or str(self.columns.get("draft", ""))

    @property
    def unscored(self) -> bool:
        """Whether it failed, or was scored without a result; a text that nobody scored is neither."""
        if self.failed or self.reward is not None:
            return self.failed or self.value(REWARD) is None
        return any(self.value(name) is None for name in self.scores)

    def known_scores(self) -> dict[str, float]:
        """Returns the scores that are numbers, with "reward" first."""
        values = {name: self.value(name) for name in dict.fromkeys((REWARD, *self.scores))}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Group:
    """Distinct texts that may be compared: those for one example, or for the whole task."""

    candidates: tuple[Candidate, ...]
    """In order of (iteration, index)."""
    against: tuple[Candidate, ...] = ()
    """The same example's texts in the second set, for builders that compare two."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of the criteria in the reward: a negative one means that less is better, 0 that it is only recorded."""
    iteration: int | None = None
    """Where iterations are compared apart."""

    @property
    def first(self) -> Candidate:
        """Stands for what all of them have in common: example, input, draft."""
        return (*self.candidates, *self.against)[0]

    def ranked(self, score: str) -> list[tuple[float, Candidate]]:
        """Returns (score, candidate) of those that have it, best first, equal ones in order."""
        known = [(c.value(score), c) for c in self.candidates if not c.failed]
        return sorted(((value, c) for value, c in known if value is not None), key=lambda entry: -entry[0])

    def sound(self) -> list[Candidate]:
        """Returns the candidates that builders may use that look at no score."""
        return [candidate for candidate in self.candidates if not candidate.unscored]


@dataclass(frozen=True)
class Draft:
    """A pair before it has an id and a weight."""

    chosen: Candidate
    rejected: Candidate
    margin: float
    context: str | None = None
    """Full text that the policy reads; None: the pair has the group's input."""
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a builder made of a group."""

    drafts: tuple[Draft, ...] = ()
    reason: str = ""
    """Why there is no pair: `TIE`, `ALONE`, or the builder's own words."""
    usable: int = 0
    """Candidates of the group that could have been in a pair."""


TIE = "tie"
ALONE = "fewer than two usable candidates"


def exceeds(first: float, second: float) -> bool:
    """Whether a score is higher than another one by more than rounding."""
    return first > second and not math.isclose(first, second, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def reward_gap(chosen: Candidate, rejected: Candidate) -> float:
    """Returns the difference of the combined scores; 0.0 where one is missing."""
    first, second = chosen.value(REWARD), rejected.value(REWARD)
    return 0.0 if first is None or second is None else first - second


def make_groups(
    candidates: Sequence[Candidate],
    against: Sequence[Candidate] = (),
    *,
    per_iteration: bool = False,
    weights: Mapping[str, float] | None = None,
) -> list[Group]:
    """Groups candidates by example and merges equal texts; the order of the input has no part in the result.

    Args:
        candidates: of one run; those without an example id belong to their input, at task level to one group.
        against: the second set.
        per_iteration: whether iterations are compared apart.
        weights: of the criteria in the reward.
    """
    own, other = (_by_key(part, per_iteration) for part in (candidates, against))
    return [
        Group(
            tuple(_merged(own.get(key, ()))),
            tuple(_merged(other.get(key, ()))),
            weights=dict(weights or {}),
            iteration=key[2] if per_iteration else None,
        )
        for key in dict.fromkeys((*own, *other))
    ]


def _by_key(candidates: Sequence[Candidate], per_iteration: bool) -> dict[tuple[str, str, int], list[Candidate]]:
    ordered = sorted(candidates, key=lambda c: (c.iteration, c.index, c.example_id, c.input, c.text))
    found: dict[tuple[str, str, int], list[Candidate]] = {}
    for candidate in ordered:
        example = ("id", candidate.example_id) if candidate.example_id else ("input", candidate.input)
        found.setdefault((*example, candidate.iteration if per_iteration else 0), []).append(candidate)
    return found


def _merged(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Each text once, at its first place, with the means of its scores; scorings that failed say nothing."""
    by_text: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_text.setdefault(candidate.text, []).append(candidate)
    return [_one(same) for same in by_text.values()]


def _one(same: Sequence[Candidate]) -> Candidate:
    worked = [candidate for candidate in same if not candidate.failed]
    if len(same) == 1 or not worked:
        return same[0]
    names = dict.fromkeys(name for candidate in worked for name in candidate.scores)
    return replace(
        worked[0],
        iteration=same[0].iteration,
        index=same[0].index,
        scores={name: _mean(worked, name) for name in names},
        reward=None if all(c.reward is None for c in worked) else _nan_for_none(_mean(worked, REWARD)),
        count=sum(candidate.count for candidate in worked),
    )


def _mean(candidates: Sequence[Candidate], score: str) -> float | None:
    known = [(value, max(c.count, 1)) for c in candidates if (value := c.value(score)) is not None]
    if not known:
        return None
    return sum(value * count for value, count in known) / sum(count for _, count in known)


def _nan_for_none(value: float | None) -> float:
    return math.nan if value is None else value


def check_number(name: str, value: Any, *, least: float = -math.inf, integer: bool = False) -> None:
    """Raises ConfigError unless an argument of a builder is a finite number (an integer) of at least `least`."""
    kind = int if integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value) or value < least:
        what = "an integer" if integer else "a number"
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise ConfigError(f"pair builder: {name} must be {what}{bound}, got {value!r}")


def check_numbers(name: str, value: Any) -> None:
    """Raises ConfigError unless an argument maps names to numbers."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"pair builder: {name} must map scores to numbers, such as {{gap: 10}}; got {value!r}")
    for key, number in value.items():
        check_number(f"{name}.{key}", number)


def check_flag(name: str, value: Any) -> None:
    """Raises ConfigError unless an argument is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"pair builder: {name} must be true or false, got {value!r}")
