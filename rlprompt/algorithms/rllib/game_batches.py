"""The learner connector of a game: complete episodes of several agents -> a batch for each of their modules.

RLlib's own connectors see each agent's steps as an episode of its own. Here a game is one trajectory: what a token is
worth is what all later tokens make of it, whoever writes them.

Shapes: G games, N agents, T tokens of an agent, P tokens of all, C context length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlprompt.agents import CRITIC
from rlprompt.algorithms.losses import gae, kl_shaped_rewards, penalty_baseline
from rlprompt.algorithms.rllib.batches import (
    ADVANTAGES,
    BEFORE,
    CONTEXT,
    EPISODE,
    LOG_RATIO,
    MASK,
    PLACE,
    RETURNS,
    REWARDS,
    TOKENS,
    PromptBatch,
    episode_columns,
    score,
)
from rlprompt.algorithms.rllib.critic_module import PREFIX, CriticModule
from rlprompt.algorithms.rllib.module import VALUES, PromptModule
from rlprompt.algorithms.turns import TurnTokens, game_rewards, turns_gae
from rlprompt.envs.multi.rllib import agent_id

Columns = dict[str, Tensor]
PADDING = {TOKENS: -1, CONTEXT: -1, BEFORE: -1}
"""What fills up the columns of agents with shorter segments; 0 elsewhere."""


class GameBatch(PromptBatch):
    """Builds the train batches of all modules that learn, and of the central critic.

    Columns of a module as of `rlprompt.algorithms.rllib.batches.PromptBatch`, a row for each game and agent, and
    `place` (B,), the agent, and `before` (B, P), the tokens of all segments before it. Those of the critic: `context`
    (G, C) of the first agent, `prefix`, `mask` and `returns` (G, P).

    Args:
        input_observation_space: given by RLlib.
        input_action_space: given by RLlib.
        agents: (name, module id) of each agent, in the order of the turns.
        critic: "central" or "own" (see `rlprompt.agents.TeamConfig`), or "none": the (stabilised) rewards that follow.
        shared: whether the agents are given one reward, which then counts once in a game.
        **settings: `gamma`, `lam`, `penalise` and `measure_kl`, as of `PromptBatch`; along a game, the KL penalty is
            that of all agents.
    """

    def __init__(
        self,
        input_observation_space: Any = None,
        input_action_space: Any = None,
        *,
        agents: Sequence[tuple[str, str]],
        critic: str,
        shared: bool,
        **settings: Any,
    ) -> None:
        super().__init__(input_observation_space, input_action_space, critic=critic != "none", **settings)
        self.agents = list(agents)
        self.values_of = critic
        self.shared = shared

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
        modules: list[PromptModule] = [rl_module[module_id] for _, module_id in self.agents]
        games = valid_games(episodes, [name for name, _ in self.agents])
        turns: list[Columns] = []
        for place, module in enumerate(modules):
            module.eval()  # no dropout: the first ratio is 1
            rules = module.rules[place]
            turns.append(episode_columns([game[place] for game in games], rules.length, rules.eos_id))
        prefix = torch.cat([turn[TOKENS] for turn in turns], dim=1)
        for place, (turn, module) in enumerate(zip(turns, modules, strict=True)):
            offset = module.rules[place].offset
            turn[PLACE] = torch.full((len(games),), place)
            turn[BEFORE] = prefix.masked_fill(torch.arange(prefix.shape[1]) >= offset, -1)
            turn |= score(module, turn, place=place, measure_kl=self.measure_kl)
        whole = {CONTEXT: turns[0][CONTEXT], PREFIX: prefix}
        if self.values_of == "central":
            self._value(rl_module[CRITIC], whole, turns)
        elif self.values_of == "none":
            for turn in turns:
                turn[VALUES] = torch.zeros_like(turn[VALUES])
        self._advantages(modules, turns)
        owners = [module_id for _, module_id in self.agents]
        found = {
            module_id: _joined([turn for turn, owner in zip(turns, owners, strict=True) if owner == module_id])
            for module_id in dict.fromkeys(owners)
            if rl_module[module_id].learns
        }
        if self.values_of == "central":
            found[CRITIC] = whole | {name: torch.cat([turn[name] for turn in turns], dim=1) for name in (MASK, RETURNS)}
        return found

    @torch.no_grad()
    def _value(self, critic: CriticModule, whole: Columns, turns: Sequence[Columns]) -> None:
        values = torch.split(critic.values(whole), [turn[TOKENS].shape[1] for turn in turns], dim=1)
        for turn, part in zip(turns, values, strict=True):
            turn[VALUES] = part * turn[MASK]

    def _advantages(self, modules: Sequence[PromptModule], turns: Sequence[Columns]) -> None:
        """Sets `advantages` and `returns`; with own critics each agent's trajectory is its own segment."""
        if self.values_of != "own":
            masks = [turn[MASK] for turn in turns]
            given = torch.stack([turn[REWARDS].sum(dim=1) for turn in turns])
            for turn, placed in zip(turns, game_rewards(masks, given, shared=self.shared), strict=True):
                turn[REWARDS] = placed
        penalties = [torch.zeros_like(turn[REWARDS]) for turn in turns]
        if self.penalise:
            penalties = [
                kl_shaped_rewards(zero, turn[LOG_RATIO], turn[MASK], coefficient=module.kl_coefficient)
                for zero, turn, module in zip(penalties, turns, modules, strict=True)
            ]
        for turn, penalty in zip(turns, penalties, strict=True):
            turn[REWARDS] = turn[REWARDS] + penalty
        lam = 1.0 if self.values_of == "none" else self.lam
        if self.values_of == "own":
            found = [gae(turn[REWARDS], turn[VALUES], turn[MASK], gamma=self.gamma, lam=lam) for turn in turns]
        else:
            tokens = [TurnTokens(turn[REWARDS], turn[VALUES], turn[MASK]) for turn in turns]
            found = turns_gae(tokens, gamma=self.gamma, lam=lam)
        for turn, (advantages, returns) in zip(turns, found, strict=True):
            turn |= {ADVANTAGES: advantages, RETURNS: returns}
        if self.penalise and self.values_of == "none":
            # A game is one prompt: what an agent paid before its tokens includes what the others paid before it.
            masks = [turn[MASK] for turn in turns]
            whole = torch.cat(penalties, dim=1), torch.cat(masks, dim=1)
            baseline = penalty_baseline(*whole, turns[0][EPISODE])
            for turn, part in zip(turns, torch.split(baseline, [mask.shape[1] for mask in masks], dim=1), strict=True):
                turn[ADVANTAGES] = turn[ADVANTAGES] - part


