"""Evaluates prompts on rows of a task: accuracy with its interval, the published gap reward, failures apart.

The rows are streamed in chunks, and all prompts are asked about a chunk in one batched call: what the target
computes for the inputs is then shared by the prompts and need not be kept for the whole test set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlprompt.calibration import CONTENT_FREE, apply_calibration, fit_calibration
from rlprompt.errors import ConfigError
from rlprompt.evaluation.statistics import wilson_interval
from rlprompt.rewards.classification import Accuracy, ProbabilityGap
from rlprompt.rewards.metrics import metric_correct, metric_score
from rlprompt.targets.ledger import Ledger
from rlprompt.tasks import Task
from rlprompt.types import Example, Failure, FloatArray, Json, Reward, Target, TargetOutput, TargetRequest

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Evaluation:
    """One prompt on E rows."""

    prompt: str
    split: str
    calibration: str
    num_examples: int
    """Rows that were asked, failed ones included."""
    num_failed: int
    """Rows without an answer; they are in no mean."""
    accuracy: float
    """Right answers among the rows that have one, in [0, 1]; NaN when there is none."""
    accuracy_ci95: tuple[float, float]
    """Wilson interval of the accuracy."""
    gap_reward: float
    """Mean of gap * 200 (right) or gap * 180 (wrong), in [-180, 200]; NaN for a task without choices."""
    metric: str
    """"accuracy" for a task with choices, else the task's metric."""
    score: float
    """Mean of the metric, in [0, 1]."""
    class_accuracies: dict[str, float]
    """Accuracy of the rows of each class, by choice; empty for a task without choices."""
    correct: FloatArray
    """1.0 right, 0.0 wrong, NaN failed or without a label; (E,)."""
    gaps: FloatArray
    """Gap reward of each row, (E,); NaN where it is not known."""
    scores: FloatArray
    """The metric of each row, (E,), in [0, 1]; NaN where it is not known."""
    outputs: tuple[TargetOutput, ...] = ()
    """The answers, (E,), where the evaluation was told to keep them."""
    first_failure: Failure | None = None

    def to_json(self) -> Json:
        """Returns the numbers of this evaluation as JSON values, without the rows; NaN becomes None."""
        return {
            "prompt": self.prompt,
            "split": self.split,
            "calibration": self.calibration,
            "num_examples": self.num_examples,
            "num_failed": self.num_failed,
            "accuracy": _number(self.accuracy),
            "accuracy_ci95": [_number(bound) for bound in self.accuracy_ci95],
            "gap_reward": _number(self.gap_reward),
            "metric": self.metric,
            "score": _number(self.score),
            "class_accuracies": {name: _number(value) for name, value in self.class_accuracies.items()},
        }


def evaluate(
    task: Task,
    target: Target,
    prompts: Sequence[str],
    *,
    split: str = "test",
    limit: int | None = None,
    calibration: str = "none",
    calibration_examples: Sequence[Example] | None = None,
    ledger: Ledger | None = None,
    phase: str = "test",
    chunk: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Evaluation]:
    """Evaluates prompts on the first rows of a split, in file order.

    Args:
        task: the rows, the template and the choices or metric.
        target: the frozen LLM.
        prompts: P prompts; the empty text is a prompt too.
        split: "train", "dev" or "test".
        limit: how many rows; None takes all.
        calibration: "none", "median" or "contextual"; the offsets are fitted for each prompt.
        calibration_examples: what "median" is fitted on; the task's train examples by default.
        ledger: meters every call; a fresh unlimited one by default.
        phase: where the calls on the rows are booked; calls that fit a calibration are booked as "calibration".
        chunk: rows per target call.
        on_progress: called with (rows done, rows in all) after every call.

    Returns:
        One `Evaluation` per prompt, in order. A failed row is excluded and counted.

    Raises:
        ConfigError: unknown split, no prompt, no row, or calibration of a task without choices.
        BudgetExceededError: the ledger is limited and the calls do not fit.
    """
    return evaluate_calibrated(
        task,
        target,
        prompts,
        (calibration,),
        split=split,
        limit=limit,
        calibration_examples=calibration_examples,
        ledger=ledger,
        phase=phase,
        chunk=chunk,
        on_progress=on_progress,
    )[calibration]


