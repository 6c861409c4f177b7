"""`rlprompt/Rewrite-v0`: a policy reads a meta-prompt and writes a whole prompt, for a task or for one input."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from rlprompt.envs.contexts import MetaSettings
from rlprompt.envs.sequence_action import SequenceAction, SequenceActionVector, is_sequence
from rlprompt.envs.single import WritingEnv
from rlprompt.envs.vector import WritingVectorEnv
from rlprompt.envs.writing import PromptWriting
from rlprompt.errors import ConfigError
from rlprompt.types import IntArray

MOST_TOKENS = 32
"""`prompt_length` of rewrites and hints where none is given."""


class RewriteEnv(WritingEnv):
    """Writes a prompt after a meta-prompt with a draft instruction; at instance level, with one example's input.

    Spaces, rewards, ends and infos are those of `TokenPromptEnv`, with these differences:

    - `context` (C,) holds the filled-in meta-prompt, -1 where it is shorter than the longest one.
    - The prompt ends with EOS, and has at most `prompt_length` tokens.
    - At instance level the prompt is scored on its own example only. What stands in the template's `{prompt}` is
      composed of the written text and the input as `env.compose` of the scorer's configuration says.
    - With `turns` above 1, a prompt whose answer was wrong is not the end: `tokens` is empty again, and `context`
      holds the target's answer in `{feedback}`. The reward is that of the last turn. Infos then hold `turn` and
      `waiting`: True for the rest of an episode that was right before the others; what it writes is ignored.

    An empty text is scored as the empty prompt. Special tokens are masked; a masked one that an agent writes all the
    same is part of the text, and the first EOS ends it. A text that is too long for the target fails with the kind
    "too-long", `info["valid"]` is False. An input that is too long for the policy is cut at its end for the policy;
    the target gets all of it.

    Args:
        scorer: JSON spec of the scorer, from `rlprompt.scoring.scorer_spec`.
        tokenizer: the policy's model name; its configuration says how much can be read.
        meta_prompt: a registered name (`rlprompt list meta-prompts`) or a text with slots.
        draft: the draft instruction.
        level: "task" or "instance".
        chat: whether the meta-prompt becomes a chat message, where the tokenizer has a chat template.
        rewrites_per_input: instance level: prompts for each drawn input; divides the number of prompts.
        samples: instance level: answers of the target per prompt; the reward is their mean.
        turns: most turns of an episode.
        dialogue: whether a scripted partner answers the target between the turns (tasks of dialogues); the reward is
            that of the last turn, and `{feedback}` has the last exchange and a critic's comment.
        max_context: most tokens that the policy reads; None takes all that its positions allow.
        prompt_length: T, the most tokens.
        mask: see `TokenPromptEnv`.
        examples_per_step: task level: train examples per iteration; None takes all.
        seed: seed of `action_space.sample()`.
        step_reward: "terminal" or "difference".
        action_mask_in_info: whether infos hold `action_mask`.

    Raises:
        ConfigError: an argument does not fit, a slot is missing or unknown, or the meta-prompt is too long.
    """

    def __init__(
        self,
        scorer: dict[str, Any],
        tokenizer: str,
        meta_prompt: str = "prewrite",
        draft: str = "",
        level: str = "task",
        chat: bool = True,
        rewrites_per_input: int = 1,
        samples: int = 1,
        turns: int = 1,
        dialogue: bool = False,
        max_context: int | None = None,
        prompt_length: int = MOST_TOKENS,
        mask: dict[str, Any] | None = None,
        examples_per_step: int | None = None,
        seed: int = 0,
        step_reward: str = "terminal",
        action_mask_in_info: bool = True,
    ) -> None:
        meta = MetaSettings(
            meta_prompt,
            draft,
            level,
            chat,
            rewrites_per_input,
            samples,
            turns,
            dialogue=dialogue,
            max_context=max_context,
        )
        writing = rewriting(
            meta,
            batch=1,
            scorer=scorer,
            tokenizer=tokenizer,
            prompt_length=prompt_length,
            mask=mask,
            examples_per_step=examples_per_step,
            step_reward=step_reward,
        )
        super().__init__(writing, seed=seed, action_mask_in_info=action_mask_in_info)


class RewriteVectorEnv(WritingVectorEnv):
    """Writes `num_envs` prompts in lockstep and scores all of them in one call.

    Sub-envs are as in `RewriteEnv`, lockstep and iterations as in `TokenPromptVectorEnv`. At instance level an
    iteration draws `round_size / rewrites_per_input` inputs, without one coming twice in an epoch; neighbouring
    sub-envs share an input. All sub-envs change turns together.

    Args:
        num_envs: prompts per step.
        first_episode: number of sub-env 0's episode.
        round_size: prompts of an iteration over all workers; `first_episode + num_envs` by default.
        scorer: and all that follow: as in `RewriteEnv`.
        tokenizer: see there.
        meta_prompt: see there.
        draft: see there.
        level: see there.
        chat: see there.
        rewrites_per_input: see there.
        samples: see there.
        turns: see there.
        dialogue: see there.
        max_context: see there.
        prompt_length: see there.
        mask: see there.
        examples_per_step: see there.
        seed: see there.
        step_reward: see there.
        action_mask_in_info: see there.
    """

    def __init__(
        self,
        num_envs: int,
        scorer: dict[str, Any],
        tokenizer: str,
        meta_prompt: str = "prewrite",
        draft: str = "",
        level: str = "task",
        chat: bool = True,
        rewrites_per_input: int = 1,
        samples: int = 1,
        turns: int = 1,
        dialogue: bool = False,
        max_context: int | None = None,
        prompt_length: int = MOST_TOKENS,
        mask: dict[str, Any] | None = None,
        examples_per_step: int | None = None,
        seed: int = 0,
        step_reward: str = "terminal",
        action_mask_in_info: bool = True,
        first_episode: int = 0,
        round_size: int | None = None,
    ) -> None:
        meta = MetaSettings(
            meta_prompt,
            draft,
            level,
            chat,
            rewrites_per_input,
            samples,
            turns,
            dialogue=dialogue,
            max_context=max_context,
        )
        writing = rewriting(
            meta,
            batch=num_envs,
            scorer=scorer,
            tokenizer=tokenizer,
            prompt_length=prompt_length,
            mask=mask,
            examples_per_step=examples_per_step,
            step_reward=step_reward,
            round_size=first_episode + num_envs if round_size is None else round_size,
        )
        super().__init__(writing, first_episode=first_episode, seed=seed, action_mask_in_info=action_mask_in_info)


def rewriting(meta: MetaSettings, **arguments: Any) -> PromptWriting:
    """Returns the rules of an environment whose prompts end with EOS and follow a meta-prompt.

    Raises:
        ConfigError: an argument does not fit, or the scorer composes with another draft.
    """
    writing = PromptWriting(eos=True, context="", meta=meta, **arguments)
    if writing.scorer.compose != "replace" and writing.scorer.draft != meta.draft:
        raise ConfigError(
            f"the scorer composes with the draft {writing.scorer.draft!r}, the environment has {meta.draft!r}; "
            "set env.draft once and take both from it"
        )
    return writing


def make_env(action: str = "token", **kwargs: Any) -> gymnasium.Env[dict[str, IntArray], Any]:
    """Builds what `gymnasium.make("rlprompt.envs:rlprompt/Rewrite-v0", ...)` returns.

    Args:
        action: "token", or "sequence" for the whole prompt as one action.
        **kwargs: arguments of `RewriteEnv`.
    """
    env = RewriteEnv(**kwargs)
    return SequenceAction(env) if is_sequence(action) else env


def make_vector_env(num_envs: int, action: str = "token", **kwargs: Any) -> VectorEnv[Any, Any, Any]:
    """Builds what `gymnasium.make_vec("rlprompt.envs:rlprompt/Rewrite-v0", ...)` returns.

    Args:
        num_envs: prompts per step.
        action: "token", or "sequence" for whole prompts as actions.
        **kwargs: arguments of `RewriteVectorEnv`.
    """
    env = RewriteVectorEnv(num_envs, **kwargs)
    return SequenceActionVector(env) if is_sequence(action) else env
