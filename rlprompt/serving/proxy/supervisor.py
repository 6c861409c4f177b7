"""The rewriter's process, seen from the server: asked, timed, restarted when it dies, replaced by another one.

The server itself never imports torch: what the rewriter does to memory and CPU happens elsewhere, and its end is an
answer that does not come.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from rlprompt import restarts
from rlprompt.errors import ConfigError, RLPromptError
from rlprompt.serving.proxy.guard import KEYS, UPSTREAM_KEYS
from rlprompt.types import Json

logger = logging.getLogger(__name__)

LINE_BYTES = 64 * 2**20
"""Longest answer."""
DRAIN_S = 30.0
"""That a replaced process gets for what it was asked before."""


class RewriterError(RLPromptError):
    """The rewriter gave no answer.

    Args:
        reason: in one word, with details behind a colon.
        counts: whether it speaks against the rewriter.
    """

    def __init__(self, reason: str, *, counts: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.counts = counts


@dataclass(frozen=True)
class WorkerSettings:
    """What a rewriter's process is started with."""

    run: str
    model: str | None = None
    device: str = "auto"
    meta_prompt: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    max_batch: int = 14
    """Texts that are written for at once. LMs in 16 bits write 14 in one batch."""
    compares: bool = False
    """Whether answers tell the similarity of text and rewrite."""

    def to_json(self) -> str:
        """Returns the argument of `rlprompt.serving.worker`."""
        return json.dumps(self.__dict__)


