"""`rlprompt/TokenPrompt-v0` as a plain Gymnasium environment: one prompt, one token a step."""

from __future__ import annotations

from typing import Any

from rlprompt.envs.single import WritingEnv
from rlprompt.envs.writing import PromptWriting


class TokenPromptEnv(WritingEnv):
    """Writes one prompt token by token; the reward comes from the frozen target.

    ## Action space
    `Discrete(V)`: the id of the next token, V = len(tokenizer). A token outside the mask is accepted, written,
    and reported with `info["masked_action"] = True`: agents that explore blindly do not crash, and see what
    they did.

    ## Observation space
    `Dict` of int64 boxes: `tokens` (T,), the ids written so far, -1 where none; `context` (C,), what the policy
    reads; `key` (2,), iteration and episode: the key of every random draw that belongs to this episode.

    ## Rewards
    "terminal": 0.0 until the last step, which brings the prompt's training reward: the scorer's reward after its
    stabilisers, over this one prompt. "difference": every prefix is scored, and each step brings its raw reward
    less that of the prefix before (the empty prompt at first). A failed prompt brings 0.0, `info["valid"]` is
    False and `info["failure"]` says why: leave such an episode out of means, baselines and updates.

    ## Episode end
    Without `eos`, terminated after T tokens. With `eos`, terminated when EOS is written, truncated after T
    tokens without it; the reward of a truncated prompt is complete, so there is nothing to bootstrap.

    ## Info
    `masked_action`; `action_mask` (V,) int8, the tokens that may come next (all 0 after the end); with the last
    step `prompt`, `valid` and, where known, `raw_reward`, `accuracy`, `failure`.

    ## Reset
    Resets count as iterations from 0, and `reset(seed=...)` starts the count again; the episode is 0. The
    options `{"iteration": i, "episode": k}` set the key. The dynamics draw nothing at random: the seed only
    sets `np_random`.

    Args:
        scorer: JSON spec of the scorer, from `rlprompt.scoring.scorer_spec`.
        tokenizer: the tokenizer's name, for example "planted-50".
        prompt_length: T.
        eos: whether EOS may end a prompt.
        mask: fields of `rlprompt.config.MaskConfig`.
        context: what the policy reads; empty means the BOS (else EOS) token.
        examples_per_step: train examples per iteration; None takes all.
        seed: seed of `action_space.sample()`.
        step_reward: "terminal" or "difference".
        action_mask_in_info: whether infos hold `action_mask`.

    Raises:
        ConfigError: an argument does not fit.
    """

    def __init__(
        self,
        scorer: dict[str, Any],
        tokenizer: str,
        prompt_length: int = 5,
        eos: bool = False,
        mask: dict[str, Any] | None = None,
        context: str = "",
        examples_per_step: int | None = None,
        seed: int = 0,
        step_reward: str = "terminal",
        action_mask_in_info: bool = True,
    ) -> None:
        writing = PromptWriting(
            batch=1,
            scorer=scorer,
            tokenizer=tokenizer,
            prompt_length=prompt_length,
            eos=eos,
            mask=mask,
            context=context,
            examples_per_step=examples_per_step,
            step_reward=step_reward,
        )
        super().__init__(writing, seed=seed, action_mask_in_info=action_mask_in_info)
