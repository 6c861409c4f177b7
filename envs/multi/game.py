"""The rules of the game, for B copies that are played in lockstep: agents take turns composing one prompt.

Shapes: N agents, B copies, T tokens of an agent's segment, P tokens of all segments, V an agent's vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from rlprompt.agents import AgentConfig
from rlprompt.envs.contexts import MetaSettings
from rlprompt.envs.multi.seats import Seat, agents_from, take_seats
from rlprompt.envs.writing import LARGEST_KEY, TURN_STRIDE, failure_of, mask_config
from rlprompt.errors import ConfigError
from rlprompt.masks import NOT_WRITTEN, step_mask
from rlprompt.types import BoolArray, Example, Failure, FloatArray, IntArray, Scores

if TYPE_CHECKING:
    from rlprompt.scoring import ScoringRules


@dataclass(frozen=True)
class Move:
    """What one step brought to B copies."""

    rewards: FloatArray
    """(N, B): of every agent, whoever wrote."""
    masked: BoolArray
    """(B,): True where the action was outside the mask."""
    turn_over: bool
    """Whether it was the last step of the agent's turn."""
    finals: list[dict[str, Any]] | None
    """With the last step of the game: `prompt`, `segments`, `valid`, and where known `raw_reward`, `accuracy`,
    `failure`."""


