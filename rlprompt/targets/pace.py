"""When calls to a server may begin: its limits a minute, and the pauses that it asks for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_CREDIT_S = 1.0


class Pace:
    """Spaces attempts and holds all of them back while the server asked for a pause; safe between threads.

    Tokens are metered by a debt that is paid off at `tokens_per_minute`: an attempt may begin when there is none, and
    adds what it is expected to take. That is the estimate times the share of earlier estimates that the server has
    counted; when the server tells, the difference is added. What is not used is kept for a second.

    Args:
        requests_per_minute: attempts begin so far apart; None sets no limit.
        tokens_per_minute: most tokens, of prompts and completions together; None sets no limit.
        clock: seconds.
    """

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._token_s = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock = clock
        self._next = self._paid_off = 0.0
        self._estimated = self._used = 0
        self._lock = threading.Lock()

    def expected(self, estimate: int) -> float:
        """Returns the tokens that an attempt will take, as far as the earlier ones tell."""
        with self._lock:
            return estimate * (self._used / self._estimated if self._estimated else 1.0)

    def delay(self, tokens: float = 0.0) -> float:
        """Returns 0 and takes the turn, or the seconds after which to ask again at the latest.

        Args:
            tokens: from `expected`.
        """
        with self._lock:
            now, turn = self._clock(), max(self._next, self._paid_off)
            if now < turn:
                return turn - now
            self._next = now + self._interval
            self._paid_off = max(self._paid_off, now - _CREDIT_S) + tokens * self._token_s
            return 0.0

    def settle(self, estimate: int, expected: float, used: int) -> None:
        """Says what an attempt has taken: what was expected too much is given back, what was too little is owed."""
        with self._lock:
            self._estimated += estimate
            self._used += used
            self._paid_off += (used - expected) * self._token_s

    def refund(self, expected: float) -> None:
        """Gives back what was expected of an attempt that the server has not worked on."""
        with self._lock:
            self._paid_off -= expected * self._token_s

    def pause(self, seconds: float) -> None:
        """Nobody gets a turn for so many seconds."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)
