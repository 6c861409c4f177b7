"""A preference pair, the JSONL file of pairs, what SFT reads of it, and a validation split without shared examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rlprompt.errors import ConfigError
from rlprompt.json_lines import json_lines, write_json_lines
from rlprompt.seeding import generator
from rlprompt.types import Json


@dataclass(frozen=True)
class PreferencePair:
    """Two texts that a policy could write after the same reading, one of them preferred.

    Raises:
        ConfigError: no id; not exactly one of input and context; chosen equal to rejected; a number that is not finite;
            a negative weight; a free column with the name of a field.
    """

    id: str
    """Unique in its file."""
    chosen: str
    rejected: str
    input: str | None = None
    """The text that the policy rewrote; "" at task level. The env of a training run makes the context of it, through
    its meta-prompt and chat template."""
    context: str | None = None
    """In the place of `input`: the full text that the policy reads, as it is."""
    chosen_scores: Mapping[str, float] = field(default_factory=dict)
    """By name; "reward" is the combined one. Scores that abstained or failed are not in here."""
    rejected_scores: Mapping[str, float] = field(default_factory=dict)
    margin: float = 0.0
    """The chosen text's score less the rejected one's, in the score that decided. Where a rule decided and not a score:
    the same difference of "reward", which may be negative, and 0.0 without one."""
    weight: float = 1.0
    """Of the pair's loss, at least 0."""
    source: str = ""
    """The builder's name."""
    example_id: str = ""
    """The example that both texts were written for; "" at task level."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns as JSON values; in the file they stand beside the fields."""

    def __post_init__(self) -> None:
        """Checks what the types do not say."""
        if not self.id:
            raise ConfigError("a pair has an empty id; give each its own")
        if (self.input is None) == (self.context is None):
            raise ConfigError(f"pair '{self.id}' must have one of input and context")
        if self.chosen == self.rejected:
            raise ConfigError(f"pair '{self.id}': chosen and rejected are the same text; a tie is no pair")
        numbers = {"margin": self.margin, "weight": self.weight}
        for side, scores in (("chosen_scores", self.chosen_scores), ("rejected_scores", self.rejected_scores)):
            numbers |= {f"{side}.{name}": value for name, value in scores.items()}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigError(f"pair '{self.id}': {name} must be a finite number, got {value!r}")
        if self.weight < 0:
            raise ConfigError(f"pair '{self.id}': weight must be at least 0, got {self.weight}")
        taken = sorted(set(self.columns) & _FIELDS)
        if taken:
            raise ConfigError(f"pair '{self.id}': a free column must not be called '{taken[0]}'; rename it")

    @property
    def reads(self) -> str:
        """Which of the two `reading` is: "input" or "context"."""
        return "context" if self.input is None else "input"

    @property
    def reading(self) -> str:
        """The text that both texts were written for: the input, or the context in its place."""
        return str(self.context if self.input is None else self.input)

    @property
    def known_margin(self) -> float | None:
        """The margin where it says how much better the chosen text is; None where a rule decided: it is 0 or less."""
        return self.margin if self.margin > 0 else None

    def to_json(self) -> Json:
        """Returns a line of the pairs file: the fields, of input and context the one that is there, the columns."""
        given = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "columns"}
        values = {name: value for name, value in given.items() if value is not None}
        scores = {name: dict(values[name]) for name in ("chosen_scores", "rejected_scores")}
        return {**values, **scores, **self.columns}

    @classmethod
    def from_json(cls, row: Any) -> PreferencePair:
        """Makes a pair of a line of the pairs file; unknown keys are free columns.

        Raises:
            ConfigError: a column is missing or of the wrong type, or as the class.
        """
        if not isinstance(row, dict):
            raise ConfigError(f"a pair is a JSON object, got {type(row).__name__}")
        missing = [name for name in _REQUIRED if row.get(name) is None]
        if not missing and row.get("input") is None and row.get("context") is None:
            missing = ["input' or 'context"]
        if missing:
            raise ConfigError(
                f"there is no '{missing[0]}'; a pair has id, chosen, rejected and one of input and context"
            )
        for name in _TEXTS:
            if row.get(name) is not None and not isinstance(row[name], str):
                raise ConfigError(f"'{name}' must be a text, got {row[name]!r}")
        for name in ("chosen_scores", "rejected_scores"):
            if row.get(name) is not None and not isinstance(row[name], dict):
                raise ConfigError(f"'{name}' must map names to numbers, got {row[name]!r}")
        known = {name: row[name] for name in _FIELDS - {"columns"} if row.get(name) is not None}
        return cls(**known, columns={name: value for name, value in row.items() if name not in _FIELDS})


