"""An upstream on 127.0.0.1 that records every byte it gets and answers as the request's model says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

EVENTS = [
    b'data: {"choices":[{"delta":{"content":"caf\xc3\xa9 "}}]}\n\n',
    b": a comment\n\n",
    b'data: {"choices":[{"delta":{"content":"\xe2\x82\xac"}}]}\r\n\r\n',
    b"data: [DONE]\n\n",
]


@dataclass
class Seen:
    """One request."""

    path: str
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class RawUpstream:
    """What it got, and what it says."""

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    stream: list[bytes] = field(default_factory=lambda: list(EVENTS))
    """Pieces of a streamed answer, each sent alone."""
    gap_s: float = 0.0
    """Between two pieces."""
    error: bytes = b'{"error": {"message": "bad"}}'
    gone: threading.Event = field(default_factory=threading.Event)
    """Whoever read a stream has gone before its end."""


@contextmanager
def raw_upstream() -> Iterator[RawUpstream]:
    """Serves until the end; models: ok, stream, broken, cut, hang, status-N."""
    state = RawUpstream()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._take()
            self._whole(200, b'{"object": "list", "data": [{"id": "m"}]}')

        def do_POST(self) -> None:
            body = self._take()
            try:
                model = str(json.loads(body).get("model", "ok"))
            except (ValueError, AttributeError):
                model = "ok"
            if model.startswith("status-"):
                self._whole(int(model.removeprefix("status-")), state.error)
            elif model in ("stream", "broken"):
                self._pieces(breaks=model == "broken")
            elif model == "cut":
                self._begin(200, "application/json", [("Content-Length", "100")])
                self.wfile.write(b'{"half": ')
                self.close_connection = True
            elif model == "hang":
                time.sleep(30)
            else:
                reply = {"choices": [{"message": {"role": "assistant", "content": "fine"}, "index": 0}]}
                self._whole(200, json.dumps(reply).encode())

        def _take(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            state.seen.append(Seen(self.path, list(self.headers.items()), body))
            return body

        def _begin(self, status: int, kind: str, more: list[tuple[str, str]]) -> None:
            self.send_response(status)
            given = [("Content-Type", kind), ("X-Request-Id", "r1"), ("Set-Cookie", "a=b"), ("X-Secret", "s")]
            for name, value in [*given, ("x-ratelimit-remaining", "7"), ("Location", "http://else/"), *more]:
                self.send_header(name, value)
            self.end_headers()

        def _whole(self, status: int, body: bytes) -> None:
            self._begin(status, "application/json", [("Content-Length", str(len(body)))])
            self.wfile.write(body)

        def _pieces(self, *, breaks: bool) -> None:
            self._begin(200, "text/event-stream", [("Transfer-Encoding", "chunked")])
            try:
                for place, piece in enumerate(state.stream):
                    if place and state.gap_s:
                        time.sleep(state.gap_s)
                    if breaks and place == 1:
                        self.close_connection = True
                        self.connection.close()
                        return
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                self.close_connection = True
                state.gone.set()

    class Quiet(ThreadingHTTPServer):
        request_queue_size = 512
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass

    with Quiet(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield state
        server.shutdown()
