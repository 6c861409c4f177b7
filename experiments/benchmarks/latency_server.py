"""A server with a fixed latency and next to no work of its own, so that what is measured is the client.

Run by concurrency.py and proxy.py as a process of its own; prints its port. Usage: latency_server.py SECONDS
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable

ANSWER = json.dumps(
    {
        "id": "latency",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}}],
        "usage": {"prompt_tokens": 8, "completion_tokens": 1},
    }
).encode()
REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER


async def serve(reply: Callable[[bytes], bytes], seconds: float = 0.0) -> None:
    """Answers every request so many seconds after its last byte; prints the port.

    Args:
        reply: from a request's body to the whole answer of HTTP.
        seconds: of waiting.
    """

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
                body = await reader.readexactly(length)
                await asyncio.sleep(seconds)
                writer.write(reply(body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(lambda body: REPLY, float(sys.argv[1])))
