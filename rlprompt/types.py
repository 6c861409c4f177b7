"""The frozen data and the small protocols that all parts of rlprompt share.

Only the standard library and NumPy are imported here. Shapes: P prompts, E examples, N = P * E pairs in
prompt-major order (pair p * E + e).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
IntArray: TypeAlias = npt.NDArray[np.int64]
Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """One item of a task."""

    id: str
    """Unique in its task, for example "train/17" (the row's number in its split's file, from 0)."""
    input: str
    reference: str | int | None = None
    """The label (index into the task's choices) or the gold answer; None where there is none."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the row, by name."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a sample has no reward. It is excluded and counted; it is never scored 0 and never becomes text."""

    where: str
    """The boundary that failed: "target" or "reward"."""
    kind: str
    """One of "timeout", "rate-limit", "http", "malformed", "connection", "unsupported", "exception", "nan",
    "too-long", "empty"."""
    message: str
    attempts: int = 1
    """How often it was tried; 0: never sent, so nothing was paid."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What the target reads for one (prompt, example): plain text or chat messages, one of the two."""

    text: str | None = None
    messages: tuple[tuple[str, str], ...] | None = None
    """(role, content) pairs."""
    split: int = 0
    """Characters of `text` before the first field that varies faster: texts that agree up to here share a
    prefix. For messages, characters of all contents joined. A hint for speed only; results never depend on it."""


@dataclass(frozen=True, slots=True)
class TargetRequest:
    """One question to the frozen target. Which one is asked follows from the fields.

    `choices`: the log-probability of each choice as the continuation, normalised over the choices.
    `continuation`: the log-likelihood of that text as the continuation (sum over its tokens).
    neither: generation of up to `max_tokens` tokens.
    """

    rendered: Rendered
    choices: tuple[str, ...] | None = None
    continuation: str | None = None
    max_tokens: int = 0
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    sample: int = 0
    """Index of the sample; two samples of the same request are two calls and never share a cache entry."""
    seed: int = 0
    """Seed of a sampled generation (temperature > 0)."""


@dataclass(frozen=True, slots=True)
class TargetOutput:
    """What the target answered, or why it did not."""

    text: str | None = None
    choice_logprobs: tuple[float, ...] | None = None
    """Natural logarithms, one per choice, their exponentials sum to 1."""
    logprob: float | None = None
    """Log-likelihood of the requested continuation."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False
    payload: Any = None
    """Opaque result of a target that does not answer with text. What JSON gives back as it was (lists, numbers, texts)
    is cached and kept in the run; an answer with any other payload is asked for again by a resumed run."""
    failure: Failure | None = None


@runtime_checkable
class Target(Protocol):
    """The frozen LLM that is prompted."""

    @property
    def identity(self) -> Json:
        """What makes two targets the same for a cache: model name, revision, dtype, hash of the base URL, ..."""

    def run(self, requests: Sequence[TargetRequest]) -> list[TargetOutput]:
        """Answers all requests in one batched call, in order. A request that fails is a `Failure`, no exception."""

    def count_tokens(self, requests: Sequence[TargetRequest]) -> list[int]:
        """Returns an upper estimate of prompt + completion tokens per request, for the ledger's reservation."""


class Reward(Protocol):
    """A reward: keyword lists of equal length N in, one number (or None to abstain) per pair out.

    A `Failure` in the place of a number says that what it called failed for this pair. A plain function will do; a
    class may add `state_dict` and `load_state_dict`; it may be `async`.
    """

    def __call__(
        self,
        *,
        prompts: list[str],
        completions: list[str],
        outputs: list[TargetOutput],
        references: list[Any] | None = None,
        **columns: list[Any],
    ) -> list[float | None]:
        """Scores N pairs.

        Args:
            prompts: what the policy read (its context).
            completions: what the policy wrote (the prompt).
            outputs: what the target answered.
            references: labels or gold answers.
            **columns: `input`, `choices` (tuple per pair) and every further column of the task.
        """


class Stabiliser(Protocol):
    """A map from raw rewards to training rewards over one step's batch."""

    frozen: bool
    """True while evaluating: running statistics do not move."""

    def __call__(self, rewards: FloatArray, valid: BoolArray) -> FloatArray:
        """Maps rewards (P, E) to training rewards (P, E); entries where `valid` is False are ignored and stay 0."""

    def state_dict(self) -> Json:
        """Returns the state as JSON values."""

    def load_state_dict(self, state: Json) -> None:
        """Restores what `state_dict` returned."""


@dataclass(frozen=True)
class Scores:
    """P prompts scored on E examples; or pairs, each prompt on an example of its own (`row_example_ids` is set)."""

    prompts: tuple[str, ...]
    example_ids: tuple[str, ...]
    """Of the columns; pairs: empty texts, one for each sample of the target's answer."""
    components: dict[str, FloatArray]
    """Raw reward of each component, (P, E); NaN where it abstained or failed."""
    rewards: FloatArray
    """Weighted sum of the components, (P, E); 0 where not valid."""
    correct: FloatArray
    """1.0 right, 0.0 wrong, NaN where the task has no notion of it or the pair failed; (P, E)."""
    valid: BoolArray
    """False where the target or a reward failed or abstained; (P, E)."""
    outputs: tuple[tuple[TargetOutput, ...], ...]
    failures: tuple[tuple[int, int, Failure], ...] = ()
    """(prompt index, example index, failure); pairs: (row, sample, failure)."""
    row_example_ids: tuple[str, ...] | None = None
    """Pairs: the example of each row, (P,); all arrays are then (P, samples)."""

    @property
    def mean_rewards(self) -> FloatArray:
        """Mean raw reward over the valid examples of each prompt, (P,); NaN for a prompt with none.

        Of pairs, the mean over the samples, with `env.best_of` too: what one answer to the prompt is worth.
        """
        return masked_mean(self.rewards, self.valid)

    @property
    def accuracies(self) -> FloatArray:
        """Share of right answers among the pairs that have one, (P,); NaN for a prompt with none."""
        known = ~np.isnan(self.correct)
        return masked_mean(np.where(known, self.correct, 0.0), known)

    @property
    def prompt_valid(self) -> BoolArray:
        """True for a prompt with at least one valid pair, (P,)."""
        return np.asarray(self.valid.any(axis=1), dtype=np.bool_)


def masked_mean(values: FloatArray, mask: BoolArray) -> FloatArray:
    """Mean over the last axis where `mask` holds; NaN where it never does."""
    count = mask.sum(axis=-1)
    total = np.where(mask, values, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


class SharedBudget(Protocol):
    """What several runs may spend together, as one of them sees it.

    Each run has a grant: totals that are set aside for it alone, before it spends them. They are totals so that asking
    twice for the same is harmless.
    """

    @property
    def limits_cost(self) -> bool:
        """Whether money is limited, so that prices have to be known."""

    def grant(self, calls: int, tokens: int, cost_pico: int) -> None:
        """Raises this run's grant to at least these totals.

        Raises:
            BudgetExceededError: the other runs have the rest; the grant stays as it was.
        """

    def settle(self, calls: int, tokens: int, cost_pico: int) -> None:
        """Tells what the run has spent in all, and gives the rest of its grant back."""


class RunContext(Protocol):
    """What an algorithm may ask of the run it works for; implemented by `rlprompt.runs`."""

    @property
    def folder(self) -> Path:
        """The run folder."""

    @property
    def config(self) -> Any:
        """The resolved `rlprompt.config.RunConfig`."""

    @property
    def scorer(self) -> Any:
        """The run's `rlprompt.scoring.Scorer`."""

    @property
    def policy(self) -> Any:
        """The policy in training; the algorithm updates it in place."""

    def restored_state(self) -> tuple[int, dict[str, Any]] | None:
        """The (next iteration, algorithm state) of the checkpoint being resumed, or None at a fresh start."""

    def stop_reason(self) -> str | None:
        """Why to stop before the next iteration ("budget", "wall", "interrupt", "stop-file"), or None."""

    def begin_ahead(self, num_prompts: int) -> bool:
        """Whether the next iteration's prompts may be scored before this one, of `num_prompts`, is recorded.

        If so, everything is reported and saved without them until `end_ahead`.
        """

    def end_ahead(self) -> None:
        """Says that the iteration that was scored ahead is in progress now."""

    def end_iteration(
        self,
        iteration: int,
        *,
        scores: Scores | None,
        metrics: Mapping[str, float],
        state: Any,
        training_rewards: FloatArray | None = None,
        weight_lag: int = 0,
    ) -> None:
        """Records one finished iteration: events, scored prompts, progress, and a checkpoint when one is due.

        Args:
            iteration: number of the iteration that ended, from 0.
            scores: the prompts of this iteration with their scores; None when none was scored.
            metrics: numbers of the iteration (loss, entropy, ...), flat names; those under `time/` are volatile.
            state: callable without arguments that returns the algorithm's state as a nested dict of arrays and
                JSON values; called once, so that a stop in the middle of the next iteration can still save this one.
            training_rewards: the stabilised rewards (P,) of the prompts.
            weight_lag: how many updates the policy that wrote the prompts was behind.
        """
