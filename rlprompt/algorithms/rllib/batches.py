"""The learner connector: complete episodes -> one batch of (B, T) token matrices.

Token episodes (T steps) and whole-prompt episodes (one `MultiDiscrete` step) become the same batch, so that they give
the same gradient. Episodes that failed are dropped here, before advantages, baselines, normalisation and metrics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID

from rlprompt.algorithms.losses import gae
from rlprompt.algorithms.rllib.module import ALLOWED, FEATURES, PromptModule

TOKENS, CONTEXT, MASK, REWARDS = "tokens", "context", "mask", "rewards"
OLD_LOGP, ADVANTAGES, RETURNS = "old_logp", "advantages", "returns"


class PromptBatch(ConnectorV2):
    """Builds the train batch of the learner.

    Columns, all of shape (B, T) unless stated: `tokens` (int64), `mask` (1.0 where a token was written, EOS included),
    `rewards`, `context` (B, C), `features` (B, T, d) of the frozen part, `allowed` (B, T, V), `old_logp` (recomputed by
    teacher forcing, so that the first ratio is 1), `advantages` and `returns`.

    Args:
        input_observation_space: given by RLlib.
        input_action_space: given by RLlib.
        gamma: discount per token.
        lam: lambda of GAE (arXiv:1506.02438, eq. 16).
        critic: whether the value head is the baseline; else values are 0 and lambda 1, and the advantage is the
            discounted sum of the (stabilised) rewards that follow.
    """

    def __init__(
        self,
        input_observation_space: Any = None,
        input_action_space: Any = None,
        *,
        gamma: float = 1.0,
        lam: float = 0.95,
        critic: bool = False,
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self.gamma = gamma
        self.lam = lam
        self.critic = critic

    def __call__(
        self,
        *,
        rl_module: Any,
        batch: dict[str, Any],
        episodes: list[Any],
        explore: bool | None = None,
        shared_data: dict[str, Any] | None = None,
        metrics: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Returns {module id: columns}."""
        module: PromptModule = rl_module[DEFAULT_MODULE_ID]
        columns = episode_columns(valid_episodes(episodes), module.length, module.eos_id)
        with torch.no_grad():
            features = module.policy.features(columns[CONTEXT], columns[TOKENS])
            allowed = torch.stack([module.allowed(columns[TOKENS][:, :step]) for step in range(module.length)], dim=1)
            logp = token_logp(module.policy.logits(features), columns[TOKENS], allowed)
            values = module.policy.values(features) * columns[MASK]
        if not self.critic:
            values = torch.zeros_like(values)
        advantages, returns = gae(
            columns[REWARDS],
            values,
            columns[MASK],
            gamma=self.gamma,
            lam=self.lam if self.critic else 1.0,
        )
        columns |= {FEATURES: features, ALLOWED: allowed, OLD_LOGP: logp}
        columns |= {ADVANTAGES: advantages, RETURNS: returns}
        return {DEFAULT_MODULE_ID: columns}


def valid_episodes(episodes: list[Any]) -> list[Any]:
    """Drops failed episodes and sorts the others by episode number: the batch never depends on who sampled first."""
    kept = [episode for episode in episodes if bool(episode.get_infos(-1).get("valid", True))]
    return sorted(kept, key=lambda episode: int(episode.get_observations(0)["key"][1]))


def episode_columns(episodes: list[Any], length: int, eos_id: int | None) -> dict[str, torch.Tensor]:
    """Turns complete episodes into tokens, mask, rewards (B, T) and context (B, C).

    Tokens after the first EOS are dropped (-1, mask 0); a reward that came while a finished prompt waited, or for a
    whole-prompt step, belongs to the last written token.
    """
    tokens = np.full((len(episodes), length), -1, dtype=np.int64)
    rewards = np.zeros((len(episodes), length), dtype=np.float32)
    for row, episode in enumerate(episodes):
        actions = np.asarray(episode.get_actions(), dtype=np.int64).reshape(-1)[:length]
        ends = np.flatnonzero(actions == eos_id) if eos_id is not None else np.array([], dtype=np.int64)
        written = int(ends[0]) + 1 if len(ends) else len(actions)
        tokens[row, :written] = actions[:written]
        for step, reward in enumerate(np.asarray(episode.get_rewards(), dtype=np.float32)):
            last = written - 1 if len(episode) == 1 else min(step, written - 1)
            rewards[row, last] += reward
    context = np.stack([episode.get_observations(0)["context"] for episode in episodes])
    return {
        TOKENS: torch.from_numpy(tokens),
        MASK: torch.from_numpy((tokens >= 0).astype(np.float32)),
        REWARDS: torch.from_numpy(rewards),
        CONTEXT: torch.from_numpy(context.astype(np.int64)),
    }


def masked_logits(logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Sets forbidden tokens to -inf; a position where nothing is allowed (padding) is left as it is."""
    usable = allowed | ~allowed.any(dim=-1, keepdim=True)
    return logits.masked_fill(~usable, float("-inf"))


def token_logp(logits: torch.Tensor, tokens: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Returns log-probabilities (B, T) of the written tokens under the masked, un-truncated distribution."""
    logp = torch.log_softmax(masked_logits(logits, allowed), dim=-1)
    return logp.gather(-1, tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1).masked_fill(tokens < 0, 0.0)
