"""The answer in a generated text: the letter of a multiple choice or a number, and whether it is the right one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, ClassVar

from rlprompt.errors import ConfigError
from rlprompt.types import TargetOutput

_STATED = r"\b(?:answer|choice|option)\b(?:\s+is\b)?\s*[:=]?\s*(?:option\s+|choice\s+)?"
_WRAP = r"[\s*_\"'`(\[]*"
_MOST_DIGITS = 100
"""A longer number is none: nobody answers so, and exact arithmetic on it would take long."""
_NO_OTHER = r"(?!\W*(?:or|and)\b)"
"""After a letter: "A or B" chooses neither."""
_NUMBER = re.compile(
    r"(?<![\w.,/])[-+]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?<=\d)(?:/\d+)?"
    r"(?!\d|[.,/]\d|[eE][-+]?\d)"  # dates, versions, lists without spaces and exponents are no numbers
)
_NUMBER_STATED = (r"####", r"\\boxed\{", r"\banswer\b(?:\s+is\b)?")
_STATED_CHARACTERS = 200
"""How far behind such words a number belongs to them."""


def read_letter(text: str, letters: str = "ABCDE") -> str | None:
    """Returns the letter that a text chooses, or None where that is not clear.

    In this order: the last letter that is stated as the answer ("the answer is (B)", "Answer: B"); a letter that the
    text begins with and that stands apart ("B", "B.", "(b) tea"); the only letter in brackets or before ")". Small
    letters count only at the beginning before a mark, in brackets, or as the whole text, and the word "A" is no
    answer.

    >>> read_letter("I think the answer is (C)."), read_letter("B. bookstore"), read_letter("A bank is a place")
    ('C', 'B', None)
    """
    text = _single_spaced(text)
    one, small = f"[{letters}]", f"[{letters}{letters.lower()}]"
    # "A" and "I" are words too: they need a mark or the end behind them. "answer is A bank" does not choose A.
    clear = letters.translate({ord("A"): None, ord("I"): None}) or "\\0"
    apart = rf"[)\]*_\"'`]|[.,:;!?](?:\s|$|\*)|\s*$|\s*\n|(?<=[{clear}])\s"
    stated = re.findall(rf"(?i:{_STATED}){_WRAP}({one})(?={apart}){_NO_OTHER}", text)
    if stated:
        return str(stated[-1])
    whole = re.fullmatch(rf"\W*({small})\W*", text.strip())
    if whole is not None:
        return whole[1].upper()
    first = re.match(rf"{_WRAP}({small})(?:[)\]:]|[.,](?=\s|$)|[*_\"'`]|\s*\n){_NO_OTHER}", text)
    if first is not None:
        return first[1].upper()
    marked = {letter.upper() for letter in re.findall(rf"(?<![\w'])\(?({small})\)", text)}
    return marked.pop() if len(marked) == 1 else None


def read_number(text: str) -> Fraction | None:
    r"""Returns the number that a text answers with, exactly, or None where there is none.

    In this order: what stands on the same line after the last "####", in the last "\boxed{", after the last "answer"
    or "answer is"; else the last number in the text. Thousands separators, a dollar sign in front and units or "%"
    behind are ignored; 3/4 is three quarters. Exponents are not read.

    >>> read_number("So 1,250.50 dollars."), read_number("The answer is -3/4, not 5."), read_number("none")
    (Fraction(2501, 2), Fraction(-3, 4), None)
    """
    plain = _single_spaced(text).replace("\N{MINUS SIGN}", "-").replace("\\$", "$")
    for pattern in _NUMBER_STATED:
        for match in reversed(list(re.finditer(pattern, plain, flags=re.IGNORECASE))):
            line = plain[match.end() : match.end() + _STATED_CHARACTERS].lstrip(" \n:=").partition("\n")[0]
            numbers = _numbers(line)
            if numbers:
                return numbers[0]
    numbers = _numbers(plain)
    return numbers[-1] if numbers else None


def _single_spaced(text: str) -> str:
    """One character for each run of white space: what follows may then search without backtracking over runs."""
    return re.sub(r"\s+", lambda run: "\n" if "\n" in run[0] else " ", text)


def _numbers(text: str) -> list[Fraction]:
    found = []
    for match in _NUMBER.finditer(text):
        digits = match[0].replace(",", "").replace("$", "").lstrip("+")
        if len(digits) <= _MOST_DIGITS and not re.search(r"/0+$", digits):
            top, _, bottom = digits.partition("/")
            found.append(Fraction(top) / int(bottom or "1"))
    return found


class Answer:
    """1.0 when the answer that is read out of the target's text is the right one, else 0.0.

    A text in which no answer is found is a wrong answer, 0.0, not a failure: else a prompt that makes the target
    evade would be rewarded. The reward abstains where there is no gold answer, or none of this kind can be read from
    it.

    Args:
        kind: "letter" (see `read_letter`) or "number" (see `read_number`).
        letters: kind "letter": the letters of the choices, capital, in order.
        tolerance: kind "number": the largest difference that counts as equal; 0 is exact.
    """

    needs: ClassVar[str] = "text"

    def __init__(self, kind: str = "letter", letters: str = "ABCDE", tolerance: float = 0.0) -> None:
        if kind not in ("letter", "number"):
            raise ConfigError(f"answer: kind must be letter or number, got {kind!r}")
        if not re.fullmatch("[A-Z]{2,26}", letters) or len(set(letters)) < len(letters):
            raise ConfigError(f"answer: letters must be two or more different capital letters, got {letters!r}")
        if not 0 <= tolerance < float("inf"):
            raise ConfigError(f"answer: tolerance must be at least 0, got {tolerance}")
        self.kind = kind
        self.letters = letters
        self.tolerance = Fraction(tolerance)

    def __call__(
        self, *, outputs: Sequence[TargetOutput], references: Sequence[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        """Scores N pairs.

        Args:
            outputs: answers with `text`.
            references: the gold answer of each pair ("B", "B. bank", 12, "#### 12"), or a list of equally good ones.
            **columns: not used.
        """
        read: Callable[[str], Any] = read_number if self.kind == "number" else self._letter
        scores: list[float | None] = []
        for index, output in enumerate(outputs):
            reference = references[index] if references is not None else None
            several = list(reference) if isinstance(reference, list | tuple) else [reference]
            golds = [gold for gold in (read(str(entry)) for entry in several if entry is not None) if gold is not None]
            if output.failure is not None or output.text is None or not golds:
                scores.append(None)
            else:
                answer = read(output.text)
                scores.append(float(answer is not None and any(self._same(answer, gold) for gold in golds)))
        return scores

    def _letter(self, text: str) -> str | None:
        return read_letter(text, self.letters)

    def _same(self, answer: Any, gold: Any) -> bool:
        return bool(abs(answer - gold) <= self.tolerance) if self.kind == "number" else answer == gold
