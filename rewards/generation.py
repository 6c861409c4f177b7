"""Rewards that read text: what the target wrote, or what the policy wrote."""

from __future__ import annotations

import re
import string
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from rlprompt.errors import ConfigError
from rlprompt.types import TargetOutput

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles, single spaces.

    Reference: Rajpurkar et al. 2016 (SQuAD), arXiv:1606.05250, section 6.1.

    >>> normalise("The  Eiffel-Tower, Paris!")
    'eiffeltower paris'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


class ReferenceReward(ABC):
    """Compares the target's text with the gold answer, the best one where the reference is a list of them."""

    needs: ClassVar[str] = "text"

    def __call__(
        self,
        *,
        outputs: Sequence[TargetOutput],
        references: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Scores N pairs.

        Args:
            outputs: answers with `text`.
            references: the gold answer of each pair, or a list of equally good ones.
            **columns: not used.
        """
        scores: list[float | None] = []
        for index, output in enumerate(outputs):
            reference = references[index] if references is not None else None
            several = list(reference) if isinstance(reference, list | tuple) else [reference]
            golds = [str(gold) for gold in several if gold is not None]
            if output.failure is not None or output.text is None or not golds:
                scores.append(None)
            else:
                scores.append(self._best(output.text, golds))
        return scores

    def _best(self, text: str, golds: Sequence[str]) -> float:
        """The score of one text against its gold answers; that of the best one, unless a measure takes them all."""
        return max(self._compare(text, gold) for gold in golds)

    @abstractmethod
    def _compare(self, text: str, gold: str) -> float:
        """The score of one text against one gold answer."""


class ExactMatch(ReferenceReward):
    """1.0 when the target's text is the gold answer, else 0.0.

    Args:
        normalisation: "squad" compares after `normalise`; "strip" only takes surrounding white space away, which
            is right where punctuation counts ("-5" is not "5").
    """

    def __init__(self, normalisation: str = "squad") -> None:
        if normalisation not in ("squad", "strip"):
            raise ConfigError(f"exact-match: normalisation must be squad or strip, got {normalisation!r}")
        self._normalise = normalise if normalisation == "squad" else str.strip

    def _compare(self, text: str, gold: str) -> float:
        return float(self._normalise(text) == self._normalise(gold))


class TokenF1(ReferenceReward):
    """Harmonic mean of precision and recall of the words, in [0, 1], after `normalise`.

    Words count as often as they occur in both. Two texts without any word agree (1.0).
    Reference: Rajpurkar et al. 2016 (SQuAD), arXiv:1606.05250, section 6.1.
    """

    def _compare(self, text: str, gold: str) -> float:
        words, gold_words = normalise(text).split(), normalise(gold).split()
        if not words or not gold_words:
            return float(words == gold_words)
        common = sum((Counter(words) & Counter(gold_words)).values())
        # 2PR / (P + R) with P = common / len(words), R = common / len(gold_words)
        return 2 * common / (len(words) + len(gold_words))


class Length:
    """Minus what a text is too long or too short, at most 0: 0 within [minimum, maximum].

    The defaults give minus the number of words of the prompt: shorter prompts are better.

    Args:
        of: "prompt" (what the policy wrote) or "output" (what the target wrote).
        unit: "words" (separated by white space) or "characters".
        minimum: shortest length that is not punished, >= 0.
        maximum: longest length that is not punished, >= minimum.
    """

    gold_not_ordered: ClassVar[bool] = True

    def __init__(self, of: str = "prompt", unit: str = "words", minimum: int = 0, maximum: int | None = None) -> None:
        if of not in ("prompt", "output"):
            raise ConfigError(f"length: of must be prompt or output, got {of!r}")
        if unit not in ("words", "characters"):
            raise ConfigError(f"length: unit must be words or characters, got {unit!r}")
        self.maximum = maximum if maximum is not None else minimum
        if not 0 <= minimum <= self.maximum:
            raise ConfigError(f"length: need 0 <= minimum <= maximum, got {minimum} and {maximum}")
        self.minimum = minimum
        self.of = of
        self.unit = unit
        self.needs = "any" if of == "prompt" else "text"

    def __call__(
        self, *, completions: Sequence[str], outputs: Sequence[TargetOutput], **columns: Any
    ) -> list[float | None]:
        """Scores N pairs by the length of `completions` or of the text of `outputs`."""
        texts = completions if self.of == "prompt" else [output.text for output in outputs]
        return [None if text is None else self._score(text) for text in texts]

    def _score(self, text: str) -> float:
        length = len(text.split()) if self.unit == "words" else len(text)
        return -float(max(self.minimum - length, length - self.maximum, 0))
