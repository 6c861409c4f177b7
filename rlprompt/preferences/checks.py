"""Rules about texts, as pure functions: merits of a prompt, what tells two directives apart, constraints on a response.

All of them are about English text and look at its surface only; none knows a score.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlprompt.tasks.extractors import hint_keywords

_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+(?=\s|$)|[.!?]+(?=\S)[^.!?\n]*)*")
_NUMBER = re.compile(r"(?<!\w)\d+(?:[.,]\d+)*")
_QUOTED = re.compile(r"\"([^\"\n]+)\"|\N{LEFT DOUBLE QUOTATION MARK}([^\N{RIGHT DOUBLE QUOTATION MARK}\n]+)")
_CHATTER = re.compile(
    r"\W*(?:sure\b|certainly\b|of course\b|okay\b|here(?: is|'s| are)\b|as an? (?:ai|assistant|language model)\b|"
    r"i (?:cannot|can't|am sorry|apologi[sz]e)|(?:the )?(?:rewritten|improved|revised|new) "
    r"(?:prompt|question|instruction)\b\s*(?:is\b|:))",
    re.IGNORECASE,
)
_VAGUE = re.compile(
    r"\b(?:etc|stuff|somehow|whatever|and so on|some kind of|sort of|things? like that)\b", re.IGNORECASE
)
_BULLET = re.compile(r"^\s*(?:[-*\N{BULLET}]|\d+[.)])\s+\S", re.MULTILINE)
_PAIRS = {")": "(", "]": "[", "}": "{"}


@dataclass(frozen=True)
class Limits:
    """The numbers of the merit checks."""

    max_words: int = 60
    """Of the whole text."""
    max_sentence_words: int = 40
    """Of its longest sentence."""
    kept: float = 0.5
    """Share of the input's content words that the text must have, in [0, 1]."""
    distinct: float = 0.5
    """Share of different words among all, in [0, 1]."""


def words(text: str) -> int:
    """Returns the number of words: what white space separates."""
    return len(text.split())


def sentences(text: str) -> list[str]:
    """Returns the sentences of a text: they end at ".", "!" or "?" before white space, or at a line break.

    >>> sentences("Read it. It costs 3.50 now! Done")
    ['Read it.', 'It costs 3.50 now!', 'Done']
    """
    return [part.strip() for part in _SENTENCE.findall(text) if any(letter.isalnum() for letter in part)]


def _short(text: str, naive: str, limits: Limits) -> bool:
    return 0 < words(text) <= limits.max_words


def _concise(text: str, naive: str, limits: Limits) -> bool:
    said = [sentence.casefold() for sentence in sentences(text)]
    spoken = text.casefold().split()
    return len(set(said)) == len(said) and len(set(spoken)) >= limits.distinct * len(spoken)


def _clear(text: str, naive: str, limits: Limits) -> bool:
    longest = max((words(sentence) for sentence in sentences(text)), default=0)
    return 0 < longest <= limits.max_sentence_words and _balanced(text) and text.rstrip()[-1:] not in ",;-(\N{EM DASH}"


def _precise(text: str, naive: str, limits: Limits) -> bool:
    return _VAGUE.search(text) is None or _VAGUE.search(naive) is not None


def _plain(text: str, naive: str, limits: Limits) -> bool:
    return _CHATTER.match(text) is None


def _keeps_numbers(text: str, naive: str, limits: Limits) -> bool:
    return set(_NUMBER.findall(naive)) <= set(_NUMBER.findall(text))


def _keeps_quotes(text: str, naive: str, limits: Limits) -> bool:
    return all((straight or curly) in text for straight, curly in _QUOTED.findall(naive))


def _keeps_words(text: str, naive: str, limits: Limits) -> bool:
    wanted, found = hint_keywords(naive), set(hint_keywords(text))
    return sum(word in found for word in wanted) >= limits.kept * len(wanted)


MERITS: dict[str, Callable[[str, str, Limits], bool]] = {
    "short": _short,
    "concise": _concise,
    "clear": _clear,
    "precise": _precise,
    "plain": _plain,
    "keeps-numbers": _keeps_numbers,
    "keeps-quotes": _keeps_quotes,
    "keeps-words": _keeps_words,
}
"""Name -> check of (text, what it rewrites, limits): short: 1 to `max_words` words; concise: no sentence twice, and at
least `distinct` of the words differ; clear: no sentence above `max_sentence_words`, brackets and double quotes closed,
no loose end; precise: no "etc", "stuff", ... that the input does not have; plain: does not talk about itself ("Sure,
here is ..."); keeps-numbers and keeps-quotes: all those of the input; keeps-words: at least `kept` of its content
words."""


def failed_merits(text: str, naive: str, checks: tuple[str, ...], limits: Limits) -> list[str]:
    """Returns the names of the checks that a text does not pass.

    >>> failed_merits("Sure, here is it: explain", "Explain 7 rules.", tuple(MERITS), Limits())
    ['plain', 'keeps-numbers', 'keeps-words']
    """
    return [name for name in checks if not MERITS[name](text, naive, limits)]


def _balanced(text: str) -> bool:
    open_ones: list[str] = []
    for letter in text:
        if letter in _PAIRS.values():
            open_ones.append(letter)
        elif letter in _PAIRS and (not open_ones or open_ones.pop() != _PAIRS[letter]):
            return False
    return not open_ones and text.count('"') % 2 == 0


def _marks(text: str) -> int:
    return len(_BULLET.findall(text))


DIRECTIVES: dict[str, Callable[[str], int]] = {
    "concise/detailed": words,
    "plain/structured": _marks,
}
"""Two opposite directives -> what is measured: the text with less of it follows the first, the other the second.
concise/detailed: words; plain/structured: lines that begin with a bullet or a number."""


@dataclass(frozen=True)
class Constraint:
    """What a prompt may ask of a response, and its opposite; exactly one of them holds."""

    holds: Callable[[str, int], bool]
    """Of (response, number of words)."""
    asks: str
    """With {n} for the number of words."""
    opposite: str


CONSTRAINTS: Mapping[str, Constraint] = {
    "words": Constraint(
        lambda text, n: words(text) <= n, "Answer in at most {n} words.", "Answer in more than {n} words."
    ),
    "sentences": Constraint(
        lambda text, n: len(sentences(text)) <= 1, "Answer in one sentence.", "Answer in several sentences."
    ),
    "digits": Constraint(
        lambda text, n: any(letter.isdigit() for letter in text),
        "Name at least one number, in digits.",
        "Write no digits.",
    ),
    "list": Constraint(
        lambda text, n: _marks(text) > 0, "Answer as a list with bullets or numbers.", "Do not write a list."
    ),
    "question": Constraint(
        lambda text, n: text.rstrip().endswith("?"), "End with a question.", "Do not end with a question."
    ),
}
"""Name -> constraint on a response."""
