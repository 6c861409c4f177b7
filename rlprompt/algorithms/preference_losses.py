"""Losses that learn from which text is better: pure functions, no policy, no data, no randomness.

Shapes: B pairs, C contexts with up to K texts each. `logp` is the log-probability of a whole text, the sum over its
tokens, in nats. The pairwise losses return one number per pair; `weighted_mean` makes one of them all.

References: DPO, Rafailov et al. 2023, arXiv:2305.18290; IPO, Azar et al. 2023, arXiv:2310.12036; hinge, Liu et al.
2023, arXiv:2309.06657; robust DPO, Chowdhury et al. 2024, arXiv:2403.00409; length-normalised DPO, as in Question
Rewriter, arXiv:2408.10573; weights by the gap of the rewards, OPTune, Chen et al. 2024, arXiv:2406.07657; RRHF, Yuan
et al. 2023, arXiv:2304.05302; the model of all pairwise losses, Bradley and Terry 1952.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rlprompt.errors import ConfigError

LENGTH_NORMALISED = frozenset({"ipo", "sigmoid_norm"})
"""Losses that see the mean over the tokens of a text, not the sum; IPO is so in TRL, not in its paper."""


def log_ratio(logp: Tensor, reference_logp: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Returns log(policy / reference) of each text, (B,).

    Args:
        logp: (B,) under the policy in training.
        reference_logp: (B,) under the reference.
        lengths: (B,) tokens of each text; the result is then per token.
    """
    ratio = logp - reference_logp
    return ratio if lengths is None else ratio / lengths


def implicit_reward(logp: Tensor, reference_logp: Tensor, *, beta: float, lengths: Tensor | None = None) -> Tensor:
    """Returns the reward that a policy stands for, up to a constant of the context. Reference: 2305.18290, eq. 5.

    Args:
        logp: (B,) under the policy in training.
        reference_logp: (B,) under the reference.
        beta: weight of the KL that the policy is optimal for.
        lengths: (B,) tokens of each text; the reward is then per token.
    """
    return beta * log_ratio(logp, reference_logp, lengths)


def dpo_loss(gap: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta gap). Reference: 2305.18290, eq. 7.

    Args:
        gap: (B,) log-ratio of the chosen text less that of the rejected one. Ratios per token (`log_ratio` with
            lengths) make it the length-normalised loss, TRL's `sigmoid_norm`.
        beta: weight of the KL to the reference.
    """
    return -F.logsigmoid(beta * gap)


def robust_dpo_loss(gap: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """DPO's loss, unbiased where a share of the pairs is the wrong way round. Reference: 2403.00409.

    Args:
        gap: (B,) as of `dpo_loss`.
        beta: weight of the KL to the reference.
        label_smoothing: the share, in [0, 0.5).

    Raises:
        ConfigError: the share is out of range.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError(f"label_smoothing must be in [0, 0.5) for the robust loss, got {label_smoothing}")
    clean = (1 - label_smoothing) * dpo_loss(gap, beta=beta)
    return (clean - label_smoothing * dpo_loss(-gap, beta=beta)) / (1 - 2 * label_smoothing)


