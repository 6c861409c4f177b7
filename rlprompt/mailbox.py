"""Where workers put what they want done, and wait for the answer: a Ray actor that any machine reaches.

Only light imports: the actor's process has to be there before any worker's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from rlprompt.tasks import Task
from rlprompt.types import Example, Scores

SCORE, STABILISE = "score", "stabilise"
MOST_WAITING = 100_000
"""Letters that may wait at once; one a worker is all there ever is."""


@dataclass(frozen=True)
class Letter:
    """What one worker asks for."""

    attempt: int
    """Which sending out of the workers it belongs to."""
    share: int
    """Number of its first episode: the letters of an iteration are read in this order."""
    kind: str
    scores: Scores | None = None
    """Of `STABILISE`, without outputs."""
    prompts: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    samples: int | None = None
    """None: prompts x examples; else pairs with so many samples."""
    contexts: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts that it is about."""
        return self.prompts if self.scores is None else self.scores.prompts


class Mailbox:
    """Where letters wait for their answer; a Ray actor, so that workers on any machine reach it.

    Args:
        task: the run's, for workers on machines that lack its files.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._new: list[tuple[int, Letter]] = []
        self._arrived = asyncio.Event()
        self._tickets = 0

    async def ask(self, letter: Letter) -> Any:
        """Puts a letter in and waits for its answer."""
        ticket, self._tickets = self._tickets, self._tickets + 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        self._new.append((ticket, letter))
        self._arrived.set()
        return await future

    async def letters(self) -> list[tuple[int, Letter]]:
        """Waits for a letter; returns all that were not taken before, with their tickets."""
        await self._arrived.wait()
        self._arrived.clear()
        new, self._new = self._new, []
        return new

    async def task(self) -> Task:
        """Returns the run's task."""
        return self._task

    async def ping(self) -> None:
        """Returns when the mailbox is there."""

    async def answer(self, answers: dict[int, Any]) -> None:
        """Answers letters by their tickets; None says that the round is abandoned."""
        for ticket, value in answers.items():
            if ticket in self._waiting:  # not of a mailbox that was lost, and came back empty
                self._waiting.pop(ticket).set_result(value)


def open_mailbox(name: str, task: Task) -> Any:
    """Starts a mailbox under a name on this machine; returns the actor's handle.

    One that is lost all the same comes back, empty.

    Args:
        name: that workers find it by.
        task: the run's.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": name, "num_cpus": 0, "max_concurrency": MOST_WAITING, "max_restarts": -1}
    return ray.remote(Mailbox).options(scheduling_strategy=here, **options).remote(task)
