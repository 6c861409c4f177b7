"""The application: OpenAI's routes, and our own."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rlprompt.serving.proxy.bodies import (
    Body,
    BodyError,
    FindText,
    Nothing,
    chat_text,
    completion_text,
    response_text,
)
from rlprompt.serving.proxy.caps import check_request
from rlprompt.serving.proxy.guard import TENANT, Guard
from rlprompt.serving.proxy.metrics import Metrics
from rlprompt.serving.proxy.openapi import DOCUMENT
from rlprompt.serving.proxy.replies import error
from rlprompt.serving.proxy.rewriting import Outcome, Rewriting
from rlprompt.serving.proxy.settings import ServeSettings
from rlprompt.serving.proxy.supervisor import Supervisor
from rlprompt.serving.proxy.upstream import Upstream, read_body

REWRITTEN = "x-rlprompt-rewritten"
REASON = "x-rlprompt-reason"
OPT_OUT = b"x-rlprompt-rewrite"
"""Header of a request; with the value 0 it is forwarded as it is."""
PAGE = Path(__file__).parent / "page"
FIND: dict[str, FindText] = {
    "/chat/completions": chat_text,
    "/completions": completion_text,
    "/responses": response_text,
}
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass
class Server:
    """What the routes share."""

    settings: ServeSettings
    supervisor: Supervisor
    rewriting: Rewriting
    upstream: Upstream
    metrics: Metrics
    is_draining: bool = False
    active: int = 0


def proxy_app(
    server: Server, keys: Sequence[str], *, on_start: Callable[[], Any] | None = None, starts_rewriter: bool = True
) -> ASGIApp:
    """Returns the application.

    Args:
        server: what the routes share.
        keys: of clients; none lets programs on this machine ask.
        on_start: called in the event loop before the first request.
        starts_rewriter: whether the application starts and ends the supervisor.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await server.upstream.open()
        if starts_rewriter:
            await server.supervisor.start()
        if on_start is not None:
            on_start()
        yield
        if starts_rewriter:
            await server.supervisor.close()
        await server.upstream.close()

    routes = [Route(f"/v1{path}", _Forwarding(server, path, find), methods=["POST"]) for path, find in FIND.items()]
    routes += [
        Route("/v1/models", _Models(server), methods=["GET"]),
        Route("/rewrite", _Rewrite(server), methods=["POST"]),
        Route("/health/liveness", _liveness, methods=["GET"]),
        Route("/health/readiness", _Readiness(server), methods=["GET"]),
        Route("/metrics", _Numbers(server), methods=["GET"]),
        Route("/report", _Report(server), methods=["GET"]),
        Route("/openapi.json", _document, methods=["GET"]),
        Route("/", _page("index.html"), methods=["GET"]),
        Route("/playground.js", _page("playground.js"), methods=["GET"]),
        Route("/playground.css", _page("playground.css"), methods=["GET"]),
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: _refused, 500: _broke},
    )
    app.router.redirect_slashes = False
    return Guard(app, keys)


