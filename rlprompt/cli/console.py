"""What the verbs share: lines for people, one JSON object for programs, and a quiet standard output."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from rlprompt.redaction import redact


def say(text: str = "") -> None:
    """Prints a line of the result on standard output."""
    typer.echo(text)


def note(text: str) -> None:
    """Prints a line about the work on standard error."""
    typer.echo(text, err=True)


def say_error(message: str) -> None:
    """Prints "error: ..." on standard error, as one line without secrets whatever the message holds."""
    typer.echo(f"error: {redact(' '.join(message.split()))}", err=True)


def say_json(value: Any) -> None:
    """Prints one JSON object; NaN and infinity are a mistake of the caller, not JSON."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def say_table(rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Prints rows with aligned columns."""
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say((indent + "  ".join(cells)).rstrip())


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Sends everything that is printed meanwhile to standard error, also what C code of a library prints."""
    sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:  # standard output is closed
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def number(value: float | None, digits: int = 4) -> str:
    """Returns a number for people; a dash where there is none.

    >>> number(0.5), number(None), number(float("nan"))
    ('0.5000', '-', '-')
    """
    return "-" if value is None or value != value else f"{value:.{digits}f}"
