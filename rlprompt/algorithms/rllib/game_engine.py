"""A game of several agents in RLlib: one module for each member of the team, and one for its central critic.

The environment plays all copies in lockstep, so each environment runner holds one instance of it, whose agents are
those of all copies.
"""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rlprompt.agents import CRITIC
from rlprompt.algorithms.learner_processes import check_learners
from rlprompt.algorithms.rllib.critic_module import CriticModule
from rlprompt.algorithms.rllib.engine import (
    Engine,
    PromptAlgorithmConfig,
    check_settings,
    episodes_each,
    with_learner,
)
from rlprompt.algorithms.rllib.game_batches import GameBatch
from rlprompt.algorithms.rllib.module import PromptModule
from rlprompt.config import RunConfig
from rlprompt.envs.configured import configured_multi
from rlprompt.envs.multi.rllib import MultiPrompterRLlib, agent_name
from rlprompt.policies import PromptTeam
from rlprompt.policies.base import copies
from rlprompt.types import Json, RunContext


def critic_of(config: RunConfig) -> str:
    """Returns whose values are the baseline: "central", "own" or "none"."""
    return config.team.critic if config.algorithm.baseline == "critic" else "none"


def learning_members(config: RunConfig, team: PromptTeam, iteration: int) -> set[str]:
    """Returns the members that learn in an iteration: those that are not frozen, or of these the one whose turn it is.

    Args:
        config: of the run.
        team: its agents.
        iteration: from 0.
    """
    free = list(dict.fromkeys(team.member_name(place) for place, agent in enumerate(team.agents) if not agent.frozen))
    each = config.team.take_turns
    return set(free) if each is None else {free[iteration // each % len(free)]}


def game_config(config: RunConfig, scorer_spec: Json, team: PromptTeam) -> PromptAlgorithmConfig:
    """Translates the configuration of a run with several agents into RLlib's."""
    agents = [(agent.name, team.member_name(place)) for place, agent in enumerate(team.agents)]
    owners = dict(agents)
    members = list(team.names())
    specs = _specs(config, scorer_spec, team)
    learners = {name for name in specs if name == CRITIC or _ever_learns(team, name)}
    built: PromptAlgorithmConfig = (
        PromptAlgorithmConfig()
        .environment(
            MultiPrompterRLlib,
            env_config={
                **configured_multi(config, scorer_spec),
                "num_envs": episodes_each(config),
                "round_size": config.env.num_envs,
                "same_spaces": len(members) < len(agents),
            },
            disable_env_checking=True,
        )
        .env_runners(num_envs_per_env_runner=1, batch_mode="complete_episodes")
        .multi_agent(
            policies=set(members),
            policy_mapping_fn=lambda one, episode, **_: owners[agent_name(one)],
            policies_to_train=lambda module_id, batch: module_id in learners,
        )
        .rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=specs))
    )
    shared = config.env.step_reward == "terminal"
    return with_learner(built, config, GameBatch, agents=agents, critic=critic_of(config), shared=shared)


def _specs(config: RunConfig, scorer_spec: Json, team: PromptTeam) -> dict[str, RLModuleSpec]:
    """The modules of the members, and of the central critic where there is one."""
    shared = {
        "policy": config.policy.model_dump(mode="json"),
        "env": config.env.model_dump(mode="json"),
        "algorithm": config.algorithm.model_dump(mode="json"),
        "team": config.team.model_dump(mode="json"),
        "seed": config.seed,
        "code": scorer_spec.get("code", {}),
    }
    places: dict[str, list[int]] = {}
    for place in range(len(team.agents)):
        places.setdefault(team.member_name(place), []).append(place)
    specs = {
        name: RLModuleSpec(module_class=PromptModule, model_config={**shared, "places": own})
        for name, own in places.items()
    }
    if team.critic is not None:
        specs[CRITIC] = _critic_spec(config, team)
    return specs


def _critic_spec(config: RunConfig, team: PromptTeam) -> RLModuleSpec:
    return RLModuleSpec(
        module_class=CriticModule,
        learner_only=True,
        observation_space=gymnasium.spaces.Box(-1, 1, (1,), np.float32),  # RLlib wants one; the critic reads columns
        action_space=gymnasium.spaces.Discrete(1),
        model_config={
            "widths": [agent.length for agent in team.agents],
            "vocabulary_size": max(team.member(name).vocabulary_size for name in team.names()),
            "hidden": config.team.critic_hidden,
            "seed": config.seed,
        },
    )


def _ever_learns(team: PromptTeam, name: str) -> bool:
    return any(team.member_name(place) == name and not agent.frozen for place, agent in enumerate(team.agents))


class GameEngine(Engine):
    """An RLlib algorithm that trains the agents of a game."""

    def __init__(self, run: RunContext) -> None:
        self.team: PromptTeam = run.policy
        super().__init__(run)

    def check(self) -> None:
        """Checks every member."""
        for name in self.team.names():
            check_settings(self.run.config, self.team.member(name), value_head=critic_of(self.run.config) == "own")
        check_learners(self.run.config, [self.team.member(name) for name in self.team.names()])

    def rllib_config(self, scorer_spec: Json) -> PromptAlgorithmConfig:
        """Returns RLlib's configuration of the run."""
        # Gymnasium warns that RLlib registers its vector environment for several agents once more.
        warnings.filterwarnings("ignore", message=".*Overriding environment rllib-multi-agent-env")
        return game_config(self.run.config, scorer_spec, self.team)

    def start(self) -> None:
        """Hands all members and the critic to the learner."""
        for name in self.team.names():
            self._learner.start_from(self.team.member(name), name)
        if self.team.critic is not None:
            self._critic.load_state_dict(self.team.critic.state_dict())

    def prepare(self, iteration: int) -> None:
        """Says who learns."""
        learning = learning_members(self.run.config, self.team, iteration)
        for name, module in self._learner.prompt_modules.items():
            module.learns = name in learning

    def state(self) -> dict[str, Any]:
        """Returns what `restore` needs."""
        state: dict[str, Any] = {"members": {name: self._learner.prompt_state(name) for name in self.team.names()}}
        if self.team.critic is not None:
            state[CRITIC] = {
                "weights": copies(self._critic.state_dict()),
                "optimizer": self._learner.optimizer_state(CRITIC),
            }
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint's state."""
        for name, part in state["members"].items():
            self._learner.load_prompt_state(part, name)
        if self.team.critic is not None:
            self._critic.load_state_dict(state[CRITIC]["weights"])
            self._learner.load_optimizer_state(CRITIC, state[CRITIC]["optimizer"])
        self.update_policy()

    def update_policy(self) -> None:
        """Lets the run's team follow the learner."""
        for name, module in self._learner.prompt_modules.items():
            self.team.member(name).load_trainable_state(module.policy.trainable_state())
        if self.team.critic is not None:
            self.team.critic.load_state_dict(self._critic.state_dict())

    @property
    def _critic(self) -> Any:
        return self._learner.module[CRITIC].unwrapped().critic
