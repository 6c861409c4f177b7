"""The rules of all prompt environments, for B prompts that are written at the same time.

The single environments play them with B = 1, the vector environments with B = num_envs. Shapes: T positions, C context
tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from pydantic import ValidationError

from rlprompt.config import MaskConfig, describe
from rlprompt.dialogues import METRIC
from rlprompt.envs.contexts import MetaContexts, MetaSettings, PlainContext, context_limit, reference_text
from rlprompt.envs.keywords import KeywordReward
from rlprompt.envs.turns import DialogueTurns, Turns
from rlprompt.errors import ConfigError
from rlprompt.masks import NOT_WRITTEN, decode, eos_token, static_mask, step_mask
from rlprompt.types import BoolArray, Example, Failure, FloatArray, IntArray, Json, Scores

if TYPE_CHECKING:
    from rlprompt.scoring import ScoringRules

LARGEST_KEY = 2**31 - 1
"""Iteration and episode numbers stay below this."""
TURN_STRIDE = 2**20
"""The key's second part grows by this with every turn, so that no two turns share their random draws."""


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

    With `meta.turns` above 1, the prompts that turn out wrong are written again, with the target's failed answer in
    the context; those that are right (or failed) wait, their reward stands.

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
        meta: the meta-prompt and what belongs to it, in the place of `context`.
        round_size: prompts of an iteration over all workers; B by default.

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
        meta: MetaSettings | None = None,
        round_size: int | None = None,
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
        self.scorer: ScoringRules = shared_scorer(scorer)
        self.tokenizer = load_tokenizer(tokenizer)
        self.vocabulary_size = len(self.tokenizer)
        self.eos_id = eos_token(self.tokenizer) if eos else None
        settings = mask_config(mask)
        self.no_repeat = settings.no_repeat
        self.static_mask = static_mask(self.tokenizer, settings, eos=eos)
        words = int(self.static_mask.sum()) - int(eos)
        if self.no_repeat and words < prompt_length:
            raise ConfigError(f"env.mask.no_repeat leaves {words} tokens for {prompt_length} positions; allow more")
        self.meta = meta if meta is not None else MetaSettings()
        # In a dialogue nobody speaks before a turn's advice is written: there the differences are those of turns.
        self.every_token = step_reward == "difference" and not self.meta.dialogue
        self.contexts: PlainContext | MetaContexts = PlainContext(self.tokenizer, context)
        if meta is not None:
            self.contexts = MetaContexts(
                self.tokenizer,
                meta,
                limit=context_limit(tokenizer, prompt_length, meta.max_context),
                scorer=self.scorer,
                round_size=batch if round_size is None else round_size,
            )
        self._check_meta()
        self.last_scores: Scores | None = None
        self.last_training_rewards: FloatArray | None = None
        self.start(0, np.arange(batch))

    def observation_space(self) -> gymnasium.spaces.Dict:
        """Returns the space of one prompt's observation."""
        box, last = gymnasium.spaces.Box, self.vocabulary_size - 1
        return gymnasium.spaces.Dict(
            {
                "tokens": box(NOT_WRITTEN, last, (self.length,), np.int64),
                "context": box(NOT_WRITTEN, last, (self.contexts.width,), np.int64),
                "key": box(0, LARGEST_KEY, (2,), np.int64),
            }
        )

    def observations(self) -> dict[str, IntArray]:
        """Returns fresh arrays: `tokens` (B, T), `context` (B, C) and `key` (B, 2)."""
        keys = self.episodes + self.turns.number * TURN_STRIDE
        return {
            "tokens": self.tokens.copy(),
            "context": self.context_ids.copy(),
            "key": np.stack([np.full(self.batch, self.iteration), keys], axis=1).astype(np.int64),
        }

    def start(self, iteration: int, episodes: IntArray) -> None:
        """Begins B episodes.

        Args:
            iteration: chooses the minibatch of examples; first part of the observation's key.
            episodes: episode numbers (B,), the key's second part.
        """
        self.iteration = iteration
        self.episodes = np.asarray(episodes, dtype=np.int64)
        self.inputs: list[Example] | None = self.contexts.inputs(iteration, self.episodes)
        self.is_over = False
        self.turns = Turns(self.batch, self.meta.turns)
        if self.meta.dialogue and self.inputs is not None:
            self.turns = DialogueTurns(self.batch, self.meta.turns, self.inputs)
        self._failures: dict[int, Failure] = {}
        # Before anything is said a dialogue is worth nothing; what an empty prompt is worth the scorer has to say.
        self._previous: FloatArray | None = np.zeros(self.batch) if self.meta.dialogue else None
        self._keywords = self._keyword_reward()
        self._begin_turn()

    def _begin_turn(self) -> None:
        self.context_texts, self.context_ids = self.contexts.read(self.inputs, self.turns.feedback)
        self.tokens: IntArray = np.full((self.batch, self.length), NOT_WRITTEN, dtype=np.int64)
        self.position = 0
        self.ended: BoolArray = self.turns.waiting.copy()
        self.allowed: BoolArray = self._allowed()

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
        if self.every_token and self._previous is None:
            self._previous = self._score([""] * self.batch).mean_rewards
        rows = np.arange(self.batch)
        masked = ~self.allowed[rows, chosen] & ~self.ended
        if self.eos_id is not None:
            chosen = np.where(self.ended, self.eos_id, chosen)
            self.ended = self.ended | (chosen == self.eos_id)
        self.tokens[rows, self.position] = chosen
        self.position += 1
        rewards = np.zeros(self.batch)
        if self._keywords is not None:
            rewards += self._keywords.step(self.prompts(), self.ended | (self.position == self.length))
        if self.position == self.length or bool(self.ended.all()):
            rewards += self._end_turn()
        elif self.every_token:
            rewards += self._differences(self._score(self.prompts()))
        if not self.is_over and self.position:
            self.allowed = self._allowed()
        ends = np.full(self.batch, self.is_over)
        terminated = ends if self.eos_id is None else ends & self.ended
        return Written(
            rewards=rewards,
            terminated=terminated,
            truncated=ends & ~terminated,
            masked=masked,
            finals=self._finals() if self.is_over else None,
        )

    def _end_turn(self) -> FloatArray:
        """Scores what was written; begins the next turn where one follows, else ends the episodes; rewards (B,)."""
        scores = self._score(self.prompts())
        again = self.turns.left and bool(self.turns.open_rows(scores).any())
        rewards = np.zeros(self.batch)
        if self.step_reward == "difference":
            rewards = self._differences(scores)
        elif not again:
            rewards = self._training_rewards(scores)
        if again:
            self.turns.advance(scores, self.scorer.task, self.examples, per_input=self.contexts.per_input)
            self._begin_turn()
        else:
            self.is_over = True
            self.allowed = self._allowed()
        return rewards

    def prompts(self) -> list[str]:
        """Returns the texts written so far; of those that wait in a later turn, what they wrote before."""
        return [
            decode(self.tokenizer, row) if settled is None else settled
            for row, settled in zip(self.tokens.tolist(), self.turns.settled, strict=True)
        ]

    @property
    def examples(self) -> tuple[Example, ...]:
        """What the prompts are scored on: the iteration's minibatch, or each prompt's own example."""
        if self.inputs is not None:
            return self.turns.asked(self.inputs)
        return self.scorer.minibatch(self.iteration, self.examples_per_step)

    def first_allowed(self) -> BoolArray:
        """Returns which tokens may begin a prompt, (B, V)."""
        return self._step_mask(0)

    def _allowed(self) -> BoolArray:
        """The mask of the next token; nothing once the episodes are over."""
        if self.is_over:
            return np.zeros((self.batch, self.vocabulary_size), dtype=np.bool_)
        mask = self._step_mask(self.position)
        if self.eos_id is not None and self.turns.waiting.any():
            mask[self.turns.waiting] = False
            mask[self.turns.waiting, self.eos_id] = True
        return mask

    def _step_mask(self, position: int) -> BoolArray:
        return step_mask(self.static_mask, self.tokens[:, :position], eos_id=self.eos_id, no_repeat=self.no_repeat)

    def _check_meta(self) -> None:
        """Raises ConfigError where scorer and settings do not fit."""
        meta, scorer = self.meta, self.scorer
        if self.contexts.per_input:
            scorer.check_pairs(meta.samples)
            if scorer.compares_prompts and self.batch > 1 and meta.rewrites_per_input < 2:
                raise ConfigError(
                    "a stabiliser compares the prompts for one input, but env.rewrites_per_input is 1; use at least 2"
                )
        elif meta.samples > 1:
            raise ConfigError("env.samples is for env.level=instance; set it to 1")
        if meta.dialogue and (not self.contexts.per_input or meta.samples > 1 or scorer.task.metric != METRIC):
            raise ConfigError(
                "env.dialogue is for env.level=instance, one sample and a task of dialogues (task.name=negotiation or "
                "workflow); set them so, or env.dialogue to false"
            )
        if meta.turns > 1 and (self.eos_id is None or scorer.asks == "logprob"):
            raise ConfigError("env.turns above 1 needs prompts that end with EOS and a target that answers")
        if meta.hint_reward > 0 and (not self.contexts.per_input or scorer.task.choices is not None):
            raise ConfigError(
                "env.hint_reward counts keywords of an input's reference text; set it to 0 at task level and for tasks "
                "with choices"
            )

    def _keyword_reward(self) -> KeywordReward | None:
        if not self.meta.hint_reward or self.inputs is None:
            return None
        return KeywordReward(self.meta.hint_reward, [reference_text(self.scorer, example) for example in self.inputs])

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
        if self.inputs is None:
            scores = self.scorer.score(prompts, self.examples, contexts=self.context_texts)
        else:
            scores = self.scorer.score_pairs(
                prompts, self.examples, samples=self.meta.samples, contexts=self.context_texts
            )
        for row in np.flatnonzero(~scores.prompt_valid).tolist():
            self._failures.setdefault(row, failure_of(scores, row))
        self.last_scores = scores
        return scores

    def _training_rewards(self, scores: Scores) -> FloatArray:
        """Stabilised rewards (B,); a failed prompt gets 0.0, for want of a number that means nothing.

        Prompts for one input are compared with each other; dialogues, with others that began alike.
        """
        compared = scores
        if self.inputs is not None:
            compared = replace(scores, row_example_ids=tuple(example.id for example in self.inputs))
        self.last_training_rewards = self.scorer.stabilise(compared)
        return np.where(scores.prompt_valid, self.last_training_rewards, 0.0)

    def _differences(self, scores: Scores) -> FloatArray:
        """Raw reward of each prefix, or after each turn, less the one before; 0 where either failed: not valid."""
        raw = scores.mean_rewards
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


def mask_config(mask: Mapping[str, Any] | None) -> MaskConfig:
    """Returns the restrictions of an environment's argument; raises ConfigError for an unknown or wrong one."""
    try:
        return MaskConfig.model_validate(dict(mask or {}))
    except ValidationError as error:
        raise ConfigError(f"mask: {describe(error, MaskConfig)}") from error


def failure_of(scores: Scores, row: int) -> Failure:
    """Returns why a prompt is not valid."""
    for prompt, _, failure in scores.failures:
        if prompt == row:
            return failure
    return Failure("reward", "empty", "every reward abstained on every example")
