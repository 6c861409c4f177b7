"""The learner connector: complete episodes -> one batch of (B, T) token matrices.

Token episodes (T steps) and whole-prompt episodes (one `MultiDiscrete` step) become the same batch, so that they give
the same gradient. Episodes that failed are dropped here, before advantages, baselines, normalisation and metrics.

Shapes: B prompts, T tokens, C context length, d features, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID

from rlprompt.algorithms.chunks import row_chunks
from rlprompt.algorithms.losses import gae, kl_shaped_rewards, nlpo_allowed, penalty_baseline
from rlprompt.algorithms.rllib.module import ALLOWED, FEATURES, VALUES, PromptModule
from rlprompt.policies import FeaturePolicy

TOKENS, CONTEXT, MASK, REWARDS = "tokens", "context", "mask", "rewards"
OLD_LOGP, ADVANTAGES, RETURNS = "old_logp", "advantages", "returns"
LOG_RATIO, EPISODE = "log_ratio", "episode"
PLACE, BEFORE = "place", "before"


class PromptBatch(ConnectorV2):
    """Builds the train batch of the learner.

    Columns, all of shape (B, T) unless stated: `tokens` (int64), `mask` (1.0 where a token was written, EOS included),
    `rewards` (less the KL penalty where there is one), `context` (B, C), `episode` (B,), `old_logp` and `values`
    (recomputed by teacher forcing, so that the first ratio is 1 where the weights of now wrote the prompts),
    `advantages` and `returns`. With `measure_kl` also `log_ratio`, the logarithm of policy over reference of each
    written token. Policies with frozen features add `features` (B, T, d) and `allowed` (B, T, V); a whole LM adds
    `allowed` under NLPO only.

    Args:
        input_observation_space: given by RLlib.
        input_action_space: given by RLlib.
        gamma: discount per token.
        lam: lambda of GAE (arXiv:1506.02438, eq. 16).
        critic: whether the value head is the baseline; else values are 0 and lambda 1, and the advantage is the
            discounted sum of the (stabilised) rewards that follow.
        penalise: whether the rewards lose the KL penalty of each token, weighted by the module's `kl_coefficient`.
            Without a critic the penalty has a baseline of its own (`rlprompt.algorithms.losses.penalty_baseline`).
        measure_kl: whether the reference policy is asked, for the penalty or for an adaptive coefficient.
    """

    def __init__(
        self,
        input_observation_space: Any = None,
        input_action_space: Any = None,
        *,
        gamma: float = 1.0,
        lam: float = 0.95,
        critic: bool = False,
        penalise: bool = False,
        measure_kl: bool = False,
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self.gamma = gamma
        self.lam = lam
        self.critic = critic
        self.penalise = penalise
        self.measure_kl = measure_kl

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
        module.eval()  # no dropout: the first ratio is 1
        rules = module.rules[0]
        columns = episode_columns(valid_episodes(episodes), rules.length, rules.eos_id)
        columns |= score(module, columns, measure_kl=self.measure_kl)
        if not self.critic:
            columns[VALUES] = torch.zeros_like(columns[VALUES])
        lam = self.lam if self.critic else 1.0
        penalty = torch.zeros_like(columns[REWARDS])
        if self.penalise:
            penalty = kl_shaped_rewards(penalty, columns[LOG_RATIO], columns[MASK], coefficient=module.kl_coefficient)
            columns[REWARDS] = columns[REWARDS] + penalty
        advantages, returns = advantages_and_returns(columns, gamma=self.gamma, lam=lam)
        columns[REWARDS] = rewards_to_the_end(columns)
        if self.penalise and not self.critic:
            # The stabiliser has taken a baseline from the rewards; the penalty gets its own.
            baseline = penalty_baseline(penalty, columns[MASK], columns[EPISODE])
            advantages = advantages - baseline
            columns[REWARDS][:, 0] -= baseline[:, 0]  # REINFORCE: one baseline for the whole prompt
        return {DEFAULT_MODULE_ID: columns | {ADVANTAGES: advantages, RETURNS: returns}}


def score(
    module: PromptModule, columns: dict[str, torch.Tensor], *, place: int = 0, measure_kl: bool = False
) -> dict[str, torch.Tensor]:
    """Returns what a module makes of written prompts, without gradient.

    Where older weights wrote them (`PromptModule.behaviour`), what is said about the writer, `old_logp` and
    `log_ratio`, is theirs, and values are those of now.

    Args:
        module: of the policy that wrote them.
        columns: `tokens`, `mask`, `context`; with several agents and `env.mask.no_repeat` also `before`, (B, P), the
            tokens of other agents' segments.
        place: whose they are.
        measure_kl: whether the reference is asked.

    Returns:
        `old_logp`, `values` and perhaps `log_ratio`, (B, T); with frozen features also `features` and `allowed`.
    """
    read = score_features if isinstance(module.policy, FeaturePolicy) else score_tokens
    found = read(module, columns, place=place, measure_kl=measure_kl)
    if module.behaviour is None:
        return found
    now = module.policy.trainable_state()
    module.policy.load_trainable_state(module.behaviour)
    try:
        written = _logp(module, columns, found, place)
    finally:
        module.policy.load_trainable_state(now)
    if LOG_RATIO in found:  # the reference is the same for both
        found[LOG_RATIO] = found[LOG_RATIO] + written - found[OLD_LOGP]
    return found | {OLD_LOGP: written}


@torch.no_grad()
def _logp(
    module: PromptModule, columns: dict[str, torch.Tensor], known: dict[str, torch.Tensor], place: int
) -> torch.Tensor:
    """Returns the log-probabilities (B, T) of written tokens under a module's weights of now; without NLPO."""
    if isinstance(module.policy, FeaturePolicy):  # what the frozen LM makes of them is known
        logits = cast(FeaturePolicy, module.views[place]).logits(known[FEATURES])
        return token_logp(logits, columns[TOKENS], known[ALLOWED])
    return score_tokens(module, columns, place=place, measure_kl=False)[OLD_LOGP]


