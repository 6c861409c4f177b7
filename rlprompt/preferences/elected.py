"""Pairs from votes: of two prompts the one with more votes is chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlprompt.errors import ConfigError
from rlprompt.preference_pairs import PreferencePair
from rlprompt.preferences.builders import pair_of
from rlprompt.preferences.candidates import Candidate, Draft, Group, make_groups
from rlprompt.preferences.comparisons import PairKey, pair_key
from rlprompt.preferences.votes import Vote
from rlprompt.types import Json

SOURCE = "votes"
"""The `source` of the pairs, and the name of the score that decides."""


@dataclass(frozen=True)
class Elected:
    """The pairs that votes make, and what became of the rest."""

    pairs: tuple[PreferencePair, ...]
    num_votes: int
    """Without skips."""
    num_skips: int
    num_compared: int
    """Couples of prompts with a vote."""
    num_even: int
    """Those with as many votes for the one as for the other, such as ties: they make no pair."""

    def to_json(self) -> Json:
        """Returns the counts."""
        return {
            "pairs": len(self.pairs),
            "votes": self.num_votes,
            "skips": self.num_skips,
            "compared": self.num_compared,
            "even": self.num_even,
        }


class VotedPrompts:
    """Finds the stored prompts that votes are about.

    Args:
        candidates: of the run that was voted on.
        per_input: whether the run writes for single inputs. Otherwise prompts belong to the task, and votes on them are
            counted together whatever example they were shown on.
    """

    def __init__(self, candidates: Sequence[Candidate], *, per_input: bool) -> None:
        self._per_input = per_input
        self._found = {
            (candidate.example_id, candidate.text): (group, candidate)
            for group in make_groups(candidates)
            for candidate in group.candidates
        }

    def key(self, vote: Vote) -> PairKey:
        """Returns what a pair from the vote is about."""
        return pair_key(vote.example_id if self._per_input else "", vote.a, vote.b)

    def sides(self, vote: Vote) -> tuple[Candidate, Candidate]:
        """Returns the prompts a and b of a vote, with their scores.

        Raises:
            ConfigError: the run has stored no such prompt.
        """
        first, second = (self._find(vote, text)[1] for text in (vote.a, vote.b))
        return first, second

    def group(self, vote: Vote) -> Group:
        """Returns the prompts that those of the vote were written beside."""
        return self._find(vote, vote.a)[0]

    def _find(self, vote: Vote, text: str) -> tuple[Group, Candidate]:
        found = self._found.get((vote.example_id if self._per_input else "", text))
        if found is None:
            raise ConfigError(
                f"the vote of '{vote.annotator}' on '{vote.comparison}' is about a prompt that the run has not "
                "stored in this phase; give the run and the --phase that were voted on"
            )
        return found


def pairs_of_votes(votes: Sequence[Vote], prompts: VotedPrompts) -> Elected:
    """Counts votes and makes a pair of any two prompts of which one has more.

    Each vote counts once, of whichever annotator and, of prompts for the whole task, on whichever example. With w votes
    for the chosen prompt, l for the other and t ties, n = w + l + t:

        chosen_scores["votes"] = (w + t/2) / n,   rejected_scores["votes"] = (l + t/2) / n,
        margin = weight = (w - l) / n, in (0, 1]

    So a pair on which annotators are divided counts for less in a loss, and for nothing where they are evenly so; with
    one annotator and no ties all weights are 1. The rule is ours.

    Args:
        votes: standing ones, of any number of annotators; skips say nothing.
        prompts: the run's.

    Raises:
        ConfigError: a vote is about a prompt that the run has not stored.
    """
    counted: dict[PairKey, Counter[str]] = {}
    firsts: dict[PairKey, Vote] = {}
    annotators: dict[PairKey, set[str]] = {}
    judged = [vote for vote in votes if vote.choice != "skip"]
    for vote in judged:
        key = prompts.key(vote)
        text = {"a": vote.a, "b": vote.b}.get(vote.choice)
        counted.setdefault(key, Counter())["tie" if text is None else f"for {text}"] += 1
        firsts.setdefault(key, vote)
        annotators.setdefault(key, set()).add(vote.annotator)
    pairs = []
    for key, vote in firsts.items():
        pair = _pair(vote, counted[key], len(annotators[key]), prompts)
        pairs += [] if pair is None else [pair]
    return Elected(tuple(pairs), len(judged), len(votes) - len(judged), len(firsts), len(firsts) - len(pairs))


def _pair(vote: Vote, counts: Mapping[str, int], annotators: int, prompts: VotedPrompts) -> PreferencePair | None:
    sides = [(counts.get(f"for {candidate.text}", 0), candidate) for candidate in prompts.sides(vote)]
    (lost, rejected), (won, chosen) = sorted(sides, key=lambda side: side[0])
    if won == lost:
        return None
    ties = counts.get("tie", 0)
    total = won + lost + ties
    lead = (won - lost) / total
    draft = Draft(
        replace(chosen, scores={**chosen.scores, SOURCE: (won + ties / 2) / total}),
        replace(rejected, scores={**rejected.scores, SOURCE: (lost + ties / 2) / total}),
        lead,
        columns={"votes": {"chosen": won, "rejected": lost, "tie": ties}, "annotators": annotators},
    )
    return replace(pair_of(SOURCE, prompts.group(vote), draft), weight=lead)
