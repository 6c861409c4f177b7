"""The rules of `rlprompt/TokenPrompt-v0`, for B prompts that are written at the same time.

`TokenPromptEnv` plays them with B = 1, `TokenPromptVectorEnv` with B = num_envs. Shapes: T positions, C context
tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from pydantic import ValidationError

from rlprompt.config import MaskConfig, describe
from rlprompt.errors import ConfigError
from rlprompt.masks import NOT_WRITTEN, context_ids, decode, eos_token, static_mask, step_mask
from rlprompt.types import BoolArray, Failure, FloatArray, IntArray, Json, Scores

if TYPE_CHECKING:
    from rlprompt.scoring import Scorer

LARGEST_KEY = 2**31 - 1
"""Iteration and episode numbers stay below this."""


@dataclass(frozen=True)
class Written:
    """What one step brought to B prompts."""

    rewards: FloatArray
    """(B,)"""
    terminated: BoolArray
    truncated: BoolArray
    masked: BoolArray
    """True where the action was outside the mask."""
    finals: list[dict[str, Any]] | None
    """With the last step of the episodes: `prompt`, `valid`, and where known `raw_reward`, `accuracy`,
    `failure`."""


class PromptWriting:
    """Writes B prompts token by token and scores them in one call when all have ended.

    Args:
        batch: prompts B.
        scorer: JSON spec of the scorer (`rlprompt.scoring.scorer_spec`).
        tokenizer: name for `rlprompt.models.load_tokenizer`; its length is V.
        prompt_length: T; with `eos` the most tokens.
        eos: whether EOS ends a prompt early.
        mask: fields of `rlprompt.config.MaskConfig`.
        context: what the policy reads before it writes; empty means the BOS (else EOS) token.
        examples_per_step: train examples per iteration; None takes all.
        step_reward: "terminal" or "difference".

    Raises:
        ConfigError: an argument does not fit.
    """

    def __init__(
        self,
        *,
        batch: int,
        scorer: Mapping[str, Any],
        tokenizer: str,
        prompt_length: int,
        eos: bool,
        mask: Mapping[str, Any] | None,
        context: str,
        examples_per_step: int | None,
        step_reward: str,
    ) -> None:
        from rlprompt.models import load_tokenizer
        from rlprompt.scoring import shared_scorer

        for name, value in {"prompt_length": prompt_length, "num_envs": batch}.items():
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if step_reward not in ("terminal", "difference"):
            raise ConfigError(f"step_reward must be 'terminal' or 'difference', got '{step_reward}'")
        self.batch = batch
        self.length = prompt_length
        self.step_reward = step_reward
        self.examples_per_step = examples_per_step
        self.context = context
        self.scorer: Scorer = shared_scorer(scorer)
        self.tokenizer = load_tokenizer(tokenizer)
        self.vocabulary_size = len(self.tokenizer)
        self.eos_id = eos_token(self.tokenizer) if eos else None
        settings = _mask_config(mask)
        self.no_repeat = settings.no_repeat
        self.static_mask = static_mask(self.tokenizer, settings, eos=eos)
        words = int(self.static_mask.sum()) - int(eos)
        if self.no_repeat and words < prompt_length:
            raise ConfigError(f"env.mask.no_repeat leaves {words} tokens for {prompt_length} positions; allow more")
        self.context_ids: IntArray = np.array(context_ids(self.tokenizer, context), dtype=np.int64)
        self.last_scores: Scores | None = None
        self.last_training_rewards: FloatArray | None = None
        self.start(0, np.arange(batch))

    def observation_space(self) -> gymnasium.spaces.Dict:
        """Returns the space of one prompt's observation."""
        box, last = gymnasium.spaces.Box, self.vocabulary_size - 1
        return gymnasium.spaces.Dict(
            {
                "tokens": box(NOT_WRITTEN, last, (self.length,), np.int64),
                "context": box(NOT_WRITTEN, last, self.context_ids.shape, np.int64),
                "key": box(0, LARGEST_KEY, (2,), np.int64),
            }
        )

    def observations(self) -> dict[str, IntArray]:
        """Returns fresh arrays: `tokens` (B, T), `context` (B, C) and `key` (B, 2)."""
        return {
            "tokens": self.tokens.copy(),
            "context": np.repeat(self.context_ids[None], self.batch, axis=0),
            "key": np.stack([np.full(self.batch, self.iteration), self.episodes], axis=1).astype(np.int64),
        }

    def start(self, iteration: int, episodes: IntArray) -> None:
        """Begins B episodes.

        Args:
            iteration: chooses the minibatch of examples; first part of the observation's key.
            episodes: episode numbers (B,), the key's second part.
        """
        self.iteration = iteration
        self.episodes = np.asarray(episodes, dtype=np.int64)
        self.tokens: IntArray = np.full((self.batch, self.length), NOT_WRITTEN, dtype=np.int64)
        self.position = 0
        self.ended: BoolArray = np.zeros(self.batch, dtype=np.bool_)
        self.is_over = False
        self.allowed: BoolArray = self._allowed()
        self._failures: dict[int, Failure] = {}
        self._previous: FloatArray | None = None

    def write(self, actions: Any) -> Written:
        """Appends one token to each prompt; ended prompts wait whatever their action.

        Args:
            actions: token ids (B,), each in [0, V). A token outside the mask is written all the same and
                reported.

        Raises:
            ConfigError: an action of wrong shape or outside the vocabulary.
            gymnasium.error.ResetNeeded: the episodes have ended.
        """
        if self.is_over:
            raise gymnasium.error.ResetNeeded("the episode has ended; call reset() before step()")
        chosen = self._checked(actions)
        if self.step_reward == "difference" and self._previous is None:
            self._previous = self._score([""] * self.batch).mean_rewards
        rows = np.arange(self.batch)
        masked = ~self.allowed[rows, chosen] & ~self.ended
        if self.eos_id is not None:
            chosen = np.where(self.ended, self.eos_id, chosen)
            self.ended = self.ended | (chosen == self.eos_id)
        self.tokens[rows, self.position] = chosen
        self.position += 1
        at_limit = self.position == self.length
        self.is_over = at_limit or bool(self.ended.all())
        self.allowed = self._allowed()
        ends = np.full(self.batch, self.is_over)
        terminated = ends if self.eos_id is None else ends & self.ended
        rewards = np.zeros(self.batch)
        if self.step_reward == "difference":
            rewards = self._differences()
        elif self.is_over:
            rewards = self._training_rewards()
        return Written(
            rewards=rewards,
            terminated=terminated,
            truncated=ends & ~terminated,
            masked=masked,
            finals=self._finals() if self.is_over else None,
        )

    def prompts(self) -> list[str]:
        """Returns the texts written so far."""
        return [decode(self.tokenizer, row) for row in self.tokens.tolist()]

    def first_allowed(self) -> BoolArray:
        """Returns which tokens may begin a prompt, (B, V)."""
        return self._step_mask(0)

    def _allowed(self) -> BoolArray:
        """The mask of the next token; nothing once the episodes are over."""
        if self.is_over:
            return np.zeros((self.batch, self.vocabulary_size), dtype=np.bool_)
        return self._step_mask(self.position)

    def _step_mask(self, position: int) -> BoolArray:
        return step_mask(self.static_mask, self.tokens[:, :position], eos_id=self.eos_id, no_repeat=self.no_repeat)

    def _checked(self, actions: Any) -> IntArray:
        chosen = np.asarray(actions)
        if chosen.shape != (self.batch,) or not np.issubdtype(chosen.dtype, np.integer):
            raise ConfigError(f"actions must be {self.batch} token ids, got shape {chosen.shape} of {chosen.dtype}")
        if chosen.min() < 0 or chosen.max() >= self.vocabulary_size:
            raise ConfigError(
                f"actions must be token ids in [0, {self.vocabulary_size}), got {chosen.min()} to {chosen.max()}"
            )
        return chosen.astype(np.int64)

    def _score(self, prompts: list[str]) -> Scores:
        """Scores in one call and remembers scores and failures."""
        examples = self.scorer.minibatch(self.iteration, self.examples_per_step)
        scores = self.scorer.score(prompts, examples, contexts=[self.context] * self.batch)
        for row in np.flatnonzero(~scores.prompt_valid).tolist():
            self._failures.setdefault(row, _failure(scores, row))
        self.last_scores = scores
        return scores

    def _training_rewards(self) -> FloatArray:
        """Stabilised rewards (B,); a failed prompt gets 0.0, for want of a number that means nothing."""
        scores = self._score(self.prompts())
        self.last_training_rewards = self.scorer.stabilise(scores)
        return np.where(scores.prompt_valid, self.last_training_rewards, 0.0)

    def _differences(self) -> FloatArray:
        """Raw reward of each prefix less that of the one before; 0 where either failed: an invalid episode."""
        raw = self._score(self.prompts()).mean_rewards
        previous = self._previous if self._previous is not None else np.full(self.batch, np.nan)
        rewards = np.nan_to_num(raw - previous, nan=0.0)
        self._previous = np.where(np.isnan(raw), previous, raw)
        return rewards

    def _finals(self) -> list[dict[str, Any]]:
        scores = self.last_scores
        finals: list[dict[str, Any]] = []
        for row, prompt in enumerate(self.prompts()):
            final: dict[str, Any] = {"prompt": prompt, "valid": row not in self._failures}
            if scores is not None and scores.prompt_valid[row]:
                final["raw_reward"] = float(scores.mean_rewards[row])
            if scores is not None and not np.isnan(scores.accuracies[row]):
                final["accuracy"] = float(scores.accuracies[row])
            if row in self._failures:
                final["failure"] = self._failures[row]
            finals.append(final)
        return finals


def iteration_from(options: Json | None, known: tuple[str, ...]) -> Json:
    """Checks the options of `reset`: non-negative integers under known names.

    Raises:
        ConfigError: another name or value.
    """
    checked = dict(options or {})
    for name, value in checked.items():
        if name not in known:
            raise ConfigError(f"unknown reset option '{name}'; known: {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value <= LARGEST_KEY:
            raise ConfigError(f"reset option '{name}' must be an integer in [0, 2**31), got {value!r}")
    return checked


def _mask_config(mask: Mapping[str, Any] | None) -> MaskConfig:
    try:
        return MaskConfig.model_validate(dict(mask or {}))
    except ValidationError as error:
        raise ConfigError(f"mask: {describe(error, MaskConfig)}") from error


def _failure(scores: Scores, row: int) -> Failure:
    for prompt, _, failure in scores.failures:
        if prompt == row:
            return failure
    return Failure("reward", "empty", "every reward abstained on every example")
