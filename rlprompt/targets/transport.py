"""HTTP for API targets: bounded concurrency, one retry loop, a deadline per attempt, typed failures.

Every way in which a call can fail ends as a `CallFailed` with a kind; nothing that is reported holds the key. No
redirect is followed, so that the key only ever reaches the configured server.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import math
import os
import ssl
import threading
import weakref
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import aiohttp
import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from rlprompt.errors import ConfigError
from rlprompt.redaction import REDACTED, SHORTEST
from rlprompt.targets.addresses import LOCAL_HOSTS, check_base_url, proxy_for
from rlprompt.targets.pace import Pace
from rlprompt.targets.streaming import OnCall
from rlprompt.types import Json

T = TypeVar("T")

_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
_MAX_REPLY_BYTES = 32 * 2**20
_LOOK_AGAIN_S = 0.1
PATIENCE_S = 0.2
"""Seconds between two looks whether somebody wants the caller to stop."""
"""Longest sleep before a turn: others may have given something back."""


class CallFailed(Exception):  # noqa: N818 - caught by the target, which turns it into a Failure
    """A call that brought no usable answer.

    Args:
        kind: as in `rlprompt.types.Failure`, and "unsupported" where the server cannot answer such a question.
        message: one line without secrets.
        status: the HTTP status, if there was one.
        retry: whether another attempt may help.
        retry_after: seconds that the server asked to wait.
        usage: (prompt, completion) tokens that the failed call reported.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        status: int | None = None,
        retry: bool = False,
        retry_after: float | None = None,
        usage: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status
        self.retry = retry
        self.retry_after = retry_after
        self.usage = usage
        self.attempts = 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How hard a server may be asked."""

    concurrency: int = 16
    """Calls in flight at the same time, over all threads that share the target."""
    requests_per_minute: float | None = None
    """Most attempts a minute, evenly spaced; None is unlimited."""
    tokens_per_minute: float | None = None
    """Most tokens a minute, of prompts and completions together; None is unlimited."""
    max_attempts: int = 5
    """Attempts per call, the first included."""
    timeout_s: float = 60.0
    """Deadline of one attempt, from the connection to the last byte."""
    backoff_s: float = 0.5
    """Wait after the first failed attempt; it doubles with every further one."""
    max_wait_s: float = 60.0
    """Longest wait between two attempts; a server that asks for a longer one is given up."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a number out of range."""
        for name, least in (("concurrency", 1), ("max_attempts", 1), ("backoff_s", 0), ("max_wait_s", 0)):
            _check_number(name, getattr(self, name), least)
        _check_number("timeout_s", self.timeout_s, 0.001)
        for name in ("requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), 0.001)


class Transport:
    """Posts JSON to one base URL, on an event loop of its own in a thread of its own.

    It works inside and outside a running event loop, and from any number of threads.

    Args:
        base_url: http or https, without user, query or fragment.
        limits: concurrency, pace, attempts and deadlines.

    Raises:
        ConfigError: not a usable base URL.
    """

    def __init__(self, base_url: str, limits: Limits) -> None:
        self.base_url = check_base_url(base_url)
        self.limits = limits
        self._proxy = proxy_for(self.base_url)
        self._pace = Pace(limits.requests_per_minute, limits.tokens_per_minute)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] | None = None
        self._clients: list[aiohttp.ClientSession] = []
        self._process = 0

    def call(self, work: Callable[[Session], Coroutine[Any, Any, T]], key: str | None) -> T:
        """Runs `work` on the loop and waits for it; an interrupt of the waiting thread cancels it.

        Args:
            work: coroutine function that posts through the session.
            key: the API key, sent as bearer token; None for a server that needs none.
        """
        loop = self._running_loop()
        future = asyncio.run_coroutine_threadsafe(work(Session(self, key)), loop)
        try:
            while not future.done():  # an exception that another thread raises in this one comes between two waits
                concurrent.futures.wait([future], timeout=PATIENCE_S)
            return future.result()
        finally:
            if not future.done():
                future.cancel()

    def close(self) -> None:
        """Closes connections and ends the thread; the next call starts a new one."""
        with self._lock:
            stop, thread = self._stop, self._thread
            self._stop = self._loop = self._thread = None
        if stop is not None and thread is not None:
            stop()
            thread.join(timeout=5)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._process != os.getpid():  # threads do not survive a fork
                loop = asyncio.new_event_loop()
                self._loop, self._process = loop, os.getpid()
                self.slots = asyncio.Semaphore(self.limits.concurrency)
                self._thread = threading.Thread(target=_serve, args=(loop,), name="rlprompt-http", daemon=True)
                self._thread.start()
                self._clients = []
                self._stop = weakref.finalize(self, _stop, loop, self._clients, os.getpid())
            return self._loop

    def client(self) -> aiohttp.ClientSession:
        """Returns the one client; only on the loop, where clients are made."""
        if not self._clients:
            self._clients.append(self._new_client())
        return self._clients[0]

    def _new_client(self) -> aiohttp.ClientSession:
        """Returns a client with as many connections as are used at the same time, and a memory for nothing else."""
        url = httpx.URL(self.base_url)
        # Plain HTTP to this machine needs no certificates; reading the system's takes longer than the call.
        plain = url.host in LOCAL_HOSTS and url.scheme == "http"
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self.limits.concurrency,
                ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else httpx.create_ssl_context(),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(),  # none of its own: every attempt has a deadline
            proxy=self._proxy,
            trust_env=False,  # it would send passwords of ~/.netrc
        )