def evaluate_calibrated(
    task: Task,
    target: Target,
    prompts: Sequence[str],
    calibrations: Sequence[str] = ("none", "median"),
    *,
    split: str = "test",
    limit: int | None = None,
    calibration_examples: Sequence[Example] | None = None,
    ledger: Ledger | None = None,
    phase: str = "test",
    chunk: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[Evaluation]]:
    """Evaluates prompts under several calibrations from one set of answers: each row is asked once.

    Arguments and errors are those of `evaluate`.

    Returns:
        calibration -> one `Evaluation` per prompt.
    """
    rows = rows_of(task, split, limit)
    for calibration in calibrations:
        _check(task, prompts, calibration, chunk)
    ledger = ledger if ledger is not None else Ledger()
    offsets = {
        kind: _fit(task, target, prompts, kind, calibration_examples, ledger, chunk)
        for kind in dict.fromkeys(calibrations)
    }
    parts: dict[str, list[list[Part]]] = {kind: [[] for _ in prompts] for kind in offsets}
    for start in range(0, len(rows), chunk):
        piece = rows[start : start + chunk]
        for index, raw in enumerate(_ask(task, target, prompts, piece, ledger, phase)):
            for kind, fitted in offsets.items():
                outputs = raw if fitted is None else [_calibrated(output, fitted[index]) for output in raw]
                parts[kind][index].append(grade(task, prompts[index], piece, outputs))
        if on_progress is not None:
            on_progress(start + len(piece), len(rows))
    return {
        kind: [
            summarise(task, prompt, split, kind, rows, prompt_parts)
            for prompt, prompt_parts in zip(prompts, parts[kind], strict=True)
        ]
        for kind in offsets
    }


@dataclass(frozen=True)
class Part:
    """One prompt on one chunk of rows; arrays (rows,)."""

    correct: FloatArray
    scores: FloatArray
    gaps: FloatArray
    failures: tuple[Failure, ...]


def rows_of(task: Task, split: str, limit: int | None) -> tuple[Example, ...]:
    """Returns the first rows of a split; ConfigError for another split or an empty one."""
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got '{split}'")
    rows: tuple[Example, ...] = getattr(task, split)
    if not rows:
        raise ConfigError(f"task '{task.name}' has no rows in split '{split}'; choose another split")
    return rows if limit is None else rows[:limit]


def _check(task: Task, prompts: Sequence[str], calibration: str, chunk: int) -> None:
    if isinstance(prompts, str) or not prompts:
        raise ConfigError(f"prompts must be a list with at least one prompt, got {prompts!r}")
    fit_calibration(calibration, np.zeros((1, 1)))  # refuses an unknown kind before anything is spent
    if calibration != "none" and task.choices is None:
        raise ConfigError(f"calibration '{calibration}' needs a task with choices; '{task.name}' has none")
    if chunk < 1:
        raise ConfigError(f"chunk must be at least 1, got {chunk}")


def _ask(
    task: Task,
    target: Target,
    prompts: Sequence[str],
    examples: Sequence[Example],
    ledger: Ledger,
    phase: str,
) -> list[list[TargetOutput]]:
    """One batched call; answers as P lists of E."""
    requests = [request_for(task, prompt, example) for prompt in prompts for example in examples]
    outputs = ask(target, requests, ledger, phase)
    return [outputs[start : start + len(examples)] for start in range(0, len(outputs), len(examples))]


def ask(target: Target, requests: Sequence[TargetRequest], ledger: Ledger, phase: str) -> list[TargetOutput]:
    """Asks in one metered call."""
    with ledger.reserve(len(requests), target.count_tokens(requests), phase=phase) as reservation:
        outputs = [_checked(output) for output in target.run(requests)]
        reservation.settle(outputs)
    return outputs


def _checked(output: TargetOutput) -> TargetOutput:
    """A NaN among the log-probabilities is a failure: compared with anything it would count as a wrong answer."""
    if output.choice_logprobs is None or not any(map(math.isnan, output.choice_logprobs)):
        return output
    failure = Failure("target", "nan", f"the target's log-probabilities are {output.choice_logprobs}")
    return replace(output, choice_logprobs=None, failure=failure)


