"""How well the target's text keeps to a length that the configuration or the example asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rlprompt.errors import ConfigError
from rlprompt.types import TargetOutput

_RULES = ("equal", "range", "less", "more")
_NUMBER = r"(\d{1,6})"
_UNIT = r"\s*[- ]?\s*(?:words?|tokens?)\b"
# The first that matches counts; the order keeps "no more than" from being read as "more than".
_PHRASES: tuple[tuple[str, str], ...] = (
    ("range", rf"\b(?:between|from)\s+{_NUMBER}\s*(?:{_UNIT}\s*)?(?:and|to)\s+{_NUMBER}{_UNIT}"),
    ("range", rf"\b{_NUMBER}\s*(?:-|to)\s*{_NUMBER}{_UNIT}"),
    ("less", rf"\b(?:at most|no more than|not more than|no longer than|up to)\s+{_NUMBER}{_UNIT}"),
    ("more", rf"\b(?:at least|no fewer than|no less than|not less than)\s+{_NUMBER}{_UNIT}"),
    ("less", rf"\b(?:less than|fewer than|shorter than|under|below)\s+{_NUMBER}{_UNIT}"),
    ("more", rf"\b(?:more than|longer than|over|above)\s+{_NUMBER}{_UNIT}"),
    ("equal", rf"\b(?:exactly|equal to|precisely|in|with|of|has|have|using)\s+{_NUMBER}{_UNIT}"),
)


@dataclass(frozen=True)
class LengthLimits:
    """The lengths that a rule allows, both ends included."""

    minimum: int
    maximum: int | None
    """None: open."""

    def missed_by(self, length: int) -> int:
        """Returns how far a length lies outside, 0 within.

        >>> [LengthLimits(3, 5).missed_by(length) for length in (1, 3, 5, 9)]
        [2, 0, 0, 4]
        """
        over = 0 if self.maximum is None else length - self.maximum
        return max(self.minimum - length, over, 0)


def length_limits(rule: str, value: int | Sequence[int]) -> LengthLimits:
    """Returns what a rule allows: "equal" n, "range" [a, b], "less" (at most n), "more" (at least n).

    The ends are allowed, as in the published rewards, which are 0 there.

    Raises:
        ConfigError: an unknown rule, or numbers that do not fit it.
    """
    if rule not in _RULES:
        raise ConfigError(f"length-rule: rule must be one of {', '.join(_RULES)}; got {rule!r}")
    numbers: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    wanted = 2 if rule == "range" else 1
    if len(numbers) != wanted or not all(type(number) is int and number >= 0 for number in numbers):
        shape = "two lengths [from, to]" if wanted == 2 else "one length"
        raise ConfigError(f"length-rule: rule '{rule}' takes {shape} of at least 0 as value, got {value!r}")
    if rule == "less":
        return LengthLimits(0, numbers[0])
    if rule == "more":
        return LengthLimits(numbers[0], None)
    if numbers[0] > numbers[-1]:
        raise ConfigError(f"length-rule: the range {value} ends before it begins; turn it round")
    return LengthLimits(numbers[0], numbers[-1])


def read_length_rule(text: str) -> LengthLimits | None:
    """Reads an English request for a length in words or tokens out of a text; None where there is none.

    "less than 20 words" allows 20, as `length_limits` does.

    >>> read_length_rule("Summarise it in no more than 20 words.")
    LengthLimits(minimum=0, maximum=20)
    >>> read_length_rule("between 5 and 10 words"), read_length_rule("In a few words")
    (LengthLimits(minimum=5, maximum=10), None)
    """
    for rule, phrase in _PHRASES:
        found = re.search(phrase, text, flags=re.IGNORECASE)
        if found is not None:
            numbers = [int(number) for number in found.groups()]
            return length_limits(rule, sorted(numbers) if rule == "range" else numbers[0])
    return None


class LengthRule:
    """Minus what a text is outside of the allowed lengths, at most 0; or 1.0 within them, else 0.0.

    Reference: Jie et al. 2023, arXiv:2308.12030: rules "equal to", "between", "less than" and "more than" with the
    rewards -|L - n|, -(max(a - L, 0) + max(L - b, 0)), -max(L - n, 0) and -max(n - L, 0). There the model that
    answers is trained; here it is asked by a prompt.

    Args:
        rule: "equal", "range", "less" (at most) or "more" (at least).
        value: the length n, or [a, b] of "range".
        column: instead of rule and value, the example's column whose text asks for a length (see
            `read_length_rule`), for example "input"; the reward abstains where it asks for none.
        of: "output" (what the target wrote) or "prompt" (what the policy wrote).
        unit: "words" (separated by white space) or "tokens".
        tokenizer: name of the model whose tokens are counted (see `rlprompt.models`).
        score: "distance" or "hit" (1.0 or 0.0).
    """

    gold_not_ordered: ClassVar[bool] = True

    def __init__(
        self,
        rule: str | None = None,
        value: int | Sequence[int] | None = None,
        *,
        column: str | None = None,
        of: str = "output",
        unit: str = "words",
        tokenizer: str = "smollm2-135m-instruct",
        score: str = "distance",
    ) -> None:
        for name, given, allowed in (
            ("of", of, ("output", "prompt")),
            ("unit", unit, ("words", "tokens")),
            ("score", score, ("distance", "hit")),
        ):
            if given not in allowed:
                raise ConfigError(f"length-rule: {name} must be {' or '.join(allowed)}, got {given!r}")
        if (column is None) == (rule is None) or (rule is None) != (value is None):
            raise ConfigError("length-rule: give rule and value, or column alone, for example {rule: less, value: 20}")
        self.limits = None if rule is None or value is None else length_limits(rule, value)
        self.column = column
        self.of = of
        self.needs = "text" if of == "output" else "any"
        self.score = score
        self.count: Callable[[str], int] = _count_words if unit == "words" else _TokenCount(tokenizer)

    def __call__(
        self, *, completions: Sequence[str], outputs: Sequence[TargetOutput], **columns: Any
    ) -> list[float | None]:
        """Scores N pairs by the length of `completions` or of the text of `outputs`.

        Raises:
            ValueError: the task has no column of the configured name.
        """
        texts = list(completions) if self.of == "prompt" else [output.text for output in outputs]
        if self.column is not None and self.column not in columns:
            raise ValueError(f"the task has no column '{self.column}'; it has {', '.join(columns)}")
        scores: list[float | None] = []
        for index, text in enumerate(texts):
            limits = self.limits if self.column is None else _read_cell(columns[self.column][index])
            scores.append(None if text is None or limits is None else self._score(limits.missed_by(self.count(text))))
        return scores

    def _score(self, missed: int) -> float:
        return float(missed == 0) if self.score == "hit" else -float(missed)


class _TokenCount:
    """Counts the tokens of a text, without special ones."""

    def __init__(self, tokenizer: str) -> None:
        from rlprompt import models

        self._tokenizer: Any = models.load_tokenizer(tokenizer)

    def __call__(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))


def _count_words(text: str) -> int:
    return len(text.split())


def _read_cell(cell: Any) -> LengthLimits | None:
    return read_length_rule(cell) if isinstance(cell, str) else None
