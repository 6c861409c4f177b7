"""An upstream that answers with the last message it got, whole or as a stream of four events.

Run by proxy_soak.py as a process of its own; prints its port.
"""

from __future__ import annotations

import asyncio
import json
import sys

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


async def serve() -> None:
    """Answers until it is ended."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
                length = next(int(line.split(b":")[1]) for line in head if line.startswith(b"content-length:"))
                body = json.loads(await reader.readexactly(length))
                writer.write(answer(body["messages"][-1]["content"], stream=bool(body.get("stream"))))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
