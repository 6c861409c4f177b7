"""Listens on an address, tells it, and serves the page until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from rlprompt.errors import ConfigError
from rlprompt.labelling.app import label_app
from rlprompt.labelling.session import LabelSession


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


def serve(
    session: LabelSession,
    export: Callable[[], str],
    listener: socket.socket,
    *,
    host: str,
    tell: Callable[[str], None],
    browse: bool,
) -> None:
    """Serves the page until Ctrl-C.

    Args:
        session: what is asked.
        export: returns the pairs file of the votes so far.
        listener: a socket that listens.
        host: what the listener was made for.
        tell: is given the address once it can be opened.
        browse: whether to open the address in a browser, where there is a display.
    """
    token = secrets.token_urlsafe(16)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/{token}/"
    config = uvicorn.Config(
        label_app(session, export, token=token, host=host),
        log_level="warning",
        access_log=False,  # the address is a secret
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    tell(address)
    if browse and _has_display():
        webbrowser.open(address)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn stops, and then raises it again
        uvicorn.Server(config).run(sockets=[listener])


def _has_display() -> bool:
    """Elsewhere `webbrowser` may start a browser in the terminal."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
