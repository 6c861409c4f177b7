"""A planted target behind HTTP, for soaks: it speaks the OpenAI chat protocol and counts every call.

It never deduplicates. What it answers is what `rlprompt.targets.planted.PlantedTarget` says, so that policies learn
from it; what it counts is what was really sent.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from rlprompt.targets.planted import PlantedTarget
from rlprompt.types import Rendered, TargetRequest

CHOICES = (" no", " yes")
"""Of the planted task."""


class PlantedServer:
    """Starts on entry, stops on exit.

    Args:
        latency_s: of every answer.
        **planted: arguments of the target.
    """

    def __init__(self, *, latency_s: float, **planted: Any) -> None:
        self.calls: Counter[str] = Counter()
        """How often each text was sent."""
        self._target = PlantedTarget(**planted)
        self._latency_s = latency_s
        self._lock = threading.Lock()
        self._refuses_until = 0.0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients are killed
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> PlantedServer:
        """Starts answering."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops answering."""
        self._server.shutdown()
        self._server.server_close()

    def refuse(self, seconds: float) -> None:
        """Answers every call that comes within so many seconds with 503, uncounted."""
        self._refuses_until = time.monotonic() + seconds

    @property
    def is_refusing(self) -> bool:
        """Whether calls are refused now."""
        return time.monotonic() < self._refuses_until

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        """Counts a call and answers it."""
        text = str(body["messages"][-1]["content"])
        with self._lock:
            self.calls[text] += 1
            (output,) = self._target.run([TargetRequest(Rendered(text=text), choices=CHOICES)])
        time.sleep(self._latency_s)
        logprobs = output.choice_logprobs or (0.0, 0.0)
        top = [{"token": token, "logprob": value} for token, value in zip(CHOICES, logprobs, strict=True)]
        answer = {"message": {"role": "assistant", "content": max(top, key=lambda entry: entry["logprob"])["token"]}}
        usage = {"prompt_tokens": len(text.split()), "completion_tokens": 1}
        logged = {"content": [{**top[0], "top_logprobs": top}]}
        return {"id": "planted", "choices": [{**answer, "index": 0, "logprobs": logged}], "usage": usage}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status = 503 if server.is_refusing else 200
                reply = server.reply(body) if status == 200 else {"error": {"message": "out of order"}}
                content = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                return None

        return Handler