class Session:
    """What a coroutine posts through: the transport with the key of this call."""

    def __init__(self, transport: Transport, key: str | None) -> None:
        self._transport = transport
        self._key = key
        self.on_call: OnCall | None = None
        """Told of every attempt just before it is sent, and of every one that failed."""
        self.tokens: Sequence[int] = ()
        """Estimates for the requests of the batch, for `tokens_per_minute`."""

    def __repr__(self) -> str:
        """Shows nothing of the key."""
        return "Session()"

    async def post(self, path: str, body: Json, position: int) -> Json:
        """Posts until an answer is there or attempts are used up.

        Args:
            path: below the base URL, for example "chat/completions".
            body: the JSON body.
            position: index of the request in its batch; spreads the waits of a batch that failed together.

        Raises:
            CallFailed: with its kind, a message and the number of attempts.
        """
        content = json.dumps(body).encode("ascii")
        limits = self._transport.limits
        retrying = AsyncRetrying(
            stop=stop_after_attempt(limits.max_attempts),
            wait=lambda state: self._wait(state, position),
            retry=retry_if_exception(lambda error: isinstance(error, CallFailed) and error.retry),
            reraise=True,
        )
        try:
            reply: Json = await retrying(self._attempt, path, content, position)
        except CallFailed as error:
            error.attempts = int(retrying.statistics.get("attempt_number", 1))
            raise
        return reply

    def redact(self, text: str) -> str:
        """Returns the text without the key and the base URL."""
        if self._key is not None and len(self._key) >= SHORTEST:
            text = text.replace(self._key, REDACTED)
        return text.replace(self._transport.base_url, "[base_url]")

    async def _attempt(self, path: str, content: bytes, position: int) -> Json:
        try:
            return await self._send(path, content, position)
        except CallFailed:
            self._tell(position, in_flight=False)
            raise

    def _tell(self, position: int, *, in_flight: bool) -> None:
        if self.on_call is not None:
            self.on_call(position, in_flight)

    async def _send(self, path: str, content: bytes, position: int) -> Json:
        transport = self._transport
        headers = {"content-type": "application/json"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        async with transport.slots:
            pace, estimate = transport._pace, self.tokens[position] if self.tokens else 0
            while (delay := pace.delay(expected := pace.expected(estimate))) > 0:
                await asyncio.sleep(min(delay, _LOOK_AGAIN_S))
            self._tell(position, in_flight=True)
            try:
                # Over all reads: a server that sends a byte at a time must not hold the slot for ever.
                async with (
                    asyncio.timeout(transport.limits.timeout_s),
                    transport.client().post(
                        f"{transport.base_url}/{path}", data=content, headers=headers, allow_redirects=False
                    ) as response,
                ):
                    reply = await _read(response)
            except TimeoutError as error:
                seconds = transport.limits.timeout_s
                raise CallFailed("timeout", f"no answer within {seconds:g} s", retry=True) from error
            except (aiohttp.ClientError, OSError, ValueError) as error:  # the last one: no usable host
                message = self._line(f"{type(error).__name__}: {_reason(error)}")
                raise CallFailed("connection", message, retry=not isinstance(error, ValueError)) from error
        try:
            judged = self._judge(response, reply)
        except CallFailed as error:
            if (error.status or 0) >= 400:  # refused: the server has counted no tokens
                pace.refund(expected)
            raise
        used = _total_tokens(judged)
        if used is not None:
            pace.settle(estimate, expected, used)
        return judged

    def _judge(self, response: aiohttp.ClientResponse, reply: bytes | None) -> Json:
        """Returns the JSON of a good reply; raises CallFailed for every other one."""
        status = response.status
        parsed = _parse(reply)
        if 200 <= status < 300:
            if isinstance(parsed, dict) and "error" not in parsed:
                return parsed
            what = "an error" if isinstance(parsed, dict) else "no JSON object"
            raise CallFailed(
                "malformed", f"HTTP {status} with {what}", status=status, retry=not isinstance(parsed, dict)
            )
        message = self._line(f"HTTP {status}: {_error_text(parsed, reply)}")
        wait = _retry_after(response.headers.get("retry-after"))
        if status == 429:
            final = _error_code(parsed) == "insufficient_quota" or (wait or 0.0) > self._transport.limits.max_wait_s
            if wait is not None and not final:
                self._transport._pace.pause(wait)
            raise CallFailed("rate-limit", message, status=status, retry=not final, retry_after=wait)
        if status in (400, 413, 422) and _is_too_long(parsed, message):
            raise CallFailed("too-long", message, status=status)
        retry = status in _RETRIED_STATUS and (wait or 0.0) <= self._transport.limits.max_wait_s
        raise CallFailed("http", message, status=status, retry=retry, retry_after=wait)

    def _wait(self, state: RetryCallState, position: int) -> float:
        limits = self._transport.limits
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after if isinstance(error, CallFailed) else None
        # The golden ratio spreads neighbours evenly over [0.75, 1.25): jitter without a random number.
        spread = 0.75 + 0.5 * (position * 0.6180339887 % 1.0)
        backoff = limits.backoff_s * 2.0 ** min(state.attempt_number - 1, 30) * spread
        return max(min(backoff, limits.max_wait_s), asked or 0.0)

    def _line(self, text: str) -> str:
        return " ".join(self.redact(text).split())[:300]


def read_key(variable: str) -> str | None:
    """Returns the API key from the environment, or None where the variable is unset or empty.

    Raises:
        ConfigError: the value cannot be sent in a header.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        return None
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"the key in the environment variable {variable} holds characters that no key has")
    return key


def _stop(loop: asyncio.AbstractEventLoop, clients: list[aiohttp.ClientSession], process: int) -> None:
    """Ends a transport's thread without waiting; does nothing in a process that inherited it by a fork."""

    async def shut() -> None:
        for client in clients:
            await client.close()
        loop.stop()

    if process == os.getpid() and not loop.is_closed():
        asyncio.run_coroutine_threadsafe(shut(), loop)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _reason(error: Exception) -> str:
    """Why there is no connection, without the address."""
    cause = getattr(error, "os_error", error)
    if isinstance(cause, ssl.SSLError):
        return f"TLS: {cause.reason}"
    if isinstance(cause, OSError):
        return os.strerror(cause.errno) if cause.errno and cause.errno > 0 else "the connection failed"
    if isinstance(error, aiohttp.ClientResponseError):
        return error.message
    if isinstance(error, ValueError):
        return "the address of the server, or its certificate, cannot be used"
    return str(error)


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """Reads the body; None for one that is larger than any answer."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > _MAX_REPLY_BYTES:
            return None
    return b"".join(parts)


def _total_tokens(reply: Json) -> int | None:
    """What the server counted; None where it does not say."""
    usage = reply.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if isinstance(total, int) and total >= 0 else None


def _parse(reply: bytes | None) -> Any:
    try:
        return None if reply is None else json.loads(reply)
    except (ValueError, RecursionError):
        return None


def _error(parsed: Any) -> Any:
    return parsed.get("error", parsed) if isinstance(parsed, dict) else None


def _error_text(parsed: Any, reply: bytes | None) -> str:
    error = _error(parsed)
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return str(error["message"])
    return error if isinstance(error, str) else (reply or b"").decode("utf-8", "replace")


def _error_code(parsed: Any) -> str:
    error = _error(parsed)
    return str(error.get("code")) if isinstance(error, dict) else ""


def _is_too_long(parsed: Any, message: str) -> bool:
    text = message.lower()
    return _error_code(parsed) == "context_length_exceeded" or any(
        words in text for words in ("context length", "maximum context", "context window", "too many tokens")
    )


def _retry_after(value: str | None) -> float | None:
    """Reads a Retry-After header: seconds, or a date; None where there is none or it says nothing."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except (TypeError, ValueError):
            return None
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _check_number(name: str, value: Any, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
        raise ConfigError(f"{name} must be a number of at least {least:g}, got {value!r}")
