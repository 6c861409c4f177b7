"""Preference pairs as learnt rewards read them: a JSONL file, and a held-out part of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlprompt.errors import ConfigError
from rlprompt.seeding import generator

READS = ("input", "context")
"""What a pair may be written for: an example's input, or what the policy read."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two texts for one context, of which the first was preferred."""

    id: str
    context: str
    chosen: str
    rejected: str
    reads: str = "input"
    """What `context` is: an example's "input", or the "context" that the policy read."""
    margin: float | None = None
    """How much better the chosen text was, in units of whoever judged; None where it is not known."""
    weight: float = 1.0


def read_pairs(path: str | Path) -> list[PreferencePair]:
    """Reads a pairs file: one JSON object a line.

    Each line has `id`, `chosen`, `rejected` and one of `input` and `context`; `margin` and `weight` are optional, and
    other keys are ignored.

    Raises:
        ConfigError: the file cannot be read, holds no pair, or a line lacks a column, repeats an id or has a value that
            does not fit.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # not splitlines: U+2028 ends no line of JSONL
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the pairs in {file}: {' '.join(str(error).split())}") from error
    pairs: list[PreferencePair] = []
    places: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{where} is not JSON: {error}") from error
        pair = _pair(row, where)
        if pair.id in places:
            raise ConfigError(f"{where}: the id '{pair.id}' is that of line {places[pair.id]}; give each pair its own")
        places[pair.id] = number
        pairs.append(pair)
    if not pairs:
        raise ConfigError(f"{file} holds no pair; where all scores are tied no pairs are made: give other scores")
    return pairs


def what_is_read(pairs: Sequence[PreferencePair]) -> str:
    """Returns what the contexts of all pairs are, "input" or "context".

    Raises:
        ConfigError: no pairs, or some of each.
    """
    kinds = sorted({pair.reads for pair in pairs})
    if not kinds:
        raise ConfigError("there are no pairs to learn from; give at least one")
    if len(kinds) > 1:
        raise ConfigError("some pairs have 'input' and others 'context'; give all of them the same one")
    return kinds[0]


def split_pairs(
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
    by_context = len({pair.context for pair in pairs}) > 1
    names = [pair.context if by_context else pair.id for pair in pairs]
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


def _pair(row: Any, where: str) -> PreferencePair:
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where} must be a JSON object, got {type(row).__name__}")
    missing = [name for name in ("id", "chosen", "rejected") if name not in row]
    given = [name for name in READS if row.get(name) is not None]
    if missing or not given:
        absent = ", ".join(f"'{name}'" for name in missing) or "'input' or 'context'"
        raise ConfigError(f"{where} lacks {absent}; each line needs id, chosen, rejected, and input or context")
    if len(given) > 1:
        raise ConfigError(f"{where} has both 'input' and 'context'; give one of them")
    for name in ("chosen", "rejected", *given):
        if not isinstance(row[name], str):
            raise ConfigError(f"{where}: '{name}' must be a text, got {type(row[name]).__name__}")
    if row["chosen"] == row["rejected"]:
        raise ConfigError(f"{where}: chosen and rejected are the same text; leave such pairs out")
    margin = row.get("margin")
    return PreferencePair(
        id=str(row["id"]),
        context=row[given[0]],
        chosen=row["chosen"],
        rejected=row["rejected"],
        reads=given[0],
        margin=None if margin is None else _number(margin, "margin", where, least=-math.inf),
        weight=_number(row.get("weight", 1.0), "weight", where, least=0.0),
    )


def _number(value: Any, name: str, where: str, *, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise ConfigError(f"{where}: '{name}' must be a finite number{' from 0' * (least == 0)}, got {value!r}")
    return float(value)
