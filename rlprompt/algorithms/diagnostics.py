"""Signs that a policy collapses: little entropy, the same prompt again and again, rewards without spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlprompt.types import BoolArray, FloatArray, Scores

if TYPE_CHECKING:
    from torch import Tensor

SPREAD = 1e-8
"""Rewards of a group that lie closer together than this have no spread: they teach nothing."""


def collapse_diagnostics(
    prompts: Sequence[str],
    rewards: FloatArray,
    valid: BoolArray,
    *,
    entropy: float | None = None,
    max_probability: float | None = None,
) -> dict[str, float]:
    """Sums up one iteration. What cannot be computed is left out.

    Args:
        prompts: the P prompts of the iteration.
        rewards: raw rewards (P, E).
        valid: False where a pair failed, (P, E); failed pairs are ignored.
        entropy: mean entropy per token in nats, where the algorithm knows it.
        max_probability: mean largest token probability (see `max_token_probability`), where it is known.

    Returns:
        `entropy`; `max_token_probability`; `unique_prompt_rate`, distinct prompts over prompts, in (0, 1];
        `zero_spread_share`, the share of examples on which all prompts got the same reward, in [0, 1] (of the
        examples with two valid prompts or more); `zero_spread_step`, 1.0 where the mean rewards of all prompts are
        equal, else 0.0.

    >>> collapse_diagnostics(["a", "a", "b", "c"], np.ones((4, 1)), np.ones((4, 1), dtype=bool))
    {'unique_prompt_rate': 0.75, 'zero_spread_share': 1.0, 'zero_spread_step': 1.0}
    """
    found: dict[str, float] = {}
    if entropy is not None:
        found["entropy"] = float(entropy)
    if max_probability is not None:
        found["max_token_probability"] = float(max_probability)
    if prompts:
        found["unique_prompt_rate"] = len(set(prompts)) / len(prompts)
    rewards = np.asarray(rewards, dtype=np.float64)
    valid = np.asarray(valid, dtype=np.bool_)
    compared = valid.sum(axis=0) >= 2
    if compared.any():
        highest = np.where(valid, rewards, -np.inf).max(axis=0)[compared]
        lowest = np.where(valid, rewards, np.inf).min(axis=0)[compared]
        found["zero_spread_share"] = float(np.mean(highest - lowest <= SPREAD))
    scored = valid.any(axis=1)
    if scored.sum() >= 2:
        means = np.where(valid, rewards, 0.0)[scored].sum(axis=1) / valid[scored].sum(axis=1)
        found["zero_spread_step"] = float(np.ptp(means) <= SPREAD)
    return found


def iteration_metrics(scores: Scores, training_rewards: FloatArray | None, entropy: float | None) -> dict[str, float]:
    """Returns mean and best raw reward of the iteration's prompts, and the collapse diagnostics."""
    known = scores.prompt_valid
    means = scores.mean_rewards[known]
    metrics = {
        "reward/mean": float(means.mean()) if len(means) else float("nan"),
        "reward/best": float(means.max()) if len(means) else float("nan"),
        "accuracy/mean": float(np.nanmean(scores.accuracies)) if np.isfinite(scores.accuracies).any() else float("nan"),
        "failed": float(len(scores.failures)),
    }
    if training_rewards is not None and known.any():
        metrics["reward/training_std"] = float(np.std(training_rewards[known]))
    return metrics | collapse_diagnostics(list(scores.prompts), scores.rewards, scores.valid, entropy=entropy)


def max_token_probability(logits: Tensor, mask: Tensor) -> float:
    """Mean over the written tokens of the largest next-token probability, in (0, 1]; 0.0 when none was written.

    Args:
        logits: (B, T, V); -inf at forbidden tokens.
        mask: (B, T), 1.0 where a token was written.
    """
    written = mask > 0
    chosen = logits.detach()[written]  # (tokens, V)
    if not len(chosen):
        return 0.0
    return float((chosen.amax(dim=-1) - chosen.logsumexp(dim=-1)).exp().mean())
