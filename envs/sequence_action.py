"""The whole prompt as one action, so that a policy can write it in one go; and the entry points of the id."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, MultiDiscrete
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from rlprompt.envs.token_prompt import TokenPromptEnv
from rlprompt.envs.vector import TokenPromptVectorEnv
from rlprompt.errors import ConfigError
from rlprompt.types import IntArray

ACTIONS = ("token", "sequence")


class SequenceAction(gymnasium.Wrapper[dict[str, IntArray], Any, dict[str, IntArray], Any], RecordConstructorArgs):
    """Makes a token environment one with episodes of one step (one for each turn, where there are several).

    The action is `MultiDiscrete([V] * T)`: all token ids. With `eos`, what follows the first EOS is ignored;
    write EOS there too. Reward: the sum over the tokens' steps. `masked_action` is True where any token was
    outside its mask; `action_mask` is dropped, because the mask of a token depends on those before it. `token_rewards`
    (T,) is the reward of each token's step, for learners that give every token its own.

    Episodes only ever terminate. That a prompt has at most T tokens is part of the action here, no limit of time from
    outside: nothing was cut off that a learner could bootstrap from. Its tokens say whether EOS was written.

    Args:
        env: the token environment.
    """

    def __init__(self, env: gymnasium.Env[dict[str, IntArray], Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)
        self.action_space = _whole_prompts(env.observation_space, env.action_space)
        self._length = len(self.action_space.nvec)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, IntArray], dict[str, Any]]:
        """Begins an empty prompt."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, _without_mask(info)

    def step(self, action: Any) -> tuple[dict[str, IntArray], float, bool, bool, dict[str, Any]]:
        """Writes the whole prompt."""
        tokens = _checked(action, (self._length,))
        rewards, is_masked = np.zeros(self._length), False
        for place, token in enumerate(tokens):
            observation, reward, terminated, truncated, info = self.env.step(token)
            rewards[place] = float(reward)
            is_masked |= bool(info["masked_action"])
            if terminated or truncated or _new_turn(self.env):
                break
        info = {**_without_mask(info), "masked_action": is_masked, "token_rewards": rewards}
        return observation, float(rewards.sum()), terminated or truncated, False, info


class SequenceActionVector(VectorWrapper):
    """`SequenceAction` for vector environments: (num_envs, T) token ids in, one scoring call.

    The step after the last one begins anew and ignores its actions (next-step autoreset), as in the wrapped env.

    Args:
        env: the token environment.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.single_action_space = _whole_prompts(env.single_observation_space, env.single_action_space)
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self._length = len(self.single_action_space.nvec)
        self._is_over = False

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins `num_envs` empty prompts."""
        self._is_over = False
        observations, infos = self.env.reset(seed=seed, options=options)
        return observations, _without_mask(infos)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Writes the whole prompts, or begins anew after the last step."""
        tokens = _checked(actions, (self.num_envs, self._length))
        if self._is_over:
            self._is_over = False
            observations, rewards, terminated, truncated, infos = self.env.step(tokens[:, 0])
            return observations, rewards, terminated, truncated, _without_mask(infos)
        by_token, masked = np.zeros(tokens.shape), np.zeros(self.num_envs, dtype=np.bool_)
        for place, column in enumerate(tokens.T):
            observations, rewards, terminated, truncated, infos = self.env.step(column)
            by_token[:, place] = rewards
            masked |= infos["masked_action"]
            self._is_over = bool((terminated | truncated).all())
            if self._is_over or _new_turn(self.env):
                break
        infos = {**_without_mask(infos), "masked_action": masked}
        infos |= {"token_rewards": by_token, "_token_rewards": np.ones(self.num_envs, dtype=np.bool_)}
        return observations, by_token.sum(axis=1), terminated | truncated, np.zeros_like(truncated), infos


def make_env(action: str = "token", **kwargs: Any) -> gymnasium.Env[dict[str, IntArray], Any]:
    """Builds the environment behind `gymnasium.make("rlprompt.envs:rlprompt/TokenPrompt-v0", ...)`.

    Args:
        action: "token", or "sequence" for the whole prompt as one action.
        **kwargs: arguments of `TokenPromptEnv`.
    """
    env = TokenPromptEnv(**kwargs)
    return SequenceAction(env) if is_sequence(action) else env


def make_vector_env(num_envs: int, action: str = "token", **kwargs: Any) -> VectorEnv[Any, Any, Any]:
    """Builds the environment behind `gymnasium.make_vec("rlprompt.envs:rlprompt/TokenPrompt-v0", ...)`.

    Args:
        num_envs: prompts per step.
        action: "token", or "sequence" for whole prompts as actions.
        **kwargs: arguments of `TokenPromptVectorEnv`.
    """
    env = TokenPromptVectorEnv(num_envs, **kwargs)
    return SequenceActionVector(env) if is_sequence(action) else env


def is_sequence(action: str) -> bool:
    """Returns whether the action is the whole prompt; raises ConfigError for an unknown form."""
    if action not in ACTIONS:
        raise ConfigError(f"action must be one of {', '.join(ACTIONS)}, got '{action}'")
    return action == "sequence"


def _new_turn(env: Any) -> bool:
    """Whether the last token ended a turn and the next one has begun."""
    return bool(env.unwrapped.writing.position == 0)


def _whole_prompts(observations: Any, actions: Any) -> MultiDiscrete:
    tokens = observations.get("tokens") if isinstance(observations, Dict) else None
    if not isinstance(tokens, Box):
        raise ConfigError("SequenceAction wraps TokenPromptEnv or TokenPromptVectorEnv")
    return MultiDiscrete(np.full(len(tokens.low), int(actions.n), dtype=np.int64), seed=0)


def _checked(actions: Any, shape: tuple[int, ...]) -> IntArray:
    tokens = np.asarray(actions)
    if tokens.shape != shape:
        raise ConfigError(f"a whole-prompt action has shape {shape}, got {tokens.shape}")
    return tokens


def _without_mask(infos: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in infos.items() if name not in ("action_mask", "_action_mask")}
