"""GRPO: rewards are compared within a group of prompts, and the KL is part of the loss (or of the reward).

Reference: Shao et al. 2024, arXiv:2402.03300; without the length and spread terms: Liu et al. 2025, arXiv:2503.20783.

The exact option, which is the default: `scale_rewards: none`, `loss_type: dr_grpo` and the bias-corrected KL estimate.
With G prompts in a group, subtracting the group's mean, which holds the prompt itself, shrinks the expected gradient of
the reward by 1 - 1/G; the KL therefore gets the weight `algorithm.kl_coeff` (1 - 1/G), and the two together follow the
gradient of E[r] - kl_coeff KL(pi || ref). That holds for prompts of one token. For longer ones the KL in the loss is
that of each token where it stands: what a token does to the KL of those behind it has no gradient. `kl_in: reward` puts
the whole prompt's log-ratio into its reward instead and is exact for every length, like RLOO. `scale_rewards: group`
divides by the group's spread, so the weight of the KL is no longer that of the reward, and the limit is another policy.
"""

from __future__ import annotations

from typing import Any

from trl import GRPOConfig, GRPOTrainer

from rlprompt.algorithms.trl.policy_gradient import PromptTrainer, train
from rlprompt.config import AlgorithmConfig
from rlprompt.types import Json, RunContext


class PromptGRPO(PromptTrainer, GRPOTrainer):  # type: ignore[misc]  # untyped there
    """TRL's GRPO over our prompts."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any) -> tuple[list[list[int]], None]:
        return self._written, None

    def penalise(self, coefficient: float) -> None:
        """Sets the weight of the KL, in the loss or in the reward."""
        self.coefficient = coefficient
        in_loss = self.settings.kl_in == "loss"
        self.beta = beta(coefficient, self.settings.scale_rewards, self.rollout.group_size) if in_loss else 0.0
        self.rollout.kl_coeff = 0.0 if in_loss else coefficient


def beta(kl_coeff: float, scale_rewards: str, group_size: int) -> float:
    """Returns the weight of the KL in the loss.

    >>> beta(0.5, "none", 4)
    0.375
    """
    return kl_coeff * (1 - 1 / group_size) if scale_rewards == "none" else kl_coeff


def make(settings: AlgorithmConfig, shared: Json, parts: Json) -> PromptGRPO:
    """Builds the trainer."""
    parts["model"].entropy_gradient = settings.entropy_coeff > 0
    arguments = GRPOConfig(
        **shared,
        scale_rewards=settings.scale_rewards,
        loss_type=settings.loss_type,
        use_bias_correction_kl=True,
        entropy_coef=settings.entropy_coeff,
        importance_sampling_level="token",
    )
    return PromptGRPO(args=arguments, **parts)


def fit(run: RunContext) -> None:
    """Trains `run.policy` with GRPO; see `rlprompt.algorithms.trl.policy_gradient.train`."""
    train(run, make)
