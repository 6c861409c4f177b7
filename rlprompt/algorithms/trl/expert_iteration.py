"""Expert iteration: in every round the policy writes texts and learns the best one for each input, by SFT.

References: Anthony et al. 2017, arXiv:1705.08439; best of K texts of an LM as the expert, Dong et al. 2023,
arXiv:2304.06767 (RAFT); as a baseline on preferences, Dubois et al. 2023, arXiv:2305.14387.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rlprompt.algorithms.preference_rounds import best_text
from rlprompt.algorithms.trl import sft
from rlprompt.algorithms.trl.common import Notes, arguments, drive, refuse_unused
from rlprompt.algorithms.trl.online_dpo import ROUNDS, batches
from rlprompt.algorithms.trl.pairs import Pair
from rlprompt.algorithms.trl.rounds import Item, Parts, play
from rlprompt.config import AlgorithmConfig
from rlprompt.types import RunContext

logger = logging.getLogger(__name__)


def fit(run: RunContext) -> None:
    """Trains `run.policy` in rounds; see `rlprompt.algorithms.trl.rounds.play`."""
    settings: AlgorithmConfig = run.config.algorithm
    refuse_unused(settings, *ROUNDS)
    play(run, BestOfRound)


class BestOfRound:
    """The learner of the rounds.

    Args:
        parts: policy, optimiser and where a trainer may write.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def __call__(self, number: int, items: Sequence[Item]) -> dict[str, float]:
        """Trains on the best text for each input, `algorithm.epochs` times; inputs whose texts tie teach nothing."""
        config = self._parts.rollout.config
        settings = config.algorithm
        places = [best_text(item.scores, margin=settings.pair_margin) for item in items]
        pairs = [
            Pair({}, tuple(item.context_ids), tuple(item.texts[place]))
            for item, place in zip(items, places, strict=True)
            if place is not None
        ]
        metrics = {"pairs/made": float(len(pairs)), "pairs/inputs_without": float(len(items) - len(pairs))}
        if not pairs:
            logger.warning(
                "round %d: no best text, because the scores of the texts for each of its %d inputs tie (or failed); "
                "nothing is learnt",
                number,
                len(items),
            )
            return metrics
        rows, steps = batches(len(pairs), settings)
        parts = self._parts
        trainer = sft.make_trainer(
            parts.model,
            pairs,
            sft.Order(len(pairs), rows, seed=config.seed, first=0, last=steps, round_number=number),
            parts.adam,
            arguments(config, parts.folder, parts.rollout.policy.device, rows=rows, steps=steps),
        )
        drive(trainer, notes := Notes(trainer.metrics))
        return metrics | notes.means()
