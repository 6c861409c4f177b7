"""A team: the policies of agents that compose one prompt in turns, as one thing that is trained, saved and loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from rlprompt.agents import CRITIC, SHARED, AgentConfig, TeamConfig, settled
from rlprompt.config import PolicyConfig, RunConfig
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.policies.base import FeaturePolicy, PromptPolicy, check_fits, copies
from rlprompt.policies.critic import PrefixCritic
from rlprompt.policies.roles import RolePolicy
from rlprompt.policies.saving import load_policy, policy_folder, read_team, save_policy, save_team
from rlprompt.seeding import integer_seed
from rlprompt.types import Json


class PromptTeam(torch.nn.Module):
    """Policies by the name of the member, and which member each agent is.

    Where weights are shared there is one member, `shared`; else each agent is one, by its own name. The critic is part
    of the team because training goes on with it; saved teams do not have it.

    Args:
        agents: settled, in the order of their turns.
        members: policies by name.
        weights: "own", "shared" or "embedding".
        critic: the central critic, where there is one.
    """

    kind = "team"

    def __init__(
        self,
        agents: Sequence[AgentConfig],
        members: Mapping[str, PromptPolicy],
        *,
        weights: str,
        critic: PrefixCritic | None = None,
    ) -> None:
        super().__init__()
        self.agents = tuple(agents)
        self.weights = weights
        self.members = torch.nn.ModuleDict(dict(members))
        self.critic = critic

    def member_name(self, place: int) -> str:
        """Returns the name of the member that an agent is."""
        return self.agents[place].name if self.weights == "own" else SHARED

    def policy(self, place: int) -> PromptPolicy:
        """Returns the policy of an agent; with role embeddings the shared one in the agent's role."""
        member = self.member(self.member_name(place))
        return member.at(place) if isinstance(member, RolePolicy) else member

    def member(self, name: str) -> PromptPolicy:
        """Returns a member."""
        return cast(PromptPolicy, self.members[name])

    def names(self) -> Iterator[str]:
        """The names of the members, in the order of their first turns."""
        return iter(dict.fromkeys(self.member_name(place) for place in range(len(self.agents))))

    @property
    def policies(self) -> list[PromptPolicy]:
        """The policy of each agent."""
        return [self.policy(place) for place in range(len(self.agents))]

    @property
    def tokenizer(self) -> Any:
        """The first agent's."""
        return self.policy(0).tokenizer

    @property
    def device(self) -> torch.device:
        """Where the first agent is; `to` moves all of them."""
        return self.policy(0).device

    def trainable_state(self) -> dict[str, Tensor]:
        """Returns copies of all tensors that training changes, by member and name, on the CPU."""
        state = {
            f"{name}/{key}": value
            for name in self.names()
            for key, value in self.member(name).trainable_state().items()
        }
        if self.critic is not None:
            state |= {f"{CRITIC}/{key}": value for key, value in copies(self.critic.state_dict()).items()}
        return state

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Restores what `trainable_state` returned.

        Raises:
            CheckpointError: names, shapes or number types differ.
        """
        check_fits(self.trainable_state(), state)
        for name in self.names():
            self.member(name).load_trainable_state(_part(state, f"{name}/"))
        if self.critic is not None:
            self.critic.load_state_dict(_part(state, f"{CRITIC}/"))

    def save(self, folder: str | Path, extra: Json | None = None) -> None:
        """Writes the members into `members/NAME` and `policy.json`, with the agents, into the folder."""
        root = Path(folder)
        for name in self.names():
            save_policy(self.member(name), root / "members" / name)
        save_team(root, [_named(agent) for agent in self.agents], weights=self.weights, extra=extra)


def build_team(
    config: PolicyConfig,
    agents: Sequence[AgentConfig],
    team: TeamConfig,
    *,
    seed: int,
    with_critic: bool = False,
    allow_modules: tuple[str, ...] = (),
    search_path: Path | None = None,
) -> PromptTeam:
    """Builds the untrained policies of a configuration, or those that agents start from.

    The first agent's starting weights are those of a policy that writes alone, with the same seed.

    Args:
        config: the section `policy`; agents may have a kind, arguments and a model of their own.
        agents: settled.
        team: which weights they have; the critic's size.
        seed: the run's seed.
        with_critic: whether there is a central critic.
        allow_modules: as of `rlprompt.policies.build_policy`.
        search_path: as of `rlprompt.policies.build_policy`.

    Raises:
        ConfigError: agents of different models or starts would share weights, or a kind has no role embedding; and
            what `build_policy` raises.
        CheckpointError: the policy that an agent starts from does not fit.
    """
    if team.weights != "own":
        _check_alike(config, agents, team.weights)
    places = range(len(agents)) if team.weights == "own" else [0]
    code: dict[str, Any] = {"allow_modules": allow_modules, "search_path": search_path}
    members = {
        agents[place].name if team.weights == "own" else SHARED: build_member(
            config, agents, team, place, seed=seed, **code
        )
        for place in places
    }
    critic = None
    if with_critic:
        critic = PrefixCritic(
            vocabulary_size=max(member.vocabulary_size for member in members.values()),
            length=sum(agent.length for agent in agents),
            agents=len(agents),
            hidden=team.critic_hidden,
            seed=seed,
        )
    return PromptTeam(agents, members, weights=team.weights, critic=critic)


def configured_team(
    config: RunConfig, *, allow_modules: tuple[str, ...] = (), search_path: Path | None = None
) -> PromptTeam:
    """Builds the team of a run; arguments and errors as of `build_team`."""
    env = config.env
    agents = settled(env.agents, per_input=env.per_input, model=config.policy.model)
    return build_team(
        config.policy,
        agents,
        config.team,
        seed=config.seed,
        with_critic=config.algorithm.baseline == "critic" and config.team.critic == "central",
        allow_modules=allow_modules,
        search_path=search_path,
    )


def build_member(
    config: PolicyConfig,
    agents: Sequence[AgentConfig],
    team: TeamConfig,
    place: int,
    *,
    seed: int,
    allow_modules: tuple[str, ...] = (),
    search_path: Path | None = None,
) -> PromptPolicy:
    """Builds the policy of one agent, or of all where they share it; arguments as of `build_team`.

    Args:
        config: the section `policy`.
        agents: settled.
        team: which weights they have.
        place: of the agent; of the first one where they share.
        seed: the run's seed.
        allow_modules: as of `build_team`.
        search_path: as of `build_team`.
    """
    from rlprompt.policies import build_policy

    agent = agents[place]
    policy = build_policy(
        _policy_config(config, agent),
        prompt_length=agent.length if team.weights == "own" else max(one.length for one in agents),
        seed=seed if place == 0 else integer_seed(seed, "agent", place),
        allow_modules=allow_modules,
        search_path=search_path,
    )
    if agent.start is not None:
        policy = _started(policy, agent)
    return policy if team.weights != "embedding" else _with_roles(policy, len(agents))


def load_team(path: str | Path, *, model: str | None = None) -> PromptTeam:
    """Loads a saved team, on the CPU and in evaluation mode.

    Args:
        path: an exported folder, or a run folder (its best team).
        model: the language model of all agents, where it is not found under the saved name.

    Raises:
        ConfigError: nothing is saved there, or a policy that writes alone.
        CheckpointError: a file is truncated or altered.
        ModelNotFoundError: a model is not on this machine.
    """
    folder = policy_folder(Path(path))
    agents, weights = read_team(folder)
    names = [agent.name for agent in agents] if weights == "own" else [SHARED]
    members = {name: load_policy(folder / "members" / name, model=model) for name in names}
    team = PromptTeam(agents, members, weights=weights)
    team.eval()
    return team


def _policy_config(config: PolicyConfig, agent: AgentConfig) -> PolicyConfig:
    kind = agent.kind or config.kind
    kwargs = agent.kwargs if agent.kwargs is not None else config.kwargs if kind == config.kind else {}
    revision = config.revision if agent.model in (None, config.model) else None
    update = {"kind": kind, "kwargs": kwargs, "model": agent.model or config.model, "revision": revision}
    return config.model_copy(update=update)


def _check_alike(config: PolicyConfig, agents: Sequence[AgentConfig], weights: str) -> None:
    first = agents[0]
    for agent in agents[1:]:
        if _policy_config(config, agent) != _policy_config(config, first):
            raise ConfigError(
                f"team.weights is '{weights}', but agents '{first.name}' and '{agent.name}' have different models, "
                "kinds or kwargs; give all agents the same, or set team.weights=own"
            )
        if (agent.start, agent.frozen) != (first.start, first.frozen):
            raise ConfigError(
                f"team.weights is '{weights}', but agents '{first.name}' and '{agent.name}' differ in start or frozen; "
                "give all agents the same, or set team.weights=own"
            )


def _started(policy: PromptPolicy, agent: AgentConfig) -> PromptPolicy:
    loaded = load_policy(str(agent.start))
    try:
        policy.load_trainable_state(loaded.trainable_state())
    except CheckpointError as error:
        raise CheckpointError(f"agent '{agent.name}' cannot start from {agent.start}: {error}") from error
    policy.freeze_reference()
    return policy


def _with_roles(policy: PromptPolicy, roles: int) -> RolePolicy:
    if not isinstance(policy, FeaturePolicy):
        raise ConfigError(
            f"team.weights is 'embedding', which needs policy.kind=lm-adaptor, got '{policy.kind}'; agents of it are "
            "told apart by their meta-prompts: use team.weights=shared"
        )
    return RolePolicy(policy, roles)


def _named(agent: AgentConfig) -> AgentConfig:
    """An agent as it is saved: no paths, and no role, whose meta-prompt is saved as text."""
    from rlprompt.models import resolve_model

    found = resolve_model(str(agent.model))
    name = Path(found.path).name if found.source == "folder" else found.name
    return agent.model_copy(update={"start": None, "model": name, "role": None})


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