def hinge_loss(gap: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 - beta gap): nothing is learnt from pairs that are a margin of 1 apart.

    Reference: 2309.06657, hinge-norm. SLiC, 2305.10425, which TRL names, has the log-probabilities without a reference.
    """
    return torch.relu(1 - beta * gap)


def ipo_loss(gap: Tensor, *, beta: float) -> Tensor:
    """(gap - 1 / (2 beta))^2: the gap is drawn to a finite value. Reference: 2310.12036, eq. 17, with tau = beta.

    Args:
        gap: (B,) as of `dpo_loss`: h(y, y', x) of the paper from sums, or per token as TRL has it.
        beta: tau of the paper.
    """
    return (gap - 1 / (2 * beta)) ** 2


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None) -> Tensor:
    """-log sigmoid(chosen - rejected - margin): how improbable the vote is, given the rewards.

    Args:
        chosen: (B,) reward of the text that was preferred.
        rejected: (B,) reward of the other one.
        margin: (B,) by how much the first should be ahead (Touvron et al. 2023, arXiv:2307.09288, eq. 2); none is 0.
    """
    ahead = chosen - rejected
    return -F.logsigmoid(ahead if margin is None else ahead - margin)


def gap_weights(margins: Tensor) -> Tensor:
    """Returns weights that are proportional to the gap of the rewards of each pair, with mean 1.

    The mean keeps the step size what it was, in whatever unit the rewards are. Reference: the idea is 2406.07657's.

    Args:
        margins: (B,) reward of the chosen text less that of the rejected one, each above 0.

    Raises:
        ConfigError: a margin is not above 0.

    >>> gap_weights(torch.tensor([1.0, 3.0])).tolist()
    [0.5, 1.5]
    """
    if bool((margins <= 0).any()):
        raise ConfigError(f"weights by the gap need margins above 0, got {float(margins.min())}")
    return margins / margins.mean()


def weighted_mean(losses: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns the mean of weight x loss over the pairs: a weight of 2 counts a pair twice, not at another's cost."""
    return losses.mean() if weights is None else (weights * losses).mean()


PAIRWISE: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "sigmoid": lambda gap, beta, _: dpo_loss(gap, beta=beta),
    "sigmoid_norm": lambda gap, beta, _: dpo_loss(gap, beta=beta),
    "ipo": lambda gap, beta, _: ipo_loss(gap, beta=beta),
    "hinge": lambda gap, beta, _: hinge_loss(gap, beta=beta),
    "robust": lambda gap, beta, share: robust_dpo_loss(gap, beta=beta, label_smoothing=share),
}
"""By TRL's names: from (gap, beta, label smoothing) to the loss of each pair."""


def mean_logp(logp: Tensor, lengths: Tensor) -> Tensor:
    """Returns the log-probability per token, p_i. Reference: 2304.05302, eq. 1; both arguments (C, K)."""
    return logp / lengths.clamp(min=1)


def rank_loss(per_token: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """Sum over r_i < r_j of max(0, p_i - p_j). Reference: 2304.05302, eq. 2. Equal scores are not compared.

    Args:
        per_token: (C, K), p_i.
        scores: (C, K), r_i.
        mask: booleans (C, K), False where a context has fewer texts.

    Returns:
        (C,).
    """
    lower = (scores[:, :, None] < scores[:, None, :]) & mask[:, :, None] & mask[:, None, :]  # [c, i, j]: r_i < r_j
    ahead = torch.relu(per_token[:, :, None] - per_token[:, None, :])
    return torch.where(lower, ahead, torch.zeros_like(ahead)).sum(dim=(1, 2))


def best_text_loss(logp: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """-log-probability of the text with the highest score: the term behind eq. 2 of 2304.05302.

    Of texts that tie for the best the first one counts.

    Args:
        logp: (C, K).
        scores: (C, K).
        mask: booleans (C, K), False where a context has fewer texts.

    Returns:
        (C,).
    """
    best = scores.masked_fill(~mask, -torch.inf).argmax(dim=1, keepdim=True)
    return -logp.gather(1, best).squeeze(1)


def rrhf_loss(logp: Tensor, lengths: Tensor, scores: Tensor, mask: Tensor, *, rank_weight: float) -> Tensor:
    """rank_weight x rank loss + loss on the best text, of each context, (C,): the sum of 2304.05302.

    Args:
        logp: (C, K).
        lengths: (C, K), tokens of each text.
        scores: (C, K), higher is better.
        mask: booleans (C, K), False where a context has fewer texts.
        rank_weight: 1 in the paper.
    """
    ranked = rank_loss(mean_logp(logp, lengths), scores, mask)
    return rank_weight * ranked + best_text_loss(logp, scores, mask)
