"""The game as a PettingZoo AEC environment: its definition for anything that plays one copy."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from pettingzoo import AECEnv

from rlprompt.envs.multi.game import Game, Move
from rlprompt.envs.sequence_action import is_sequence
from rlprompt.envs.writing import iteration_from
from rlprompt.types import IntArray

Observation = dict[str, IntArray]
RESET_OPTIONS = ("iteration", "episode")


class MultiPrompterEnv(AECEnv[str, Observation, Any]):
    """Agents take turns composing one prompt; the reward comes from the frozen target.

    ## Turns
    The agents write one segment each, in the order of `agents`. An agent is selected until its segment is complete:
    it has `length` tokens, or ended with EOS or its separator. After the last one the game is over for all.

    ## Action space
    `Discrete(V)`: the id of the next token, V the length of the agent's tokenizer; with `action="sequence"`
    `MultiDiscrete([V] * T)`: the whole segment. A token outside the mask is written and reported, as in
    `rlprompt.envs.TokenPromptEnv`.

    ## Observation space
    That of `TokenPromptEnv`, `tokens`, `context` and `key`, in which `context` also holds what was composed before; and
    `prefix`, `agent`, `position`: see `rlprompt.envs.multi.Game.observations`. With one agent, `tokens`, `context`,
    `key`, masks and rewards are those of the single environment. `state()` is what a critic over the whole prefix
    reads: the place of the agent whose turn it is, and the tokens of all segments.

    ## Rewards and end
    0.0 until the last step, which brings every agent its reward and terminates all; see `rlprompt.envs.multi.Game`. A
    game is never truncated: that segments are short is a rule of it.

    ## Info
    `masked_action`; `action_mask` (V,) int8, zeros for those whose turn it is not (never with whole segments); with the
    last step, for every agent, `prompt`, `segments`, `valid` and, where known, `raw_reward`, `accuracy`, `failure`.

    ## Reset
    As in `TokenPromptEnv`; options that it does not know are ignored, because PettingZoo's test of the API sends one.

    Args:
        action: "token" or "sequence".
        action_mask_in_info: whether infos hold `action_mask`.
        seed: seed of the action spaces.
        **rules: arguments of `rlprompt.envs.multi.Game`, without `batch`.

    Raises:
        ConfigError: an argument does not fit.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "rlprompt/MultiPrompter-v0",
        "render_modes": [],
        "is_parallelizable": True,
    }

    def __init__(self, *, action: str = "token", action_mask_in_info: bool = True, seed: int = 0, **rules: Any) -> None:
        super().__init__()
        self.game = Game(batch=1, **rules)
        self.whole = is_sequence(action)
        self.action_mask_in_info = action_mask_in_info and not self.whole
        self.render_mode = None
        self.possible_agents = list(self.game.names)
        self.agents: list[str] = []
        places = {name: place for place, name in enumerate(self.possible_agents)}
        self._places = places
        self._observation_spaces = {name: self.game.observation_space(place) for name, place in places.items()}
        self._action_spaces = {
            name: self.game.action_space(place, whole=self.whole, seed=seed + place) for name, place in places.items()
        }
        largest = max(seat.vocabulary_size for seat in self.game.seats) - 1
        high = np.array([len(places), *[largest] * self.game.length], dtype=np.int64)
        low = np.array([0, *[-1] * self.game.length], dtype=np.int64)
        self.state_space = gymnasium.spaces.Box(low, high, dtype=np.int64)
        self._next_iteration = 0

    def observation_space(self, agent: str) -> gymnasium.spaces.Space[Observation]:
        """Returns the space of an agent's observations, always the same object."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.spaces.Space[Any]:
        """Returns the space of an agent's actions, always the same object."""
        return self._action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Begins an empty prompt."""
        known = {name: value for name, value in (options or {}).items() if name in RESET_OPTIONS}
        chosen = iteration_from(known, RESET_OPTIONS)
        if seed is not None:
            self._next_iteration = 0
        iteration = int(chosen.get("iteration", self._next_iteration))
        self._next_iteration = iteration + 1
        self.game.start(iteration, np.array([chosen.get("episode", 0)]))
        self.agents = self.possible_agents[:]
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.agent_selection = self.agents[0]
        self._skip_agent_selection = None
        self.infos = self._infos(None, None)

    def observe(self, agent: str) -> Observation:
        """Returns what an agent sees now; of one whose turn is to come, with the prompt as far as it is composed."""
        return {name: values[0] for name, values in self.game.observations(self._places[agent]).items()}

    def state(self) -> IntArray:
        """Returns [place of the agent whose turn it is, N once the game is over; tokens of all segments]: (1 + P,)."""
        game = self.game
        place = len(game.seats) if game.is_over else game.turn
        return np.concatenate([[place], game.prefix(len(game.seats) - 1)[0]]).astype(np.int64)

    def step(self, action: Any) -> None:
        """Writes one token, or one segment, of the selected agent."""
        writer = self.agent_selection
        if self.terminations[writer]:
            self._was_dead_step(action)
            return
        self._cumulative_rewards[writer] = 0.0
        row = np.asarray(action)[None]
        move = self.game.write_segment(row) if self.whole else self.game.write(row.reshape(-1))
        self.rewards = {name: float(move.rewards[self._places[name], 0]) for name in self.agents}
        self._accumulate_rewards()
        self.terminations = dict.fromkeys(self.agents, self.game.is_over)
        self.agent_selection = self.agents[0] if self.game.is_over else self.possible_agents[self.game.turn]
        self.infos = self._infos(writer, move)

    def _infos(self, writer: str | None, move: Move | None) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name in self.agents:
            masked = move is not None and name == writer and bool(move.masked[0])
            found[name] = {"masked_action": masked}
            if self.action_mask_in_info:
                found[name]["action_mask"] = self._mask(name)
            if move is not None and move.finals is not None:
                found[name] |= move.finals[0]
        return found

    def _mask(self, name: str) -> np.ndarray:
        place = self._places[name]
        mask = np.zeros(self.game.seats[place].vocabulary_size, dtype=np.int8)
        if place == self.game.turn:
            mask[self.game.allowed[0]] = 1
        return mask
