"""Simulated annotators: they vote by a stored score, and wrongly as often as they are told to."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.preferences.candidates import REWARD, Candidate, exceeds
from rlprompt.preferences.comparisons import Comparison
from rlprompt.preferences.votes import Choice, Vote, check_annotator
from rlprompt.seeding import generator

PREFIX = "simulated-"
"""The names of simulated annotators begin with this, and those of people do not."""
NOISE = 0.25
"""AlpacaFarm's (arXiv:2305.14387)."""


@dataclass(frozen=True)
class SimulatedAnnotator:
    """Prefers the prompt with the higher stored score, and is wrong with a fixed probability.

    With scores s(a) and s(b):

        P(vote a) = 1 - noise  where s(a) > s(b),   noise  where s(a) < s(b)

    Equal scores are always a tie, and a missing one a skip. Each comparison has a draw of its own, keyed by the seed,
    the name and the comparison, so that the votes do not depend on the order or the length of the queue.

    Reference: AlpacaFarm, Dubois et al. 2023, arXiv:2305.14387, whose simulated annotators flip a quarter of the
    labels at random; theirs are several LLM judges before that, here it is one score.

    Args:
        name: the votes say "simulated-NAME".
        noise: probability of a wrong vote, in [0, 0.5]; at 0.5 the votes say nothing.
        by: "reward", or a component of it. Of a prompt for the whole task it is the mean over all its examples, also
            where a single example is shown.
        seed: of the draws.

    Raises:
        ConfigError: a wrong name or noise.
    """

    name: str
    noise: float = NOISE
    by: str = REWARD
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks what the types do not say."""
        check_annotator(self.name)
        if not 0 <= self.noise <= 0.5:
            raise ConfigError(f"--noise is a probability of wrong votes from 0 to 0.5, got {self.noise:g}")

    @property
    def annotator(self) -> str:
        """The name that its votes carry."""
        return PREFIX + self.name.removeprefix(PREFIX)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What its votes say about how they came about."""
        return {"by": self.by, "noise": self.noise, "seed": self.seed}

    def choose(self, comparison: Comparison) -> Choice:
        """Returns its choice."""
        right = better(comparison, self.by)
        if right not in ("a", "b"):
            return "skip" if right is None else "tie"
        key = zlib.crc32(self.annotator.encode("utf-8", "surrogatepass"))
        wrong = generator(self.seed, "simulated-annotator", key, int(comparison.id, 16)).random() < self.noise
        return ("b" if right == "a" else "a") if wrong else right

    def vote(self, comparisons: Iterable[Comparison]) -> list[Vote]:
        """Returns its votes, in order; which prompt stood left is drawn as for people."""
        return [
            Vote.on(
                comparison,
                self.choose(comparison),
                left=comparison.left(self.seed, self.annotator),
                annotator=self.annotator,
                simulated=self.settings,
            )
            for comparison in comparisons
        ]


def better(comparison: Comparison, by: str) -> Choice | None:
    """Returns the prompt with the higher score, or "tie"; None where a score is missing."""
    first, second = comparison.a.candidate.value(by), comparison.b.candidate.value(by)
    if first is None or second is None:
        return None
    return "a" if exceeds(first, second) else "b" if exceeds(second, first) else "tie"


def check_score(by: str, candidates: Sequence[Candidate]) -> None:
    """Raises UnknownNameError unless a candidate has a number for the score."""
    known = {name for candidate in candidates for name in candidate.known_scores()}
    if by not in known:
        raise UnknownNameError("score", by, known, "" if known else "; the prompts have none")
