"""Learners in processes of their own, whatever they compute: asked at once, and asked again where one was lost."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from rlprompt import restarts
from rlprompt.cluster import RayConfig
from rlprompt.config import RunConfig
from rlprompt.errors import ConfigError, RunError
from rlprompt.policies import PromptPolicy
from rlprompt.ray_session import in_one_line, start_ray
from rlprompt.shipping import shipment
from rlprompt.types import Json, RunContext

logger = logging.getLogger(__name__)

Piece = TypeVar("Piece")


def check_learners(config: RunConfig, policies: Iterable[PromptPolicy]) -> None:
    """Raises ConfigError for learners where nobody trains a whole LM, or where it would have to be on a GPU."""
    if config.ray.num_learners and all(policy.frozen_features for policy in policies):
        raise ConfigError(
            f"ray.num_learners is {config.ray.num_learners}, but only heads on frozen LMs are trained, which is no "
            "work to share; set it to 0"
        )
    if config.ray.num_learners and config.policy.device != "cpu":
        raise ConfigError(
            f"policy.device is {config.policy.device}, but the learners of ray.num_learners compute on CPUs; use "
            "policy.device=cpu, or ray.num_learners=0"
        )


def join_ray(run: RunContext) -> Json | None:
    """Starts Ray, or joins it, with the code of the run's configuration.

    Returns:
        What takes the place of `code` in the scorer's spec where workers build something from it; None where they read
        the user's code at its place.
    """
    sent = shipment(run.config, search_path=run.scorer.spec.get("code", {}).get("search_path"))
    start_ray(run.config.ray, () if sent is None else sent.files)
    return None if sent is None else sent.code


def shared_out(pieces: Sequence[Piece], among: int) -> list[Sequence[Piece]]:
    """Returns neighbouring pieces for each of so many at most, none of them empty.

    >>> shared_out([1, 2, 3, 4, 5], 3)
    [[1, 2], [3, 4], [5]]
    """
    size = -(-len(pieces) // among)
    return [pieces[first : first + size] for first in range(0, len(pieces), size)]


class LearnerProcesses(ABC):
    """Ray actors whose answers depend on what they are asked alone, so that another one can answer in their place.

    Args:
        settings: the section `ray`.
    """

    def __init__(self, settings: RayConfig) -> None:
        self.settings = settings
        self.restarts = 0
        """Learners that were lost."""
        self.actors = [self._start() for _ in range(settings.num_learners)]

    @abstractmethod
    def _start(self) -> Any:
        """Starts an actor."""

    @property
    def threads(self) -> int:
        """That a learner computes with."""
        return max(int(self.settings.num_cpus_per_learner), 1)

    def ask(self, method: str, orders: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Calls a method of the first learner with the first order, and so on; yields the answers in this order.

        Raises:
            RunError: learners were lost too often, or do not come back.
        """
        asked = [getattr(actor, method).remote(*order) for actor, order in zip(self.actors, orders, strict=False)]
        for place, order in enumerate(orders):
            yield self._answer(place, asked[place], method, order)

    def close(self) -> None:
        """Ends the learners' processes."""
        import ray

        for actor in self.actors:
            ray.kill(actor)

    def _answer(self, place: int, asked: Any, method: str, order: tuple[Any, ...]) -> Any:
        import ray
        from ray.exceptions import RayError, RayTaskError

        losses = 0
        while True:
            try:
                return ray.get(asked)
            except RayTaskError:
                raise  # a mistake in the program
            except RayError as error:  # it died, was killed for memory, or its node is gone
                losses += 1
                self._replace(place, losses, in_one_line(error))
                asked = getattr(self.actors[place], method).remote(*order)

    def _replace(self, place: int, losses: int, why: str) -> None:
        """Starts a lost learner again."""
        import ray

        self.restarts += 1
        most = self.settings.max_num_learner_restarts
        if losses >= restarts.MOST_IN_A_ROW:
            raise RunError(
                f"a learner was lost {losses} times in a row without an answer ({why}); see whether its node has the "
                "memory that the policy needs, then resume"
            )
        if self.restarts > most:
            raise RunError(
                f"learners were lost {self.restarts} times (ray.max_num_learner_restarts is {most}); look for the "
                "cause in Ray's logs, then resume"
            )
        logger.warning("a learner was lost and is started again: %s", why)
        time.sleep(restarts.pause_before(losses))
        self.actors[place] = self._start()
        up, _ = ray.wait([self.actors[place].__ray_ready__.remote()], timeout=restarts.COMES_UP_S)
        if not up:
            raise RunError(
                f"a learner did not come back within {restarts.COMES_UP_S:.0f} s; see whether the cluster still has "
                "the CPUs that ray.num_learners needs, then resume"
            )
