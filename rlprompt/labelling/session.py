"""One annotator in front of one queue: what is asked next, what a vote from the page does, and undo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from rlprompt.errors import ConfigError
from rlprompt.preferences.comparisons import Comparison
from rlprompt.preferences.votes import Choice, Vote, VoteFile
from rlprompt.types import Json

PageChoice: TypeAlias = Literal["left", "right", "tie", "skip"]


class StaleError(ConfigError):
    """The page shows something else than what is asked now; nothing was recorded."""


class LabelSession:
    """What the page shows and does. Not thread-safe: the server calls it from one thread.

    Args:
        queue: the comparisons, in order.
        votes: the annotator's file, which already holds the votes of earlier sessions.
        seed: draws which prompt stands left.
        facts: constant entries of every state, for the page.
    """

    def __init__(self, queue: Sequence[Comparison], votes: VoteFile, *, seed: int, facts: Json) -> None:
        self._queue = {comparison.id: comparison for comparison in queue}
        self._votes, self._seed, self._facts = votes, seed, facts
        self._again: str | None = None

    @property
    def num_judged(self) -> int:
        """Comparisons of the queue with a vote; skips count."""
        return len(self._queue.keys() & self._judged())

    def current(self) -> Comparison | None:
        """Returns what is asked now: the comparison just undone, else the first without a vote; None at the end."""
        judged = self._judged()
        if self._again is not None and self._again not in judged:
            return self._queue[self._again]
        return next((comparison for name, comparison in self._queue.items() if name not in judged), None)

    def last(self) -> int | None:
        """Returns the number of the newest vote on a comparison of the queue, which is the one that undo takes back."""
        numbers = [number for number, vote in self._votes.votes.items() if vote.comparison in self._queue]
        return max(numbers, default=None)

    def state(self) -> Json:
        """Returns all that the page needs."""
        comparison = self.current()
        shown: Json | None = None
        if comparison is not None:
            left = self._left(comparison)
            first, second = (comparison.a, comparison.b) if left == "a" else (comparison.b, comparison.a)
            shown = {
                "id": comparison.id,
                "what": comparison.what,
                "input": comparison.input,
                "left": first.text,
                "right": second.text,
            }
        return {
            **self._facts,
            "comparison": shown,
            "judged": self.num_judged,
            "total": len(self._queue),
            "last": self.last(),
        }

    def vote(self, comparison_id: str, choice: PageChoice) -> None:
        """Records a vote on the comparison that is asked now.

        Raises:
            StaleError: another comparison is asked now: a key was pressed twice, or the page is an old one.
            RunError: the vote cannot be written.
        """
        comparison = self.current()
        if comparison is None or comparison.id != comparison_id:
            raise StaleError("another comparison is asked now; nothing was recorded")
        left = self._left(comparison)
        right: Choice = "b" if left == "a" else "a"
        chosen: Choice = left if choice == "left" else right if choice == "right" else choice
        header = self._votes.header
        self._votes.append([Vote.on(comparison, chosen, left=left, annotator=header.annotator)])

    def undo(self, number: int) -> None:
        """Takes the newest vote back; its comparison is asked again.

        Raises:
            StaleError: another vote is the newest one.
            RunError: the record cannot be written.
        """
        if self.last() != number:
            raise StaleError("another vote is the last one now; nothing was undone")
        self._again = self._votes.undo(number).comparison

    def votes(self) -> list[Vote]:
        """Returns all standing votes of the file."""
        return list(self._votes.votes.values())

    def _judged(self) -> set[str]:
        return {vote.comparison for vote in self._votes.votes.values()}

    def _left(self, comparison: Comparison) -> Literal["a", "b"]:
        return comparison.left(self._seed, self._votes.header.annotator)
