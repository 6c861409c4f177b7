"""What the learners of rounds share: from the scored texts of a round to the steps of a trainer."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from rlprompt.algorithms.trl.common import Notes, arguments, drive
from rlprompt.algorithms.trl.order import Order
from rlprompt.algorithms.trl.rounds import Item, Parts
from rlprompt.config import AlgorithmConfig
from rlprompt.types import Json

logger = logging.getLogger(__name__)

ROUNDS = ("pair_margin", "pair_by", "regenerate", "items")
"""Settings of all algorithms that play rounds."""

Lesson = TypeVar("Lesson")


class RoundLearner(ABC, Generic[Lesson]):
    """Learns from the texts of a round, `algorithm.epochs` times; what a lesson is, a subclass says.

    Args:
        parts: policy, optimiser and where a trainer may write.
    """

    what: ClassVar[str]
    """A lesson, in words."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.config = parts.rollout.config
        self.settings: AlgorithmConfig = parts.rollout.config.algorithm

    @abstractmethod
    def lessons(self, item: Item) -> Sequence[Lesson]:
        """Returns what the texts for one input teach; nothing where their scores tie."""

    @abstractmethod
    def trainer(self, lessons: Sequence[Lesson], order: Order, rows: int, shared: Json) -> Any:
        """Builds the trainer of a round.

        Args:
            lessons: at least one.
            order: of the lessons, for all steps.
            rows: lessons of one step.
            shared: the training arguments.
        """

    def metrics(self, lessons: Sequence[Lesson]) -> dict[str, float]:
        """Returns what there is to say about the lessons beside their number."""
        return {}

    def __call__(self, number: int, items: Sequence[Item]) -> dict[str, float]:
        """Trains the policy in place; returns the metrics of the round."""
        by_input = [self.lessons(item) for item in items]
        lessons = [lesson for found in by_input for lesson in found]
        metrics = {
            "pairs/made": float(len(lessons)),
            "pairs/inputs_without": float(sum(not found for found in by_input)),
        }
        if not lessons:
            logger.warning(
                "round %d: no %s, because the scores of the texts for each of its %d inputs tie (or failed); nothing "
                "is learnt",
                number,
                self.what,
                len(items),
            )
            return metrics
        rows, steps = batches(len(lessons), self.settings)
        order = Order(len(lessons), rows, seed=self.config.seed, first=0, last=steps, round_number=number)
        device = self.parts.rollout.policy.device
        shared = arguments(self.config, self.parts.folder, device, rows=rows, steps=steps)
        trainer = self.trainer(lessons, order, rows, shared)
        drive(trainer, notes := Notes(trainer.metrics))
        return metrics | self.metrics(lessons) | notes.means()


def batches(count: int, settings: AlgorithmConfig) -> tuple[int, int]:
    """Returns (rows of a step, steps) of `algorithm.epochs` passes; the last step is filled up from one more pass.

    >>> batches(10, AlgorithmConfig(epochs=2, minibatch_size=8))
    (8, 3)
    """
    rows = min(settings.minibatch_size or count, count)
    return rows, math.ceil(settings.epochs * count / rows)
