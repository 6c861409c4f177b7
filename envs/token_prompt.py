"""`rlprompt/TokenPrompt-v0` as a plain Gymnasium environment: one prompt, one token a step."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np

from rlprompt.envs.writing import PromptWriting, iteration_from
from rlprompt.types import IntArray


class TokenPromptEnv(gymnasium.Env[dict[str, IntArray], Any]):
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

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

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
        self.writing = PromptWriting(
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
        self.action_mask_in_info = action_mask_in_info
        self.observation_space = self.writing.observation_space()
        self.action_space = gymnasium.spaces.Discrete(self.writing.vocabulary_size, seed=seed)
        self._next_iteration = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, IntArray], dict[str, Any]]:
        """Begins an empty prompt; see the class for `seed` and `options`."""
        super().reset(seed=seed)
        chosen = iteration_from(options, ("iteration", "episode"))
        if seed is not None:
            self._next_iteration = 0
        iteration = int(chosen.get("iteration", self._next_iteration))
        self._next_iteration = iteration + 1
        self.writing.start(iteration, np.array([chosen.get("episode", 0)]))
        return self._observation(), self._info(masked=False)

    def step(self, action: Any) -> tuple[dict[str, IntArray], float, bool, bool, dict[str, Any]]:
        """Writes one token."""
        written = self.writing.write(np.asarray(action).reshape(-1))
        info = self._info(masked=bool(written.masked[0]))
        if written.finals is not None:
            info |= written.finals[0]
        return (
            self._observation(),
            float(written.rewards[0]),
            bool(written.terminated[0]),
            bool(written.truncated[0]),
            info,
        )

    def _observation(self) -> dict[str, IntArray]:
        return {name: values[0] for name, values in self.writing.observations().items()}

    def _info(self, *, masked: bool) -> dict[str, Any]:
        info: dict[str, Any] = {"masked_action": masked}
        if self.action_mask_in_info:
            info["action_mask"] = self.writing.allowed[0].astype(np.int8)
        return info
