"""Online DPO: in every round the policy writes texts, better and worse ones are paired, and DPO learns from the pairs.

References: DPO, arXiv:2305.18290; on pairs of the policy's own texts, Guo et al. 2024, arXiv:2402.04792, and Xu et al.
2023, arXiv:2312.16682; selective regeneration and weights, OPTune, Chen et al. 2024, arXiv:2406.07657. The reference is
the policy at the start of the stage, in all rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlprompt.algorithms.preference_rounds import best_and_worst
from rlprompt.algorithms.trl import dpo
from rlprompt.algorithms.trl.common import refuse_unused
from rlprompt.algorithms.trl.learner import ROUNDS, RoundLearner
from rlprompt.algorithms.trl.order import Order
from rlprompt.algorithms.trl.preference_data import Preference
from rlprompt.algorithms.trl.rounds import Item, play
from rlprompt.config import AlgorithmConfig
from rlprompt.types import Json, RunContext


def fit(run: RunContext) -> None:
    """Trains `run.policy` in rounds; see `rlprompt.algorithms.trl.rounds.play`."""
    settings: AlgorithmConfig = run.config.algorithm
    refuse_unused(settings, *dpo.USED, *ROUNDS, "pairs_per_input")
    dpo.check_loss(settings)
    play(run, OnlineDPO)


class OnlineDPO(RoundLearner[Preference]):
    """Makes pairs of the texts for each input and trains on all of them."""

    what = "pair"

    def lessons(self, item: Item) -> list[Preference]:
        """Returns the pairs of one input."""
        return pairs_of(item, self.settings)

    def trainer(self, lessons: Sequence[Preference], order: Order, rows: int, shared: Json) -> dpo.PromptDPO:
        """Builds DPO's trainer; the reference is asked about the pairs of this round."""
        parts = self.parts
        references = dpo.reference_logps(parts.rollout, lessons, rows)
        return dpo.make_trainer(parts.model, lessons, references, order, parts.adam, shared, self.settings)

    def metrics(self, lessons: Sequence[Preference]) -> dict[str, float]:
        """Returns the mean margin."""
        return {"pairs/margin": float(np.mean([pair.margin for pair in lessons]))}


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
