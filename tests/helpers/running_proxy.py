"""The proxy on a port of this machine, in a thread, with a rewriter that a test decides about."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from rlprompt.listening import listening
from rlprompt.serving.proxy.app import Server, proxy_app
from rlprompt.serving.proxy.guard import upstream_key
from rlprompt.serving.proxy.metrics import Metrics
from rlprompt.serving.proxy.rewriting import Rewriting
from rlprompt.serving.proxy.server import timed_protocol
from rlprompt.serving.proxy.settings import ServeSettings
from rlprompt.serving.proxy.supervisor import RewriterError
from rlprompt.serving.proxy.upstream import Upstream


class FakeRewriter:
    """Stands for a `Supervisor`: answers by a function, which may raise or take its time."""

    def __init__(self, rewrite: Callable[[str], Any] = lambda text: f"Please: {text}") -> None:
        self.rewrite = rewrite
        self.asked: list[str] = []
        self.version = self.restarts = self.waiting = 0
        self.is_ready = True
        self.delay_s = 0.0

    async def ask(self, text: str, seconds: float) -> dict[str, Any]:
        """As the supervisor's, with its deadline."""
        self.asked.append(text)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.sleep(self.delay_s)
        except TimeoutError as error:
            raise RewriterError("timeout") from error
        found = self.rewrite(text)
        if isinstance(found, Exception):
            raise found
        if isinstance(found, dict):
            return found
        return {"text": found, "rewritten": True, "reason": None, "similarity": None}

    async def start(self) -> None:
        """Nothing is started."""

    async def close(self) -> None:
        """Nothing is ended."""


@contextmanager
def running_proxy(
    upstream: str, rewriter: Any = None, keys: tuple[str, ...] = (), **settings: Any
) -> Iterator[tuple[str, Server]]:
    """Yields the address of a server and what its routes share.

    Args:
        upstream: the address of the LLM.
        rewriter: by default one that puts "Please: " in front.
        keys: of clients.
        settings: of the server.
    """
    parsed = ServeSettings(upstream=upstream, **settings)
    supervisor = FakeRewriter() if rewriter is None else rewriter
    server = Server(parsed, supervisor, Rewriting(supervisor, parsed), Upstream(parsed, upstream_key()), Metrics())
    loops: list[asyncio.AbstractEventLoop] = []
    app = proxy_app(server, keys, on_start=lambda: loops.append(asyncio.get_running_loop()))
    with listening("127.0.0.1", 0) as listener:
        config = uvicorn.Config(
            app,
            http=timed_protocol(parsed.receive_timeout_s),
            log_level="error",
            access_log=False,
            server_header=False,
            ws="none",
            proxy_headers=False,
            timeout_graceful_shutdown=2,
            backlog=2048,
        )
        runner = uvicorn.Server(config)
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not runner.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
            threading.Event().wait(0.005)
        server.loop = loops[0]  # type: ignore[attr-defined]  # for tests that call what is awaited
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
        runner.should_exit = True
        thread.join()