class RewriterProcess:
    """One process with one rewriter.

    Args:
        settings: what it is started with.
        gone: called once when it has ended without being told to.
    """

    def __init__(self, settings: WorkerSettings, gone: Callable[[RewriterProcess], None]) -> None:
        self.settings = settings
        self._gone = gone
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self._owed: set[int] = set()
        """What it has not answered yet, whether somebody still waits for it or not."""
        self._number = 0
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._is_closing = False
        self._spoke = time.monotonic()

    @property
    def pid(self) -> int | None:
        """The number of the process."""
        return None if self._process is None else self._process.pid

    @property
    def waiting(self) -> int:
        """Requests that were asked and not answered."""
        return len(self._waiting)

    @property
    def silent_s(self) -> float:
        """Seconds since the last answer, while it owes some; else 0."""
        return time.monotonic() - self._spoke if self._owed else 0.0

    async def start(self) -> None:
        """Starts the process and waits until the rewriter is loaded.

        Raises:
            ConfigError: the rewriter cannot be loaded.
            RewriterError: the process ended, or does not come up.
        """
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "rlprompt.serving.worker",
            self.settings.to_json(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
            start_new_session=True,  # a Ctrl-C in the terminal is for the server, which drains first
            env={name: value for name, value in os.environ.items() if name not in (KEYS, *UPSTREAM_KEYS)},
        )
        answers = cast(asyncio.StreamReader, self._process.stdout)  # a pipe
        try:
            line = await asyncio.wait_for(answers.readline(), restarts.COMES_UP_S)
        except TimeoutError as error:
            self.kill()
            raise RewriterError("start: the rewriter is not loaded after a long time") from error
        if not line:
            raise RewriterError(f"start: the rewriter's process ended with {await self._process.wait()}")
        said = json.loads(line)
        if "error" in said:
            await self._process.wait()
            raise ConfigError(said["error"])
        self._reader = asyncio.create_task(self._read(self._process, answers))

    async def ask(self, text: str, seconds: float) -> Json:
        """Returns the rewriter's answer.

        Args:
            text: the user's.
            seconds: until the answer is of no use any more.

        Raises:
            RewriterError: there is none in time, the process has ended, or the text cannot be sent.
        """
        process = self._process
        if process is None or process.stdin is None or self._reader is None or self._reader.done():
            raise RewriterError("down")
        self._number += 1
        number, future = self._number, asyncio.get_running_loop().create_future()
        if not self._owed:
            self._spoke = time.monotonic()
        self._waiting[number] = future
        self._owed.add(number)
        try:
            line = json.dumps({"id": number, "text": text, "seconds": seconds}) + "\n"
            process.stdin.write(line.encode())
            async with asyncio.timeout(seconds):
                await process.stdin.drain()
                answer: Json = await future
        except TimeoutError as error:
            raise RewriterError("timeout") from error
        except (ConnectionError, RuntimeError) as error:
            raise RewriterError("down") from error
        finally:
            self._waiting.pop(number, None)
        if "failed" in answer:
            raise RewriterError(answer["failed"])
        if "expired" in answer:
            raise RewriterError("timeout")
        return answer

    def kill(self) -> None:
        """Ends the process at once."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def close(self, seconds: float = DRAIN_S) -> None:
        """Lets it answer what it was asked, then ends it."""
        self._is_closing = True
        end = time.monotonic() + seconds
        while self._waiting and time.monotonic() < end:
            await asyncio.sleep(0.01)
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 2.0)
        except TimeoutError:
            self.kill()
            await self._process.wait()
        if self._reader is not None:
            await self._reader

    async def _read(self, process: asyncio.subprocess.Process, answers: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError, ValueError):  # ValueError: a line that is too long
            while line := await answers.readline():
                self._spoke = time.monotonic()
                answer = json.loads(line)
                self._owed.discard(answer["id"])
                future = self._waiting.get(answer["id"])
                if future is not None and not future.done():
                    future.set_result(answer)
        self.kill()
        await process.wait()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(RewriterError("died"))
        if not self._is_closing:
            self._gone(self)


class Supervisor:
    """Keeps one rewriter's process running.

    Args:
        settings: of the first one.
        most_waiting: requests that may wait for the rewriter.
        hang_s: silence, while requests wait, after which a process is taken for dead.
    """

    def __init__(self, settings: WorkerSettings, *, most_waiting: int, hang_s: float) -> None:
        self.settings = settings
        self.restarts = 0
        """Processes that ended by themselves."""
        self.version = 0
        """Counts the policies that were served."""
        self._most_waiting, self._hang_s = most_waiting, hang_s
        self._current: RewriterProcess | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._losses = 0
        self._swap = asyncio.Lock()
        self._is_closing = False

    @property
    def is_ready(self) -> bool:
        """Whether a rewriter is loaded."""
        return self._current is not None

    @property
    def pid(self) -> int | None:
        """The number of the process."""
        return None if self._current is None else self._current.pid

    @property
    def waiting(self) -> int:
        """Requests that wait for the rewriter."""
        return 0 if self._current is None else self._current.waiting

    async def start(self) -> None:
        """Starts the first process.

        Raises:
            ConfigError: the rewriter cannot be loaded.
            RewriterError: the process ended, or does not come up.
        """
        self._current = await self._started(self.settings)
        self._keep(self._watch())

    async def ask(self, text: str, seconds: float) -> Json:
        """Returns the rewriter's answer.

        Raises:
            RewriterError: there is none.
        """
        current = self._current
        if current is None:
            raise RewriterError("down")
        if current.waiting >= self._most_waiting:
            raise RewriterError("overload", counts=False)
        answer = await current.ask(text, seconds)
        self._losses = 0
        return answer

    async def swap(self, settings: WorkerSettings) -> None:
        """Replaces the policy: the new one is loaded first, the old one answers what it was asked.

        Raises:
            ConfigError: the new one cannot be loaded; the old one stays.
            RewriterError: its process ended, or does not come up; the old one stays.
        """
        async with self._swap:
            new = await self._started(settings)
            old, self._current, self.settings = self._current, new, settings
            self.version += 1
        if old is not None:
            self._keep(old.close())

    async def close(self) -> None:
        """Ends all processes."""
        self._is_closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._current is not None:
            await self._current.close()
            self._current = None

    async def _started(self, settings: WorkerSettings) -> RewriterProcess:
        process = RewriterProcess(settings, self._lost)
        try:
            await process.start()
        except BaseException:
            process.kill()
            raise
        return process

    def _lost(self, process: RewriterProcess) -> None:
        if process is not self._current or self._is_closing:
            return
        self._current = None
        self.restarts += 1
        self._losses += 1
        logger.warning("the rewriter's process ended; requests pass unchanged until another one is there")
        self._keep(self._restart())

    async def _restart(self) -> None:
        """Tries until a process is there: without one, requests pass unchanged."""
        while not self._is_closing and self._current is None:
            await asyncio.sleep(restarts.pause_before(max(self._losses, 1)))
            async with self._swap:
                if self._current is not None:  # a new policy came in the meantime
                    return
                try:
                    self._current = await self._started(self.settings)
                except (RLPromptError, OSError) as error:
                    self._losses += 1
                    logger.warning("the rewriter cannot be started: %s", error)

    async def _watch(self) -> None:
        """Ends a process that is there and says nothing."""
        while True:
            await asyncio.sleep(min(self._hang_s / 4, 1.0))
            current = self._current
            if current is not None and current.silent_s > self._hang_s:
                logger.warning("the rewriter has said nothing for %.0f s; its process is ended", current.silent_s)
                current.kill()

    def _keep(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
