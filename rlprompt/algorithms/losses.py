"""The losses of PPO, REINFORCE and soft Q-learning as pure functions of tensors.

Shapes: B prompts, T tokens, V vocabulary. `mask` (B, T) is 1.0 where a token was written and 0.0 at the padding
behind it; padding changes no result and gets no gradient. A forbidden token has the logit -inf.

References: GAE, Schulman et al. 2016, arXiv:1506.02438; PPO, Schulman et al. 2017, arXiv:1707.06347; soft
Q-learning for text, Guo et al. 2021, arXiv:2106.07704, and RLPrompt, Deng et al. 2022, arXiv:2205.12548; REINFORCE
with the mean of the other samples as baseline, Ahmadian et al. 2024, arXiv:2402.14740; soft target updates,
Lillicrap et al. 2016, arXiv:1509.02971; KL in the reward, Ziegler et al. 2019, arXiv:1909.08593; NLPO, Ramamurthy et
al. 2022, arXiv:2210.01241.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlprompt.errors import ConfigError, did_you_mean
from rlprompt.policies.sampling import filter_top_p

SQL_VARIANTS = ("v1", "v2", "v3", "v2_v3")


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates per token. Reference: arXiv:1506.02438, eq. 16.

    The episode ends after the last written token: nothing is bootstrapped from behind it.

    Args:
        rewards: (B, T).
        values: (B, T), V(s_t), what the critic expects before token t.
        mask: (B, T).
        gamma: discount per token, in [0, 1].
        lam: lambda, in [0, 1]; 1 gives the discounted sum of the rewards that follow, less the value.

    Returns:
        Advantages and returns (advantage + value: what the critic aims at), both (B, T), 0 where not written.
    """
    written = mask > 0
    rewards = rewards.detach().masked_fill(~written, 0.0)
    values = values.detach().masked_fill(~written, 0.0)  # a position behind the end is worth 0
    advantages = torch.zeros_like(values)
    following_advantage = torch.zeros_like(values[:, 0])
    following_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]  # r_t + gamma V(s_t+1) - V(s_t)
        following_advantage = (delta + gamma * lam * following_advantage).masked_fill(~written[:, t], 0.0)
        following_value = values[:, t]
        advantages[:, t] = following_advantage
    return advantages, advantages + values


def ppo_policy_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate loss, mean over the written tokens. Reference: arXiv:1707.06347, eq. 7.

    Args:
        logp: (B, T) log-probabilities of the written tokens under the policy in training.
        old_logp: (B, T) the same under the policy that wrote them.
        advantages: (B, T).
        mask: (B, T).
        clip: epsilon; the ratio counts only within [1 - clip, 1 + clip].

    Returns:
        The loss, and detached scalars: `clip_fraction` (share of tokens whose ratio left the interval),
        `approx_kl` (estimate of KL(old || new) per token: mean of ratio - 1 - log ratio, never negative) and
        `ratio` (mean).
    """
    written = mask > 0
    # Padding is replaced before exp, so that an overflow there cannot reach the gradient as 0 * inf.
    log_ratio = torch.where(written, logp - old_logp.detach(), torch.zeros_like(logp))
    ratio = log_ratio.exp()
    advantages = advantages.detach()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages)
    loss = -_mean(surrogate, mask)
    with torch.no_grad():
        stats = {
            "clip_fraction": _mean(((ratio - 1.0).abs() > clip).to(ratio.dtype), mask),
            "approx_kl": _mean(ratio - 1.0 - log_ratio, mask),
            "ratio": _mean(ratio, mask),
        }
    return loss, stats


def value_loss(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Squared error of the critic, mean over the written tokens. Reference: arXiv:1707.06347, eq. 9."""
    return _mean((values - returns.detach()).square(), mask)


