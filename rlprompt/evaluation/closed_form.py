"""The exact answer of KL-regularised training where all prompts can be listed.

Maximising mean reward - lambda KL(policy || reference) over all distributions of prompts gives reference x
exp(reward / lambda), normalised. Reference: Align-Pro, Trivedi et al. 2025, arXiv:2501.03486. On a vocabulary so small
that every prompt can be written down, this says where training must end, and how far from there it ended.

Shapes: N prompts, T tokens, V vocabulary, C context tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlprompt.errors import ConfigError
from rlprompt.masks import NOT_WRITTEN, step_mask
from rlprompt.types import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from torch import Tensor

    from rlprompt.policies import PromptPolicy

MOST_PROMPTS = 100_000
_ROWS = 1024
"""Prompts scored in one pass."""


def all_prompts(
    static_mask: BoolArray,
    length: int,
    *,
    eos_id: int | None = None,
    no_repeat: bool = False,
    limit: int = MOST_PROMPTS,
) -> IntArray:
    """Lists every prompt that can be written, in the order of their token ids.

    Args:
        static_mask: (V,) of `rlprompt.masks.static_mask`.
        length: T, with `eos_id` the most tokens.
        eos_id: the token that ends a prompt, or None where every prompt has T tokens.
        no_repeat: as in `rlprompt.masks.step_mask`.
        limit: the most prompts.

    Returns:
        Token ids (N, T); -1 after EOS.

    Raises:
        ConfigError: there are more prompts than `limit`.
    """
    prompts: IntArray = np.empty((1, 0), dtype=np.int64)
    for _ in range(length):
        rows, tokens = np.nonzero(step_mask(static_mask, prompts, eos_id=eos_id, no_repeat=no_repeat))
        if len(rows) > limit:
            raise ConfigError(f"more than {limit} prompts can be written; take fewer tokens or a smaller vocabulary")
        if eos_id is not None:  # after EOS the mask leaves EOS alone, which stands for nothing
            tokens = np.where((prompts[rows] == eos_id).any(axis=1), NOT_WRITTEN, tokens)
        prompts = np.concatenate([prompts[rows], tokens[:, None]], axis=1).astype(np.int64)
    return prompts


def prompt_log_probabilities(
    policy: PromptPolicy,
    context: Sequence[int],
    prompts: IntArray,
    static_mask: BoolArray,
    *,
    eos_id: int | None = None,
    no_repeat: bool = False,
    reference: bool = False,
) -> FloatArray:
    """Returns the exact log-probabilities (N,) of prompts under the masked, un-truncated policy.

    Over all prompts of `all_prompts` the probabilities add up to 1.

    Args:
        policy: who writes.
        context: token ids that the policy reads first.
        prompts: (N, T), -1 where not written.
        static_mask: (V,).
        eos_id: as in `all_prompts`.
        no_repeat: as in `all_prompts`.
        reference: takes the policy's reference in its place.
    """
    import torch

    found = []
    with torch.no_grad():
        for start in range(0, len(prompts), _ROWS):
            tokens = torch.from_numpy(prompts[start : start + _ROWS])
            contexts = torch.tensor([list(context)], dtype=torch.long).repeat(len(tokens), 1)
            logits = policy.reference_logits(contexts, tokens) if reference else policy.evaluate(contexts, tokens)[0]
            found.append(_prompt_logp(logits.cpu(), tokens, static_mask, eos_id=eos_id, no_repeat=no_repeat))
    return np.concatenate(found)


def optimal_probabilities(reference_logp: FloatArray, rewards: FloatArray, coefficient: float) -> FloatArray:
    """Returns reference x exp(reward / lambda) over the listed prompts, normalised. Reference: arXiv:2501.03486.

    Args:
        reference_logp: (N,) log-probabilities of the starting policy.
        rewards: (N,) mean reward of each prompt over the examples.
        coefficient: lambda, weight of the KL to the starting policy in units of reward per nat, above 0.

    Raises:
        ConfigError: the coefficient is not above 0.

    >>> optimal_probabilities(np.log([0.5, 0.5]), np.array([0.0, np.log(3)]), 1.0).round(6).tolist()
    [0.25, 0.75]
    """
    if not coefficient > 0:
        raise ConfigError(
            f"the KL coefficient must be above 0, got {coefficient}: without KL the optimum is one prompt"
        )
    weights = np.asarray(reference_logp, dtype=np.float64) + np.asarray(rewards, dtype=np.float64) / coefficient
    odds = np.exp(weights - weights.max())
    probabilities: FloatArray = odds / odds.sum()
    return probabilities


def total_variation(one: FloatArray, other: FloatArray) -> float:
    """Returns the total variation between two distributions over the same prompts: half the sum of |p - q|.

    >>> total_variation(np.array([0.25, 0.75]), np.array([0.5, 0.5]))
    0.25
    """
    return float(np.abs(np.asarray(one) - np.asarray(other)).sum() / 2)


def _prompt_logp(
    logits: Tensor, tokens: Tensor, static_mask: BoolArray, *, eos_id: int | None, no_repeat: bool
) -> FloatArray:
    """Sums up the log-probabilities of the written tokens in float64, (N,)."""
    import torch

    total = torch.zeros(len(tokens), dtype=torch.float64)
    for step in range(tokens.shape[1]):
        allowed = step_mask(static_mask, tokens[:, :step].numpy(), eos_id=eos_id, no_repeat=no_repeat)
        masked = logits[:, step].double().masked_fill(~torch.from_numpy(allowed), float("-inf"))
        chosen = tokens[:, step]
        logp = torch.log_softmax(masked, dim=-1).gather(1, chosen.clamp(min=0).unsqueeze(1)).squeeze(1)
        total += torch.where(chosen >= 0, logp, torch.zeros_like(logp))
    return np.asarray(total.numpy(), dtype=np.float64)
