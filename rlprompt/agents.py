"""Agents that compose one prompt in turns: their section of the configuration, and what its defaults come to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, field_validator

from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.registry import names, resolve
from rlprompt.roles import Role
from rlprompt.sections import Section

SHARED, CRITIC = "shared", "critic"
RESERVED = (SHARED, CRITIC)
"""Names of a team's parts that are no single agent."""


class AgentConfig(Section):
    """One of the agents that take turns; their order is that of the turns."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    """What it is called in observations, records and by RLlib; no two agents share a name."""
    role: str | None = None
    """A registered role (`rlprompt list roles`): it brings a meta-prompt and a separator."""
    length: int = Field(default=5, ge=1)
    """Tokens of its segment; with another end than "length" the most tokens."""
    ends: Literal["length", "eos", "separator"] | None = None
    """What ends the segment early: nothing, EOS, or the one token of its separator. None: EOS where there is a
    meta-prompt, else nothing."""
    separator: str | None = None
    """The text between this segment and the next. None: that of the role, without one nothing: the tokens go on."""
    meta_prompt: str | None = None
    """A registered meta-prompt or a text with slots. None: that of the role; without one the agent reads
    `policy.context` and what was composed before it."""
    model: str | None = None
    """Its language model, and so its tokenizer. None: `policy.model`."""
    kind: str | None = None
    """Its kind of policy. None: `policy.kind`."""
    kwargs: dict[str, Any] | None = None
    """Arguments of its kind. None: `policy.kwargs`, or nothing where the kind is another one."""
    start: str | None = None
    """A folder whose trained policy it starts from: of a run, or of one agent of another team (best/members/NAME)."""
    frozen: bool = False
    """Whether it only writes and never learns."""

    @field_validator("role")
    @classmethod
    def _is_known(cls, role: str | None) -> str | None:
        if role is not None and role not in names("roles"):
            raise UnknownNameError("role", role, names("roles"))
        return role


class TeamConfig(Section):
    """How agents that compose one prompt are trained together."""

    weights: Literal["own", "shared", "embedding"] = "own"
    """A policy for each agent; one that all of them are; or one with a learnt embedding of the agent's place, which is
    added to what its head reads (`lm-adaptor`)."""
    critic: Literal["central", "own"] = "central"
    """With algorithm.baseline=critic: one critic that reads the input, the whole prefix and whose turn it is, with
    advantages along the game; or the value head of each agent, whose trajectory ends with its own last token."""
    critic_lr: float = Field(default=1e-3, gt=0)
    """Adam's learning rate of the central critic."""
    critic_hidden: int = Field(default=128, ge=1)
    """Width of the central critic's hidden layer."""
    take_turns: int | None = Field(default=None, ge=1)
    """Only one agent learns at a time, each for so many iterations, in the order of their turns; None: all learn."""


def check_names(agents: Sequence[AgentConfig]) -> None:
    """Raises ConfigError for no agents, or two of one name."""
    if not agents:
        raise ConfigError("env.kind is 'multi', but env.agents is empty; list the agents in the order of their turns")
    seen: set[str] = set()
    for agent in agents:
        if agent.name in RESERVED:
            raise ConfigError(f"an agent cannot be called '{agent.name}', a name of the team's own; take another")
        if agent.name in seen:
            raise ConfigError(f"two of env.agents are called '{agent.name}'; give each its own name")
        seen.add(agent.name)


def settled(agents: Sequence[AgentConfig], *, per_input: bool, model: str) -> tuple[AgentConfig, ...]:
    """Returns the agents with every default filled in; only `meta_prompt` and `role` can still be None.

    Args:
        agents: as configured; settled ones come back as they are.
        per_input: whether the prompt is written for one example's input.
        model: `policy.model`.

    Raises:
        ConfigError: no agents, two of one name, an agent that would not see the input, or an end that cannot be.
    """
    check_names(agents)
    found = tuple(_settled(agent, per_input=per_input, model=model) for agent in agents)
    for agent, following in pairwise(found):
        if agent.model != following.model and not agent.separator:
            raise ConfigError(
                f"agents '{agent.name}' and '{following.name}' have different tokenizers, so text has to stand between "
                f"their segments; give '{agent.name}' a separator, for example ' '"
            )
    return found


def _settled(agent: AgentConfig, *, per_input: bool, model: str) -> AgentConfig:
    role: Role | None = None if agent.role is None else resolve("roles", agent.role)
    meta_prompt = agent.meta_prompt
    if meta_prompt is None and role is not None:
        meta_prompt = role.meta_prompt(per_input=per_input)
    if meta_prompt is None and per_input:
        raise ConfigError(
            f"agent '{agent.name}' has neither role nor meta_prompt, so it would not see the input that the prompt is "
            "for; give it one, or set env.level=task"
        )
    separator = agent.separator
    if separator is None:
        separator = "" if role is None else role.separator
    ends = agent.ends or ("length" if meta_prompt is None else "eos")
    if ends == "separator" and not separator:
        raise ConfigError(f"agent '{agent.name}' ends with its separator, but has none; set one, or ends: eos")
    update = {"meta_prompt": meta_prompt, "separator": separator, "ends": ends, "model": agent.model or model}
    return agent.model_copy(update=update)
