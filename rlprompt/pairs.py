"""Pairs of one written text and one example: what the target reads, and how their scores are laid out.

At instance level a policy writes for one example's input. Its texts are then scored in pairs, not prompts x examples,
and compared only with the other texts for the same input.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from rlprompt.seeding import integer_seed
from rlprompt.types import BoolArray, Example, FloatArray, IntArray

COMPOSITIONS = ("replace", "append", "prepend", "demonstration")
DEMONSTRATION = -1
"""Sample index of the answer to a derived prompt, which is asked for before the pair itself."""
GREEDY = 0
"""Sample index of an answer at temperature 0; drawn samples are numbered from 1, so that the two never mix."""
DEFAULT_TEMPERATURE = 0.7
"""Of drawn samples, where the task's card says nothing (arXiv:2302.11520 samples at 0.7)."""


def extended_text(example: Example, draft: str) -> str:
    """Returns what `append`, `prepend` and `demonstration` add to: the draft, or the input where there is no draft."""
    return draft or example.input


def compose_prompt(compose: str, written: str, example: Example, draft: str = "", *, answer: str = "") -> str:
    r"""Returns what stands in the template's `{prompt}` for one pair.

    "replace" is the written text itself; an empty one is the empty prompt. The others keep the draft, or the user's
    input where there is no draft, unchanged to the byte; an empty text adds nothing, no separator either.

    Args:
        compose: "replace", "append", "prepend" or "demonstration".
        written: what the policy wrote.
        example: whose input it was written for.
        draft: the draft instruction.
        answer: "demonstration": what the target answered to the written text.

    >>> compose_prompt("append", "Be brief.", Example("a", "Why?"))
    'Why?\nBe brief.'
    >>> compose_prompt("demonstration", "How far?", Example("a", "Why?"), answer="2 km")
    'How far?\n2 km\n\nWhy?'
    """
    if compose == "replace":
        return written
    text = extended_text(example, draft)
    if not written:
        return text
    if compose == "append":
        return f"{text}\n{written}"
    if compose == "prepend":
        return f"{written}\n{text}"
    return f"{written}\n{answer}\n\n{text}"


def sample_indices(samples: int) -> tuple[int, ...]:
    """Returns the sample index of each column of pair scores.

    >>> sample_indices(1), sample_indices(3)
    ((0,), (1, 2, 3))
    """
    return (GREEDY,) if samples == 1 else tuple(range(1, samples + 1))


def sample_seed(seed: int, written: str, example_id: str, sample: int) -> int:
    """Returns the seed of one drawn answer; it depends on the run's seed and the pair, never on the batch."""
    keys = (zlib.crc32(written.encode("utf-8", "surrogatepass")), zlib.crc32(example_id.encode()), sample)
    return integer_seed(seed, "answer", *keys)


def group_places(ids: Sequence[str]) -> tuple[IntArray, IntArray]:
    """Returns (place in its group, group) of each row; rows with one id are a group, groups in order of appearance.

    >>> [part.tolist() for part in group_places(["a", "b", "a"])]
    [[0, 0, 1], [0, 1, 0]]
    """
    groups: dict[str, int] = {}
    sizes: dict[str, int] = {}
    places: list[int] = []
    columns: list[int] = []
    for name in ids:
        columns.append(groups.setdefault(name, len(groups)))
        places.append(sizes.get(name, 0))
        sizes[name] = places[-1] + 1
    return np.array(places, dtype=np.int64), np.array(columns, dtype=np.int64)


def in_groups(
    rewards: FloatArray, valid: BoolArray, places: IntArray, columns: IntArray
) -> tuple[FloatArray, BoolArray]:
    """Lays rows (N,) out as (K, G): a column for each group, not valid where a group is smaller than the largest."""
    shape = (int(places.max(initial=-1)) + 1, int(columns.max(initial=-1)) + 1)
    arranged, used = np.zeros(shape), np.zeros(shape, dtype=np.bool_)
    arranged[places, columns], used[places, columns] = rewards, valid
    return arranged, used