@torch.no_grad()
def score_features(
    module: PromptModule, columns: dict[str, torch.Tensor], *, place: int = 0, measure_kl: bool
) -> dict[str, torch.Tensor]:
    """Returns `features`, `allowed`, `old_logp`, `values` and perhaps `log_ratio` of written prompts."""
    policy = cast(FeaturePolicy, module.views[place])
    context, tokens = columns[CONTEXT], columns[TOKENS]
    features = policy.features(context, tokens)
    allowed = env_allowed = module.allowed_each(tokens, place, columns.get(BEFORE))
    logits = policy.logits(features)
    if module.masking is not None:
        masking = module.masking.policy.evaluate(context, tokens)[0]
        allowed = nlpo_allowed(allowed, masking, tokens, p=module.masking.top_p)
    found = {
        FEATURES: features,
        ALLOWED: allowed,
        OLD_LOGP: token_logp(logits, tokens, allowed),
        VALUES: policy.values(features) * columns[MASK],
    }
    if measure_kl:
        found[LOG_RATIO] = _log_ratio(logits, policy.reference_logits(context, tokens), tokens, env_allowed)
    return found


@torch.no_grad()
def score_tokens(
    module: PromptModule, columns: dict[str, torch.Tensor], *, place: int = 0, measure_kl: bool
) -> dict[str, torch.Tensor]:
    """Returns `old_logp`, `values` and perhaps `log_ratio` and `allowed` of prompts that a whole LM wrote."""
    policy = module.policy
    tokens, before = columns[TOKENS], columns.get(BEFORE)
    shape = (len(tokens), tokens.shape[1])
    found = {name: torch.zeros(shape) for name in (OLD_LOGP, VALUES, *([LOG_RATIO] if measure_kl else []))}
    if module.masking is not None:
        found[ALLOWED] = torch.zeros((*shape, policy.vocabulary_size), dtype=torch.bool)
    for rows, width in row_chunks(columns[CONTEXT], tokens, policy.vocabulary_size, gradient=False):
        context, part = columns[CONTEXT][rows], tokens[rows, :width]
        logits, values = policy.evaluate(context, part)
        allowed = env_allowed = module.allowed_each(part, place, None if before is None else before[rows])
        if module.masking is not None:
            masking = module.masking.policy.evaluate(context, part)[0]
            allowed = nlpo_allowed(allowed, masking, part, p=module.masking.top_p)
            found[ALLOWED][rows, :width] = allowed
        found[OLD_LOGP][rows, :width] = token_logp(logits, part, allowed)
        found[VALUES][rows, :width] = values * columns[MASK][rows, :width]
        if measure_kl:
            reference = policy.reference_logits(context, part)
            found[LOG_RATIO][rows, :width] = _log_ratio(logits, reference, part, env_allowed)
    return found


