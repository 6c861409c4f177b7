"""The run folder: where it is, how its files are written, and that one process at a time writes them.

Every file comes into being whole: it is written under a temporary name in the same folder, synced, and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlprompt.config import RunConfig
from rlprompt.errors import ConfigError, RunError

TEMPORARY = ".tmp-"
"""What the name of an unfinished file or folder begins with."""
_NAME = re.compile(r"\w[\w.\- ]*")
_PART = re.compile(r"part-(\d+)\.parquet")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions and machine, one entry per session."""
        return self.root / "environment.json"

    @property
    def events(self) -> Path:
        """One JSON object a line."""
        return self.root / "events.jsonl"

    @property
    def journal(self) -> Path:
        """The answers that came after the newest checkpoint, one JSON object a line."""
        return self.root / "journal.jsonl"

    @property
    def judge_journal(self) -> Path:
        """The judges' answers that came after the newest checkpoint; only where there are judges."""
        return self.root / "judge-journal.jsonl"

    @property
    def check(self) -> Path:
        """The ledger as the check of the rewards left it; only where rewards make calls of their own."""
        return self.root / "check.json"

    @property
    def latest(self) -> Path:
        """The name of the newest checkpoint, written after it."""
        return self.root / "latest"

    @property
    def best(self) -> Path:
        """The policy and, in its `policy.json`, the best prompt."""
        return self.root / "best"

    @property
    def result(self) -> Path:
        """How the run ended, and its best prompt."""
        return self.root / "result.json"

    @property
    def summary(self) -> Path:
        """Rows for a comparison with other runs."""
        return self.root / "summary.json"

    @property
    def stop(self) -> Path:
        """A file that the user makes to stop the run after the iteration in progress."""
        return self.root / "STOP"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's events."""
        return self.root / "tensorboard"

    def part(self, table: str, iteration: int) -> Path:
        """The Parquet file of one iteration; `table` is "prompts" or "outputs"."""
        return self.root / table / f"part-{iteration:06d}.parquet"

    def parts(self, table: str) -> list[tuple[int, Path]]:
        """Returns (iteration, path) of all parts of a table, in order."""
        return _numbered(self.root / table, _PART)

    def checkpoint(self, iteration: int) -> Path:
        """The folder of the checkpoint after an iteration."""
        return self.root / f"checkpoint-{iteration:06d}"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Returns (iteration, path) of all checkpoints, oldest first."""
        return _numbered(self.root, _CHECKPOINT)

    def remove_temporary(self) -> None:
        """Deletes what a killed process left unfinished."""
        for folder in (self.root, self.root / "prompts", self.root / "outputs"):
            for path in sorted(folder.glob(f"{TEMPORARY}*")):
                remove(path)


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def runs_folder(config: RunConfig) -> Path:
    """Returns the folder of all runs: `run.dir`, or RLPROMPT_RUN_DIR where `run.dir` is left at its default."""
    default = type(config.run).model_fields["dir"].default
    chosen = config.run.dir
    if chosen == default:
        chosen = os.environ.get("RLPROMPT_RUN_DIR") or default
    return Path(chosen).expanduser()


def check_writable(config: RunConfig) -> Path:
    """Returns `runs/<name>` after checking that it can be made, so that nothing slow starts in vain.

    Raises:
        ConfigError: the run's name is no plain folder name.
        RunError: the folder cannot be written.
    """
    if not _NAME.fullmatch(config.name):
        raise ConfigError(f"name '{config.name}' is no folder name; use letters, digits, '-', '_' and '.'")
    parent = runs_folder(config) / config.name
    nearest = next((path for path in (parent, *parent.absolute().parents) if path.exists()), Path("/"))
    if not nearest.is_dir():
        raise unwritable(parent, NotADirectoryError(f"{nearest} is a file"))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise unwritable(parent, PermissionError(f"no permission to write in {nearest}"))
    return parent


def new_run_folder(parent: Path, seed: int, config_hash: str) -> RunFolder:
    """Makes `<parent>/<UTC time>-s<seed>-<hash>`, with a number behind it where that exists already."""
    return RunFolder(new_folder(parent, f"{utc_stamp()}-s{seed}-{config_hash[:8]}"))


def utc_stamp() -> str:
    """Returns the time of now as names of folders have it."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def new_folder(parent: Path, base: str) -> Path:
    """Makes `<parent>/<base>`, with a number behind it where that exists already."""
    number = 1
    while True:
        root = parent / (base if number == 1 else f"{base}-{number}")
        try:
            root.mkdir(parents=True)
        except FileExistsError:
            if not parent.is_dir():
                raise unwritable(root, NotADirectoryError(f"{parent} is a file")) from None
            number += 1
            continue
        except OSError as error:
            raise unwritable(root, error) from error
        return root


def unwritable(path: Path, error: OSError) -> RunError:
    """Returns the one-line error for a path that cannot be written."""
    reason = error.strerror or str(error)
    return RunError(
        f"cannot write {path}: {reason}; free or unlock it, or choose another folder with run.dir or RLPROMPT_RUN_DIR"
    )


@contextmanager
def writing_errors(path: Path) -> Iterator[None]:
    """Turns an OSError while writing `path` into a one-line RunError."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole: temporary file, sync, rename, sync of the folder."""
    with writing_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
        write_synced(temporary, data)
        os.replace(temporary, path)
        sync_folder(path.parent)


def write_synced(path: Path, data: bytes) -> None:
    """Writes a file and waits until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole; NaN is refused."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path, what: str) -> Any:
    """Reads a JSON file of a run folder.

    Raises:
        RunError: missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {what} {path}: {' '.join(str(error).split())}") from error


def sync_folder(folder: Path) -> None:
    """Makes a rename in a folder lasting."""
    if sys.platform == "win32":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Makes all files and folders below a folder lasting."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Deletes a file, a link or a whole folder; a link is never followed."""
    with writing_errors(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def replace_folder(temporary: Path, final: Path) -> None:
    """Puts a finished temporary folder in its place; an older one there goes away."""
    old = final.with_name(f"{TEMPORARY}old-{final.name}")
    remove(old)
    if final.exists():
        os.rename(final, old)
    os.rename(temporary, final)
    sync_folder(final.parent)
    remove(old)


@contextmanager
def only_writer(root: Path) -> Iterator[None]:
    """Holds the run folder for this process; the system lets go of it when the process dies.

    Raises:
        RunError: another process is writing the run.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another process is writing {root}; wait for it or stop it") from error
        except OSError:
            pass  # a file system without locks: nothing to hold
        yield
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
