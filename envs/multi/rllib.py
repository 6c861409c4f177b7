"""The game for RLlib: one `MultiAgentEnv` plays B copies in lockstep and scores all finished prompts in one call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from rlprompt.envs.multi.game import Game, Move
from rlprompt.envs.sequence_action import is_sequence
from rlprompt.envs.writing import iteration_from
from rlprompt.errors import ConfigError
from rlprompt.masks import NOT_WRITTEN
from rlprompt.types import FloatArray, IntArray, Scores

if TYPE_CHECKING:
    from rlprompt.scoring import ScoringRules

Dicts = dict[str, dict[str, Any]]
Step = tuple[Dicts, dict[str, float], dict[str, bool], dict[str, bool], Dicts]


def agent_id(name: str, copy: int) -> str:
    """Returns the id of an agent in one copy of the game."""
    return f"{name}:{copy}"


def agent_name(identity: str) -> str:
    """Returns the agent's name of an id: what RLlib's `policy_mapping_fn` maps from.

    >>> agent_name("role-line:7")
    'role-line'
    """
    return identity.rpartition(":")[0]


class MultiPrompterRLlib(MultiAgentEnv):
    """`rlprompt/MultiPrompter-v0` in `num_envs` copies, each with agents of its own: "role-line:7" plays in copy 7.

    Observations, masks, rewards and infos of an agent are those of `rlprompt.envs.multi.aec.MultiPrompterEnv`;
    stabilisers see the prompts of all copies. A step asks the agents whose turn it is, in all copies at once; those
    whose segment has ended are not asked again, and the next agents are asked once all have ended. An agent that acts
    gets 0.0; with the last step every agent of every copy gets its reward, a last observation and the final infos.

    Copy k plays episode `first_episode + k`. A finished round advances the iteration by one, an abandoned one is played
    again; `set_iteration` and `reset(options={"iteration": i})` set it, `reset(seed=...)` sets it to 0.

    Args:
        config: `num_envs`, `first_episode`, `action`, `action_mask_in_info`, `seed` and the arguments of
            `rlprompt.envs.multi.Game`, without `batch`. RLlib's `env_config`. With `same_spaces` all agents have the
            spaces of the longest one, filled up with -1, as RLlib wants it of agents that are one module.

    Raises:
        ConfigError: an argument does not fit.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        rules = dict(config)
        copies = rules.pop("num_envs", 1)
        self.first_episode = rules.pop("first_episode", 0)
        if self.first_episode < 0:
            raise ConfigError(f"first_episode must be >= 0, got {self.first_episode}")
        self.whole = is_sequence(rules.pop("action", "token"))
        self.action_mask_in_info = rules.pop("action_mask_in_info", True) and not self.whole
        seed = rules.pop("seed", 0)
        self.same_spaces = rules.pop("same_spaces", False)
        rules.setdefault("round_size", self.first_episode + copies)
        self.game = Game(batch=copies, **rules)
        self.ids = [[agent_id(name, copy) for copy in range(copies)] for name in self.game.names]
        """(N, B)"""
        self.possible_agents = [one for row in self.ids for one in row]
        self.agents = self.possible_agents[:]
        self.observation_spaces, self.action_spaces = {}, {}
        for place, row in enumerate(self.ids):
            observed = self._shared_space() if self.same_spaces else self.game.observation_space(place)
            for copy, one in enumerate(row):
                self.observation_spaces[one] = observed
                keyed = seed + place * copies + copy
                longest = self._longest if self.same_spaces else place
                self.action_spaces[one] = self.game.action_space(longest, whole=self.whole, seed=keyed)
        super().__init__()
        self._next_iteration = 0
        self._is_set = False

    @property
    def scorer(self) -> ScoringRules:
        """What scores the finished prompts."""
        return self.game.scorer

    @property
    def last_scores(self) -> Scores | None:
        """The scores of the newest finished prompts; None before the first."""
        return self.game.last_scores

    @property
    def last_training_rewards(self) -> FloatArray | None:
        """The stabilised rewards (num_envs,) of the newest round; None before it, and with step differences."""
        return self.game.last_training_rewards

    def set_iteration(self, iteration: int) -> None:
        """Sets the iteration of the games that start next."""
        self._next_iteration = int(iteration_from({"iteration": iteration}, ("iteration",))["iteration"])
        self._is_set = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Dicts, Dicts]:
        """Begins `num_envs` empty prompts; see the class for `seed` and `options`."""
        super().reset(seed=seed)
        chosen = iteration_from(options, ("iteration",))
        if "iteration" in chosen:
            self.set_iteration(chosen["iteration"])
        elif seed is not None and not self._is_set:
            self._next_iteration = 0
        self.game.start(self._next_iteration, self.first_episode + np.arange(self.game.batch))
        self._is_set = False
        self.agents = self.possible_agents[:]
        asked = self.ids[0]
        return self._observations(0, asked), self._infos(asked, {}, None)

    def step(self, action_dict: dict[str, Any]) -> Step:
        """Writes a token, or a segment, of every agent that was asked."""
        game, place = self.game, self.game.turn
        asked = [one for one, ended in zip(self.ids[place], game.ended, strict=True) if not ended]
        if set(action_dict) != set(asked):
            raise ConfigError(f"actions are wanted of {', '.join(asked)}, got some of {', '.join(sorted(action_dict))}")
        length = game.seat.agent.length
        actions = np.zeros((game.batch, length) if self.whole else game.batch, dtype=np.int64)  # what waits is ignored
        for one, action in action_dict.items():
            row = self.ids[place].index(one)
            actions[row] = np.asarray(action)[:length] if self.whole else action
        move = game.write_segment(actions) if self.whole else game.write(actions)
        masked = dict(zip(self.ids[place], move.masked.tolist(), strict=True))
        if game.is_over:
            return self._ends(move, masked)
        following = [one for one, ended in zip(self.ids[game.turn], game.ended, strict=True) if not ended]
        never = {**dict.fromkeys(following, False), "__all__": False}
        rewards = dict.fromkeys(asked, 0.0)
        return (
            self._observations(game.turn, following),
            rewards,
            never,
            never.copy(),
            self._infos(following, masked, None),
        )

    @property
    def _longest(self) -> int:
        return max(range(len(self.game.seats)), key=lambda place: self.game.seats[place].agent.length)

    def _shared_space(self) -> gymnasium.spaces.Dict:
        spaces = [self.game.observation_space(place) for place in range(len(self.game.seats))]
        sizes = {seat.vocabulary_size for seat in self.game.seats}
        if len(sizes) > 1:
            raise ConfigError(f"same_spaces is for agents of one vocabulary, got sizes {sorted(sizes)}; leave it out")
        self._widths = {
            name: max(space[name].shape[0] for space in spaces)  # type: ignore[index]  # boxes
            for name in ("tokens", "context")
        }
        boxes = {
            name: gymnasium.spaces.Box(NOT_WRITTEN, max(sizes) - 1, (width,), np.int64)
            for name, width in self._widths.items()
        }
        return gymnasium.spaces.Dict({**spaces[0].spaces, **boxes})

    def _ends(self, move: Move, masked: dict[str, bool]) -> Step:
        if not self._is_set:
            self._next_iteration = self.game.iteration + 1
        observations: Dicts = {}
        for place, row in enumerate(self.ids):
            observations |= self._observations(place, row)
        rewards = {
            one: float(move.rewards[place, copy]) for place, row in enumerate(self.ids) for copy, one in enumerate(row)
        }
        everyone = self.possible_agents
        self.agents = []
        return (
            observations,
            rewards,
            {**dict.fromkeys(everyone, True), "__all__": True},
            {**dict.fromkeys(everyone, False), "__all__": False},
            self._infos(everyone, masked, move),
        )

    def _observations(self, place: int, asked: list[str]) -> Dicts:
        columns = self.game.observations(place)
        if self.same_spaces:
            columns |= {name: _padded(columns[name], self._widths[name]) for name in ("tokens", "context")}
        rows = {one: copy for copy, one in enumerate(self.ids[place])}
        return {one: {name: values[rows[one]] for name, values in columns.items()} for one in asked}

    def _infos(self, asked: list[str], masked: dict[str, bool], move: Move | None) -> Dicts:
        game, found = self.game, Dicts()
        for place, row in enumerate(self.ids):
            for copy, one in enumerate(row):
                if one not in asked:
                    continue
                found[one] = {"masked_action": masked.get(one, False)}
                if self.action_mask_in_info:
                    size = game.seats[place].vocabulary_size
                    mask = game.allowed[copy] if place == game.turn else np.zeros(size)
                    found[one]["action_mask"] = mask.astype(np.int8)
                if move is not None and move.finals is not None:
                    found[one] |= move.finals[copy]
        return found


def _padded(values: IntArray, width: int) -> IntArray:
    padded = np.full((len(values), max(width, values.shape[1])), NOT_WRITTEN, dtype=np.int64)
    padded[:, : values.shape[1]] = values
    return padded