class _Endpoint(ABC):
    """An ASGI endpoint that counts itself and refuses what is too much at once."""

    name: str

    def __init__(self, server: Server) -> None:
        self.server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server = self.server
        if server.is_draining:
            await self._refuse(error(503, "the server is ending", code="draining"), scope, receive, send)
            return
        if server.active >= server.settings.max_requests:
            await self._refuse(error(429, "too many requests at once", code="overloaded"), scope, receive, send)
            return
        server.active += 1
        try:
            status = await self.answer(scope, receive, send)
        finally:
            server.active -= 1
        server.metrics.requests.labels(self.name, str(status)).inc()

    @abstractmethod
    async def answer(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Answers; returns the status."""

    async def _body(self, scope: Scope, receive: Receive) -> Body | JSONResponse:
        """Returns a request's body, or why it is refused."""
        settings = self.server.settings
        kinds = [value for name, value in scope["headers"] if name == b"content-type"]
        if len(kinds) != 1 or kinds[0].split(b";")[0].strip().lower() != b"application/json":
            return error(415, "send one header 'Content-Type: application/json'")
        raw = await read_body(receive, scope, settings.caps.body_bytes, settings.receive_timeout_s)
        if raw == 413:
            return error(413, f"the body has more than {settings.caps.body_bytes} bytes")
        if isinstance(raw, int):
            return error(raw, "the body did not come whole" if raw == 400 else "the body did not come in time")
        try:
            body = Body.parse(raw)
            check_request(body.values, settings.caps)
        except BodyError as problem:
            return error(400, str(problem), param=problem.param)
        return body

    async def _refuse(self, reply: JSONResponse, scope: Scope, receive: Receive, send: Send) -> int:
        self.server.metrics.refused.labels(str(reply.status_code)).inc()
        if reply.status_code == 413:
            reply.headers["connection"] = "close"  # what is left of the body is not read
        await reply(scope, receive, send)
        return reply.status_code


class _Forwarding(_Endpoint):
    """A route of OpenAI's whose text is rewritten on the way."""

    def __init__(self, server: Server, path: str, find: FindText) -> None:
        super().__init__(server)
        self.name, self.path, self.find = path.removeprefix("/"), path, find

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> int:
        server = self.server
        body = await self._body(scope, receive)
        if isinstance(body, JSONResponse):
            return await self._refuse(body, scope, receive, send)
        outcome, sent = await self._decide(body, scope)
        if outcome.header == "fallback" and server.settings.rewriting.fail_closed:
            status = 429 if outcome.kind == "overload" else 503
            reply = error(status, f"the text was not rewritten ({outcome.kind})", code="not_rewritten")
            return await self._refuse(reply, scope, receive, send)
        headers = [(REWRITTEN, outcome.header), *([(REASON, outcome.kind)] if outcome.reason else [])]
        started = time.perf_counter()
        status = await server.upstream.forward("POST", self.path, sent, scope, receive, send, headers)
        server.metrics.upstream_seconds.labels(outcome.arm).observe(time.perf_counter() - started)
        return status

    async def _decide(self, body: Body, scope: Scope) -> tuple[Outcome, bytes]:
        """Returns what became of the text, and what is sent."""
        server, raw = self.server, body.source.encode()
        found = self.find(body, server.settings.rewriting.role)
        if any(name == OPT_OUT and value.strip() == b"0" for name, value in scope["headers"]):
            found = Nothing("opt-out")
        if isinstance(found, Nothing):
            outcome = Outcome("0", "", found.reason)
            server.metrics.note(outcome, "")
            return outcome, raw
        outcome = await _outcome(server, found.text, body.values.get("model"), scope)
        return outcome, body.with_text(found.span, outcome.text) if outcome.header == "1" else raw


async def _outcome(server: Server, text: str, model: Any, scope: Scope) -> Outcome:
    name = model if isinstance(model, str) else None
    outcome = await server.rewriting(text, tenant=scope.get(TENANT, ""), model=name)
    server.metrics.note(outcome, text)
    return outcome


class _Models(_Endpoint):
    """The upstream's models."""

    name = "models"

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> int:
        return await self.server.upstream.forward("GET", "/models", None, scope, receive, send)


class _Rewrite(_Endpoint):
    """What would be sent, without asking the upstream."""

    name = "rewrite"

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> int:
        body = await self._body(scope, receive)
        if isinstance(body, JSONResponse):
            return await self._refuse(body, scope, receive, send)
        text = body.values.get("text")
        if not isinstance(text, str):
            return await self._refuse(error(400, "'text' must be a text", param="text"), scope, receive, send)
        outcome = await _outcome(self.server, text, body.values.get("model"), scope)
        reply = JSONResponse(
            {
                "text": outcome.text,
                "rewritten": outcome.header,
                "reason": outcome.reason,
                "seconds": round(outcome.seconds, 4),
            },
            headers={REWRITTEN: outcome.header},
        )
        await reply(scope, receive, send)
        return reply.status_code


async def _liveness(_: Request) -> Response:
    return JSONResponse({"status": "alive"})


class _Readiness:
    def __init__(self, server: Server) -> None:
        self.server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server = self.server
        is_open = server.rewriting.breaker.state == "closed"
        is_ready = not server.is_draining and (server.supervisor.is_ready or not server.settings.rewriting.fail_closed)
        rewriter = "loaded" if server.supervisor.is_ready else "restarting"
        body = {
            "status": "ready" if is_ready else "not ready",
            "rewriter": rewriter if is_open else "failing",
            "draining": server.is_draining,
        }
        await JSONResponse(body, 200 if is_ready else 503)(scope, receive, send)


class _Numbers:
    def __init__(self, server: Server) -> None:
        self.server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Response(self.server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
        await reply(scope, receive, send)


class _Report:
    def __init__(self, server: Server) -> None:
        self.server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse(self.server.metrics.report())(scope, receive, send)


async def _document(_: Request) -> Response:
    return JSONResponse(DOCUMENT)


def _page(name: str) -> Callable[[Request], Any]:
    async def serve(_: Request) -> Response:
        return FileResponse(PAGE / name, headers=_PAGE_HEADERS)

    return serve


async def _refused(_: Request, problem: Exception) -> Response:
    if isinstance(problem, HTTPException) and problem.status_code == 405:
        reply = error(405, "there is no such method on this route")
        reply.headers.update(problem.headers or {})  # Allow
        return reply
    return error(404, "there is no such route")


async def _broke(_: Request, problem: Exception) -> Response:
    return error(500, "internal error")
