"""Runs the application: one event loop, slow clients closed, a signal for another policy, a drain at the end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from asyncio import Task, TimerHandle, create_task, get_running_loop
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rlprompt.errors import RLPromptError
from rlprompt.serving.proxy.app import Server, proxy_app
from rlprompt.serving.proxy.guard import upstream_key
from rlprompt.serving.proxy.metrics import Metrics
from rlprompt.serving.proxy.rewriting import Rewriting
from rlprompt.serving.proxy.settings import ServeSettings
from rlprompt.serving.proxy.supervisor import Supervisor, WorkerSettings
from rlprompt.serving.proxy.upstream import Upstream

logger = logging.getLogger(__name__)

HEADER_BYTES = 64 * 2**10
BREAKER_STATES = ("closed", "half-open", "open")


def new_server(run: str, settings: ServeSettings) -> Server:
    """Returns what the routes share; nothing is started.

    Args:
        run: a run folder, or a folder with a `policy.json`.
        settings: of the server.
    """
    rewriting = settings.rewriting
    worker = WorkerSettings(
        run=run,
        model=rewriting.model,
        device=rewriting.device,
        meta_prompt=rewriting.meta_prompt,
        columns=rewriting.columns,
        max_batch=rewriting.max_batch,
        compares=rewriting.min_similarity is not None,
    )
    supervisor = Supervisor(worker, most_waiting=rewriting.max_waiting, hang_s=rewriting.hang_s)
    metrics = Metrics()
    server = Server(settings, supervisor, Rewriting(supervisor, settings), Upstream(settings, upstream_key()), metrics)
    metrics.active.set_function(lambda: server.active)
    metrics.watch("waiting_texts", "Texts that wait for the rewriter.", lambda: supervisor.waiting)
    metrics.watch("rewriter_restarts", "Rewriter processes that ended by themselves.", lambda: supervisor.restarts)
    metrics.watch("rewriter_ready", "Whether a rewriter is loaded.", lambda: supervisor.is_ready)
    metrics.watch(
        "breaker_state",
        "0 closed, 1 trying again, 2 open.",
        lambda: BREAKER_STATES.index(server.rewriting.breaker.state),
    )
    return server


def timed_protocol(header_s: float) -> type[asyncio.Protocol]:
    """Returns a protocol that closes connections whose headers are too slow or too large.

    uvicorn has a limit for idle connections only: one that sends a byte of a header now and then would stay for ever.

    Args:
        header_s: from a connection's or a request's first byte to the end of its headers.
    """

    class TimedProtocol(HttpToolsProtocol):
        _timer: TimerHandle | None = None
        _header_bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start()

        def data_received(self, data: bytes) -> None:
            if self._timer is None and (self.cycle is None or self.cycle.response_complete):
                self._start()
            super().data_received(data)
            if self._timer is not None:
                self._header_bytes += len(data)
                if self._header_bytes > HEADER_BYTES:
                    self._close()

        def on_headers_complete(self) -> None:
            self._stop()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _start(self) -> None:
            self._header_bytes = 0
            self._timer = get_running_loop().call_later(header_s, self._close)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _close(self) -> None:
            self._stop()
            if self.transport is not None and not self.transport.is_closing():
                self.transport.close()

    return TimedProtocol


class _Uvicorn(uvicorn.Server):
    """Says first that it is ending, so that nothing new begins while what has begun ends."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._served = server

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._served.is_draining = True
        super().handle_exit(sig, frame)


def serve(
    server: Server, keys: Sequence[str], listener: socket.socket, *, tell: Callable[[], None] = lambda: None
) -> None:
    """Serves until a signal ends it.

    SIGHUP loads the run's folder again, in a process beside the old one, which answers what it was asked.

    Args:
        server: what is served.
        keys: of clients.
        listener: a socket that listens.
        tell: called once requests can be answered.

    Raises:
        ConfigError: the rewriter cannot be loaded.
    """
    settings = server.settings
    swaps: set[Task[None]] = set()
    failed: list[BaseException] = []

    def reload() -> None:
        task = create_task(_swap(server))
        swaps.add(task)
        task.add_done_callback(swaps.discard)

    def started() -> None:
        if hasattr(signal, "SIGHUP"):  # not on Windows
            get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        tell()

    app = proxy_app(server, keys, on_start=started, starts_rewriter=False)
    config = uvicorn.Config(
        app,
        http=timed_protocol(settings.receive_timeout_s),
        log_level="warning",
        access_log=False,  # addresses and sizes of users' requests are nobody's
        server_header=False,
        lifespan="on",
        ws="none",
        proxy_headers=False,
        timeout_graceful_shutdown=max(int(settings.drain_s), 1),
        backlog=2048,
    )

    async def run() -> None:
        try:
            await server.supervisor.start()
        except RLPromptError as error:
            failed.append(error)
            return
        try:
            await _Uvicorn(config, server).serve(sockets=[listener])
        finally:
            await server.supervisor.close()

    asyncio.run(run())
    if failed:
        raise failed[0]


async def _swap(server: Server) -> None:
    try:
        await server.supervisor.swap(server.supervisor.settings)
    except (RLPromptError, OSError) as error:
        logger.warning("the policy is not replaced: %s", error)
        return
    logger.warning("another policy is served now")
