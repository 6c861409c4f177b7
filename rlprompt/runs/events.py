"""`events.jsonl`: what happened in a run, one JSON object a line, on the disk before the run goes on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlprompt.errors import RunError
from rlprompt.runs.folder import write_bytes, writing_errors
from rlprompt.types import Json

VOLATILE = frozenset({"time", "duration_s", "rate", "pid", "host"})
"""Fields of an event that two runs with the same seed need not share; all others they do."""


class EventLog:
    """Appends events to a file.

    Args:
        path: the file; made when the first event comes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_events = len(path.read_bytes().splitlines()) if path.exists() else 0

    def append(self, event: str, fields: Mapping[str, Any]) -> None:
        """Writes one event and waits until the disk has it. NaN and infinities are written as null."""
        record = {"event": event, **fields}
        stamp = {"at": datetime.now(UTC).isoformat(timespec="milliseconds")}
        record["time"] = stamp | dict(record.get("time", {}))
        line = json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n"
        with writing_errors(self.path), self.path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.num_events += 1

    def cut(self, num_events: int) -> None:
        """Keeps the first events only.

        Raises:
            RunError: there are fewer, so the file was altered.
        """
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        if len(lines) < num_events:
            raise RunError(
                f"{self.path} has {len(lines)} events but the checkpoint was written after {num_events}; "
                "put the file back, or start a new run"
            )
        if len(lines) > num_events:
            write_bytes(self.path, b"".join(lines[:num_events]))
        self.num_events = num_events


def read_events(path: Path) -> list[Json]:
    """Reads all whole events; a last line that was cut short by a kill is left out.

    Raises:
        RunError: a line before the last is damaged.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise RunError(f"{path}, line {number}: not a JSON object: {error}") from error
    return events


def comparable(event: Mapping[str, Any]) -> Json:
    """Returns an event without its volatile fields."""
    return {name: value for name, value in event.items() if name not in VOLATILE}


def finite(value: Any) -> Any:
    """Returns a copy of nested JSON values with None for NaN and infinities.

    >>> finite({"loss": float("nan"), "steps": [1.0, float("inf")]})
    {'loss': None, 'steps': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
