"""Is a Ray cluster running on this machine, who can reach it, and does it ask for a token?

Whoever reaches the ports of a Ray cluster can run code on it, unless it was started with RAY_AUTH_MODE=token.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path

PROCESSES = Path("/proc")
TOKEN_MODE = "token"
_REMEDY = (
    "stop the Ray cluster that {address} reaches, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH on all of its nodes, "
    "start it again, and keep its ports inside a private network"
)


@dataclass(frozen=True)
class Listener:
    """A part of a Ray cluster that waits for connections."""

    part: str
    address: str
    """HOST:PORT."""
    mode: str
    """RAY_AUTH_MODE of its process; empty where it was not set."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        host = self.address.rpartition(":")[0].strip("[]")
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def is_exposed(self) -> bool:
        """Whether others can connect and need no token."""
        return not self.is_local and self.mode != TOKEN_MODE

    @property
    def remedy(self) -> str:
        """What to do about an exposed one."""
        return _REMEDY.format(address=self.address)

    def __str__(self) -> str:
        """Says where it listens and what it asks for."""
        asked = "asks for a token" if self.mode == TOKEN_MODE else "asks for no token"
        return f"{self.address}, {'this machine only' if self.is_local else f'reachable by others, {asked}'}"


def listeners(processes: Path = PROCESSES) -> list[Listener] | None:
    """Returns the parts of Ray that listen on this machine; None where the system does not tell.

    Args:
        processes: what Linux mounts as /proc.
    """
    if not processes.is_dir():
        return None
    folders = sorted(folder for folder in processes.iterdir() if folder.name.isdigit())
    return [found for folder in folders if (found := _listener(folder)) is not None]


def _listener(folder: Path) -> Listener | None:
    command = _words(folder / "cmdline")
    part = _part(command)
    options = dict(word[2:].split("=", 1) for word in command if word.startswith("--") and "=" in word)
    names = ("node-ip-address", "gcs_server_port") if part == "head" else ("host", "port")
    host, port = (options.get(name, "") for name in names)
    if part is None or not host:
        return None
    environment = dict(word.split("=", 1) for word in _words(folder / "environ") if "=" in word)
    return Listener(part, f"{host}:{port}", environment.get("RAY_AUTH_MODE", ""))


def _part(command: list[str]) -> str | None:
    if command and os.path.basename(command[0]) == "gcs_server":
        return "head"
    if any(re.search(r"ray/dashboard/dashboard\.py$", word) for word in command):
        return "dashboard"
    return "client server" if "ray.util.client.server" in command else None


def _words(file: Path) -> list[str]:
    """The entries of a file of /proc; none where the process is gone or another user's."""
    try:
        return [word for word in file.read_bytes().decode("utf-8", "replace").split("\0") if word]
    except OSError:
        return []
