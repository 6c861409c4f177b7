"""The cache of target answers: one SQLite file, shared between runs, threads and processes.

An answer is found by a hash of who was asked (`Target.identity`, which holds a hash of the base URL and never a
key) and of the whole question, sample index and seed included. Values are JSON. Failures are never stored. A row
that was altered or damaged is deleted and asked again. A cache that breaks while a run works costs a warning,
never an answer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.payloads import can_be_kept
from rlprompt.targets.streaming import OnAnswer, OnCall, run_streaming
from rlprompt.types import Json, Target, TargetOutput, TargetRequest

logger = logging.getLogger(__name__)

CacheMode: TypeAlias = Literal["on", "read-only", "refresh", "off"]
DEFAULT_BYTES = 2 * 2**30
_FORMAT = 1
_ROW_OVERHEAD = 256
"""Bytes of a row beside its value: the key twice (table and index), its digest, and SQLite's own."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, value TEXT NOT NULL,
    digest TEXT NOT NULL, bytes INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS total (one INTEGER PRIMARY KEY CHECK (one = 1), bytes INTEGER NOT NULL);
INSERT OR IGNORE INTO total VALUES (1, 0);
CREATE TRIGGER IF NOT EXISTS answer_in AFTER INSERT ON answers
    BEGIN UPDATE total SET bytes = bytes + new.bytes; END;
CREATE TRIGGER IF NOT EXISTS answer_out AFTER DELETE ON answers
    BEGIN UPDATE total SET bytes = bytes - old.bytes; END;
