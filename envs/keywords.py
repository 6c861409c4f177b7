"""The step reward of hints: each keyword of the reference that a hint names pays once, in the step that completes it.

Sign convention: rewards are only ever added. Words that the reference does not have, repetitions and stop words bring
0; nothing is subtracted. (The published code of arXiv:2302.11520 adds a coefficient for misses in one place and
subtracts it in another.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlprompt.tasks.extractors import WORD, hint_keywords
from rlprompt.types import BoolArray, FloatArray

_JOINTS = ("", "'", "\N{RIGHT SINGLE QUOTATION MARK}", "-", ".", ",")
"""What may stand between a word and its continuation."""


def complete_words(text: str, *, ended: bool) -> frozenset[str]:
    """Returns the keywords of a text that further tokens cannot change: the last word counts once something follows.

    >>> sorted(complete_words("storm norf", ended=False)), sorted(complete_words("storm norf", ended=True))
    (['storm'], ['norf', 'storm'])
    """
    if not ended:
        last = next(iter(list(WORD.finditer(text))[-1:]), None)
        if last is not None and text[last.end() :] in _JOINTS:
            text = text[: last.start()]
    return frozenset(hint_keywords(text))


class KeywordReward:
    """Counts the keywords that B hints name.

    Args:
        weight: reward of each keyword, at least 0.
        references: the reference text of each hint, (B,).
    """

    def __init__(self, weight: float, references: Sequence[str]) -> None:
        self.weight = weight
        self._open = [set(hint_keywords(text)) for text in references]

    def step(self, hints: Sequence[str], ended: BoolArray) -> FloatArray:
        """Returns `weight` times the reference keywords (B,) that each hint completes now for the first time."""
        rewards = np.zeros(len(hints))
        for row, hint in enumerate(hints):
            named = self._open[row] & complete_words(hint, ended=bool(ended[row]))
            rewards[row] = self.weight * len(named)
            self._open[row] -= named
        return rewards
