"""What annotators compare: two prompts, or what the target made of two prompts, and the queue of them that is drawn."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np

from rlprompt.errors import ConfigError
from rlprompt.preference_pairs import PreferencePair
from rlprompt.preferences.candidates import Candidate
from rlprompt.seeding import generator

What: TypeAlias = Literal["outputs", "prompts"]
Side: TypeAlias = Literal["a", "b"]
PairKey: TypeAlias = tuple[str, frozenset[str]]
"""(example id, "" at task level; two texts): what a preference pair is about."""

_PERMUTED = 10_000
"""Up to so many pairs of a group are put in order as a whole; of more, single ones are drawn."""


@dataclass(frozen=True)
class Shown:
    """A prompt, and the text by which an annotator judges it."""

    candidate: Candidate
    text: str
    """The prompt itself, or what the target wrote for it."""


@dataclass(frozen=True)
class ShownGroup:
    """Prompts of which any two may be compared: those for one example, or for the whole task."""

    example_id: str
    """The example that they are shown on; "" where none is shown."""
    input: str
    sides: tuple[Shown, ...]


@dataclass(frozen=True)
class Comparison:
    """Two prompts to choose between. `a` is the one whose text sorts first, whichever way they were found."""

    what: What
    example_id: str
    """The example that both are shown on; "" where none is shown."""
    input: str
    a: Shown
    b: Shown

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits that follow from the content: the same in every queue that holds the comparison."""
        return comparison_id(self.what, self.example_id, self.a.candidate.text, self.b.candidate.text)

    def left(self, seed: int, annotator: str) -> Side:
        """Returns which of the two stands left.

        It is drawn for each annotator apart, so that a habit of taking one side does not fall on the same prompts for
        all of them.
        """
        draw = generator(seed, "label-sides", zlib.crc32(annotator.encode("utf-8", "surrogatepass")), int(self.id, 16))
        return "a" if draw.random() < 0.5 else "b"


def comparison_id(what: str, example_id: str, a: str, b: str) -> str:
    """Returns the id of a comparison of two prompts; `a` sorts before `b`."""
    content = "\0".join((what, example_id, a, b))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def draw_comparisons(
    groups: Sequence[ShownGroup],
    count: int,
    *,
    what: What,
    seed: int,
    allowed: Sequence[PreferencePair] | None = None,
) -> list[Comparison]:
    """Draws the queue: in turns one comparison of each group, so that few comparisons cover many examples.

    A smaller count gives the beginning of the same queue. Two prompts that show the same text are not compared.

    Args:
        groups: in an order that is the same every time.
        count: most comparisons, at least 1.
        what: what is shown.
        seed: draws the order of the groups, and the pairs of each.
        allowed: only the two texts of one of these pairs are compared; None allows all.

    Raises:
        ConfigError: the count is below 1.
    """
    if count < 1:
        raise ConfigError(f"--pairs must be at least 1, got {count}")
    keys = None if allowed is None else {pair_key(pair.example_id, pair.chosen, pair.rejected) for pair in allowed}
    order = generator(seed, "label-groups").permutation(len(groups))
    turns = [_pairs_of(groups[int(place)], what, seed, keys) for place in order]
    found: list[Comparison] = []
    while turns and len(found) < count:
        going = []
        for turn in turns:
            comparison = next(turn, None)
            if comparison is not None:
                found.append(comparison)
                going.append(turn)
        turns = going
    return found[:count]


def pair_key(example_id: str, first: str, second: str) -> PairKey:
    """Returns what a preference pair of two texts is about, whichever is chosen."""
    return example_id, frozenset((first, second))


def _pairs_of(group: ShownGroup, what: What, seed: int, allowed: Set[PairKey] | None) -> Iterator[Comparison]:
    name = (group.example_id or group.input).encode("utf-8", "surrogatepass")
    for first, second in _drawn(group, seed, zlib.crc32(name), allowed):
        if first.text != second.text and first.candidate.text != second.candidate.text:
            a, b = sorted((first, second), key=lambda side: side.candidate.text)
            yield Comparison(what, group.example_id, group.input, a, b)


def _drawn(group: ShownGroup, seed: int, key: int, allowed: Set[PairKey] | None) -> Iterator[tuple[Shown, Shown]]:
    sides, rng = group.sides, generator(seed, "label-pairs", key)
    if allowed is not None:
        pairs = list(_allowed(sides, allowed))
        yield from (pairs[int(place)] for place in rng.permutation(len(pairs)))
        return
    total = len(sides) * (len(sides) - 1) // 2
    places: Iterator[int] = map(int, rng.permutation(total)) if total <= _PERMUTED else _without_repeats(rng, total)
    for place in places:
        # pair number k of the order (1, 0), (2, 0), (2, 1), (3, 0), ...
        high = (1 + math.isqrt(1 + 8 * place)) // 2
        yield sides[high], sides[place - high * (high - 1) // 2]


def _without_repeats(rng: np.random.Generator, total: int) -> Iterator[int]:
    seen: set[int] = set()
    while len(seen) < total:
        place = int(rng.integers(total))
        if place not in seen:
            seen.add(place)
            yield place


def _allowed(sides: Sequence[Shown], allowed: Set[PairKey]) -> Iterator[tuple[Shown, Shown]]:
    by_text = {(side.candidate.example_id, side.candidate.text): side for side in sides}
    for example_id, texts in sorted(allowed, key=lambda key: (key[0], sorted(key[1]))):
        first, second = (by_text.get((example_id, text)) for text in sorted(texts))
        if first is not None and second is not None:
            yield first, second