"""


def cache_folder() -> Path:
    """Returns the folder of all caches: RLPROMPT_CACHE_DIR, else ~/.cache/rlprompt."""
    return Path(os.environ.get("RLPROMPT_CACHE_DIR") or "~/.cache/rlprompt").expanduser()


def cache_key(identity: Mapping[str, Any], request: TargetRequest) -> str:
    """Returns the SHA-256 of the canonical JSON of target and request.

    Everything that can change the answer is in it, the sample index and the seed too; `Rendered.split` is a hint
    for speed and is not.
    """
    question = asdict(request)
    del question["rendered"]["split"]
    canonical = {"format": _FORMAT, "target": identity, "request": question}
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class ResponseCache:
    """Answers in one SQLite file (WAL), oldest out first when it is full.

    Args:
        path: the file; by default `answers.sqlite` in `cache_folder()`. Its folder is made with mode 0700.
        max_bytes: most bytes that the rows may take.
        read_only: neither the file nor its folder is made or changed.

    Raises:
        ConfigError: the file cannot be made or opened, or is not a cache.
    """

    def __init__(
        self, path: str | Path | None = None, *, max_bytes: int = DEFAULT_BYTES, read_only: bool = False
    ) -> None:
        if max_bytes < 1:
            raise ConfigError(f"cache_bytes must be at least 1, got {max_bytes}; use cache 'off' for none")
        self.path = Path(path) if path is not None else cache_folder() / "answers.sqlite"
        self.max_bytes = max_bytes
        self.read_only = read_only
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._inherited: sqlite3.Connection | None = None
        self._process = 0
        self._warned = False
        try:
            self._open()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"cannot use the cache {self.path}: {error}; delete the file, set RLPROMPT_CACHE_DIR, or turn "
                "the cache off"
            ) from error

    def get(self, key: str) -> TargetOutput | None:
        """Returns the stored answer marked as cached, or None; a damaged row is deleted."""
        found: TargetOutput | None = None
        with self._guarded("read") as connection:
            if connection is None:
                return None
            row = connection.execute("SELECT value, digest FROM answers WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            found = _decode(key, row[0], row[1])
            if found is None and not self.read_only:
                logger.warning("deleted a damaged answer from the cache %s", self.path)
                connection.execute("DELETE FROM answers WHERE key = ?", (key,))
        return found

    def put(self, key: str, output: TargetOutput) -> None:
        """Stores an answer; failures, and payloads that JSON cannot hold, are left out."""
        value = _encode(output)
        if value is None or self.read_only:
            return
        row = (key, value, _digest(key, value), len(value) + _ROW_OVERHEAD)
        with self._guarded("written") as connection:
            if connection is None:
                return
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                connection.execute("DELETE FROM answers WHERE key = ?", (key,))
                connection.execute("INSERT INTO answers (key, value, digest, bytes) VALUES (?, ?, ?, ?)", row)
                self._evict(connection)

    def size(self) -> tuple[int, int]:
        """Returns (number of answers, bytes that count against the limit)."""
        with self._guarded("read") as connection:
            if connection is not None:
                count = connection.execute("SELECT COUNT(*) FROM answers").fetchone()[0]
                return int(count), self._bytes(connection)
        return 0, 0

    def close(self) -> None:
        """Closes the file; the next use opens it again."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def __enter__(self) -> ResponseCache:
        """Returns the cache itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the file."""
        self.close()

    def _open(self) -> sqlite3.Connection | None:
        # A connection must not be used across a fork, not even closed: a new process opens its own.
        if self._connection is not None:
            if self._process == os.getpid():
                return self._connection
            self._inherited = self._connection
        if self.read_only:
            if not self.path.is_file():
                return None
            connection = _connect(self.path)
            connection.execute("PRAGMA query_only = ON")
            connection.execute("SELECT key, value, digest FROM answers LIMIT 1")
        else:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.path.exists():
                self.path.touch(mode=0o600)
            connection = _connect(self.path)
            connection.execute("PRAGMA journal_mode = WAL")
            # A power cut may lose the last answers, it cannot damage the file; a killed process loses none.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA journal_size_limit = {16 * 2**20}")
            connection.executescript(_SCHEMA)
        self._connection, self._process = connection, os.getpid()
        return connection

    @contextmanager
    def _guarded(self, what: str) -> Iterator[sqlite3.Connection | None]:
        """Yields the connection; an error of SQLite (disk full, locked, damaged) becomes one warning."""
        with self._lock:
            connection = None
            try:
                connection = self._open()
            except (OSError, sqlite3.Error) as error:
                self._warn(what, error)
            try:
                yield connection
            except sqlite3.Error as error:
                self._warn(what, error)

    def _warn(self, what: str, error: Exception) -> None:
        if not self._warned:
            logger.warning("the cache %s cannot be %s, going on without it: %s", self.path, what, error)
        self._warned = True

    def _bytes(self, connection: sqlite3.Connection) -> int:
        return int(connection.execute("SELECT bytes FROM total").fetchone()[0])

    def _evict(self, connection: sqlite3.Connection) -> None:
        excess = self._bytes(connection) - self.max_bytes
        if excess <= 0:
            return
        excess += self.max_bytes // 10  # down to nine tenths, so that not every write has to make room
        last = 0
        for identifier, size in connection.execute("SELECT id, bytes FROM answers ORDER BY id"):
            last, excess = identifier, excess - size
            if excess <= 0:
                break
        connection.execute("DELETE FROM answers WHERE id <= ?", (last,))


