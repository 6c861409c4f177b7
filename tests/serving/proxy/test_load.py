"""Many at once: streams stay exact, refused bodies leave no memory behind."""

import asyncio
import contextlib
import resource
import socket
import time
from typing import Any

import httpx
from raw_upstream import RawUpstream
from running_proxy import running_proxy

from rlprompt.serving.proxy.app import Server


def wait_until_idle(server: Server) -> None:
    end = time.monotonic() + 5
    while server.active:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_s6_two_hundred_streams_at_once_are_exact(upstream: RawUpstream) -> None:
    upstream.gap_s = 0.05
    whole = b"".join(upstream.stream)

    async def ask(address: str) -> list[Any]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:

            async def one(number: int) -> tuple[int, bytes]:
                body = {"model": "stream", "messages": [{"role": "user", "content": f"Name colour {number}"}]}
                async with client.stream("POST", f"{address}/v1/chat/completions", json=body) as reply:
                    return reply.status_code, b"".join([piece async for piece in reply.aiter_raw()])

            return await asyncio.gather(*(one(number) for number in range(200)))

    with running_proxy(upstream.url) as (address, server):
        found = asyncio.run(ask(address))
        wait_until_idle(server)
    assert found == [(200, whole)] * 200
    sent = {one.body for one in upstream.seen}
    assert len(sent) == 200


def test_s2_a_thousand_bodies_that_are_too_large_leave_no_memory_behind(upstream: RawUpstream) -> None:
    """1 MiB each, sent in chunks without a length; the server is in this process."""
    with running_proxy(upstream.url, caps={"body_bytes": 4096}) as (address, server):
        host, port = address.removeprefix("http://").split(":")
        head = b"POST /rewrite HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        chunk = b"10000\r\n" + b"x" * 2**16 + b"\r\n"

        def send() -> bytes:
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                with contextlib.suppress(OSError):  # it was refused before its end
                    connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 16)
                try:
                    return connection.recv(4096)
                except OSError:
                    return b""

        for _ in range(100):
            send()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answers = [send() for _ in range(1000)]
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        wait_until_idle(server)
    assert {answer.split(b" ")[1] for answer in answers if answer} == {b"413"}
    assert sum(bool(answer) for answer in answers) > 500
    assert grown_kib < 32 * 1024
    assert upstream.seen == []
