"""The step reward of hints: each keyword of the reference that a hint names pays once, in the step that completes it.

Sign convention: rewards are only ever added. Words that the reference does not have, repetitions and stop words bring
0; nothing is subtracted. (The published code of arXiv:2302.11520 adds a coefficient for misses in one place and
subtracts it in another.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from rlprompt.types import BoolArray, FloatArray

SHORTEST = 4
"""Characters of the shortest keyword."""
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_STOP_WORDS = (
    "about above after again against also although always among another around because been before being below between "
    "both cannot could does doing down during each even every from further have having here hers herself himself "
    "into itself just less many might more most much must myself never nothing often once only other ours ourselves "
    "over perhaps quite rather really same shall should since some still such than that their theirs them themselves "
    "then there these they this those though through under until upon very were what when where whether which while "
    "will with within without would your yours yourself"
)
_STOP = frozenset(_STOP_WORDS.split())


def keywords(text: str) -> frozenset[str]:
    """Returns the keywords of a text: its different words of four characters or more, lower case, no stop words.

    >>> sorted(keywords("The storm, and then a Storm-surge, hit Norfolk."))
    ['norfolk', 'storm', 'storm-surge']
    """
    return frozenset(_keyword_list(text))


def _keyword_list(text: str) -> list[str]:
    words = [word.lower() for word in _WORD.findall(text)]
    return [word for word in words if len(word) >= SHORTEST and word not in _STOP]


def complete_words(text: str, *, ended: bool) -> frozenset[str]:
    """Returns the keywords of a text that further tokens cannot change: the last word counts once something follows.

    >>> sorted(complete_words("storm norf", ended=False)), sorted(complete_words("storm norf", ended=True))
    (['storm'], ['norf', 'storm'])
    """
    if ended:
        return keywords(text)
    last = next(iter(list(_WORD.finditer(text))[-1:]), None)
    open_end = last is not None and len(text) - last.end() <= 1 and text[last.end() :] in ("", "'", "\u2019", "-")
    return keywords(text[: last.start()] if last is not None and open_end else text)


class KeywordReward:
    """Counts the keywords that B hints name.

    Args:
        weight: reward of each keyword, at least 0.
        references: the reference text of each hint, (B,).
    """

    def __init__(self, weight: float, references: Sequence[str]) -> None:
        self.weight = weight
        self._open = [set(keywords(text)) for text in references]

    def step(self, hints: Sequence[str], ended: BoolArray) -> FloatArray:
        """Returns `weight` times the reference keywords (B,) that each hint completes now for the first time."""
        rewards = np.zeros(len(hints))
        for row, hint in enumerate(hints):
            named = self._open[row] & complete_words(hint, ended=bool(ended[row]))
            rewards[row] = self.weight * len(named)
            self._open[row] -= named
        return rewards
