"""Ctrl-C and SIGTERM: the first one asks the run to stop after the iteration in progress, the second one at once."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)

_REASONS = {signal.SIGINT: "interrupt", signal.SIGTERM: "terminated"}


class StopSignals:
    """Catches the signals inside a `with` block in the main thread; elsewhere it does nothing."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """"interrupt" or "terminated" once a signal came."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        """Installs the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in _REASONS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Puts the handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def hold(self) -> None:
        """Takes the signals back from libraries that installed handlers of their own meanwhile (Ray does)."""
        for number in self._before:
            if signal.getsignal(number) != self._handle:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.reason is not None
        self.reason = self.reason or _REASONS[signal.Signals(number)]
        if again:
            raise KeyboardInterrupt
        logger.warning("%s: stopping after this iteration; once more stops at once", signal.Signals(number).name)


class StopFile(StopSignals):
    """Watches a file in the place of signals, for a run in a process that Ctrl-C does not reach.

    Args:
        path: once it exists, the run stops after the iteration in progress; its text is the reason, "stop-file" where
            it is empty.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def __enter__(self) -> StopFile:
        """Installs nothing."""
        return self

    def hold(self) -> None:
        """Looks for the file."""
        if self.reason is None and self._path.exists():
            self.reason = self._path.read_text(encoding="utf-8").strip() or "stop-file"
