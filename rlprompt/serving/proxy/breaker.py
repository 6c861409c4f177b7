"""A circuit breaker: a rewriter that keeps failing is left in peace for a while, and requests do not wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Opens after some failures in a row; after a pause one request tries again.

    Args:
        failures: in a row that open it.
        pause_s: until one request may try.
        clock: seconds that only grow.
    """

    def __init__(self, failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._pause_s, self._clock = failures, pause_s, clock
        self._in_a_row = 0
        self._opened: float | None = None
        self._is_trying = False

    @property
    def state(self) -> State:
        """Whether requests are let through: all, none, or one that tries."""
        if self._opened is None:
            return "closed"
        return "half-open" if self._clock() - self._opened >= self._pause_s else "open"

    def allows(self) -> bool:
        """Returns whether a request may be tried now; one that may must be followed by `note` or `withdraw`."""
        state = self.state
        if state == "half-open" and not self._is_trying:
            self._is_trying = True
            return True
        return state == "closed"

    def note(self, *, success: bool) -> None:
        """Notes how a request that was tried ended."""
        self._is_trying = False
        if success:
            self._in_a_row, self._opened = 0, None
            return
        self._in_a_row += 1
        if self._in_a_row >= self._most or self._opened is not None:
            self._opened = self._clock()

    def withdraw(self) -> None:
        """Forgets a request that was tried and ended for a reason that says nothing about the rewriter."""
        self._is_trying = False
