"""Votes on comparisons, and the file of one annotator: appended to and synced before a vote counts, never rewritten."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from rlprompt.errors import ConfigError, RunError
from rlprompt.preferences.comparisons import Comparison, Side, comparison_id
from rlprompt.types import Json

logger = logging.getLogger(__name__)

Choice: TypeAlias = Literal["a", "b", "tie", "skip"]
VERSION = 1
_NAME = re.compile(r"\w[\w.\- ]{0,63}")
_TEXTS = ("comparison", "what", "example_id", "a", "b", "annotator", "time")


@dataclass(frozen=True)
class Vote:
    """What one annotator said of one comparison; it names both prompts, so that no queue is needed to read it."""

    comparison: str
    """Its id."""
    choice: Choice
    """The better prompt; "tie", or "skip": the annotator could not judge."""
    left: Side
    """Which of the two stood left."""
    what: str
    """What was shown: "outputs" or "prompts"."""
    example_id: str
    """The example that they were shown on; "" where none was."""
    a: str
    b: str
    """The two prompts."""
    annotator: str
    time: str
    """ISO 8601, UTC."""
    simulated: Mapping[str, Any] | None = None
    """Of a simulated annotator: `by`, `noise` and `seed`."""

    @classmethod
    def on(
        cls,
        comparison: Comparison,
        choice: Choice,
        *,
        left: Side,
        annotator: str,
        simulated: Mapping[str, Any] | None = None,
    ) -> Vote:
        """Makes a vote of now."""
        return cls(
            comparison.id,
            choice,
            left,
            comparison.what,
            comparison.example_id,
            comparison.a.candidate.text,
            comparison.b.candidate.text,
            annotator,
            datetime.now(UTC).isoformat(timespec="milliseconds"),
            simulated,
        )

    def to_json(self) -> Json:
        """Returns the fields; `simulated` where there is one."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Vote:
        """Makes a vote of a record.

        Raises:
            ConfigError: a field is missing or wrong, or the id is not that of the two prompts.
        """
        for name in _TEXTS:
            if not isinstance(row.get(name), str):
                raise ConfigError(f"a vote needs the text '{name}', got {row.get(name)!r}")
        if row.get("choice") not in get_args(Choice) or row.get("left") not in get_args(Side):
            raise ConfigError(f"a vote is a, b, tie or skip with a or b left, got {row.get('choice')!r}")
        if row["comparison"] != comparison_id(row["what"], row["example_id"], row["a"], row["b"]):
            raise ConfigError(f"the vote on '{row['comparison']}' names other prompts than that comparison has")
        simulated = row.get("simulated")
        if simulated is not None and not isinstance(simulated, dict):
            raise ConfigError(f"'simulated' must say by and noise, got {simulated!r}")
        return cls(**{name: row[name] for name in (*_TEXTS, "choice", "left")}, simulated=simulated)


@dataclass(frozen=True)
class VoteHeader:
    """The first line of a file of votes."""

    run: str
    """The name of the run's folder, for people."""
    run_id: str
    """What tells runs apart: the hash of the run's configuration."""
    annotator: str
    simulated: Mapping[str, Any] | None = None

    def to_json(self) -> Json:
        """Returns the line."""
        return {"record": "header", "version": VERSION, **asdict(self)}


@dataclass(frozen=True)
class VoteLog:
    """A file of votes, read."""

    header: VoteHeader | None
    """None for a file without a whole line."""
    votes: Mapping[int, Vote]
    """Those that stand, oldest first, by their number in the file."""
    num_records: int
    """Votes and undos."""
    size: int
    """Bytes of whole lines; what follows was cut short by a kill."""


def check_annotator(name: str) -> str:
    """Returns the name.

    Raises:
        ConfigError: it cannot be the name of a file.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"annotator '{name}' is no plain name; use at most 64 letters, digits, '-', '_' and '.'")
    return name


def read_votes(path: Path) -> VoteLog:
    """Reads a file of votes and leaves it as it is; a last line that is not whole is left out.

    Raises:
        ConfigError: the file cannot be read, or a line is no record of votes; the message names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the votes {path}: {error.strerror or error}") from error
    whole = data[: data.rfind(b"\n") + 1]
    reader = _Reader()
    for number, line in enumerate(whole.splitlines(keepends=True), start=1):
        try:
            reader.take(json.loads(line))
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"{path}, line {number} is no record of votes: {error}") from error
    return VoteLog(reader.header, reader.votes, reader.num_records, len(whole))


