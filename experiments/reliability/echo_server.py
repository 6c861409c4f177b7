"""An upstream that answers with the last message it got, whole or as a stream of four events.

Run by proxy_soak.py as a process of its own; prints its port.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

# The checkout replaces this script's folder on the path.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from experiments.benchmarks.latency_server import serve

PIECES = 4


def answer(text: str, *, stream: bool) -> bytes:
    """Returns the whole reply of HTTP."""
    if not stream:
        body = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        return head + body
    size = -(-len(text) // PIECES)
    events = [
        b"data: %s\n\n" % json.dumps({"choices": [{"delta": {"content": text[at : at + size]}}]}).encode()
        for at in range(0, len(text), size)
    ]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in [*events, b"data: [DONE]\n\n"])
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        + chunks
        + b"0\r\n\r\n"
    )


def echo(raw: bytes) -> bytes:
    """Returns the reply to a request's body."""
    body = json.loads(raw)
    return answer(body["messages"][-1]["content"], stream=bool(body.get("stream")))


if __name__ == "__main__":
    asyncio.run(serve(echo))
