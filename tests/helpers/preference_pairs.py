"""Pairs whose rule is known, for the tests of learnt rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlprompt import preference_pairs
from rlprompt.preference_pairs import PreferencePair
from rlprompt.seeding import generator


def ruled_pairs(
    write: Callable[[Any, int], tuple[str, str]], rule: Callable[[str, str], float], count: int, *, seed: int = 0
) -> list[PreferencePair]:
    """Pairs of two texts of one context, of which the rule (context, text) prefers one; ties are drawn again.

    `write` gets a generator and a number and returns (context, text).
    """
    pairs: list[PreferencePair] = []
    rng = generator(seed, "ruled-pairs")
    while len(pairs) < count:
        context, first = write(rng, len(pairs))
        _, second = write(rng, len(pairs))
        gap = rule(context, first) - rule(context, second)
        if gap == 0:
            continue
        chosen, rejected = (first, second) if gap > 0 else (second, first)
        pairs.append(PreferencePair(f"p{len(pairs)}", chosen, rejected, input=context, margin=abs(gap)))
    return pairs


def planted_texts(rng: Any, number: int) -> tuple[str, str]:
    """A context of two words of `planted-10`, and a text of four."""
    words = [f"w{int(word):02d}" for word in rng.integers(0, 10, size=4)]
    return f"w{number % 10:02d} w{number // 10 % 10:02d}", " ".join(words)


def count_of(word: str) -> Callable[[str, str], float]:
    """The rule that prefers the text with more of a word."""
    return lambda context, text: float(text.split().count(word))


def write_pairs(path: Path, pairs: Sequence[PreferencePair]) -> Path:
    """Writes a pairs file."""
    preference_pairs.write_pairs(path, pairs)
    return path
