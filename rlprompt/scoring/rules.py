"""`ScoringRules`: what environments see of a scorer, whether it asks the target itself or has somebody ask.

The draws of examples are here, because they need nobody: every worker draws the same ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from rlprompt.errors import ConfigError
from rlprompt.seeding import generator
from rlprompt.tasks import Task
from rlprompt.types import Example, FloatArray, Scores


class ScoringRules(ABC):
    """A task, and how prompts for it are scored.

    Args:
        task: the examples, the template and the choices or metric.
        asks: what the target is asked for: "choices", "text" or "logprob".
        compares_prompts: whether a stabiliser compares the prompts of a step.
        calibration: "none", "median" or "contextual".
        seed: seed of the minibatches and of drawn answers.
        compose: how a prompt and an example become what stands in the template's `{prompt}`.
        draft: what "append", "prepend" and "demonstration" extend.
        best_of: the training reward of a pair is the expected best of so many of its samples.
    """

    def __init__(
        self,
        task: Task,
        *,
        asks: str,
        compares_prompts: bool,
        calibration: str,
        seed: int,
        compose: str,
        draft: str,
        best_of: int | None,
    ) -> None:
        self.task = task
        self.asks = asks
        self.compares_prompts = compares_prompts
        self.calibration = calibration
        self.seed = seed
        self.compose = compose
        self.draft = draft
        self.best_of = best_of

    @abstractmethod
    def score(
        self,
        prompts: Sequence[str],
        examples: Sequence[Example],
        *,
        phase: str = "train",
        contexts: Sequence[str] | None = None,
    ) -> Scores:
        """Scores P prompts on E examples."""

    @abstractmethod
    def score_pairs(
        self,
        prompts: Sequence[str],
        examples: Sequence[Example],
        *,
        samples: int = 1,
        phase: str = "train",
        contexts: Sequence[str] | None = None,
    ) -> Scores:
        """Scores N prompts, each on its own example."""

    @abstractmethod
    def stabilise(self, scores: Scores) -> FloatArray:
        """Maps the raw rewards of one step to training rewards, (P,)."""

    def check_pairs(self, samples: int) -> None:
        """Raises ConfigError where this scorer cannot score pairs, or not with so many samples."""
        if samples < 1:
            raise ConfigError(f"samples must be at least 1, got {samples}")
        if self.best_of is not None and self.best_of > samples:
            raise ConfigError(f"env.best_of is {self.best_of}, but env.samples is {samples}; draw at least as many")
        if samples > 1 and self.asks != "text":
            raise ConfigError(
                f"samples is {samples}, but task '{self.task.name}' asks for {self.asks}, which are the same each "
                "time; set env.samples to 1"
            )
        if self.calibration != "none":
            raise ConfigError(
                f"calibration '{self.calibration}' needs a prompt's answers on all of train, but each prompt has one "
                "example here; set calibration to none"
            )

    def minibatch(self, iteration: int, size: int | None) -> tuple[Example, ...]:
        """Returns the train examples of one iteration, stratified by class; all of them for size None.

        The draw is keyed by (seed, iteration), so it does not depend on workers or restarts.
        """
        train = self.task.train
        if size is None or size >= len(train):
            return train
        rng = generator(self.seed, "minibatch", iteration)
        by_class: dict[Any, list[Example]] = {}
        for index in rng.permutation(len(train)):
            example = train[int(index)]
            by_class.setdefault(example.reference if self.task.choices else None, []).append(example)
        order = [by_class[key] for key in sorted(by_class, key=str)]
        chosen = [group[turn] for turn in range(len(train)) for group in order if turn < len(group)]
        return tuple(chosen[:size])

    def draw_inputs(self, iteration: int, count: int) -> tuple[Example, ...]:
        """Returns the `count` train examples whose inputs are written for in one iteration.

        An epoch is a permutation of train, keyed by (seed, epoch), and gives len(train) // count iterations; no
        example comes twice in it.

        Raises:
            ConfigError: train has fewer examples.
        """
        train = self.task.train
        if not 1 <= count <= len(train):
            raise ConfigError(
                f"an iteration takes {count} inputs (env.num_envs / env.rewrites_per_input), but train has "
                f"{len(train)} examples; lower env.num_envs or raise task.shots"
            )
        epoch, step = divmod(iteration, len(train) // count)
        order = generator(self.seed, "inputs", epoch).permutation(len(train))
        return tuple(train[int(index)] for index in order[step * count : (step + 1) * count])
