"""`environment.json`: what a run ran on. Versions and machine; no environment variables, no paths, no secrets."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import socket
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from rlprompt import __version__
from rlprompt.errors import RunError
from rlprompt.runs.folder import read_json, write_json
from rlprompt.types import Json, Target

logger = logging.getLogger(__name__)

PACKAGES = (
    "gymnasium",
    "numpy",
    "peft",
    "pyarrow",
    "pydantic",
    "ray",
    "safetensors",
    "sentence-transformers",
    "torch",
    "transformers",
    "trl",
)


def describe_environment(target: Target) -> Json:
    """Returns versions, machine, commit and the target's identity."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "rlprompt": __version__,
        "commit": {"rlprompt": git_commit(Path(__file__).parent), "working_folder": git_commit(Path.cwd())},
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
        },
        "target": target.identity,
    }


def record_session(path: Path, session: Json) -> None:
    """Adds a session (one process that worked on the run) to `environment.json`.

    Warns where its local target computes otherwise than that of the last one.
    """
    sessions: list[Json] = []
    if path.exists():
        document = read_json(path, "the environment")
        if not isinstance(document, dict) or not isinstance(document.get("sessions"), list):
            raise RunError(f"{path} holds no sessions; put the file back or delete it")
        sessions = document["sessions"]
    before, now = (entry.get("target") or {} for entry in (sessions[-1] if sessions else session, session))
    changed = sorted(key for key in now if now.get("kind") == "transformers" and before.get(key) != now[key])
    if changed:
        told = ", ".join(f"{key} was {before.get(key)} and is {now[key]}" for key in changed)
        logger.warning("the target does not compute as it did before (%s): answers differ by rounding", told)
    write_json(path, {"sessions": [*sessions, session]})


def git_commit(folder: Path) -> str | None:
    """Returns the commit that a folder is checked out at, with "+changes" where files differ; None outside of git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    return f"{commit}+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