_FIELDS = frozenset(entry.name for entry in fields(PreferencePair))
_REQUIRED = ("id", "chosen", "rejected")
_TEXTS = ("id", "chosen", "rejected", "input", "context", "source", "example_id")


def read_pairs(path: str | Path) -> list[PreferencePair]:
    """Reads a pairs file: one JSON object a line, in UTF-8; empty lines are skipped.

    Raises:
        ConfigError: the file cannot be read or holds no pair, or a line is not JSON, lacks a column, has the id of
            another one, or has the same text twice. The message names file and line.
    """
    pairs: list[PreferencePair] = []
    seen: dict[str, int] = {}
    for number, row in json_lines(path, "the pairs file"):
        try:
            pair = PreferencePair.from_json(row)
        except ConfigError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
        if pair.id in seen:
            raise ConfigError(f"{path}, line {number} has the id '{pair.id}' of line {seen[pair.id]}; ids are unique")
        seen[pair.id] = number
        pairs.append(pair)
    if not pairs:
        raise ConfigError(f"{path} holds no pair; build some with rlprompt pairs RUN -o {path}")
    return pairs


def write_pairs(path: str | Path, pairs: Iterable[PreferencePair]) -> None:
    """Writes a pairs file whole: a temporary file beside it takes its place when it is complete.

    Raises:
        ConfigError: no pair, or two pairs with one id; nothing is written.
        RunError: the file cannot be written.
    """
    lines: dict[str, Json] = {}
    for pair in pairs:
        if pair.id in lines:
            raise ConfigError(f"{path}: two pairs have the id '{pair.id}'; ids are unique")
        lines[pair.id] = pair.to_json()
    if not lines:
        raise ConfigError(f"{path}: there is no pair to write")
    write_json_lines(path, lines.values())


def sft_rows(pairs: Iterable[PreferencePair]) -> list[Json]:
    """Returns what SFT learns from pairs: the chosen texts as `target`, after `context` or `input`.

    Each (input, chosen) comes once, in the order of the pairs. Written with `write_json_lines`, the rows are a file for
    a stage's `data: {pairs: FILE}`.
    """
    found: dict[tuple[str, str, str], Json] = {}
    for pair in pairs:
        key = (pair.reads, pair.reading, pair.chosen)
        found.setdefault(key, {pair.reads: pair.reading, "target": pair.chosen})
    return list(found.values())


def split_pairs(
    pairs: Sequence[PreferencePair], fraction: float, *, seed: int = 0
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Splits pairs into (train, validation) so that no example, and without example ids no reading, is on both sides.

    Args:
        pairs: in any order, which both parts keep.
        fraction: share of the groups that go to validation, in (0, 1); at least one group stays on either side.
        seed: draws the groups.

    Raises:
        ConfigError: the fraction is out of range, or there is only one group.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"the validation share must be between 0 and 1, got {fraction:g}")
    groups = sorted({_group(pair) for pair in pairs})
    if len(groups) < 2:
        raise ConfigError(
            f"a validation split needs pairs of at least two examples, got {len(groups)}; a run that writes one prompt "
            "for the whole task has one group, so validate on another run"
        )
    count = min(max(round(fraction * len(groups)), 1), len(groups) - 1)
    drawn = generator(seed, "pairs-validation").permutation(len(groups))[:count]
    held_out = {groups[int(index)] for index in drawn}
    return (
        [pair for pair in pairs if _group(pair) not in held_out],
        [pair for pair in pairs if _group(pair) in held_out],
    )


def _group(pair: PreferencePair) -> tuple[str, str]:
    return ("example", pair.example_id) if pair.example_id else (pair.reads, pair.reading)
