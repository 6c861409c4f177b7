"""What a saved policy says about how its prompts are served: runs write it into `policy.json`, serving reads it.

It holds texts, numbers and names of our own, never a path or the name of code.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from rlprompt.agents import settled
from rlprompt.config import MaskConfig, RunConfig, Section, describe
from rlprompt.contexts import context_limit, feedback_room
from rlprompt.errors import ConfigError
from rlprompt.masks import without_files
from rlprompt.meta_prompts import load_meta_prompt
from rlprompt.segments import Composition
from rlprompt.types import Json


class Reading(Section):
    """What one agent of a team reads."""

    meta_prompt: str
    """With the slots {input} and, but for the first agent, {composed}."""
    max_context: int | None = Field(default=None, ge=1)
    """Most tokens that it reads before anything was composed; None is unlimited."""
    composed_room: int = Field(default=0, ge=0)
    """Most tokens of `{composed}`."""


class Served(Section):
    """How a text is rewritten."""

    mode: Literal["task", "instance", "stimulus"]
    """One fixed prompt for all texts, a prompt written for each text, or a hint written for each text."""
    template: str | list[dict[str, str]]
    """How prompt and text become what the target reads."""
    compose: Literal["replace", "append", "prepend", "demonstration"] = "replace"
    """How what is written becomes the template's `{prompt}`; see `rlprompt.pairs.compose_prompt`."""
    draft: str = ""
    meta_prompt: str | None = None
    """What the policy is told, with its slots; None where it reads nothing of the kind."""
    examples: str = ""
    """What stands in the meta-prompt's `{examples}`."""
    chat: bool = True
    """Whether the meta-prompt goes through the tokenizer's chat template."""
    mask: MaskConfig = MaskConfig()
    eos: bool = False
    """Whether EOS ends what is written."""
    max_context: int | None = Field(default=None, ge=1)
    """Most tokens that the policy reads; None is unlimited."""
    readings: list[Reading] | None = None
    """Where several agents write in turns: what each reads, in the place of `meta_prompt` and `max_context`."""
    prompt: str | None = None
    """The fixed prompt, chosen on dev; only in the mode "task"."""

    @field_validator("mask")
    @classmethod
    def _no_path(cls, mask: MaskConfig) -> MaskConfig:
        if isinstance(mask.candidates, str):
            raise ValueError("candidates must be a list of texts; a file that a policy names is never read")
        return mask

    @classmethod
    def from_run(cls, config: RunConfig, *, template: Any, examples: str = "") -> Served:
        """Takes the settings of a run; `prompt` is not known yet.

        Args:
            config: of the run.
            template: the source of the task's template.
            examples: what the meta-prompt's `{examples}` is filled with.

        Raises:
            ConfigError: the meta-prompt lacks a slot, or the mask's file cannot be read.
        """
        env = config.env
        read: dict[str, Any] = {}
        if env.kind == "multi":
            read = {"readings": _readings(config)} if env.per_input else {}
        elif env.kind != "token-prompt":
            limit = context_limit(config.policy.model, env.prompt_length) if env.per_input else None
            read = {
                "meta_prompt": load_meta_prompt(env.meta_prompt, per_input=env.per_input, turns=env.turns).text,
                "max_context": None if limit is None else max(limit - feedback_room(env.turns), 1),
            }
        return cls(
            mode="stimulus" if env.kind == "stimulus" else "instance" if env.per_input else "task",
            template=template if isinstance(template, str) else [dict(message) for message in template],
            compose=env.compose if env.per_input else "replace",
            draft=env.draft,
            examples=examples,
            chat=env.chat,
            mask=without_files(env.mask),
            eos=env.ends_with_eos,
            **read,
        )

    @classmethod
    def from_json(cls, values: Json, where: str) -> Served:
        """Reads the settings among the values of a `policy.json`.

        Args:
            values: what `rlprompt.policies.read_policy_json` returned.
            where: what errors call it.

        Raises:
            ConfigError: it says nothing about serving, or something that cannot be.
        """
        if "mode" not in values or "template" not in values:
            raise ConfigError(
                f"{where}: its policy.json does not say how prompts are served (no 'mode'); give a finished run or its "
                "best/ folder, or train again where an older version wrote it"
            )
        try:
            return cls.model_validate({name: values[name] for name in cls.model_fields if name in values})
        except ValidationError as error:
            raise ConfigError(f"{where}: policy.json: {describe(error, cls)}") from error


def _readings(config: RunConfig) -> list[Reading]:
    """What the agents of a run read, with rooms as in training."""
    from rlprompt.models import load_tokenizer

    agents = settled(config.env.agents, per_input=True, model=config.policy.model)
    composition = Composition(agents, [load_tokenizer(str(agent.model)) for agent in agents])
    found: list[Reading] = []
    for place, agent in enumerate(agents):
        meta = load_meta_prompt(str(agent.meta_prompt), per_input=True, composed=place > 0)
        limit, room = context_limit(str(agent.model), agent.length), composition.slot_room(place)
        kept = None if limit is None else max(limit - (room + 2 if room else 0), 1)
        found.append(Reading(meta_prompt=meta.text, max_context=kept, composed_room=room))
    return found