class CachedTarget:
    """A target whose answers are kept.

    A hit is marked `cached` and keeps the usage of the first time, so that the budget counts it as used and not as
    paid. Equal requests of one call are asked once; two samples of a request are never equal.

    Args:
        target: who is asked on a miss.
        cache: where answers are kept.
        mode: "on"; "read-only" (misses are asked and not stored); "refresh" (everything is asked and stored
            anew); "off" (neither read nor stored).

    Raises:
        UnknownNameError: no such mode.
    """

    def __init__(self, target: Target, cache: ResponseCache, mode: CacheMode = "on") -> None:
        self.target = target
        self.cache = cache
        self.mode = check_mode(mode)

    @property
    def identity(self) -> Json:
        """The identity of the target behind the cache."""
        return self.target.identity

    def count_tokens(self, requests: Sequence[TargetRequest]) -> list[int]:
        """Returns the estimates of the target behind the cache; a hit counts as used and is estimated too."""
        return self.target.count_tokens(requests)

    def run(self, requests: Sequence[TargetRequest]) -> list[TargetOutput]:
        """Answers from the cache where it can and asks the target for the rest in one call."""
        return self.run_streaming(requests, None)

    def run_streaming(
        self, requests: Sequence[TargetRequest], on_answer: OnAnswer | None, on_call: OnCall | None = None
    ) -> list[TargetOutput]:
        """Answers as `run` does; see `rlprompt.targets.streaming.StreamingTarget`."""
        if self.mode == "off":
            return run_streaming(self.target, requests, on_answer, on_call)
        identity = self.target.identity
        keys = [cache_key(identity, request) for request in requests]
        answers: dict[str, TargetOutput] = {}
        if self.mode != "refresh":
            for key in dict.fromkeys(keys):
                found = self.cache.get(key)
                if found is not None:
                    answers[key] = found
        places = {key: index for index, key in reversed(list(enumerate(keys)))}
        if on_answer is not None:
            for key, output in answers.items():
                on_answer(places[key], output)
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in answers}
        if missing:
            asked = [places[key] for key in missing]
            outputs = self._ask(list(missing), list(missing.values()), asked, on_answer, on_call)
            answers.update(zip(missing, outputs, strict=True))
        first = set(missing)
        outputs = []
        for key in keys:
            outputs.append(answers[key] if key in first or answers[key].cached else _copy(answers[key]))
            first.discard(key)
        return outputs

    def __repr__(self) -> str:
        """Names the target and the mode."""
        return f"CachedTarget({self.target!r}, mode={self.mode!r})"

    def _ask(
        self,
        keys: list[str],
        requests: list[TargetRequest],
        places: list[int],
        on_answer: OnAnswer | None,
        on_call: OnCall | None,
    ) -> list[TargetOutput]:
        def store(index: int, output: TargetOutput) -> None:
            if on_answer is not None:
                on_answer(places[index], output)
            if self.mode != "read-only":
                self.cache.put(keys[index], output)

        called = None if on_call is None else lambda index, in_flight: on_call(places[index], in_flight)
        return run_streaming(self.target, requests, store, called)


def check_mode(mode: str) -> CacheMode:
    """Returns the mode; raises UnknownNameError for one that does not exist."""
    for known in get_args(CacheMode):
        if mode == known:
            return cast(CacheMode, known)
    raise UnknownNameError("cache mode", mode, get_args(CacheMode))


def _copy(output: TargetOutput) -> TargetOutput:
    """The answer to a repetition within one call: it cost nothing."""
    if output.failure is None:
        return replace(output, cached=True)
    return TargetOutput(failure=replace(output.failure, attempts=0))


def _connect(path: Path) -> sqlite3.Connection:
    # Autocommit; every use holds the lock of the cache, so that any thread may use the one connection.
    # A file in a folder where nothing may be written can only be read as one that nobody changes.
    suffix = "" if os.access(path.parent, os.W_OK) else "?immutable=1"
    uri = path.absolute().as_uri() + suffix
    return sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None, check_same_thread=False)


def _encode(output: TargetOutput) -> str | None:
    numbers = (*(output.choice_logprobs or ()), *(() if output.logprob is None else (output.logprob,)))
    if output.failure is not None or any(math.isnan(number) for number in numbers):
        return None
    fields = {name: value for name, value in asdict(output).items() if name not in ("cached", "failure")}
    try:
        value = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError):
        return None
    return value if can_be_kept(output.payload) else None


def _digest(key: str, value: str) -> str:
    return hashlib.sha256(f"{key}\n{value}".encode("utf-8", "surrogatepass")).hexdigest()


def _decode(key: str, value: Any, digest: Any) -> TargetOutput | None:
    """Reads a row; None where it was not written by `_encode` for this key."""
    if not isinstance(value, str) or digest != _digest(key, value):
        return None
    try:
        fields = json.loads(value)
        logprobs = fields["choice_logprobs"]
        output = TargetOutput(
            text=fields["text"],
            choice_logprobs=None if logprobs is None else tuple(float(number) for number in logprobs),
            logprob=fields["logprob"],
            prompt_tokens=int(fields["prompt_tokens"]),
            completion_tokens=int(fields["completion_tokens"]),
            cached=True,
            payload=fields["payload"],
        )
    except (KeyError, TypeError, ValueError):
        return None
    return output
