"""RLOO: the mean of the other prompts of the group is the baseline, and the KL is part of the reward.

Reference: Ahmadian et al. 2024, arXiv:2402.14740. With reward r and weight lambda = `algorithm.kl_coeff`, a prompt y is
worth r(y) - lambda (log pi(y) - log ref(y)), so the expected gradient is that of E[r] - lambda KL(pi || ref), whatever
the length of y, and the policy that it leads to is ref(y) exp(r(y) / lambda), normalised.
"""

from __future__ import annotations

from typing import Any

from trl import RLOOConfig, RLOOTrainer

from rlprompt.algorithms.trl.policy_gradient import PromptTrainer, train
from rlprompt.config import AlgorithmConfig
from rlprompt.types import Json, RunContext


class PromptRLOO(PromptTrainer, RLOOTrainer):  # type: ignore[misc]  # untyped there
    """TRL's RLOO over our prompts."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any) -> list[list[int]]:
        return self._written

    @property
    def kl_in_advantages(self) -> bool:
        """Whether TRL itself subtracts the KL from what `Rollout.score` returned."""
        return bool(self.beta)


def make(settings: AlgorithmConfig, shared: Json, parts: Json) -> PromptRLOO:
    """Builds the trainer."""
    return PromptRLOO(args=RLOOConfig(**shared, normalize_advantages=False), **parts)


def fit(run: RunContext) -> None:
    """Trains `run.policy` with RLOO; see `rlprompt.algorithms.trl.policy_gradient.train`."""
    train(run, make)
