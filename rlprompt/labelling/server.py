"""Listens on an address, tells it, and serves the page until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import webbrowser
from collections.abc import Callable

import uvicorn

from rlprompt.labelling.app import label_app
from rlprompt.labelling.session import LabelSession


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