def _log_ratio(
    logits: torch.Tensor, reference: torch.Tensor, tokens: torch.Tensor, allowed: torch.Tensor
) -> torch.Tensor:
    """Log of policy over reference of the written tokens, both under the env's mask (never under NLPO's)."""
    return token_logp(logits, tokens, allowed) - token_logp(reference, tokens, allowed)


def has_valid_episode(episodes: list[Any]) -> bool:
    """Whether there is something to learn from; an episode of several agents holds those of all copies of the game."""
    singles = [
        single for episode in episodes for single in getattr(episode, "agent_episodes", {"only": episode}).values()
    ]
    return any(_is_valid(episode) for episode in singles)


def _is_valid(episode: Any) -> bool:
    return bool(episode.get_infos(-1).get("valid", True))


def valid_episodes(episodes: list[Any]) -> list[Any]:
    """Drops failed episodes and sorts the others by episode number: the batch never depends on who sampled first."""
    kept = [episode for episode in episodes if _is_valid(episode)]
    return sorted(kept, key=lambda episode: int(episode.get_observations(0)["key"][1]))


def episode_columns(episodes: list[Any], length: int, eos_id: int | None) -> dict[str, torch.Tensor]:
    """Turns complete episodes into tokens, mask, rewards (B, T), context (B, C) and episode (B,).

    A prompt is a row, so an episode of several turns has several, in order, with the same number in `episode`. Tokens
    after the first EOS are dropped (-1, mask 0). A reward that came while a finished prompt waited, for its turn's end
    or for all that follows, belongs to its last written token. A whole-prompt step says in its info which token brought
    what; where it does not, all of it belongs to the last one.
    """
    turns = [turn for number, episode in enumerate(episodes) for turn in _turns(episode, number, length, eos_id)]
    tokens = np.stack([turn.tokens for turn in turns])
    return {
        TOKENS: torch.from_numpy(tokens),
        MASK: torch.from_numpy((tokens >= 0).astype(np.float32)),
        REWARDS: torch.from_numpy(np.stack([turn.rewards for turn in turns])),
        CONTEXT: torch.from_numpy(np.stack([turn.context for turn in turns]).astype(np.int64)),
        EPISODE: torch.tensor([turn.episode for turn in turns]),
    }


@dataclass
class _Turn:
    """One written prompt: tokens and rewards (T,), context (C,)."""

    episode: int
    tokens: np.ndarray
    rewards: np.ndarray
    context: np.ndarray


def _turns(episode: Any, number: int, length: int, eos_id: int | None) -> list[_Turn]:
    """Cuts an episode into the prompts that it wrote; turns in which it only waited leave their rewards."""
    all_actions = np.asarray(episode.get_actions(), dtype=np.int64)
    all_rewards = np.asarray(episode.get_rewards(), dtype=np.float32)
    found: list[_Turn] = []
    for start, end, waits in _segments(episode):
        if waits:
            found[-1].rewards[np.flatnonzero(found[-1].tokens >= 0)[-1]] += all_rewards[start:end].sum()
            continue
        actions = all_actions[start:end].reshape(-1)[:length]
        ends = np.flatnonzero(actions == eos_id) if eos_id is not None else np.array([], dtype=np.int64)
        written = int(ends[0]) + 1 if len(ends) else len(actions)
        tokens = np.full(length, -1, dtype=np.int64)
        tokens[:written] = actions[:written]
        rewards = np.zeros(length, dtype=np.float32)
        for step, reward in enumerate(_step_rewards(episode, all_rewards, start, end, written)):
            rewards[min(step, written - 1)] += reward
        found.append(_Turn(number, tokens, rewards, episode.get_observations(start)["context"]))
    return found


