"""What learnt rewards ask of preference pairs: one kind of reading, and a held-out part."""

from __future__ import annotations

from collections.abc import Sequence

from rlprompt.errors import ConfigError
from rlprompt.preference_pairs import PreferencePair
from rlprompt.seeding import generator


def what_is_read(pairs: Sequence[PreferencePair]) -> str:
    """Returns what the policy read in all pairs, "input" or "context".

    Raises:
        ConfigError: no pairs, or some of each.
    """
    kinds = sorted({pair.reads for pair in pairs})
    if not kinds:
        raise ConfigError("there are no pairs to learn from; give at least one")
    if len(kinds) > 1:
        raise ConfigError("some pairs have 'input' and others 'context'; give all of them the same one")
    return kinds[0]


def hold_out(
    pairs: Sequence[PreferencePair], held_out: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Returns (pairs to learn from, held-out pairs), in their order; no context is on both sides.

    Where all pairs have one context the pairs themselves are drawn: their texts may then be on both sides.

    Args:
        pairs: at least one.
        held_out: share of the contexts that is held out, in [0, 1); 0 holds out nothing.
        seed: of the draw.

    Raises:
        ConfigError: the share is out of range, or leaves a side without pairs.
    """
    if not 0 <= held_out < 1:
        raise ConfigError(f"held_out must be in [0, 1), got {held_out}")
    if held_out == 0:
        return list(pairs), []
    by_context = len({pair.reading for pair in pairs}) > 1
    names = [pair.reading if by_context else pair.id for pair in pairs]
    different = sorted(set(names))
    count = max(1, round(held_out * len(different)))
    if count >= len(different):
        raise ConfigError(
            f"held_out {held_out} of {len(different)} contexts leaves none to learn from; lower it or give more"
        )
    order = generator(seed, "held-out-pairs").permutation(len(different))
    chosen = {different[index] for index in order[:count]}
    learnt = [pair for pair, name in zip(pairs, names, strict=True) if name not in chosen]
    return learnt, [pair for pair, name in zip(pairs, names, strict=True) if name in chosen]
