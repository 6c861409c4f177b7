"""What a success model learns from: on which inputs which prompts made the target right, in the logs of a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from rlprompt.errors import ConfigError, RunError
from rlprompt.pairs import DEMONSTRATION
from rlprompt.rewards.learned.success_training import LoggedOutcome
from rlprompt.rewards.metrics import metric_correct, metric_score
from rlprompt.runs.records import Answer
from rlprompt.runs.result import load_run
from rlprompt.scoring.answers import choice_correct
from rlprompt.tasks import Task, task_from_config
from rlprompt.types import Example

logger = logging.getLogger(__name__)

_GRADED = ("token-f1", "rouge", "dialogue")
"""Metrics of tasks that give a text a number between 0 and 1, and do not say whether it is right."""


def logged_outcomes(run: str | Path, *, threshold: float | None = None) -> list[LoggedOutcome]:
    """Reads the stored answers of a run; the target is not asked.

    An answer is right where its label is the most probable choice, before any calibration, or its text is right by the
    task's metric. Failures are left out, and so are answers without a reference.

    Args:
        run: the run folder.
        threshold: for tasks with a graded metric (token F1, ROUGE): a score of at least this counts as right.

    Raises:
        RunError: no run folder, a damaged one, or one without answers.
        ConfigError: the metric is graded and no threshold is given, or the other way round.
        TaskError: the task of the run cannot be loaded.
    """
    saved = load_run(run)
    task = task_from_config(saved.config.task)
    graded = task.choices is None and task.metric in _GRADED
    if graded and threshold is None:
        raise ConfigError(f"{run}: {task.metric} does not say what is right; give a threshold between 0 and 1")
    if threshold is not None and not (graded and 0 < threshold <= 1):
        raise ConfigError(
            f"{run}: a threshold (in (0, 1]) is for tasks scored by {' or '.join(_GRADED)}, got {threshold} for "
            f"'{task.name}'; leave it out"
        )
    examples = {example.id: example for example in (*task.train, *task.dev, *task.test)}
    answers = [a for a in saved.answers() if a.output.failure is None and a.sample != DEMONSTRATION]
    known = [answer for answer in answers if answer.example_id in examples]
    if len(known) < len(answers):
        logger.warning("%s: %d answers to examples that the task lacks are left out", run, len(answers) - len(known))
    rows = [(answer, examples[answer.example_id]) for answer in known]
    values = _choices_right(task, rows) if task.choices is not None else _texts_right(task, rows, threshold)
    found = [
        LoggedOutcome(example.input, answer.prompt, bool(value))
        for (answer, example), value in zip(rows, values, strict=True)
        if not np.isnan(value)
    ]
    if not found:
        raise RunError(f"{run} has no answers that are right or wrong; give a run whose target has answered")
    return found


def _choices_right(task: Task, rows: list[tuple[Answer, Example]]) -> list[float]:
    choices = task.choices or ()
    return [choice_correct(answer.output, example.reference, choices) for answer, example in rows]


def _texts_right(task: Task, rows: list[tuple[Answer, Example]], threshold: float | None) -> list[float]:
    """By the metric of the task; NaN where it abstains."""
    kept = [(answer, example) for answer, example in rows if answer.output.text is not None]
    given: dict[str, list[Any]] = {
        "prompts": [""] * len(kept),
        "completions": [answer.prompt for answer, _ in kept],
        "outputs": [answer.output for answer, _ in kept],
        "references": [example.reference for _, example in kept],
    }
    metric = metric_correct(task.metric) if threshold is None else metric_score(task.metric)
    scored = iter(metric(**given) if kept else [])
    values = [next(scored) if answer.output.text is not None else None for answer, _ in rows]
    least = 0.5 if threshold is None else threshold
    return [float("nan") if value is None else float(value >= least) for value in values]
