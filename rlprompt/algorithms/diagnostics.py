"""Signs that a policy collapses: little entropy, the same prompt again and again, rewards without spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlprompt.pairs import group_places, in_groups
from rlprompt.types import BoolArray, FloatArray, Scores, masked_mean

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
    row_example_ids: Sequence[str] | None = None,
) -> dict[str, float]:
    """Sums up one iteration. What cannot be computed is left out.

    Args:
        prompts: the P prompts of the iteration.
        rewards: raw rewards (P, E); of pairs (P, samples).
        valid: False where a pair failed, (P, E); failed pairs are ignored.
        entropy: mean entropy per token in nats, where the algorithm knows it.
        max_probability: mean largest token probability (see `max_token_probability`), where it is known.
        row_example_ids: of pairs, the example of each prompt, (P,). Prompts with one example are a group, and only
            those are ever compared.

    Returns:
        `entropy`; `max_token_probability`; `unique_prompt_rate`, distinct prompts over prompts, in (0, 1];
        `zero_spread_share`, the share of examples on which all prompts got the same reward, in [0, 1] (of the
        examples with two valid prompts or more); `zero_spread_step`, 1.0 where the mean rewards of all prompts are
        equal, else 0.0. Of pairs: the share of groups whose rewards (means over the samples) are equal, of the groups
        with two valid prompts or more; and 1.0 where all those groups are so, else 0.0.

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
    means, scored = masked_mean(rewards, valid), np.asarray(valid.any(axis=1), dtype=np.bool_)
    if row_example_ids is not None:
        flat = _without_spread(*in_groups(np.where(scored, means, 0.0), scored, *group_places(row_example_ids)))
        if len(flat):
            found |= {"zero_spread_share": float(flat.mean()), "zero_spread_step": float(flat.all())}
        return found
    flat = _without_spread(rewards, valid)
    if len(flat):
        found["zero_spread_share"] = float(flat.mean())
    if scored.sum() >= 2:
        found["zero_spread_step"] = float(np.ptp(means[scored]) <= SPREAD)
    return found


def _without_spread(rewards: FloatArray, valid: BoolArray) -> BoolArray:
    """Returns which columns of (P, E) hold equal rewards only, of those with two valid ones or more."""
    compared = valid.sum(axis=0) >= 2
    highest = np.where(valid, rewards, -np.inf)[:, compared].max(axis=0, initial=-np.inf)
    lowest = np.where(valid, rewards, np.inf)[:, compared].min(axis=0, initial=np.inf)
    return np.asarray(highest - lowest <= SPREAD, dtype=np.bool_)


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
    return metrics | collapse_diagnostics(
        list(scores.prompts),
        scores.rewards,
        scores.valid,
        entropy=entropy,
        row_example_ids=scores.row_example_ids,
    )


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
