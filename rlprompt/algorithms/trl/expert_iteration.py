"""Expert iteration: in every round the policy writes texts and learns the best one for each input, by SFT.

References: Anthony et al. 2017, arXiv:1705.08439; best of K texts of an LM as the expert, Dong et al. 2023,
arXiv:2304.06767 (RAFT); as a baseline on preferences, Dubois et al. 2023, arXiv:2305.14387.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlprompt.algorithms.preference_rounds import best_text
from rlprompt.algorithms.trl import sft
from rlprompt.algorithms.trl.common import refuse_unused
from rlprompt.algorithms.trl.learner import ROUNDS, RoundLearner
from rlprompt.algorithms.trl.order import Order
from rlprompt.algorithms.trl.pairs import Pair
from rlprompt.algorithms.trl.rounds import Item, play
from rlprompt.config import AlgorithmConfig
from rlprompt.types import Json, RunContext


def fit(run: RunContext) -> None:
    """Trains `run.policy` in rounds; see `rlprompt.algorithms.trl.rounds.play`."""
    settings: AlgorithmConfig = run.config.algorithm
    refuse_unused(settings, *ROUNDS)
    play(run, BestOfRound)


class BestOfRound(RoundLearner[Pair]):
    """Trains on the best text for each input; inputs whose texts tie teach nothing."""

    what = "best text"

    def lessons(self, item: Item) -> list[Pair]:
        """Returns the best text of one input, as a pair of SFT."""
        place = best_text(item.scores, margin=self.settings.pair_margin)
        return [] if place is None else [Pair({}, tuple(item.context_ids), tuple(item.texts[place]))]

    def trainer(self, lessons: Sequence[Pair], order: Order, rows: int, shared: Json) -> sft.PromptSFT:
        """Builds SFT's trainer."""
        return sft.make_trainer(self.parts.model, lessons, order, self.parts.adam, shared)
