"""How far annotators agree with each other and with a stored score, and whether they favour one side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from rlprompt.errors import UnknownNameError
from rlprompt.evaluation.statistics import wilson_interval
from rlprompt.preferences.candidates import REWARD, exceeds
from rlprompt.preferences.elected import VotedPrompts
from rlprompt.preferences.votes import Vote
from rlprompt.types import Json


@dataclass(frozen=True)
class Share:
    """A share with its 95 % Wilson interval; NaN without a case."""

    part: int
    whole: int

    @property
    def value(self) -> float:
        """The share."""
        return self.part / self.whole if self.whole else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high."""
        return wilson_interval(self.part, self.whole)

    def to_json(self) -> Json:
        """Returns the numbers, None for NaN."""
        low, high = self.interval
        values = {"part": self.part, "whole": self.whole, "share": self.value, "low": low, "high": high}
        return {name: None if value != value else value for name, value in values.items()}


@dataclass(frozen=True)
class AnnotatorReport:
    """The votes of one annotator."""

    annotator: str
    simulated: Mapping[str, Any] | None
    num_votes: int
    """Without skips."""
    num_ties: int
    num_skips: int
    left: Share
    """Of the votes that choose one: those for what stood left. Far from a half, it is a habit."""
    by: str
    """The stored score that the votes are compared with."""
    against: Share
    """Of the votes that choose one, on prompts whose scores differ: those against the score. Of a simulated annotator
    that votes by this score, it is the noise as it came out."""

    def to_json(self) -> Json:
        """Returns the fields as JSON values."""
        shares = {"left": self.left.to_json(), "against": self.against.to_json()}
        return {**asdict(self), **shares}


@dataclass(frozen=True)
class CoupleReport:
    """Two annotators on the comparisons that both have judged."""

    first: str
    second: str
    same: Share
    """Of the comparisons that neither skipped: those with the same vote, a tie counting as a vote of its own."""
    kappa: float
    """Cohen's kappa of the votes (1960), with a tie as a class of its own; NaN where both name one and the same class
    only, or without a common comparison."""

    def to_json(self) -> Json:
        """Returns the fields as JSON values, None for NaN."""
        kappa = None if math.isnan(self.kappa) else self.kappa
        return {"first": self.first, "second": self.second, "same": self.same.to_json(), "kappa": kappa}


def annotator_report(votes: Sequence[Vote], prompts: VotedPrompts, *, by: str | None = None) -> AnnotatorReport:
    """Reports on the votes of one annotator.

    Args:
        votes: standing ones, at least one.
        prompts: the run's.
        by: a stored score; None takes the one that a simulated annotator went by, and "reward" for a person.

    Raises:
        ConfigError: a vote is about a prompt that the run has not stored.
        UnknownNameError: no prompt has such a score.
    """
    simulated = votes[0].simulated
    score = by if by is not None else str((simulated or {}).get("by", REWARD))
    chosen = [vote for vote in votes if vote.choice in ("a", "b")]
    known: set[str] = set()
    against = compared = 0
    for vote in chosen:
        sides = dict(zip(("a", "b"), prompts.sides(vote), strict=True))
        known |= {name for candidate in sides.values() for name in (REWARD, *candidate.scores)}
        own, other = sides.pop(vote.choice).value(score), next(iter(sides.values())).value(score)
        if own is not None and other is not None and (exceeds(own, other) or exceeds(other, own)):
            compared += 1
            against += exceeds(other, own)
    if by is not None and chosen and by not in known:
        raise UnknownNameError("score", by, known)
    return AnnotatorReport(
        annotator=votes[0].annotator,
        simulated=simulated,
        num_votes=sum(vote.choice != "skip" for vote in votes),
        num_ties=sum(vote.choice == "tie" for vote in votes),
        num_skips=sum(vote.choice == "skip" for vote in votes),
        left=Share(sum(vote.choice == vote.left for vote in chosen), len(chosen)),
        by=score,
        against=Share(against, compared),
    )


def couple_reports(by_annotator: Mapping[str, Sequence[Vote]]) -> list[CoupleReport]:
    """Compares every two annotators.

    Args:
        by_annotator: the standing votes of each, with at most one vote on a comparison.
    """
    found = []
    for first, second in combinations(by_annotator, 2):
        own, other = (_classes(by_annotator[name]) for name in (first, second))
        common = [name for name in own if name in other]
        same = sum(own[name] == other[name] for name in common)
        kappa = _kappa([own[name] for name in common], [other[name] for name in common])
        found.append(CoupleReport(first, second, Share(same, len(common)), kappa))
    return found


def _classes(votes: Sequence[Vote]) -> dict[str, str]:
    return {vote.comparison: vote.choice for vote in votes if vote.choice != "skip"}


def _kappa(first: Sequence[str], second: Sequence[str]) -> float:
    if len({*first, *second}) < 2:  # chance agrees always: nothing to divide by
        return math.nan
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(first, second))
