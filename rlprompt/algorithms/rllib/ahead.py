"""`algorithm.mode: async`: the next iteration is played while the learner learns from this one.

The prompts of every iteration but the first are written with the weights from before the newest update, whether or not
there was time to play it ahead: the lag is always 1, no matter who was faster. So an asynchronous run, too, is repeated
exactly by a resumed one, and does not depend on the number of workers.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlprompt.algorithms.rllib.rollouts import Rollouts, Weights
from rlprompt.types import FloatArray, RunContext, Scores

logger = logging.getLogger(__name__)

STOP_S = 10.0
"""Seconds that an iteration which is played ahead gets to stop when the run is stopped at once."""


class AheadRollouts:
    """Plays iterations ahead, in a thread.

    Args:
        inner: who plays.
        run: asked whether it may, and told so.
    """

    def __init__(self, inner: Rollouts, run: RunContext) -> None:
        self.scores: Scores | None = None
        """Of the prompts of the iteration in progress."""
        self.training_rewards: FloatArray | None = None
        """(P,), stabilised."""
        self._inner = inner
        self._run = run
        self._iteration: int | None = None
        """Which one was played ahead."""
        self._thread: threading.Thread | None = None
        self._found: list[Any] | BaseException = []

    @property
    def seconds(self) -> float:
        """Time that the sampling policies have taken so far."""
        return self._inner.seconds

    def prepare(self, iteration: int, weights: Weights) -> None:
        """Says which iteration comes next; one that was played ahead has its weights."""
        if self._iteration != iteration:
            self._inner.prepare(iteration, weights)

    def play(self) -> list[Any]:
        """Returns the iteration's episodes; raises what was met when they were played."""
        if self._iteration is None:
            episodes = self._inner.play()
        else:
            self._iteration, found, self._found = None, self._found, []
            self._run.end_ahead()
            if isinstance(found, BaseException):
                raise found
            episodes = found
        self.scores, self.training_rewards = self._inner.scores, self._inner.training_rewards
        return episodes

    @contextmanager
    def playing(self, iteration: int, weights: Weights) -> Iterator[None]:
        """Plays an iteration while the block runs, where the run allows it, and waits for it at the end.

        Whatever ends the block early ends the iteration, too: the answers that it got are in the run's journal.
        """
        if not self._run.begin_ahead(0 if self.scores is None else len(self.scores.prompts)):
            yield
            return
        self._inner.prepare(iteration, weights)
        self._thread = threading.Thread(target=self._play, name=f"iteration-{iteration}", daemon=True)
        self._thread.start()
        try:
            yield
            self._thread.join()
        except BaseException:
            self._stop(self._thread)
            raise
        self._iteration = iteration

    def _play(self) -> None:
        try:
            self._found = self._inner.play()
        except BaseException as error:  # raised where the iteration is needed
            self._found = error

    def _stop(self, thread: threading.Thread) -> None:
        """Raises KeyboardInterrupt in the thread, as a second Ctrl-C does where nothing is played ahead."""
        if thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt)
            )
        thread.join(STOP_S)
        if thread.is_alive():
            logger.warning("what was being scored has not stopped within %.0f s; its answers may be lost", STOP_S)

    def close(self) -> None:
        """Frees what the inner one has."""
        self._inner.close()