def request_for(task: Task, prompt: str, example: Example) -> TargetRequest:
    """What the target is asked about one row."""
    rendered = task.template.render(prompt, example)
    if task.choices is not None:
        return TargetRequest(rendered, choices=task.choices)
    return TargetRequest(rendered, max_tokens=task.max_tokens, stop=task.stop)


def _fit(
    task: Task,
    target: Target,
    prompts: Sequence[str],
    calibration: str,
    examples: Sequence[Example] | None,
    ledger: Ledger,
    chunk: int,
) -> list[FloatArray] | None:
    """The offsets of each prompt, or None without calibration."""
    if calibration == "none":
        return None
    basis = CONTENT_FREE if calibration == "contextual" else task.train if examples is None else examples
    answered: list[list[tuple[float, ...]]] = [[] for _ in prompts]
    for start in range(0, len(basis), chunk):
        piece = basis[start : start + chunk]
        for known, outputs in zip(answered, _ask(task, target, prompts, piece, ledger, "calibration"), strict=True):
            known.extend(output.choice_logprobs for output in outputs if output.choice_logprobs is not None)
    num_choices = len(task.choices or ())
    return [
        fit_calibration(calibration, np.array(known, dtype=np.float64).reshape(len(known), num_choices))
        for known in answered
    ]


def _calibrated(output: TargetOutput, offsets: FloatArray) -> TargetOutput:
    if output.choice_logprobs is None:
        return output
    shifted = apply_calibration(np.array(output.choice_logprobs), offsets)
    return replace(output, choice_logprobs=tuple(shifted.tolist()))


def grade(task: Task, prompt: str, examples: Sequence[Example], outputs: Sequence[TargetOutput]) -> Part:
    """Grades the answers to some rows."""
    failures = tuple(output.failure for output in outputs if output.failure is not None)
    if task.choices is not None:
        correct = _rewarded(Accuracy(), task, prompt, examples, outputs)
        return Part(correct, correct, _rewarded(ProbabilityGap(), task, prompt, examples, outputs), failures)
    correct = _rewarded(metric_correct(task.metric), task, prompt, examples, outputs)
    scores = _rewarded(metric_score(task.metric), task, prompt, examples, outputs)
    return Part(correct, scores, np.full(len(outputs), np.nan), failures)


def _rewarded(
    reward: Reward,
    task: Task,
    prompt: str,
    examples: Sequence[Example],
    outputs: Sequence[TargetOutput],
) -> FloatArray:
    """A reward's values; NaN for rows that failed or have no label, which the reward never sees."""
    seen = [
        index
        for index, (example, output) in enumerate(zip(examples, outputs, strict=True))
        if output.failure is None and example.reference is not None
    ]
    values = np.full(len(outputs), np.nan)
    if not seen:
        return values
    columns = task.columns([examples[index] for index in seen])
    given = reward(
        prompts=[""] * len(seen),
        completions=[prompt] * len(seen),
        outputs=[outputs[index] for index in seen],
        references=[examples[index].reference for index in seen],
        **columns,
    )
    values[seen] = [np.nan if value is None else value for value in given]
    return values


def summarise(
    task: Task,
    prompt: str,
    split: str,
    calibration: str,
    rows: Sequence[Example],
    parts: Sequence[Part],
) -> Evaluation:
    """Puts the parts of one prompt together."""
    correct = np.concatenate([part.correct for part in parts])
    gaps = np.concatenate([part.gaps for part in parts])
    failures = [failure for part in parts for failure in part.failures]
    scores = np.concatenate([part.scores for part in parts])
    known = correct[~np.isnan(correct)]
    labels = np.array([-1 if row.reference is None or not task.choices else int(row.reference) for row in rows])
    return Evaluation(
        prompt=prompt,
        split=split,
        calibration=calibration,
        num_examples=len(rows),
        num_failed=len(failures),
        accuracy=_mean(correct),
        accuracy_ci95=wilson_interval(int(known.sum()), len(known)),
        gap_reward=_mean(gaps),
        metric="accuracy" if task.choices is not None else str(task.metric),
        score=_mean(scores),
        class_accuracies={choice: _mean(correct[labels == label]) for label, choice in enumerate(task.choices or ())},
        correct=correct,
        gaps=gaps,
        scores=scores,
        first_failure=failures[0] if failures else None,
    )


def _mean(values: FloatArray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