class Game:
    """Plays B copies: all of them are at the same step of the same agent's turn, and are scored in one call.

    Copies whose segment has ended wait for the others, whatever their actions. The game ends with the last agent's
    turn. What its last step brings is in `step_reward`:

    - "terminal": the scorer's training reward of the whole prompt (its reward after its stabilisers), to every agent
      the same. A failed prompt brings 0.0 and is not valid.
    - "difference": to each agent the raw reward of the prompt as it was after the agent's segment, less that before.
      All of these prefixes, the empty prompt among them, are scored in one call, without stabilisers. Over the agents
      they add up to the raw reward of the prompt less that of the empty prompt. Where a prefix failed, the difference
      is 0 and the game is not valid.

    Args:
        batch: copies B.
        scorer: JSON spec of the scorer (`rlprompt.scoring.scorer_spec`).
        agents: fields of `rlprompt.config.AgentConfig`, in the order of the turns.
        tokenizer: the tokenizer's name, for agents that have no `model`.
        mask: fields of `rlprompt.config.MaskConfig`; `no_repeat` is about the whole prompt.
        context: what agents without a meta-prompt read before what is composed.
        examples_per_step: task level: train examples per iteration; None takes all.
        step_reward: "terminal" or "difference".
        draft: the draft instruction of meta-prompts.
        level: "task" or "instance".
        chat: whether meta-prompts become chat messages, where a tokenizer has a chat template.
        rewrites_per_input: instance level: prompts for each drawn input; divides the number of prompts.
        samples: instance level: answers of the target per prompt; the reward is their mean.
        max_context: most tokens that an agent with a meta-prompt reads.
        round_size: prompts of an iteration over all workers; B by default.

    Raises:
        ConfigError: an argument does not fit.
    """

    def __init__(
        self,
        *,
        batch: int,
        scorer: Mapping[str, Any],
        agents: Sequence[AgentConfig | Mapping[str, Any]],
        tokenizer: str,
        mask: Mapping[str, Any] | None = None,
        context: str = "",
        examples_per_step: int | None = None,
        step_reward: str = "terminal",
        draft: str = "",
        level: str = "task",
        chat: bool = True,
        rewrites_per_input: int = 1,
        samples: int = 1,
        max_context: int | None = None,
        round_size: int | None = None,
    ) -> None:
        from rlprompt.scoring import shared_scorer

        if batch < 1:
            raise ConfigError(f"num_envs must be at least 1, got {batch}")
        if step_reward not in ("terminal", "difference"):
            raise ConfigError(f"step_reward must be 'terminal' or 'difference', got '{step_reward}'")
        self.batch = batch
        self.step_reward = step_reward
        self.examples_per_step = examples_per_step
        self.samples = samples
        self.round_size = batch if round_size is None else round_size
        self.scorer: ScoringRules = shared_scorer(scorer)
        meta = MetaSettings("", draft, level, chat, rewrites_per_input, samples, max_context=max_context)
        meta.check()
        self.per_input = level == "instance"
        settings = mask_config(mask)
        self.no_repeat = settings.no_repeat
        self.agents = agents_from(agents, level=level, model=tokenizer)
        self._check_scorer(meta)
        self.seats, self.composition = take_seats(
            self.agents, mask=settings, context=context, meta=meta, scorer=self.scorer, round_size=self.round_size
        )
        self.names = tuple(agent.name for agent in self.agents)
        self.length = sum(agent.length for agent in self.agents)
        """P, the most tokens of a prompt."""
        self.rewrites_per_input = rewrites_per_input
        self.last_scores: Scores | None = None
        self.last_training_rewards: FloatArray | None = None
        self.start(0, np.arange(batch))

    @property
    def seat(self) -> Seat:
        """The agent whose turn it is; the last one once the game is over."""
        return self.seats[self.turn]

    def observation_space(self, place: int) -> gymnasium.spaces.Dict:
        """Returns the space of what one agent of one copy observes."""
        box, seat = gymnasium.spaces.Box, self.seats[place]
        last, largest = seat.vocabulary_size - 1, max(each.vocabulary_size for each in self.seats) - 1
        return gymnasium.spaces.Dict(
            {
                "tokens": box(NOT_WRITTEN, last, (seat.agent.length,), np.int64),
                "context": box(NOT_WRITTEN, last, (seat.reader.width,), np.int64),
                "key": box(0, LARGEST_KEY, (2,), np.int64),
                "prefix": box(NOT_WRITTEN, largest, (self.length,), np.int64),
                "agent": box(0, len(self.seats) - 1, (1,), np.int64),
                "position": box(0, self.length, (1,), np.int64),
            }
        )

    def action_space(self, place: int, *, whole: bool, seed: int = 0) -> gymnasium.Space[Any]:
        """Returns the space of one agent's actions: the next token, or its whole segment."""
        seat = self.seats[place]
        if whole:
            return gymnasium.spaces.MultiDiscrete(
                np.full(seat.agent.length, seat.vocabulary_size, dtype=np.int64), seed=seed
            )
        return gymnasium.spaces.Discrete(seat.vocabulary_size, seed=seed)

    def start(self, iteration: int, episodes: IntArray) -> None:
        """Begins B games; see `rlprompt.envs.writing.PromptWriting.start`."""
        self.iteration = iteration
        self.episodes: IntArray = np.asarray(episodes, dtype=np.int64)
        self.inputs: list[Example] | None = self._draw_inputs()
        self.is_over = False
        self.tokens: list[IntArray] = [
            np.full((self.batch, agent.length), NOT_WRITTEN, dtype=np.int64) for agent in self.agents
        ]
        self._read: list[IntArray] = []
        self._failures: dict[int, Failure] = {}
        self._begin_turn(0)

    def _begin_turn(self, place: int) -> None:
        self.turn = place
        self.step = 0
        texts, ids = self.seat.reader.read(self.inputs, self.segments(place))
        if place == 0:
            self.context_texts = texts
        self._read.append(ids)
        self.ended: BoolArray = np.zeros(self.batch, dtype=np.bool_)
        self.allowed: BoolArray = self._allowed()

    def observations(self, place: int) -> dict[str, IntArray]:
        """Returns what an agent observes, in fresh arrays.

        `tokens` (B, T), its own segment; `context` (B, C), what it reads: of an agent whose turn is to come, what it
        would read now; `key` (B, 2), iteration and episode, of which every agent has its own; `prefix` (B, P), the
        tokens of all segments up to its own, each where its agent's part begins, with what ended it; `agent` (B, 1),
        its place; `position` (B, 1), where in `prefix` its next token goes.
        """
        seat = self.seats[place]
        context = (
            self._read[place] if place < len(self._read) else seat.reader.read(self.inputs, self.segments(place))[1]
        )
        keys = self.episodes + place * TURN_STRIDE
        return {
            "tokens": self.tokens[place].copy(),
            "context": context.copy(),
            "key": np.stack([np.full(self.batch, self.iteration), keys], axis=1).astype(np.int64),
            "prefix": self.prefix(place),
            "agent": np.full((self.batch, 1), place, dtype=np.int64),
            "position": np.full((self.batch, 1), seat.offset + self._written(place), dtype=np.int64),
        }

    def prefix(self, place: int) -> IntArray:
        """Returns the tokens (B, P) of all segments up to an agent's own; -1 behind what ended a segment."""
        found = np.full((self.batch, self.length), NOT_WRITTEN, dtype=np.int64)
        for seat, tokens in zip(self.seats[: place + 1], self.tokens, strict=False):
            part = tokens.copy()
            if seat.end_id is not None:
                over = np.cumsum(part == seat.end_id, axis=1) - (part == seat.end_id) > 0
                part[over] = NOT_WRITTEN
            found[:, seat.offset : seat.offset + part.shape[1]] = part
        return found

    def segments(self, count: int | None = None) -> list[list[list[int]]]:
        """Returns what was written so far, of each copy the ids of its first `count` segments; all by default."""
        parts = [tokens.tolist() for tokens in self.tokens[:count]]
        return [[part[row] for part in parts] for row in range(self.batch)]

    def prompts(self, count: int | None = None) -> list[str]:
        """Returns the text that the first `count` segments make, of each copy; all by default."""
        return [self.composition.text(written) for written in self.segments(count)]

    def write(self, actions: Any) -> Move:
        """Appends one token to each copy's segment of the agent whose turn it is.

        Args:
            actions: token ids (B,), each in [0, V). A token outside the mask is written all the same and reported.

        Raises:
            ConfigError: an action of wrong shape or outside the vocabulary.
            gymnasium.error.ResetNeeded: the game is over.
        """
        if self.is_over:
            raise gymnasium.error.ResetNeeded("the game is over; call reset() before step()")
        seat, rows = self.seat, np.arange(self.batch)
        chosen = self._checked(actions)
        masked: BoolArray = ~self.allowed[rows, chosen] & ~self.ended
        if seat.end_id is not None:
            chosen = np.where(self.ended, seat.end_id, chosen)
            self.ended = self.ended | (chosen == seat.end_id)
        self.tokens[self.turn][rows, self.step] = chosen
        self.step += 1
        turn_over = self.step == seat.agent.length or bool(self.ended.all())
        rewards = np.zeros((len(self.seats), self.batch))
        if not turn_over:
            self.allowed = self._allowed()
        elif self.turn + 1 < len(self.seats):
            self._begin_turn(self.turn + 1)
        else:
            rewards += self._end()
        return Move(rewards, masked, turn_over, self._finals() if self.is_over else None)

    def write_segment(self, actions: Any) -> Move:
        """Writes the whole segments (B, T) of the agent whose turn it is; what follows the end of one is ignored."""
        shape = (self.batch, self.seat.agent.length)
        tokens = np.asarray(actions)
        if tokens.shape != shape:
            raise ConfigError(
                f"a whole-segment action of '{self.seat.agent.name}' has shape {shape}, got {tokens.shape}"
            )
        masked = np.zeros(self.batch, dtype=np.bool_)
        for column in tokens.T:
            move = self.write(column)
            masked |= move.masked
            if move.turn_over:
                break
        return replace(move, masked=masked)

    def _written(self, place: int) -> int:
        """Steps that an agent's turn has taken."""
        return int((self.tokens[place] >= 0).any(axis=0).sum())

    def _allowed(self) -> BoolArray:
        """The mask of the next token, (B, V); nothing once the game is over."""
        seat = self.seat
        if self.is_over:
            return np.zeros((self.batch, seat.vocabulary_size), dtype=np.bool_)
        return step_mask(
            seat.static_mask,
            self.tokens[self.turn][:, : self.step],
            eos_id=seat.end_id,
            no_repeat=self.no_repeat,
            before=self.prefix(self.turn - 1) if self.no_repeat and self.turn else None,
        )

    def _checked(self, actions: Any) -> IntArray:
        chosen, size = np.asarray(actions), self.seat.vocabulary_size
        if chosen.shape != (self.batch,) or not np.issubdtype(chosen.dtype, np.integer):
            raise ConfigError(f"actions must be {self.batch} token ids, got shape {chosen.shape} of {chosen.dtype}")
        if chosen.min() < 0 or chosen.max() >= size:
            raise ConfigError(f"actions must be token ids in [0, {size}), got {chosen.min()} to {chosen.max()}")
        return chosen.astype(np.int64)

    def _check_scorer(self, meta: MetaSettings) -> None:
        """Raises ConfigError where scorer and settings do not fit."""
        if self.scorer.compose != "replace" and self.scorer.draft != meta.draft:
            raise ConfigError(
                f"the scorer composes with the draft {self.scorer.draft!r}, the environment has {meta.draft!r}; "
                "set env.draft once and take both from it"
            )
        if not self.per_input:
            if meta.samples > 1:
                raise ConfigError("env.samples is for env.level=instance; set it to 1")
            return
        self.scorer.check_pairs(meta.samples)
        if self.scorer.compares_prompts and self.batch > 1 and meta.rewrites_per_input < 2:
            raise ConfigError(
                "a stabiliser compares the prompts for one input, but env.rewrites_per_input is 1; use at least 2"
            )

    def _draw_inputs(self) -> list[Example] | None:
        """The example that each copy writes for; None at task level."""
        if not self.per_input:
            return None
        drawn = self.scorer.draw_inputs(self.iteration, self.round_size // self.rewrites_per_input)
        return [drawn[(int(episode) % self.round_size) // self.rewrites_per_input] for episode in self.episodes]

    def _end(self) -> FloatArray:
        """Scores what was composed and ends the games; returns rewards (N, B)."""
        self.is_over = True
        self.allowed = self._allowed()
        if self.step_reward == "terminal":
            scores = self._score(self.prompts())
            self.last_training_rewards = self.scorer.stabilise(scores)
            shared = np.where(scores.prompt_valid, self.last_training_rewards, 0.0)
            self.last_scores = scores
            return np.repeat(shared[None], len(self.seats), axis=0)
        stages = [self.prompts(count) for count in range(len(self.seats) + 1)]
        scores = self._score([prompt for stage in stages for prompt in stage])
        raw = scores.mean_rewards.reshape(len(stages), self.batch)
        self.last_scores = last_rows(scores, self.batch)
        return np.nan_to_num(raw[1:] - raw[:-1], nan=0.0)

    def _score(self, prompts: list[str]) -> Scores:
        """Scores prompts, of B copies again and again, in one call; remembers what failed."""
        times = len(prompts) // self.batch
        if self.inputs is None:
            examples = self.scorer.minibatch(self.iteration, self.examples_per_step)
            scores = self.scorer.score(prompts, examples, contexts=self.context_texts * times)
        else:
            scores = self.scorer.score_pairs(
                prompts, self.inputs * times, samples=self.samples, contexts=self.context_texts * times
            )
        for row in np.flatnonzero(~scores.prompt_valid).tolist():
            self._failures.setdefault(row % self.batch, failure_of(scores, row))
        return scores

    def _finals(self) -> list[dict[str, Any]]:
        scores = self.last_scores
        finals: list[dict[str, Any]] = []
        parts = [[self.composition.part(place, one) for place, one in enumerate(row)] for row in self.segments()]
        for row, prompt in enumerate(self.prompts()):
            final: dict[str, Any] = {"prompt": prompt, "segments": parts[row], "valid": row not in self._failures}
            if scores is not None and scores.prompt_valid[row]:
                final["raw_reward"] = float(scores.mean_rewards[row])
            if scores is not None and not np.isnan(scores.accuracies[row]):
                final["accuracy"] = float(scores.accuracies[row])
            if row in self._failures:
                final["failure"] = self._failures[row]
            finals.append(final)
        return finals


def last_rows(scores: Scores, count: int) -> Scores:
    """Returns the scores of the last `count` prompts of a scoring."""
    first = len(scores.prompts) - count
    return replace(
        scores,
        prompts=scores.prompts[first:],
        components={name: values[first:] for name, values in scores.components.items()},
        rewards=scores.rewards[first:],
        correct=scores.correct[first:],
        valid=scores.valid[first:],
        outputs=scores.outputs[first:],
        failures=tuple((row - first, column, failure) for row, column, failure in scores.failures if row >= first),
        row_example_ids=None if scores.row_example_ids is None else scores.row_example_ids[first:],
    )
