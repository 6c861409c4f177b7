"""The RLModule around the central critic of a game; it lives in the learner only."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

from rlprompt.policies.critic import PrefixCritic

CONTEXT, PREFIX = "context", "prefix"


class CriticModule(TorchRLModule):
    """Values of games.

    `model_config` holds the arguments of `rlprompt.policies.critic.PrefixCritic`, but for `length` and `agents`, and
    `widths`, the most tokens of each agent's segment in the order of the turns.
    """

    def setup(self) -> None:
        """Builds the critic."""
        arguments = dict(self.model_config)
        self.widths = [int(width) for width in arguments.pop("widths")]
        self.owners = torch.arange(len(self.widths)).repeat_interleave(torch.tensor(self.widths))
        self.critic = PrefixCritic(length=sum(self.widths), agents=len(self.widths), **arguments)

    def values(self, columns: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the values (G, P) before each token of games.

        Args:
            columns: `context` (G, C) of the first agent, and `prefix` (G, P).
        """
        return self.critic.values(columns[CONTEXT], columns[PREFIX], self.owners)

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {"values": self.values(batch)}

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {}
