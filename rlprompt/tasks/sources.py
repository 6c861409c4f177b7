"""Where rows come from: jsonl, csv and tsv files, a Hugging Face data set, a file of an installed package.

Text is kept exactly as it is stored. Each row keeps its number in its file, from 0, the header not counted.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlprompt.errors import TaskError
from rlprompt.tasks.cards import HubSource, PackageSource

SUFFIXES = (".tsv", ".csv", ".jsonl")


@dataclass(frozen=True)
class Table:
    """The rows of one split as they are stored."""

    name: str
    """The file or data set, for messages."""
    columns: tuple[str, ...]
    rows: tuple[tuple[int, Mapping[str, Any]], ...]
    """(row number, values)."""


def permutation(length: int, key: str) -> list[int]:
    """Returns a fixed permutation of range(length), the same on every platform and with every library version.

    >>> permutation(5, "dev") == permutation(5, "dev") and sorted(permutation(5, "dev")) == [0, 1, 2, 3, 4]
    True
    """
    return sorted(range(length), key=lambda index: hashlib.sha256(f"{key}/{index}".encode()).digest())


def read_file(path: Path) -> Table:
    """Reads a data file by its suffix.

    `.tsv`: cells between tabs, quoting off (a quote is a character). `.csv`: RFC 4180 quoting. `.jsonl`: one
    object a line. UTF-8; a byte order mark is dropped. The first line of tsv and csv names the columns.

    Raises:
        TaskError: a missing or unreadable file, another suffix, or a row that does not fit; names file and row.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise TaskError(f"{path}: data files end in {', '.join(SUFFIXES)}; got '{path.suffix}'")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise TaskError(f"data file not found: {path}; paths are relative to the card") from error
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if suffix == ".jsonl":
        return _json_lines(str(path), text)
    records = _comma_separated(str(path), text) if suffix == ".csv" else _tab_separated(text)
    return _with_header(str(path), records)


def read_folder(folder: Path) -> dict[str, Table]:
    """Reads train, dev and test from a folder that holds one data file for each.

    Raises:
        TaskError: no such folder, a split without a file or with several.
    """
    if not folder.is_dir():
        raise TaskError(f"data folder not found: {folder}; it must hold train, dev and test as .tsv, .csv or .jsonl")
    tables: dict[str, Table] = {}
    for split in ("train", "dev", "test"):
        files = [folder / f"{split}{suffix}" for suffix in SUFFIXES if (folder / f"{split}{suffix}").is_file()]
        if len(files) != 1:
            found = " and ".join(file.name for file in files) or "none"
            raise TaskError(f"{folder} must hold one {split} file ({split}.tsv, .csv or .jsonl), found {found}")
        tables[split] = read_file(files[0])
    return tables


def read_package(source: PackageSource) -> tuple[Table, str]:
    """Reads the file of an installed package, which is found but not imported.

    Returns:
        The rows that `where` selects, with their numbers in the file, and the source's name for reports.

    Raises:
        TaskError: the package or its file is absent; says how to install it.
    """
    spec = importlib.util.find_spec(source.name)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise TaskError(f"the package '{source.name}' is not installed; run: {source.install}")
    path = Path(folders[0]) / source.file
    if not path.is_file():
        raise TaskError(f"the package '{source.name}' has no file {source.file}; reinstall it: {source.install}")
    table = read_file(path)
    for column in (*source.where, *source.not_empty):
        if column not in table.columns:
            raise TaskError(f"{path} has no column '{column}'; it has {', '.join(table.columns)}")
    # The columns that were selected by are the same in every row and tell nothing.
    kept = tuple(column for column in table.columns if column not in source.where)
    rows = tuple(
        (number, {column: row[column] for column in kept})
        for number, row in table.rows
        if all(row[column] == value for column, value in source.where.items())
        and all(str(row.get(column) or "").strip() for column in source.not_empty)
    )
    return Table(f"{source.name}/{source.file}", kept, rows), f"package:{source.name}"


def read_hub(source: HubSource, columns: Sequence[str], *, decode: str | None) -> tuple[dict[str, Table], str]:
    """Reads splits of a Hugging Face data set (from the local cache where it is offline).

    Args:
        source: which data set and splits.
        columns: the columns to read.
        decode: a column whose integer classes are to be replaced by their names, if the data set has names.

    Raises:
        TaskError: the data set cannot be had, or lacks a split or column.
    """
    import datasets
    import httpx

    tables: dict[str, Table] = {}
    for split, theirs in source.splits.items():
        name = f"hub data set {source.id} ({theirs})"
        try:
            loaded = datasets.load_dataset(source.id, source.config, split=theirs, revision=source.revision)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, httpx.HTTPError) as error:
            reason = " ".join(str(error).split())[:200]
            raise TaskError(
                f"{name} cannot be loaded: {reason}; check id and network, or use local files (data=FOLDER)"
            ) from error
        absent = [column for column in columns if column not in loaded.column_names]
        if absent:
            raise TaskError(f"{name} has no column '{absent[0]}'; it has {', '.join(loaded.column_names)}")
        numbers = list(range(len(loaded)))
        if source.take.get(split, len(numbers)) < len(numbers):
            # Sorted: the rows stay in the order of the data set.
            numbers = sorted(permutation(len(numbers), f"take/{split}")[: source.take[split]])
            loaded = loaded.select(numbers)
        values = {column: list(loaded[column][:]) for column in columns}  # [:] reads at once, not row by row
        names = getattr(loaded.features[decode], "names", None) if decode else None
        if decode and names:
            values[decode] = [names[value] if 0 <= value < len(names) else value for value in values[decode]]
        rows = tuple(
            (number, {column: values[column][index] for column in columns}) for index, number in enumerate(numbers)
        )
        tables[split] = Table(name, tuple(columns), rows)
    return tables, f"hub:{source.id}" + (f"@{source.revision}" if source.revision else "")


def _json_lines(name: str, text: str) -> Table:
    rows: list[tuple[int, Mapping[str, Any]]] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(_lines(text)):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TaskError(f"{name}, row {number}: not JSON: {error.msg} at character {error.pos}") from error
        if not isinstance(row, dict):
            raise TaskError(f"{name}, row {number}: must be a JSON object, got {type(row).__name__}")
        rows.append((number, row))
        columns.update(dict.fromkeys(row))
    return Table(name, tuple(columns), tuple(rows))


def _tab_separated(text: str) -> Iterable[list[str]]:
    return (line.split("\t") for line in _lines(text))


def _comma_separated(name: str, text: str) -> Iterable[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for record in reader:
            if record:
                yield record
    except csv.Error as error:
        raise TaskError(f"{name}, line {reader.line_num}: not CSV: {error}") from error


def _with_header(name: str, records: Iterable[list[str]]) -> Table:
    iterator = iter(records)
    header = next(iterator, None)
    if header is None:
        raise TaskError(f"{name} is empty; its first line must name the columns")
    if len(set(header)) < len(header):
        raise TaskError(f"{name}: two columns have the same name in {header}")
    rows: list[tuple[int, Mapping[str, Any]]] = []
    for number, record in enumerate(iterator):
        if len(record) != len(header):
            raise TaskError(f"{name}, row {number}: has {len(record)} cells, the header names {len(header)} columns")
        rows.append((number, dict(zip(header, record, strict=True))))
    return Table(name, tuple(header), tuple(rows))


def _lines(text: str) -> list[str]:
    """Splits at line feeds only (a text may hold other Unicode line breaks); the last line may end without one."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if lines and not lines[-1]:
        lines.pop()
    return lines
