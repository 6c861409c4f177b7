"""Prompt policies: the small trainable models that write prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlprompt.policies.base import FeaturePolicy, PromptPolicy, Writer
from rlprompt.policies.saving import load_policy, read_policy_json
from rlprompt.policies.team import PromptTeam, build_team, configured_team, load_team
from rlprompt.registry import resolve

if TYPE_CHECKING:
    from rlprompt.config import PolicyConfig

__all__ = [
    "FeaturePolicy",
    "PromptPolicy",
    "PromptTeam",
    "Writer",
    "build_policy",
    "build_team",
    "configured_team",
    "load_policy",
    "load_team",
    "read_policy_json",
]


def build_policy(
    config: PolicyConfig,
    *,
    prompt_length: int,
    seed: int,
    allow_modules: tuple[str, ...] = (),
    search_path: Path | None = None,
) -> PromptPolicy:
    """Builds the untrained policy of a configuration.

    Args:
        config: kind, frozen LM, context, device and the arguments of the kind.
        prompt_length: the most tokens that it writes.
        seed: the run's seed; the starting weights depend on it and on nothing else.
        allow_modules: modules that a kind of the form my_module:MyPolicy may come from.
        search_path: folder of the user's configuration, whose modules are allowed too.

    Raises:
        UnknownNameError: no such kind.
        ModelNotFoundError: the frozen LM cannot be found.
        ConfigError: an argument is unknown or out of range, or there is no such device.
    """
    kind = resolve("policies", config.kind, allow_modules=allow_modules, search_path=search_path)
    from rlprompt.models import pick_device

    where = pick_device(config.device)  # before the LM is loaded
    policy: PromptPolicy = kind(config, prompt_length=prompt_length, seed=seed)
    return policy if where.type == "cpu" else policy.to(where)