class _Reader:
    """Follows the records of a file."""

    def __init__(self) -> None:
        self.header: VoteHeader | None = None
        self.votes: dict[int, Vote] = {}
        self.num_records = 0
        self._open: set[str] = set()

    def take(self, row: Any) -> None:
        kind = row.get("record") if isinstance(row, dict) else None
        if (kind == "header") != (self.header is None):
            raise ConfigError("the file begins with one header, and votes and undos follow")
        if kind == "header":
            self._take_header(row)
            return
        if kind not in ("vote", "undo") or row.get("number") != self.num_records + 1:
            raise ConfigError(f"expected the vote or undo with number {self.num_records + 1}")
        if kind == "vote":
            vote = Vote.from_json(row)
            if vote.comparison in self._open:
                raise ConfigError(f"a second vote on '{vote.comparison}'")
            self._open.add(vote.comparison)
            self.votes[self.num_records + 1] = vote
        else:
            undone = self.votes.pop(row.get("undoes"), None)
            if undone is None:
                raise ConfigError(f"it undoes vote {row.get('undoes')!r}, which does not stand")
            self._open.discard(undone.comparison)
        self.num_records += 1

    def _take_header(self, row: Mapping[str, Any]) -> None:
        if row.get("version") != VERSION:
            raise ConfigError(f"version {row.get('version')!r} is not known; this rlprompt knows {VERSION}")
        if not all(isinstance(row.get(name), str) for name in ("run", "run_id", "annotator")):
            raise ConfigError("the header names run, run_id and annotator")
        self.header = VoteHeader(row["run"], row["run_id"], row["annotator"], row.get("simulated"))


class VoteFile:
    """The votes of one annotator on one run, held by one process at a time.

    A record is on the disk before a method returns. A line that a kill cut short is removed when the file is opened:
    nobody was told that it counts.

    Args:
        path: the file; made where it is missing.
        header: of whom and of what the votes are.

    Raises:
        ConfigError: the file holds other things, votes of another run or of another annotator.
        RunError: another process holds it, or it cannot be written.
    """

    def __init__(self, path: Path, header: VoteHeader) -> None:
        self.path, self.header = path, header
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            _lock(self._descriptor, path)
            log = read_votes(path)
            if log.header is not None:
                check_header(path, log.header, header)
            self._begin(log)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VoteFile:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Lets go of the file."""
        self.close()

    def close(self) -> None:
        """Lets go of the file; once is enough, more do no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def votes(self) -> Mapping[int, Vote]:
        """Those that stand, oldest first, by number."""
        return dict(self._votes)

    def append(self, votes: Iterable[Vote]) -> None:
        """Records votes and waits until the disk has them.

        Raises:
            RunError: they cannot be written; the file is as it was.
            ConfigError: there is a vote on one of the comparisons already.
        """
        new = {self._num_records + place: vote for place, vote in enumerate(votes, start=1)}
        open_ids = [vote.comparison for vote in (*self._votes.values(), *new.values())]
        if len(set(open_ids)) < len(open_ids):
            raise ConfigError(f"{self.path}: a comparison has a vote already; undo that first")
        self._write([{"record": "vote", "number": number, **vote.to_json()} for number, vote in new.items()])
        self._votes.update(new)
        self._num_records += len(new)

    def undo(self, number: int) -> Vote:
        """Takes a vote back, by a record of its own, and returns it.

        Raises:
            RunError: the record cannot be written; the vote stands.
            ConfigError: no vote with this number stands.
        """
        if number not in self._votes:
            raise ConfigError(f"{self.path}: vote {number} does not stand, so it cannot be undone")
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._write([{"record": "undo", "number": self._num_records + 1, "undoes": number, "time": time}])
        self._num_records += 1
        return self._votes.pop(number)

    def _begin(self, log: VoteLog) -> None:
        self._votes, self._num_records, self._size = dict(log.votes), log.num_records, log.size
        if os.fstat(self._descriptor).st_size > log.size:
            logger.warning("%s ends with a line that is not whole; it is cut off", self.path)
            os.ftruncate(self._descriptor, log.size)
            os.fsync(self._descriptor)
        if log.header is None:
            self._write([self.header.to_json()])
            _sync_folder(self.path.parent)

    def _write(self, rows: Sequence[Json]) -> None:
        # ASCII: a model's text may hold a lone surrogate, which UTF-8 has no bytes for.
        data = b"".join(json.dumps(row, allow_nan=False).encode() + b"\n" for row in rows)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise self._unwritable(error) from error
        self._size += len(data)

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(f"cannot write the votes {self.path}: {error.strerror or error}; free or unlock it")


def check_header(path: Path, found: VoteHeader, wanted: VoteHeader) -> None:
    """Checks of whom and of what the votes of a file are.

    Raises:
        ConfigError: of another run, of another annotator, or simulated otherwise.
    """
    if found.run_id != wanted.run_id:
        raise ConfigError(f"{path} holds votes on another run, {found.run}; give that run, or another file of votes")
    if found.annotator != wanted.annotator:
        raise ConfigError(
            f"{path} holds the votes of '{found.annotator}', not of '{wanted.annotator}'; give each a file of their own"
        )
    if found.simulated != wanted.simulated:
        raise ConfigError(
            f"{path} holds votes that were {_said(found.simulated)}, not {_said(wanted.simulated)}; give another name"
        )


def _said(simulated: Mapping[str, Any] | None) -> str:
    if simulated is None:
        return "a person's"
    return "simulated with " + ", ".join(f"{name} {value}" for name, value in sorted(simulated.items()))


def _lock(descriptor: int, path: Path) -> None:
    """The system lets go of the lock when the process dies, however it does."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunError(
            f"another process records votes in {path}; stop it, or give each annotator a name with --annotator"
        ) from error
    except OSError:
        pass  # a file system without locks: nothing to hold


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
