"""The choice of the best prompt, on dev only: the best on train go to dev, the best of them on dev is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlprompt.config import SelectionConfig
from rlprompt.errors import BudgetExceededError
from rlprompt.runs.records import PromptRecord
from rlprompt.seeding import generator
from rlprompt.types import Example, Json

Measure = Callable[[Sequence[str], Sequence[Example]], Sequence[PromptRecord]]
"""Scores prompts on dev examples through the run's scorer and records that."""


@dataclass(slots=True)
class Candidate:
    """One distinct prompt of the run."""

    prompt: str
    order: int
    """When it was first seen; breaks ties, earlier wins."""
    reward_sum: float = 0.0
    num_pairs: int = 0
    dev_accuracy: float = math.nan
    dev_reward: float = math.nan
    on_dev: bool = False
    """Whether it was scored on the whole of dev with at least one valid pair."""

    @property
    def train_reward(self) -> float:
        """Mean raw reward over all its valid train pairs; NaN without one."""
        return self.reward_sum / self.num_pairs if self.num_pairs else math.nan


class Candidates:
    """All distinct prompts of a run with what is known of them, rebuilt from `prompts/` when a run is resumed.

    Args:
        num_dev: examples of the whole of dev.
        by: "accuracy" or "reward", the criterion on dev; ties go to the other one, then to the reward on train.
    """

    def __init__(self, num_dev: int, by: str = "accuracy") -> None:
        self.num_dev = num_dev
        self.by = by
        self._found: dict[str, Candidate] = {}

    def __len__(self) -> int:
        """Returns the number of distinct prompts."""
        return len(self._found)

    def add(self, records: Iterable[PromptRecord]) -> None:
        """Takes in scored prompts of the phases "train" and "dev"; one written for a single input is no candidate."""
        for record in records:
            if record.example_id:
                continue
            fresh = Candidate(record.prompt, len(self._found))
            candidate = self._found.setdefault(record.prompt, fresh)
            if record.phase == "train" and record.num_valid:
                candidate.reward_sum += record.raw_reward * record.num_valid
                candidate.num_pairs += record.num_valid
            elif record.phase == "dev" and record.num_examples == self.num_dev and record.num_valid:
                candidate.dev_accuracy, candidate.dev_reward = record.accuracy, record.raw_reward
                candidate.on_dev = True

    def top(self, count: int, *, unseen_on_dev: bool = False) -> list[Candidate]:
        """Returns the best prompts by mean train reward, best first."""
        known = [
            candidate
            for candidate in self._found.values()
            if candidate.num_pairs and not (unseen_on_dev and candidate.on_dev)
        ]
        return sorted(known, key=lambda candidate: (-candidate.train_reward, candidate.order))[:count]

    def best(self) -> Candidate | None:
        """Returns the best on dev, or the best on train while none was scored on dev; None without any prompt."""
        scored = [candidate for candidate in self._found.values() if candidate.on_dev]
        if scored:
            return max(scored, key=self._rank)
        return next(iter(self.top(1)), None)

    def _rank(self, candidate: Candidate) -> tuple[float, float, float, int]:
        pair = (_low(candidate.dev_accuracy), _low(candidate.dev_reward))
        first, second = pair if self.by == "accuracy" else pair[::-1]
        return first, second, _low(candidate.train_reward), -candidate.order


class PolicyChoice:
    """The choice on dev where prompts are written for single inputs: of policies, not of prompts.

    Args:
        by: "accuracy" or "reward", the criterion on dev; ties go to the other one, then to the later policy.
    """

    def __init__(self, by: str = "accuracy") -> None:
        self.by = by
        self.newest = -1
        """Completed iterations of the policy that was measured last; -1 before the first."""
        self.best: Json | None = None
        """`iterations`, `dev_accuracy`, `dev_reward` (None where unknown) and `policy`, its weights."""

    def offer(self, iterations: int, records: Sequence[PromptRecord], weights: Mapping[str, Any]) -> None:
        """Takes in a policy's greedy prompts for the dev inputs; keeps its weights where it is the best so far."""
        self.newest = iterations
        accuracy, reward = (_mean([getattr(record, name) for record in records]) for name in ("accuracy", "raw_reward"))
        if math.isnan(accuracy) and math.isnan(reward):
            return
        before = None if self.best is None else self._rank(self.best["dev_accuracy"], self.best["dev_reward"])
        if before is None or self._rank(accuracy, reward) >= before:
            self.best = {
                "iterations": iterations,
                "dev_accuracy": None if math.isnan(accuracy) else accuracy,
                "dev_reward": None if math.isnan(reward) else reward,
                "policy": dict(weights),
            }

    def describe(self) -> Json | None:
        """Returns the best one as JSON values, without its weights, with the keys of `describe_best`."""
        if self.best is None:
            return None
        numbers = {name: self.best[name] for name in ("dev_accuracy", "dev_reward", "iterations")}
        return {"prompt": None, "selected_on": "dev", "train_reward": None, **numbers}

    def _rank(self, accuracy: float | None, reward: float | None) -> tuple[float, float]:
        pair = tuple(-math.inf if value is None else _low(value) for value in (accuracy, reward))
        return (pair[0], pair[1]) if self.by == "accuracy" else (pair[1], pair[0])


