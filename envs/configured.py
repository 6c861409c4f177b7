"""From a run's configuration to its environment: the id and the arguments, as every engine needs them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rlprompt.agents import settled
from rlprompt.config import RunConfig
from rlprompt.envs.contexts import MetaSettings
from rlprompt.errors import ConfigError
from rlprompt.types import Json

if TYPE_CHECKING:
    from rlprompt.envs.multi.game import Game

ENV_IDS = {
    "token-prompt": "rlprompt.envs:rlprompt/TokenPrompt-v0",
    "rewrite": "rlprompt.envs:rlprompt/Rewrite-v0",
    "stimulus": "rlprompt.envs:rlprompt/Stimulus-v0",
}


def configured_env(config: RunConfig, scorer_spec: Json) -> tuple[str, dict[str, Any]]:
    """Returns the id and the JSON arguments for `gymnasium.make` and (with `num_envs`) `gymnasium.make_vec`.

    Args:
        config: the run's configuration; `env.num_envs` is left to the caller.
        scorer_spec: from `rlprompt.scoring.scorer_spec`, or the `spec` of a scorer of this process.

    Raises:
        ConfigError: the environment has several agents, which Gymnasium has no form for.
    """
    env = config.env
    if env.kind == "multi":
        raise ConfigError("env.kind is 'multi', a game of several agents; build it with rlprompt.envs.configured_multi")
    arguments: dict[str, Any] = {
        "scorer": scorer_spec,
        "tokenizer": config.policy.model,
        "prompt_length": env.prompt_length,
        "mask": env.mask.model_dump(mode="json"),
        "seed": config.seed,
        "step_reward": env.step_reward,
        "action": env.action,
        "action_mask_in_info": False,  # modules see observations only; 49 KB a step saved
    }
    if env.kind == "token-prompt":
        arguments |= {"eos": env.eos, "context": config.policy.context}
    else:
        arguments |= asdict(MetaSettings.from_config(env))
        del arguments["composed"]  # nobody writes before a policy that writes alone
    if env.kind != "rewrite":
        arguments.pop("level", None)
        arguments.pop("dialogue", None)
    if env.kind != "stimulus":
        arguments.pop("hint_reward", None)
        arguments["examples_per_step"] = env.examples_per_step
    return ENV_IDS[env.kind], arguments


def configured_multi(config: RunConfig, scorer_spec: Json) -> dict[str, Any]:
    """Returns the JSON arguments of `rlprompt.envs.multi.env` and `parallel_env`; with `num_envs`, of RLlib's form.

    Args:
        config: the run's configuration; `env.num_envs` is left to the caller.
        scorer_spec: as of `configured_env`.

    Raises:
        ConfigError: the environment has one agent only, or the agents do not fit.
    """
    env = config.env
    if env.kind != "multi":
        raise ConfigError(f"env.kind is '{env.kind}', which has one agent; build it with rlprompt.envs.configured_env")
    agents = settled(env.agents, per_input=env.per_input, model=config.policy.model)
    return {
        "scorer": scorer_spec,
        "agents": [agent.model_dump(mode="json") for agent in agents],
        "tokenizer": config.policy.model,
        "mask": env.mask.model_dump(mode="json"),
        "context": config.policy.context,
        "examples_per_step": env.examples_per_step,
        "step_reward": env.step_reward,
        "draft": env.draft,
        "level": env.level,
        "chat": env.chat,
        "rewrites_per_input": env.rewrites_per_input,
        "samples": env.samples,
        "action": env.action,
        "seed": config.seed,
        "action_mask_in_info": False,
    }


def configured_game(config: RunConfig, scorer_spec: Json, *, batch: int | None = None) -> Game:
    """Returns the game of a run without any library's form around it, for B copies; `env.num_envs` by default.

    Args:
        config: the run's configuration.
        scorer_spec: as of `configured_env`.
        batch: copies B.

    Raises:
        ConfigError: agents, masks, meta-prompts or rewards do not fit together.
    """
    from rlprompt.envs.multi.game import Game

    rules = configured_multi(config, scorer_spec)
    for name in ("action", "seed", "action_mask_in_info"):
        del rules[name]
    return Game(batch=config.env.num_envs if batch is None else batch, round_size=config.env.num_envs, **rules)
