"""The LLM's API behind the server: asked with the server's key, and answered for byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from typing import cast

import aiohttp
from starlette.types import Receive, Scope, Send

from rlprompt.redaction import redact
from rlprompt.serving.proxy.replies import error
from rlprompt.serving.proxy.settings import ServeSettings

SENT = frozenset({b"accept", b"openai-beta", b"x-request-id", b"idempotency-key"})
"""Headers of clients that the upstream gets. Credentials, cookies and addresses are not among them."""
RETURNED = frozenset(
    {"content-type", "cache-control", "retry-after", "x-request-id", "openai-processing-ms", "openai-version"}
)
RETURNED_PREFIXES = ("x-ratelimit-",)
ERROR_BYTES = 2**20
"""Most of an error that is read and handed on."""


class Upstream:
    """Forwards requests.

    Args:
        settings: of the server.
        key: that the upstream gets; None sends none.
    """

    def __init__(self, settings: ServeSettings, key: str | None) -> None:
        self._base = settings.upstream.rstrip("/")
        self._key = key
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=settings.upstream_timeout_s, sock_read=settings.upstream_timeout_s
        )
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Makes connections possible; done within the server's event loop."""
        self._session = aiohttp.ClientSession(
            timeout=self._timeout,
            connector=aiohttp.TCPConnector(limit=0),
            auto_decompress=False,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("user-agent",),
        )

    async def close(self) -> None:
        """Closes all connections."""
        if self._session is not None:
            await self._session.close()

    async def forward(
        self,
        method: str,
        path: str,
        body: bytes | None,
        scope: Scope,
        receive: Receive,
        send: Send,
        extra: Iterable[tuple[str, str]] = (),
    ) -> int:
        """Asks the upstream and hands its answer on; returns the status that the client got.

        A client that goes away takes its question with it.

        Args:
            method: of HTTP.
            path: behind /v1.
            body: what is sent.
            scope: of the client's request.
            receive: says when the client has gone.
            send: to the client.
            extra: headers of the answer.
        """
        work = asyncio.create_task(self._forward(method, path, body, scope, send, list(extra)))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return 499  # as others count it
            return await work
        finally:
            for task in (work, gone):
                if not task.done():
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task

    async def _forward(
        self, method: str, path: str, body: bytes | None, scope: Scope, send: Send, extra: list[tuple[str, str]]
    ) -> int:
        headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"] if name in SENT
        ]
        headers.append(("accept-encoding", "identity"))  # an error is read before it is handed on
        if body is not None:
            headers.append(("content-type", "application/json"))
        if self._key is not None:
            headers.append(("authorization", f"Bearer {self._key}"))
        begun = False
        try:
            async with cast(aiohttp.ClientSession, self._session).request(
                method, self._base + path, data=body, headers=headers, allow_redirects=False
            ) as response:
                if response.status >= 400:
                    return await self._hand_error_on(response, send, extra)
                await _begin(send, response.status, _returned(response, extra))
                begun = True
                is_events = response.content_type == "text/event-stream"
                try:
                    async for piece in response.content.iter_any():
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                except (aiohttp.ClientError, TimeoutError) as problem:
                    if not is_events:
                        raise ConnectionAbortedError from problem  # an answer that ends early must not look whole
                    await send({"type": "http.response.body", "body": _broken(problem), "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as problem:
            if begun:
                raise
            timed_out = isinstance(problem, TimeoutError)
            reply = error(
                504 if timed_out else 502,
                "the upstream did not answer in time" if timed_out else "the upstream cannot be reached",
                code="upstream_timeout" if timed_out else "upstream_unreachable",
            )
            reply.headers.update(dict(extra))
            await reply(scope, _nothing, send)
            return reply.status_code

    async def _hand_error_on(self, response: aiohttp.ClientResponse, send: Send, extra: list[tuple[str, str]]) -> int:
        """An error's text may name the key that was refused."""
        raw = await response.content.read(ERROR_BYTES)
        while len(raw) < ERROR_BYTES and (piece := await response.content.read(ERROR_BYTES - len(raw))):
            raw += piece
        text = raw.decode("utf-8", "replace")
        clean = redact(text)
        await _begin(send, response.status, _returned(response, extra))
        await send({"type": "http.response.body", "body": raw if clean == text else clean.encode(), "more_body": False})
        return response.status


async def _begin(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


def _returned(response: aiohttp.ClientResponse, extra: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    kept = [
        (name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
        for name, value in response.headers.items()
        if (name.lower() in RETURNED or name.lower().startswith(RETURNED_PREFIXES)) and value.isprintable()
    ]
    return kept + [(name.encode("latin-1"), value.encode("latin-1")) for name, value in extra]


def _broken(problem: Exception) -> bytes:
    message = "the upstream's stream broke off" if not isinstance(problem, TimeoutError) else "the upstream stopped"
    body = {"error": {"message": message, "type": "upstream_error", "param": None, "code": "upstream_broken"}}
    return b"\n\ndata: " + json.dumps(body).encode() + b"\n\n"


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing() -> dict[str, str]:
    return {"type": "http.disconnect"}


async def read_body(receive: Receive, scope: Scope, most: int, seconds: float) -> bytes | int:
    """Returns a request's body, or the status of the refusal: 413 too large, 408 too slow, 400 broken off.

    Args:
        receive: of the request.
        scope: of the request.
        most: bytes.
        seconds: until it must be there.
    """
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), None)
    if declared is not None and declared.isdigit() and int(declared) > most:
        return 413
    pieces, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for piece in _pieces(receive):
                if piece is None:
                    return 400
                size += len(piece)
                if size > most:
                    return 413
                pieces.append(piece)
    except TimeoutError:
        return 408
    return b"".join(pieces)


async def _pieces(receive: Receive) -> AsyncIterator[bytes | None]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            yield None
            return
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return
