"""Files with one JSON value a line, in UTF-8: read with line numbers, written whole."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlprompt.errors import ConfigError, RunError
from rlprompt.types import Json


def json_lines(path: str | Path, what: str) -> list[tuple[int, Any]]:
    """Returns (line number from 1, value) of every line of a JSONL file that is not empty.

    Raises:
        ConfigError: the file cannot be read, or a line is not JSON.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"cannot read {what} {path}: {reason}") from error
    found = []
    # Only "\n" ends a line: str.splitlines would cut at line separators within a text as well.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append((number, json.loads(line)))
        except ValueError as error:
            raise ConfigError(f"{path}, line {number} is not JSON: {error}") from error
    return found


def write_json_lines(path: str | Path, rows: Iterable[Json]) -> None:
    """Writes a JSONL file whole; NaN and infinity are refused.

    Raises:
        RunError: the file cannot be written.
    """
    data = json_text(rows).encode()
    final = Path(path)
    temporary = final.with_name(f".tmp-{os.getpid()}-{final.name}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, final)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(f"cannot write {final}: {error.strerror or error}; free or unlock it") from error


def json_text(rows: Iterable[Json]) -> str:
    """Returns what a JSONL file of the rows holds; NaN and infinity are refused."""
    return "".join(_line(row) + "\n" for row in rows)


def _line(row: Json) -> str:
    """One line for every reader: lone surrogates have no UTF-8, and some readers cut at other line separators."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(row, allow_nan=False)
    return line if len(line.splitlines()) == 1 else json.dumps(row, allow_nan=False)
