"""`rlprompt/Stimulus-v0`: a policy reads one input and writes a hint for it; the user's text stays as it is."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from rlprompt.envs.contexts import MetaSettings
from rlprompt.envs.rewrite import MOST_TOKENS, rewriting
from rlprompt.envs.sequence_action import SequenceAction, SequenceActionVector, is_sequence
from rlprompt.envs.single import WritingEnv
from rlprompt.envs.vector import WritingVectorEnv
from rlprompt.envs.writing import PromptWriting
from rlprompt.errors import ConfigError
from rlprompt.types import IntArray


class StimulusEnv(WritingEnv):
    """Writes a hint for one example's input.

    As `RewriteEnv` at instance level, but the user's text always reaches the target byte for byte: the hint stands in
    the template's `{prompt}` beside `{input}`, or is appended or prepended to the input.

    Rewards: with `hint_reward` above 0, the step that completes a keyword of the reference, for the first time in the
    episode, brings that much more (`rlprompt.envs.keywords`; nothing is ever subtracted). It is added to the training
    reward after the stabilisers. A whole-prompt action gets the sum, and info `token_rewards` has the parts.

    Args:
        scorer: see `RewriteEnv`.
        tokenizer: see there.
        meta_prompt: see there; needs the slot {input}.
        draft: see there; only for a meta-prompt with the slot {draft}.
        chat: see there.
        rewrites_per_input: hints for each drawn input.
        samples: see there.
        turns: see there.
        hint_reward: weight of each keyword, at least 0.
        max_context: see there.
        prompt_length: T, the most tokens of a hint.
        mask: see there.
        seed: see there.
        step_reward: see there.
        action_mask_in_info: see there.

    Raises:
        ConfigError: as `RewriteEnv`; or the target would not read the user's text.
    """

    def __init__(
        self,
        scorer: dict[str, Any],
        tokenizer: str,
        meta_prompt: str = "hint",
        draft: str = "",
        chat: bool = True,
        rewrites_per_input: int = 1,
        samples: int = 1,
        turns: int = 1,
        hint_reward: float = 0.0,
        max_context: int | None = None,
        prompt_length: int = MOST_TOKENS,
        mask: dict[str, Any] | None = None,
        seed: int = 0,
        step_reward: str = "terminal",
        action_mask_in_info: bool = True,
    ) -> None:
        meta = MetaSettings(
            meta_prompt, draft, "instance", chat, rewrites_per_input, samples, turns, hint_reward, max_context
        )
        writing = _hinting(
            meta,
            batch=1,
            scorer=scorer,
            tokenizer=tokenizer,
            prompt_length=prompt_length,
            mask=mask,
            step_reward=step_reward,
        )
        super().__init__(writing, seed=seed, action_mask_in_info=action_mask_in_info)


class StimulusVectorEnv(WritingVectorEnv):
    """Writes `num_envs` hints in lockstep and scores all of them in one call; see `RewriteVectorEnv`.

    Args:
        num_envs: hints per step.
        first_episode: number of sub-env 0's episode.
        round_size: hints of an iteration over all workers; `first_episode + num_envs` by default.
        scorer: and all that follow: as in `StimulusEnv`.
        tokenizer: see there.
        meta_prompt: see there.
        draft: see there.
        chat: see there.
        rewrites_per_input: see there.
        samples: see there.
        turns: see there.
        hint_reward: see there.
        max_context: see there.
        prompt_length: see there.
        mask: see there.
        seed: see there.
        step_reward: see there.
        action_mask_in_info: see there.
    """

    def __init__(
        self,
        num_envs: int,
        scorer: dict[str, Any],
        tokenizer: str,
        meta_prompt: str = "hint",
        draft: str = "",
        chat: bool = True,
        rewrites_per_input: int = 1,
        samples: int = 1,
        turns: int = 1,
        hint_reward: float = 0.0,
        max_context: int | None = None,
        prompt_length: int = MOST_TOKENS,
        mask: dict[str, Any] | None = None,
        seed: int = 0,
        step_reward: str = "terminal",
        action_mask_in_info: bool = True,
        first_episode: int = 0,
        round_size: int | None = None,
    ) -> None:
        meta = MetaSettings(
            meta_prompt, draft, "instance", chat, rewrites_per_input, samples, turns, hint_reward, max_context
        )
        writing = _hinting(
            meta,
            batch=num_envs,
            scorer=scorer,
            tokenizer=tokenizer,
            prompt_length=prompt_length,
            mask=mask,
            step_reward=step_reward,
            round_size=first_episode + num_envs if round_size is None else round_size,
        )
        super().__init__(writing, first_episode=first_episode, seed=seed, action_mask_in_info=action_mask_in_info)


def _hinting(meta: MetaSettings, **arguments: Any) -> PromptWriting:
    writing = rewriting(meta, examples_per_step=None, **arguments)
    scorer = writing.scorer
    if scorer.compose == "replace" and "input" not in scorer.task.template.fields:
        raise ConfigError(
            f"the template of task '{scorer.task.name}' has no {{input}}, so a hint would take the place of the user's "
            "text; add it to task.template, or set env.compose=append"
        )
    return writing


def make_env(action: str = "token", **kwargs: Any) -> gymnasium.Env[dict[str, IntArray], Any]:
    """Builds what `gymnasium.make("rlprompt.envs:rlprompt/Stimulus-v0", ...)` returns.

    Args:
        action: "token", or "sequence" for the whole hint as one action.
        **kwargs: arguments of `StimulusEnv`.
    """
    env = StimulusEnv(**kwargs)
    return SequenceAction(env) if is_sequence(action) else env


def make_vector_env(num_envs: int, action: str = "token", **kwargs: Any) -> VectorEnv[Any, Any, Any]:
    """Builds what `gymnasium.make_vec("rlprompt.envs:rlprompt/Stimulus-v0", ...)` returns.

    Args:
        num_envs: hints per step.
        action: "token", or "sequence" for whole hints as actions.
        **kwargs: arguments of `StimulusVectorEnv`.
    """
    env = StimulusVectorEnv(num_envs, **kwargs)
    return SequenceActionVector(env) if is_sequence(action) else env
