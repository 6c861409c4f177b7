"""A socket that listens before anything is served, so that its address can be told first."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from rlprompt.errors import ConfigError


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Holds a socket that listens; clients may connect before anything is served.

    Args:
        host: a name or an address of this machine.
        port: 0 takes any free one.

    Raises:
        ConfigError: there is no such address here, or the port is in use or not allowed.
    """
    opened: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        if os.name == "posix":  # a port whose last server was killed a moment ago is free; Windows would share it
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen()
    except (OSError, OverflowError, UnicodeError) as error:
        if opened is not None:
            opened.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; give another --port, or 0 for any"
        ) from error
    with opened:
        yield opened
