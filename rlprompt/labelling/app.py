"""The routes of the page. Only who knows the address, with its secret part, may read or vote.

A page of another site that is open in the same browser can send requests to this server, and by DNS rebinding even read
the answers. So the address has a random part, the name in the Host header must be an address or the name that was asked
for, requests that change something must come from the page's own origin, and they must be JSON.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict

from rlprompt.errors import ConfigError, RLPromptError
from rlprompt.labelling.session import LabelSession, PageChoice, StaleError

_FILES = {
    "": ("label.html", "text/html"),
    "label.js": ("label.js", "text/javascript"),
    "label.css": ("label.css", "text/css"),
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_MAX_BODY = 4096
_Next = Callable[[Request], Awaitable[Response]]


class VoteBody(BaseModel):
    """A vote as the page sends it."""

    model_config = ConfigDict(extra="forbid")

    comparison: str
    choice: PageChoice


class UndoBody(BaseModel):
    """An undo as the page sends it."""

    model_config = ConfigDict(extra="forbid")

    vote: int


def label_app(session: LabelSession, export: Callable[[], str], *, token: str, host: str) -> FastAPI:
    """Makes the application.

    Args:
        session: what is asked.
        export: returns the pairs file of the votes so far; a ConfigError says why there is none.
        token: the secret part of the address.
        host: the name or address that the server listens on.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(request: Request, go_on: _Next) -> Response:
        refused = _refusal(request, token, host)
        response = await go_on(request) if refused is None else _said(*refused)
        response.headers.update(_HEADERS)
        return response

    @app.get("/{secret}/state")
    async def state() -> Response:
        return _json(session.state())

    @app.post("/{secret}/vote")
    async def vote(body: VoteBody) -> Response:
        return _after(session, lambda: session.vote(body.comparison, body.choice))

    @app.post("/{secret}/undo")
    async def undo(body: UndoBody) -> Response:
        return _after(session, lambda: session.undo(body.vote))

    @app.get("/{secret}/pairs.jsonl")
    async def pairs() -> Response:
        try:
            text = export()
        except ConfigError as error:
            return _said(404, str(error))
        attachment = {"content-disposition": 'attachment; filename="pairs.jsonl"'}
        return Response(text, media_type="application/x-ndjson", headers=attachment)

    @app.get("/{secret}/{name:path}")
    async def file(name: str) -> Response:
        if name not in _FILES:
            return _said(404, "there is nothing here")
        own, kind = _FILES[name]
        content = resources.files("rlprompt.labelling").joinpath("page", own).read_bytes()
        return Response(content, media_type=kind)

    return app


def _refusal(request: Request, token: str, host: str) -> tuple[int, str] | None:
    """Returns status and reason where a request is not of our page, or not of anyone who knows the address."""
    name = request.headers.get("host", "")
    if not _is_own_name(name, host):
        return 421, "this server is known by another name"
    if not secrets.compare_digest(request.url.path.split("/")[1].encode(), token.encode()):
        return 404, "there is nothing here; use the address that rlprompt label has printed"
    if request.method in ("GET", "HEAD"):
        return None
    if request.headers.get("origin", f"http://{name}") != f"http://{name}":
        return 403, "the request is of another origin"
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return 415, "the body must be JSON"
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > _MAX_BODY:
        return 413, f"the body must have a length of at most {_MAX_BODY} bytes"
    return None


def _is_own_name(header: str, host: str) -> bool:
    """Whether a Host header is an address, localhost, or the name asked for. DNS rebinding needs a name of its own.

    The port may be another one, as at the near end of a tunnel.
    """
    name = header.partition("]")[0].removeprefix("[") if header.startswith("[") else header.partition(":")[0]
    if name.lower() in ("localhost", host.lower()):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _after(session: LabelSession, act: Callable[[], None]) -> Response:
    try:
        act()
    except StaleError as error:
        return _json({**session.state(), "error": str(error)}, 409)
    except RLPromptError as error:
        return _json({**session.state(), "error": str(error)}, 507)
    return _json(session.state())


def _json(value: Any, status: int = 200) -> Response:
    # ASCII: a model's text may hold a lone surrogate, which UTF-8 has no bytes for.
    return Response(json.dumps(value, allow_nan=False), status, media_type="application/json")


def _said(status: int, text: str) -> Response:
    return Response(text + "\n", status, media_type="text/plain")
