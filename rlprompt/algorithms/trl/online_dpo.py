"""Online DPO: in every round the policy writes texts, better and worse ones are paired, and DPO learns from the pairs.

References: DPO, arXiv:2305.18290; on pairs of the policy's own texts, Guo et al. 2024, arXiv:2402.04792, and Xu et al.
2023, arXiv:2312.16682; selective regeneration and weights, OPTune, Chen et al. 2024, arXiv:2406.07657. The reference is
the policy at the start of the stage, in all rounds.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from rlprompt.algorithms.preference_rounds import best_and_worst
from rlprompt.algorithms.trl import dpo
from rlprompt.algorithms.trl.common import Notes, arguments, drive, refuse_unused
from rlprompt.algorithms.trl.preference_data import Preference
from rlprompt.algorithms.trl.rounds import Item, Parts, play
from rlprompt.algorithms.trl.sft import Order
from rlprompt.config import AlgorithmConfig
from rlprompt.types import RunContext

logger = logging.getLogger(__name__)

ROUNDS = ("pair_margin", "pair_by", "regenerate", "items")
"""Settings of all algorithms that play rounds."""


def fit(run: RunContext) -> None:
    """Trains `run.policy` in rounds; see `rlprompt.algorithms.trl.rounds.play`."""
    settings: AlgorithmConfig = run.config.algorithm
    refuse_unused(settings, *dpo.USED, *ROUNDS, "pairs_per_input")
    dpo.check_loss(settings)
    play(run, OnlineDPO)


class OnlineDPO:
    """The learner of the rounds.

    Args:
        parts: policy, optimiser and where a trainer may write.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def __call__(self, number: int, items: Sequence[Item]) -> dict[str, float]:
        """Makes pairs of the texts for each input and trains on all of them, `algorithm.epochs` times."""
        config = self._parts.rollout.config
        settings = config.algorithm
        pairs = [pair for item in items for pair in pairs_of(item, settings)]
        metrics = {
            "pairs/made": float(len(pairs)),
            "pairs/inputs_without": float(sum(not pairs_of(item, settings) for item in items)),
        }
        if not pairs:
            logger.warning(
                "round %d: no pair, because the scores of the texts for each of its %d inputs tie (or failed); nothing "
                "is learnt",
                number,
                len(items),
            )
            return metrics
        rows, steps = batches(len(pairs), settings)
        parts = self._parts
        trainer = dpo.make_trainer(
            parts.model,
            pairs,
            dpo.reference_logps(parts.rollout, pairs, rows),
            Order(len(pairs), rows, seed=config.seed, first=0, last=steps, round_number=number),
            parts.adam,
            arguments(config, parts.folder, parts.rollout.policy.device, rows=rows, steps=steps),
            settings,
        )
        drive(trainer, notes := Notes(trainer.metrics))
        return metrics | {"pairs/margin": float(np.mean([pair.margin for pair in pairs]))} | notes.means()


def pairs_of(item: Item, settings: AlgorithmConfig) -> list[Preference]:
    """Returns the pairs of the texts for one input: best with worst, inwards; none where their scores tie."""
    found = best_and_worst(item.scores, margin=settings.pair_margin, count=settings.pairs_per_input)
    return [
        Preference(
            tuple(item.context_ids),
            tuple(item.texts[better]),
            tuple(item.texts[worse]),
            margin=float(item.scores[better] - item.scores[worse]),
        )
        for better, worse in found
    ]


def batches(count: int, settings: AlgorithmConfig) -> tuple[int, int]:
    """Returns (rows of a step, steps) of `algorithm.epochs` passes; the last step is filled up from one more pass.

    >>> batches(10, AlgorithmConfig(epochs=2, minibatch_size=8))
    (8, 3)
    """
    rows = min(settings.minibatch_size or count, count)
    return rows, math.ceil(settings.epochs * count / rows)