def describe_best(candidate: Candidate | None) -> Json | None:
    """Returns a candidate as JSON values (NaN as None)."""
    if candidate is None:
        return None
    values = {
        "train_reward": candidate.train_reward,
        "dev_accuracy": candidate.dev_accuracy,
        "dev_reward": candidate.dev_reward,
    }
    return {
        "prompt": candidate.prompt,
        "selected_on": "dev" if candidate.on_dev else "train",
        **{name: value if math.isfinite(value) else None for name, value in values.items()},
    }


def select(
    candidates: Candidates, dev: Sequence[Example], settings: SelectionConfig, seed: int, measure: Measure
) -> Candidate | None:
    """Scores the top prompts on dev and returns the best one.

    A budget that does not suffice for all leaves the rest out, worst on train first; what is paid for is used.

    Args:
        candidates: the prompts of the run; `measure` adds what it finds to them.
        dev: the dev examples.
        settings: how many, by what, and whether by racing.
        seed: the run's seed; racing draws its order of dev with it.
        measure: scores prompts on dev examples.
    """
    field = [candidate.prompt for candidate in candidates.top(settings.top)]
    try:
        if settings.racing and len(field) > 1:
            _race(field, dev, settings.by, seed, measure)
        else:
            measure_affordable(field, dev, measure)
    except BudgetExceededError:
        return candidates.best()
    return candidates.best()


def measure_affordable(prompts: Sequence[str], examples: Sequence[Example], measure: Measure) -> list[PromptRecord]:
    """Scores all prompts in one call, or one after the other as long as the budget holds.

    Raises:
        BudgetExceededError: it did not hold for all; those before were scored.
    """
    if not prompts:
        return []
    try:
        return list(measure(prompts, examples))
    except BudgetExceededError:
        if len(prompts) == 1:
            raise
    found: list[PromptRecord] = []
    for prompt in prompts:
        found += measure([prompt], examples)
    return found


def racing_parts(num_prompts: int, num_dev: int) -> list[tuple[int, int]]:
    """Returns (prompts, dev examples) of each round of successive halving; the last round is on the whole of dev.

    Each round keeps the better half and doubles the part of dev. Reference: Jamieson and Talwalkar 2016,
    arXiv:1502.07943, figure 1.

    >>> racing_parts(16, 64)
    [(16, 8), (8, 16), (4, 32), (2, 64)]
    """
    rounds = max(1, math.ceil(math.log2(num_prompts)))
    parts = []
    left = num_prompts
    for number in range(rounds):
        parts.append((left, math.ceil(num_dev / 2 ** (rounds - 1 - number))))
        left = math.ceil(left / 2)
    return parts


def most_dev_calls(settings: SelectionConfig, num_prompts: int, num_dev: int) -> int:
    """Returns the most target calls that `select` needs for so many distinct prompts."""
    field = min(settings.top, num_prompts)
    if field < 2 or not settings.racing:
        return field * num_dev
    parts = racing_parts(field, num_dev)
    before = [0, *(size for _, size in parts)]
    return sum(count * (size - done) for (count, size), done in zip(parts, before, strict=False))


def _race(prompts: Sequence[str], dev: Sequence[Example], by: str, seed: int, measure: Measure) -> None:
    order = mixed_order(dev, seed)
    field = list(prompts)
    for count, size in racing_parts(len(field), len(dev)):
        field = field[:count]
        records = {record.prompt: record for record in measure_affordable(field, order[:size], measure)}
        field.sort(key=lambda prompt: _standing(records[prompt], by), reverse=True)  # stable: train order on ties


def _standing(record: PromptRecord, by: str) -> tuple[float, float]:
    pair = (_low(record.accuracy), _low(record.raw_reward))
    return pair if by == "accuracy" else pair[::-1]


def mixed_order(examples: Sequence[Example], seed: int) -> list[Example]:
    """Returns the examples in a seeded order in which the classes take turns, so that every part is balanced."""
    by_class: dict[Any, list[Example]] = {}
    for index in generator(seed, "racing").permutation(len(examples)):
        example = examples[int(index)]
        label = example.reference if isinstance(example.reference, int) else None
        by_class.setdefault(label, []).append(example)
    groups = [by_class[key] for key in sorted(by_class, key=str)]
    longest = max((len(group) for group in groups), default=0)
    return [group[turn] for turn in range(longest) for group in groups if turn < len(group)]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _low(value: float) -> float:
    return -math.inf if math.isnan(value) else value