def reinforce_loss(logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Policy gradient of whole prompts: -mean over prompts of A * log pi(prompt). Reference: arXiv:2402.14740.

    Args:
        logp: (B, T) log-probabilities of the written tokens.
        advantages: (B,) reward of each prompt less its baseline.
        mask: (B, T).
    """
    prompt_logp = torch.where(mask > 0, logp, torch.zeros_like(logp)).sum(dim=1)
    return -(advantages.detach() * prompt_logp).mean()


def masked_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Entropy of the next-token distribution in nats, mean over the written tokens.

    Args:
        logits: (B, T, V); -inf at forbidden tokens.
        mask: (B, T).
    """
    logp, allowed = _log_softmax(logits)
    probabilities = logp.exp().masked_fill(~allowed, 0.0)
    return _mean(-(probabilities * logp).sum(dim=-1), mask)


def categorical_kl(logits: Tensor, reference_logits: Tensor, mask: Tensor) -> Tensor:
    """KL(policy || reference) per token in nats, exact over the vocabulary, mean over the written tokens.

    Both distributions are restricted to the tokens that both allow (the environment's mask is the same for both),
    so that -inf logits never meet as inf - inf. No gradient reaches the reference.

    Args:
        logits: (B, T, V).
        reference_logits: (B, T, V).
        mask: (B, T).
    """
    reference_logits = reference_logits.detach()
    both = (logits > float("-inf")) & (reference_logits > float("-inf"))
    logp, allowed = _log_softmax(logits, both)
    reference_logp, _ = _log_softmax(reference_logits, both)
    probabilities = logp.exp().masked_fill(~allowed, 0.0)
    return _mean((probabilities * (logp - reference_logp)).sum(dim=-1), mask)


def kl_shaped_rewards(rewards: Tensor, log_ratio: Tensor, mask: Tensor, *, coefficient: float) -> Tensor:
    """Takes the KL penalty of each written token from its reward: r_t - beta (log pi(a_t) - log pi_0(a_t)).

    Over a prompt the terms add up to beta log(pi / pi_0), whose mean under the policy is beta KL(pi || pi_0).
    Reference: arXiv:1909.08593, eq. 2.

    Args:
        rewards: (B, T).
        log_ratio: (B, T) log-probability of each written token under the policy that wrote it, less the one under the
            starting policy.
        mask: (B, T).
        coefficient: beta, in units of reward per nat.

    Returns:
        (B, T), without gradient; 0 where not written.
    """
    shaped = rewards.detach() - coefficient * log_ratio.detach()
    return shaped.masked_fill(mask <= 0, 0.0)


def penalty_baseline(penalties: Tensor, mask: Tensor, episodes: Tensor) -> Tensor:
    """A baseline for the KL penalty of each token, for training without a critic.

    The mean penalty of the other episodes' prompts, less what this prompt paid before the token. Neither depends on the
    token, so the gradient keeps its mean. Under the optimal policy, where reward - beta log(pi / pi_0) is the same for
    all prompts, the second part is the value of what was written: the advantages vanish there, and their noise too.
    With gamma 1 each token's advantage becomes that of its whole prompt, as in RLOO (arXiv:2402.14740, section 3).

    Args:
        penalties: (B, T), what the penalty adds to the rewards.
        mask: (B, T).
        episodes: (B,) number of each row's episode, from 0.

    Returns:
        (B, T), to be subtracted from the advantages, without gradient; 0 where not written.
    """
    penalties = penalties.detach().masked_fill(mask <= 0, 0.0)
    totals = penalties.sum(dim=1)
    own, size = (
        totals.new_zeros(int(episodes.max()) + 1).index_add(0, episodes, part)[episodes]
        for part in (totals, torch.ones_like(totals))
    )
    others = (totals.sum() - own) / (len(totals) - size).clamp(min=1)
    paid_before = penalties.cumsum(dim=1) - penalties
    return (others.unsqueeze(1) - paid_before).masked_fill(mask <= 0, 0.0)


def next_kl_coefficient(coefficient: float, kl: float, *, target: float, prompts: int, horizon: int) -> float:
    """Moves the KL coefficient in proportion to how far the KL is from its target, at most 20 % of it.

    e = clip((KL - target) / target, -0.2, 0.2); beta <- beta (1 + e prompts / horizon). With `horizon` = 10 * `prompts`
    that is the published K_beta = 0.1. Reference: arXiv:1909.08593, section 2.2, whose code counts prompts.

    Args:
        coefficient: beta.
        kl: KL(policy || reference) of the batch, in nats per prompt.
        target: the KL to aim at, above 0.
        prompts: prompts of the batch.
        horizon: prompts in which a lasting error of 20 % moves beta by about 20 %.

    >>> round(next_kl_coefficient(0.1, 3.0, target=2.0, prompts=16, horizon=160), 6)
    0.102
    """
    error = min(max((kl - target) / target, -0.2), 0.2)
    return coefficient * (1.0 + error * prompts / horizon)


def nlpo_allowed(allowed: Tensor, masking_logits: Tensor, tokens: Tensor, *, p: float) -> Tensor:
    """Restricts the allowed tokens to the nucleus of NLPO's masking policy. Reference: arXiv:2210.01241, section 4.

    A written token stays allowed, whatever rounding makes of its place at the nucleus's edge.

    Args:
        allowed: booleans (B, T, V).
        masking_logits: (B, T, V) of the masking policy.
        tokens: (B, T) written token ids, -1 where not written.
        p: the nucleus holds the fewest most probable allowed tokens whose probabilities add up to p or more.
    """
    nucleus = filter_top_p(masking_logits.masked_fill(~allowed, float("-inf")), p) > float("-inf")
    written = tokens.unsqueeze(-1)
    places = torch.zeros_like(allowed).scatter(-1, written.clamp(min=0), written >= 0)
    return allowed & (nucleus | places)


def sql_loss(
    logits: Tensor, target_logits: Tensor, tokens: Tensor, rewards: Tensor, mask: Tensor, *, variant: str
) -> Tensor:
    """Soft Q-learning with a reward at the end only: squared errors, summed over time, mean over prompts.

    Logits are Q-values: Q_t = logit of the written token, V_t = logsumexp of the logits, and
    A_t = Q_t - V_t = log pi_t. A bar marks the target network, r is the shaped reward, T the last written token:

    v1: Q_t against bar V_t+1; Q_T against r (temporal difference).
    v2: A_t against bar V_t+1 - bar V_t; A_T against r - bar V_T (single-step path consistency).
    v3: A_t + ... + A_T against r - bar V_t (multi-step path consistency).
    v2_v3: (v2 + v3) / 2, RLPrompt's default.

    Reference: arXiv:2106.07704 (path consistency for text); arXiv:2205.12548 (sparse reward, prompts).

    Args:
        logits: (B, T, V) of the policy in training.
        target_logits: (B, T, V) of the target network; no gradient reaches it.
        tokens: (B, T) written token ids; anything at padding.
        rewards: (B,) shaped reward of each prompt.
        mask: (B, T).
        variant: "v1", "v2", "v3" or "v2_v3".

    Raises:
        ConfigError: unknown variant.
    """
    if variant not in SQL_VARIANTS:
        raise ConfigError(f"unknown sql_variant '{variant}'{did_you_mean(variant, SQL_VARIANTS)}")
    written = mask > 0
    q, v = _state_values(logits, tokens, written)
    with torch.no_grad():
        _, target_v = _state_values(target_logits, tokens, written)
        following_written = torch.nn.functional.pad(written[:, 1:], (0, 1), value=False)
        following_v = torch.nn.functional.pad(target_v[:, 1:], (0, 1))
        final = rewards.to(target_v.dtype).unsqueeze(1)
        following = torch.where(following_written, following_v, final)  # bar V_t+1, and r after the last token
    if variant == "v1":
        return _sum_then_mean((q - following).square(), written)
    advantage = torch.where(written, q - v, torch.zeros_like(q))
    single = (advantage - (following - target_v)).square()
    if variant == "v2":
        return _sum_then_mean(single, written)
    to_the_end = advantage.flip(1).cumsum(dim=1).flip(1)
    multi = (to_the_end - (final - target_v)).square()
    if variant == "v3":
        return _sum_then_mean(multi, written)
    return _sum_then_mean((single + multi) / 2, written)


@torch.no_grad()
def polyak_(target: torch.nn.Module, source: torch.nn.Module, tau: float) -> None:
    """Moves the target network by tau towards the source, in place: target += tau (source - target).

    Reference: arXiv:1509.02971. Buffers are copied.
    """
    for moved, fixed in zip(target.parameters(), source.parameters(), strict=True):
        moved.lerp_(fixed.to(moved.device), tau)
    for kept, current in zip(target.buffers(), source.buffers(), strict=True):
        kept.copy_(current)


def shape_rewards(rewards: Tensor, old: tuple[float, float], new: tuple[float, float]) -> Tensor:
    """Maps rewards linearly so that the range `old` becomes the range `new`; nothing is clipped.

    RLPrompt's few-shot classification maps (0, 1) to (0, 5). Reference: arXiv:2205.12548.

    Raises:
        ConfigError: the old range is empty.

    >>> shape_rewards(torch.tensor([0.0, 0.5, 2.0]), (0.0, 1.0), (-20.0, 80.0)).tolist()
    [-20.0, 30.0, 180.0]
    """
    if old[0] == old[1]:
        raise ConfigError(f"reward_shaping needs two different bounds, got {old[0]} twice; use for example [0, 1]")
    return new[0] + (rewards - old[0]) * ((new[1] - new[0]) / (old[1] - old[0]))


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the written tokens; 0 when there is none."""
    written = mask > 0
    total = torch.where(written, values, torch.zeros_like(values)).sum()
    return total / written.sum().clamp(min=1)


def _sum_then_mean(values: Tensor, written: Tensor) -> Tensor:
    return torch.where(written, values, torch.zeros_like(values)).sum(dim=1).mean()


def _log_softmax(logits: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities over the allowed tokens, 0 at the others: finite everywhere, and so are the gradients.

    A row without any allowed token (padding) counts as one that allows all.
    """
    if allowed is None:
        allowed = logits > float("-inf")
    dead = ~allowed.any(dim=-1, keepdim=True)
    if bool(dead.any()):
        logits = logits.masked_fill(dead, 0.0)
        allowed = allowed | dead
    if not bool(allowed.all()):
        logits = logits.masked_fill(~allowed, float("-inf"))
    return torch.log_softmax(logits, dim=-1).masked_fill(~allowed, 0.0), allowed


def _state_values(logits: Tensor, tokens: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
    """Q of the written tokens and V, both (B, T); finite at padding, where a whole row may be -inf."""
    if not bool(written.all()):
        logits = logits.masked_fill(~written.unsqueeze(-1), 0.0)
    taken = tokens.masked_fill(~written, 0).unsqueeze(-1)
    return logits.gather(-1, taken).squeeze(-1), torch.logsumexp(logits, dim=-1)