def valid_games(episodes: Sequence[Any], names: Sequence[str]) -> list[list[Any]]:
    """Returns the games that did not fail, each as its agents' episodes in order, sorted by episode number."""
    games = [
        [episode.agent_episodes[agent_id(name, copy)] for name in names]
        for episode in episodes
        for copy in range(len(episode.agent_episodes) // len(names))
    ]
    kept = [game for game in games if bool(game[0].get_infos(-1).get("valid", True))]
    return sorted(kept, key=lambda game: int(game[0].get_observations(0)["key"][1]))


def _joined(turns: Sequence[Columns]) -> Columns:
    """Puts the rows of several agents below each other, filled up to the same widths."""
    if len(turns) == 1:
        return dict(turns[0])
    found: Columns = {}
    for name in turns[0]:
        parts = [turn[name] for turn in turns]
        if parts[0].dim() > 1:
            width = max(part.shape[1] for part in parts)
            parts = [_filled(part, width, PADDING.get(name, 0)) for part in parts]
        found[name] = torch.cat(parts)
    return found


def _filled(part: Tensor, width: int, value: int) -> Tensor:
    if part.shape[1] == width:
        return part
    padded = part.new_full((part.shape[0], width, *part.shape[2:]), value)
    padded[:, : part.shape[1]] = part
    return padded
