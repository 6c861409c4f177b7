"""A real HTTP server on 127.0.0.1 that speaks the OpenAI protocol, counts every call and fails on demand.

It never deduplicates: what it counts is what was really sent. Its "language model" is arithmetic, so that a test
can work out every number by hand:

- echo: a text falls into tokens like "It", " was"; the log-probability of a token is -len(token) / 10, that of the
  first token is None.
- first tokens: `MockServer.next_tokens`, (token, log-probability) pairs.
- generation: `MockServer.answer(body)`, by default "echo: " and the last user text.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from rlprompt.targets.openai import OpenAITarget
from rlprompt.types import TargetOutput

Body = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one call.

    kind: "status", "malformed", "array", "empty", "null", "drip", "hang", "reset", "short" (content-length too
    large), "cut" (content-length too small), "oversized", "error-200", "no-usage" or "no-logprobs".
    """

    kind: str
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None


@dataclass(frozen=True)
class Call:
    """One call as the server saw it."""

    path: str
    headers: dict[str, str]
    body: Body
    seconds: float


def tokens_of(text: str) -> list[str]:
    """Splits a text as the mock's tokenizer does."""
    return re.findall(r"\s?\S+|\s+", text)


class MockServer:
    """Starts on entry, stops on exit; `url` is the base URL.

    faults: used up one per call, in order of arrival; None is a good answer. A callable gets (call number from 0,
    body) and returns a Fault or None.
    """

    def __init__(
        self,
        *,
        faults: Iterable[Fault | None] | Callable[[int, Body], Fault | None] = (),
        answer: Callable[[Body], str] | None = None,
        next_tokens: list[tuple[str, float]] | None = None,
        delay_s: float = 0.0,
    ) -> None:
        self.calls: list[Call] = []
        self.most_in_flight = 0
        self.answered = 0
        self.answer = answer or (lambda body: f"echo: {last_text(body)}")
        self.next_tokens = next_tokens
        self.delay_s = delay_s
        self._faults = faults if callable(faults) else _in_order(faults)
        self._in_flight = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients may be killed
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> MockServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def begin(self, path: str, headers: dict[str, str], body: Body) -> Fault | None:
        with self._lock:
            number = len(self.calls)
            self.calls.append(Call(path, headers, body, time.monotonic()))
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            fault = self._faults(number, body)
        self._stopped.wait(self.delay_s)
        return fault

    def end(self, good: bool) -> None:
        with self._lock:
            self._in_flight -= 1
            self.answered += good

    def pause(self, seconds: float) -> bool:
        """Waits; True when the server was stopped meanwhile."""
        return self._stopped.wait(seconds)

    def reply(self, path: str, body: Body, fault: Fault | None) -> Body:
        kind = fault.kind if fault is not None else ""
        prompts = body.get("prompt")
        count = len(prompts) if isinstance(prompts, list) else 1
        sent = prompts if isinstance(prompts, list) else [last_text(body)]
        answers = [self._answer(path, {**body, "prompt": text}, kind) for text in sent]
        reply: Body = {
            "id": "mock",
            "model": body["model"],
            "choices": [{**answer, "index": index} for index, answer in enumerate(answers)][::-1],
            "usage": {
                "prompt_tokens": sum(len(tokens_of(text)) for text in sent),
                "completion_tokens": body.get("max_tokens", 0) and count * 2,
            },
        }
        if kind == "no-usage":
            del reply["usage"]
        if kind == "empty":
            reply["choices"] = []
        return reply

    def _answer(self, path: str, body: Body, kind: str) -> Body:
        logprobs = None if kind == "no-logprobs" or not body.get("logprobs") else self._logprobs(path, body)
        text = None if kind == "null" else self.answer(body)
        if path.endswith("chat/completions"):
            return {
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
                "logprobs": logprobs,
            }
        if body.get("echo"):
            text = body["prompt"]
        return {"text": text, "finish_reason": "stop", "logprobs": logprobs}

    def _logprobs(self, path: str, body: Body) -> Body | None:
        if body.get("echo"):
            tokens = tokens_of(body["prompt"])
            return {"tokens": tokens, "token_logprobs": [None, *(-len(token) / 10 for token in tokens[1:])]}
        if self.next_tokens is None:
            return None
        if path.endswith("chat/completions"):
            top = [{"token": token, "logprob": value} for token, value in self.next_tokens]
            return {"content": [{**top[0], "top_logprobs": top[: body["top_logprobs"]]}]}
        return {"top_logprobs": [dict(self.next_tokens[: body["logprobs"]])]}


def last_text(body: Body) -> str:
    """Returns the prompt, or the content of the last message."""
    return str(body["messages"][-1]["content"]) if "messages" in body else str(body["prompt"])


def _in_order(faults: Iterable[Fault | None]) -> Callable[[int, Body], Fault | None]:
    left = list(faults)
    return lambda number, body: left[number] if number < len(left) else None


def _handler(mock: MockServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            body = json.loads(content)
            fault = mock.begin(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            good = fault is None or fault.kind in ("no-usage", "no-logprobs")
            try:
                self._act(fault, body)
            except (BrokenPipeError, ConnectionResetError):
                good = False
            finally:
                mock.end(good)

        def _act(self, fault: Fault | None, body: Body) -> None:
            kind = fault.kind if fault is not None else ""
            if fault is not None and kind == "status":
                text = fault.body if isinstance(fault.body, str) else json.dumps(fault.body or {"error": "no"})
                self._send(fault.status, text.encode(), fault.headers)
                return
            if kind == "hang":
                mock.pause(30)
                self.close_connection = True
                return
            if kind == "reset":
                # Closing with linger 0 sends RST instead of FIN.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            content = json.dumps(mock.reply(self.path, body, fault)).encode()
            if kind == "malformed":
                content = content[: len(content) // 2]
            if kind == "array":
                content = b"[1, 2]"
            if kind == "error-200":
                content = b'{"error": {"message": "out of order"}}'
            if kind == "oversized":
                content = b" " * (33 * 2**20)
            if kind == "drip":
                self._drip(content)
                return
            length = len(content) + {"short": 50, "cut": -10}.get(kind, 0)
            self._send(200, content, {}, length)
            if kind in ("short", "cut"):
                self.close_connection = True

        def _drip(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            for index in range(len(content)):
                self.wfile.write(content[index : index + 1])
                self.wfile.flush()
                if mock.pause(0.02):
                    return

        def _send(self, status: int, content: bytes, headers: dict[str, str], length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content) if length is None else length))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            return None

    return Handler


def make_target(server: MockServer, **overrides: Any) -> OpenAITarget:
    """Returns a target of the mock with short waits."""
    settings: dict[str, Any] = {"base_url": server.url, "backoff_s": 0.01, "timeout_s": 5.0, **overrides}
    return OpenAITarget("mock-model", **settings)


def failure_of(output: TargetOutput) -> tuple[str, int]:
    """Returns (kind, attempts) of a failed output and checks that it holds nothing else."""
    assert output.failure is not None, output
    assert output.text is None
    assert output.choice_logprobs is None
    assert output.failure.where == "target"
    return output.failure.kind, output.failure.attempts
