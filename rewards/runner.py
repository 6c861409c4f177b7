"""Runs user code, sync or async, with a time-out and without letting its exceptions through.

One private daemon thread with its own event loop: async rewards keep their HTTP clients from call to call, a
reward that hangs is left behind and cannot keep the process alive, and an exception comes back as a value.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_GRACE_SECONDS = 0.5
"""What a timed-out coroutine gets to clean up before its thread is given up."""


@dataclass(frozen=True)
class Outcome:
    """How a call ended: one of a value, an error, or a time-out."""

    value: Any = None
    error: BaseException | None = None
    timed_out: bool = False


class Runner:
    """Runs one call after the other in a private thread, which is started by the first call."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], Any] | None = None

    def run(self, function: Callable[[], Any], timeout_seconds: float) -> Outcome:
        """Calls the function, awaits what it returns if that can be awaited, and waits for the end.

        A coroutine that times out is cancelled. A plain function cannot be: its thread is left to itself, and the
        next call gets a new one.
        """
        future = asyncio.run_coroutine_threadsafe(_call(function, timeout_seconds), self._running_loop())
        try:
            error = future.exception(timeout_seconds + _GRACE_SECONDS)
        except concurrent.futures.TimeoutError:
            future.cancel()
            self.close()
            return Outcome(timed_out=True)
        except concurrent.futures.CancelledError as cancelled:  # the function cancelled its own task
            return Outcome(error=cancelled)
        return Outcome(error=error) if error is not None else future.result()

    def close(self) -> None:
        """Stops the thread as soon as it is idle; a later call starts a new one."""
        if self._stop is not None:
            self._stop()
        self._loop = self._thread = self._stop = None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        # A thread does not survive a fork, hence the question whether it is alive.
        if self._loop is None or self._thread is None or not self._thread.is_alive():
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_serve, args=(self._loop,), name="rlprompt-rewards", daemon=True)
            self._thread.start()
            self._stop = weakref.finalize(self, _stop, self._loop)
        return self._loop


async def _call(function: Callable[[], Any], timeout_seconds: float) -> Outcome:
    try:
        value = function()
        if inspect.isawaitable(value):
            try:
                async with asyncio.timeout(timeout_seconds) as scope:
                    value = await value
            except TimeoutError:
                if scope.expired():
                    return Outcome(timed_out=True)
                raise  # a time-out of the function's own making is an error like any other
    except SystemExit as error:  # would end the thread and leave the caller waiting
        raise RuntimeError(f"called sys.exit({error.code!r})") from error
    return Outcome(value=value)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    loop.close()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)
