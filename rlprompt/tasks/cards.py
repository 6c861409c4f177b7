"""Task cards: the YAML files that describe tasks, strictly validated.

A card names where the rows come from (one of `splits`: local files, `hub`: a Hugging Face data set, `package`: a
file of an installed package), which columns to read, the template, and choices or a metric. `base` names another
card, from which everything is taken that this one does not say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from rlprompt.config import Section, describe
from rlprompt.errors import TaskError, UnknownNameError
from rlprompt.registry import BUILT_IN

CARDS = Path(__file__).parent / "cards"
_MAX_BASES = 8
_SOURCES = ("splits", "hub", "package")


def _no_booleans(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(item, bool) for item in value):
        raise ValueError("YAML reads yes, no, true and false as booleans; put them in quotes")
    return value


def _texts(value: Any) -> Any:
    value = _no_booleans(value)
    return [str(item) if isinstance(item, int) else item for item in value] if isinstance(value, list) else value


SplitName: TypeAlias = Literal["train", "dev", "test"]
_TRAIN_AND_TEST: dict[SplitName, str] = {"train": "train", "test": "test"}
Columns: TypeAlias = dict[str, str | list[str]]
Words: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_no_booleans)]
Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_texts)]
Messages: TypeAlias = str | list[dict[str, str]]


def _columns(columns: Columns | None) -> Columns | None:
    if columns is not None:
        if "input" not in columns:
            raise ValueError("'input' is missing; write which column of the data is the input")
        if "prompt" in columns or "mask" in columns:
            raise ValueError("'prompt' and 'mask' are fields of the template already; choose another name")
    return columns


class Carve(Section):
    """Splits that are cut out of train: a fixed choice, the same on every machine, stratified by class."""

    dev: int | None = Field(default=None, ge=1)
    """Rows of dev; None where the source has a dev split."""
    test: int | None = Field(default=None, ge=1)
    balanced: bool = False
    """The same number of each class; else the shares of train."""
    by_reference: bool = False
    """Texts that are references count as classes too, so that a task has the same splits with choices and without."""


class SplitFiles(Section):
    """The files of the splits (.jsonl, .csv or .tsv), relative to the card."""

    train: str
    dev: str | None = None
    test: str | None = None


class HubSource(Section):
    """A Hugging Face data set, read with `datasets` (no code from the hub is run)."""

    id: str
    """owner/name."""
    config: str | None = None
    revision: str | None = None
    """Commit, tag or branch; pin it for results that are to be repeated."""
    splits: dict[SplitName, str] = Field(default=_TRAIN_AND_TEST)
    """Our split: its name on the hub."""
    columns: Columns | None = None
    """Replaces the card's `columns` for this source; other columns are not read."""
    take: dict[SplitName, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """At most so many rows of a split, a fixed choice (large train splits)."""
    drop_overlap: bool = False
    """Takes rows that also stand in a later split out of the earlier one, so that test stays as published."""
    carve: Carve = Carve()

    _check_columns = field_validator("columns")(_columns)

    @field_validator("id")
    @classmethod
    def _is_id(cls, value: str) -> str:
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", value):
            raise ValueError("a hub id is of the form owner/name")
        return value


class PackageSource(Section):
    """One data file of an installed package; the package's code is not run."""

    name: str
    file: str
    """Path inside the package."""
    install: str
    """The command that installs it, for the error message."""
    where: dict[str, str] = Field(default_factory=dict)
    """Only the rows with these values, column: value."""
    not_empty: tuple[str, ...] = ()
    """Only the rows that have a text in these columns."""
    columns: Columns | None = None
    carve: Carve

    _check_columns = field_validator("columns")(_columns)

    @field_validator("name")
    @classmethod
    def _is_package(cls, value: str) -> str:
        if not value.isidentifier():
            raise ValueError("a top-level package name is needed")
        return value

    @field_validator("file")
    @classmethod
    def _is_inside(cls, value: str) -> str:
        if Path(value).is_absolute() or ".." in Path(value).parts:
            raise ValueError("the path must stay inside the package")
        return value


class Card(Section):
    """A task card."""

    name: str
    description: str = ""
    splits: SplitFiles | None = None
    hub: HubSource | None = None
    package: PackageSource | None = None
    columns: Columns | None = None
    """Our column: the data's column, or several that are joined with a space. `input` and `reference` are ours."""
    labels: Names | None = None
    """Names of the labels in the data, in the order of the choices; without it labels are integers from 0."""
    reference_pattern: str | None = None
    """A regular expression; what its one group finds at the beginning of the data's reference is the reference."""
    choices: Words | None = None
    """Label words, index = label, with the space that they begin with after the prompt."""
    choices_masked: Words | None = None
    """Label words for `template_masked`, where they differ."""
    choices_chat: Words | None = None
    """Label words for `template_chat`, where they differ: an answer in a chat begins without a space."""
    metric: Literal["exact-match", "token-f1", "rouge", "answer-letter", "answer-number"] | None = None
    template: Messages
    template_masked: str | None = None
    """For masked targets, with the field {mask}."""
    template_chat: list[dict[str, str]] | None = None
    """For chat models: messages."""
    max_input_words: int | None = Field(default=None, ge=1)
    """Inputs are cut after so many words (separated by white space), after the splits were made."""
    max_tokens: int = Field(default=32, ge=1)
    stop: Words = ("\n",)
    sampling_temperature: float | None = Field(default=None, gt=0)
    """Of drawn answers, with more than one sample for each question."""
    allow_overlap: bool = False
    """Rows in two splits are warned about instead of refused."""
    carve: Carve = Carve()
    """For `splits`: what to cut out of train."""

    _check_columns = field_validator("columns")(_columns)

    @field_validator("reference_pattern")
    @classmethod
    def _has_one_group(cls, value: str | None) -> str | None:
        try:
            groups = 1 if value is None else re.compile(value).groups
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        if groups != 1:
            raise ValueError(f"needs exactly one group (...), has {groups}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Card:
        given = [key for key in _SOURCES if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of splits, hub and package, got {' and '.join(given) or 'none'}")
        if (self.choices is None) == (self.metric is None):
            raise ValueError("needs choices (classification) or metric (generation), one of the two")
        if self.labels is not None and self.choices is not None and len(self.labels) != len(self.choices):
            raise ValueError(f"has {len(self.labels)} labels but {len(self.choices)} choices; give one for each")
        for name in ("choices_masked", "choices_chat"):
            special = getattr(self, name)
            if special is not None and (self.choices is None or len(special) != len(self.choices)):
                raise ValueError(f"{name} must be as many as choices")
        if self.source_columns() is None:
            raise ValueError("columns is missing; write for example columns: {input: text, reference: label}")
        return self

    def source_columns(self) -> Columns | None:
        """Returns the column mapping of the card's own source."""
        special = self.hub.columns if self.hub else self.package.columns if self.package else None
        return special if special is not None else self.columns


def built_in() -> list[str]:
    """Returns the names of the built-in cards."""
    return sorted(path.stem for path in CARDS.glob("*.yaml"))


def read_card(name_or_path: str | Path) -> tuple[Card, Path]:
    """Reads a built-in card by name, or a card file by path.

    Returns:
        The card, with the paths of `splits` made absolute, and its file.

    Raises:
        UnknownNameError: no card has the name, and no such file exists.
        TaskError: broken YAML, an unknown key, or a value that does not fit.
    """
    file = _find(name_or_path)
    data = _merged(file, 0)
    data.setdefault("name", file.stem)
    try:
        return Card.model_validate(data), file
    except ValidationError as error:
        raise TaskError(f"{file}: {describe(error, Card)}") from error


def _find(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if text in built_in():
        return CARDS / f"{text}.yaml"
    path = Path(name_or_path)
    if path.is_file():
        return path
    if isinstance(name_or_path, Path) or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise TaskError(f"task card not found: {path}; check the path, or see 'rlprompt list tasks'")
    raise UnknownNameError(
        "task", text, [*built_in(), "planted", *BUILT_IN["dialogues"]], " (or give the path of a task card)"
    )


def _merged(file: Path, depth: int) -> dict[str, Any]:
    """The card's mapping on top of its base's."""
    data = _mapping(file)
    _absolute(data, file.parent)
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str) or depth >= _MAX_BASES:
        raise TaskError(f"{file}: base must name a card that does not come back to this one, got {base!r}")
    place = file.parent / base
    below = _merged(place if place.is_file() else _find(base), depth + 1)
    if any(key in data for key in _SOURCES):
        below = {key: value for key, value in below.items() if key not in (*_SOURCES, "carve")}
    if "metric" in data:
        words = ("choices", "choices_masked", "choices_chat", "labels")
        below = {key: value for key, value in below.items() if key not in words}
    if "choices" in data:
        below.pop("metric", None)
    return {**below, **data}


def _mapping(file: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TaskError(f"{file} is not a YAML file: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise TaskError(f"{file} cannot be read: {error.strerror or error}") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise TaskError(f"{file} must hold a mapping of keys such as name, splits, columns, template")
    return data


def _absolute(data: dict[str, Any], folder: Path) -> None:
    splits = data.get("splits")
    if isinstance(splits, Mapping):
        data["splits"] = {
            split: str(folder / path) if isinstance(path, str) else path for split, path in splits.items()
        }