def _step_rewards(episode: Any, rewards: np.ndarray, start: int, end: int, written: int) -> np.ndarray:
    """Returns what each token of a turn brought; of a whole-prompt step, what its info says."""
    if end - start > 1:
        return rewards[start:end]
    by_token = episode.get_infos(end).get("token_rewards")
    if by_token is not None:
        return np.asarray(by_token, dtype=np.float32)
    whole = np.zeros(written, dtype=np.float32)
    whole[-1] = rewards[start]
    return whole


def _segments(episode: Any) -> list[tuple[int, int, bool]]:
    """Returns (first step, step behind the last one, whether it only waits) of each turn."""
    steps = len(episode)
    if "turn" not in episode.get_infos(0):
        return [(0, steps, False)]
    infos = [episode.get_infos(step) for step in range(steps)]
    starts = [step for step in range(steps) if step == 0 or infos[step]["turn"] != infos[step - 1]["turn"]]
    ends = [*starts[1:], steps]
    return [(start, end, bool(infos[start]["waiting"])) for start, end in zip(starts, ends, strict=True)]


def advantages_and_returns(
    columns: dict[str, torch.Tensor], *, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantages and returns (B, T) along whole episodes: a turn's tokens answer for later turns too."""
    names, episode = (REWARDS, VALUES, MASK), columns[EPISODE]
    if len(set(episode.tolist())) == len(episode):
        return gae(*(columns[name] for name in names), gamma=gamma, lam=lam)
    written = columns[MASK] > 0
    # Where each written token stands in its episode: behind those of its row and of the rows before.
    places = torch.zeros_like(columns[TOKENS])
    seen: dict[int, int] = {}
    for row, number in enumerate(episode.tolist()):
        places[row] = seen.get(number, 0) + torch.arange(places.shape[1])
        seen[number] = seen.get(number, 0) + int(written[row].sum())
    owners = episode.unsqueeze(1).expand_as(places)[written], places[written]
    shape = (int(episode.max()) + 1, max(seen.values()))
    joined = [torch.zeros(shape, dtype=columns[name].dtype) for name in names]
    for whole, name in zip(joined, names, strict=True):
        whole[owners] = columns[name][written]
    found = gae(*joined, gamma=gamma, lam=lam)
    parts = tuple(torch.zeros_like(columns[VALUES]) for _ in found)
    for part, whole in zip(parts, found, strict=True):
        part[written] = whole[owners]
    return parts[0], parts[1]


def rewards_to_the_end(columns: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns rewards (B, T) in which a row's last token also has what later turns of its episode brought."""
    rewards = columns[REWARDS].clone()
    numbers = columns[EPISODE].tolist()
    for row in reversed(range(len(numbers) - 1)):
        if numbers[row] == numbers[row + 1]:
            rewards[row, int(columns[MASK][row].sum()) - 1] += rewards[row + 1].sum()
    return rewards


def masked_logits(logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Sets forbidden tokens to -inf; a position where nothing is allowed (padding) is left as it is."""
    usable = allowed | ~allowed.any(dim=-1, keepdim=True)
    return logits.masked_fill(~usable, float("-inf"))


def token_logp(logits: torch.Tensor, tokens: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Returns log-probabilities (B, T) of the written tokens under the masked, un-truncated distribution."""
    logp = torch.log_softmax(masked_logits(logits, allowed), dim=-1)
    return logp.gather(-1, tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1).masked_fill(tokens < 0, 0.0)
