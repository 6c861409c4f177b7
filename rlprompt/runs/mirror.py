"""`run.mirror`: a copy of the run folder at an fsspec URL, so that a run outlives the disk that it is written to.

Every iteration brings its tables and the journals, every checkpoint all else: first what a checkpoint needs, then the
checkpoint, then the journals that it makes shorter. So whenever the copying stops, what is there can be resumed.
Nothing is deleted but what this session has copied and the run has dropped since.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec

from rlprompt.errors import ConfigError, RunError
from rlprompt.runs.folder import TEMPORARY, RunFolder, remove, sync_tree, writing_errors
from rlprompt.types import Json

logger = logging.getLogger(__name__)

EARLY = ("prompts/", "outputs/", "journal.jsonl", "judge-journal.jsonl")
"""What an iteration writes, and a resumed run needs so that nothing is paid twice."""
LATE = ("checkpoint-", "journal.jsonl", "judge-journal.jsonl", "latest")
"""What comes after everything else, in this order."""
NOT_COPIED = ("STOP",)


def check_mirror(url: str) -> None:
    """Refuses a URL that nothing can be written to.

    Raises:
        ConfigError: so it is, or it holds a password.
    """
    _refuse_passwords(url, "run.mirror")
    try:
        system, path = fsspec.core.url_to_fs(url)
        system.makedirs(path, exist_ok=True)
        probe = f"{path.rstrip('/')}/.rlprompt-{uuid.uuid4().hex}"
        system.pipe_file(probe, b"")
        system.rm_file(probe)
    except Exception as error:  # every file system has errors of its own
        why = _said(error)
        raise ConfigError(f"run.mirror: cannot write to {url}: {why}; mend it, or remove run.mirror") from error


class Mirror:
    """Copies a run folder; a callback of the run. A copy that fails is told of and tried again; the run goes on.

    Args:
        url: of the folder of all runs' copies; `<run's name>/<id>` is added.
        folder: of the run.
    """

    def __init__(self, url: str, folder: RunFolder) -> None:
        root = folder.root.absolute()
        self._root = root
        self.url = f"{url.rstrip('/')}/{root.parent.name}/{root.name}"
        self._system, self._path = fsspec.core.url_to_fs(self.url)
        self._copied: dict[str, tuple[int, int]] = {}
        self.failed: str | None = None
        """Why the newest copy is not whole."""

    def on_start(self, iteration: int) -> None:
        """Copies what is there."""
        self._copy(everything=True)

    def on_iteration(self, iteration: int, metrics: Mapping[str, float], status: Json) -> None:
        """Copies tables and journals."""
        self._copy(everything=False)

    def on_checkpoint(self, iteration: int) -> None:
        """Copies all that is new, and deletes what is gone."""
        self._copy(everything=True)

    def on_end(self) -> None:
        """Copies the rest."""
        self._copy(everything=True)
        if self.failed is not None:
            logger.error("%s is not whole (%s); %s is", self.url, self.failed, self._root)

    def _copy(self, *, everything: bool) -> None:
        before, self.failed = self.failed, None
        try:
            self._send(self._files(everything))
            if everything:
                self._delete()
        except Exception as error:  # every file system has errors of its own; they must not end a run
            self.failed = _said(error)
            if before is None:
                logger.warning("%s could not be written (%s); it is tried again", self.url, self.failed)

    def _files(self, everything: bool) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        for path in self._root.rglob("*"):
            name = path.relative_to(self._root).as_posix()
            skipped = name in NOT_COPIED or any(part.startswith(TEMPORARY) for part in PurePosixPath(name).parts)
            if skipped or not path.is_file() or not (everything or name.startswith(EARLY)):
                continue
            state = path.stat()
            found[name] = (state.st_size, state.st_mtime_ns)
        return found

    def _send(self, files: Mapping[str, tuple[int, int]]) -> None:
        for name in sorted(files, key=_place):
            if self._copied.get(name) == files[name]:
                continue
            remote = f"{self._path}/{name}"
            self._system.makedirs(remote.rpartition("/")[0], exist_ok=True)
            if _protocols(self._system) & {"file", "local"}:  # a copy that is cut off must not be there
                unfinished = f"{remote.rpartition('/')[0]}/{TEMPORARY}{PurePosixPath(name).name}"
                self._system.put_file(str(self._root / name), unfinished)
                Path(unfinished).replace(remote)
            else:
                self._system.put_file(str(self._root / name), remote)
            self._copied[name] = files[name]

    def _delete(self) -> None:
        if not (self._root / "config.yaml").is_file():
            raise RunError(f"{self._root} is gone")
        for name in [name for name in self._copied if not (self._root / name).exists()]:
            self._system.rm_file(f"{self._path}/{name}")
            del self._copied[name]


def restore(url: str, runs: Path) -> Path:
    """Fetches a run folder from its mirror.

    Args:
        url: of the run's copy, `.../<run's name>/<id>`.
        runs: the folder of all runs, in which `<run's name>/<id>` is made.

    Returns:
        The run folder, which can be resumed.

    Raises:
        ConfigError: the URL is none, or holds a password.
        RunError: there is no run at the URL, it cannot be read, or the folder is there already.
    """
    _refuse_passwords(url, "--resume")
    parts = url.rstrip("/").split("/")
    final = runs / parts[-2] / parts[-1]
    if final.exists():
        raise RunError(f"{final} is there already; resume that folder, or move it away to fetch {url}")
    temporary = final.with_name(f"{TEMPORARY}{final.name}")
    try:
        system, path = fsspec.core.url_to_fs(url.rstrip("/"))
        found = _relative(system.find(path), path)
    except Exception as error:  # every file system has errors of its own
        raise RunError(f"cannot read {url}: {_said(error)}") from error
    if "config.yaml" not in found:
        raise RunError(f"{url} is no copy of a run: it has no config.yaml; give RUN_MIRROR/<run's name>/<id>")
    with writing_errors(final):
        remove(temporary)
        for name in found:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
    try:
        for name in found:
            system.get_file(f"{path}/{name}", str(temporary / name))
    except Exception as error:
        raise RunError(f"cannot fetch {url}: {_said(error)}") from error
    with writing_errors(final):
        sync_tree(temporary)
        temporary.rename(final)
    return final


def _relative(found: Iterable[str], path: str) -> list[str]:
    """Returns the names of files below a folder; one that would lead out of it is left out."""
    names = [PurePosixPath(name.rstrip("/")) for name in found]
    base = PurePosixPath(path.rstrip("/"))
    return [
        name.relative_to(base).as_posix()
        for name in names
        if name.is_relative_to(base) and ".." not in name.parts and name != base
    ]


def _place(name: str) -> tuple[int, str]:
    late = next((place for place, start in enumerate(LATE) if name.startswith(start)), None)
    return (0 if late is None else late + 1, name)


def _protocols(system: Any) -> set[str]:
    return {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)


def _refuse_passwords(url: str, where: str) -> None:
    """Raises ConfigError where a URL, or one that it is chained with, holds a password."""
    try:
        secret = any(urlsplit(part).password is not None for part in url.split("::"))
    except ValueError as error:
        raise ConfigError(f"{where}: {url} is no URL: {error}") from error
    if secret:
        raise ConfigError(f"{where} holds a password; remove it, and give it to the file system by its own settings")


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


__all__ = ["Mirror", "check_mirror", "restore"]
