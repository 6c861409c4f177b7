"""What a rewrite must keep of the user's text: numbers, addresses, quotations and negations.

A rewriter that was trained for a reward may drop what the reward does not see. These checks read words, not meanings:
a text that passes may still say something else, and a good rewrite may fail. The second one costs a rewrite only.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal, get_args

Kept = Literal["numbers", "urls", "quotes", "negations"]
KINDS: tuple[Kept, ...] = get_args(Kept)

_URL = re.compile(r"https?://[^\s<>\"'`]+", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:[.,]\d+)*(?![\w])")
_QUOTES = re.compile(
    r"\"([^\"\n]{1,500})\"|\u201c([^\u201d\n]{1,500})\u201d|\u00ab([^\u00bb\n]{1,500})\u00bb|`([^`\n]{1,500})`"
)
_NEGATION = re.compile(
    r"\b(?:no|not|never|none|nobody|nothing|nor|neither|without|cannot|except|unless)\b|n['\u2019]t\b", re.IGNORECASE
)


def lost(text: str, rewrite: str, kinds: Iterable[Kept] = KINDS) -> str | None:
    """Returns what a rewrite has lost, as the reason of a fallback; None where all is there.

    Args:
        text: what the user wrote.
        rewrite: what would take its place.
        kinds: what is looked for.

    >>> lost("Add 12 and 30, do not round.", "Add 12 and 30.")
    'lost-negations: 1 of 1'
    """
    for kind in kinds:
        before, after = (_FIND[kind](_plain(one)) for one in (text, rewrite))
        missing = sum((before - after).values())
        if missing:
            return f"lost-{kind}: {missing} of {sum(before.values())}"
    return None


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _urls(text: str) -> Counter[str]:
    return Counter(dict.fromkeys((found.rstrip(".,;:!?)]}") for found in _URL.findall(text)), 1))


def _numbers(text: str) -> Counter[str]:
    return Counter(dict.fromkeys((_value(found) for found in _NUMBER.findall(_URL.sub(" ", text))), 1))


def _value(number: str) -> str:
    """The number without a plus and without commas between groups of three digits."""
    plain = number.lstrip("+")
    return plain.replace(",", "") if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", plain) else plain


def _quotes(text: str) -> Counter[str]:
    return Counter(dict.fromkeys((" ".join("".join(found).split()) for found in _QUOTES.findall(text)), 1))


def _negations(text: str) -> Counter[str]:
    """How many there are: "don't" may become "do not"."""
    return Counter({"negation": len(_NEGATION.findall(text))})


_FIND: dict[str, Callable[[str], Counter[str]]] = {
    "numbers": _numbers,
    "urls": _urls,
    "quotes": _quotes,
    "negations": _negations,
}
