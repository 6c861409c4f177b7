"""What a task's `metric` means: a score of the generated text, and whether it is right."""

from __future__ import annotations

from rlprompt.dialogues import METRIC
from rlprompt.errors import ConfigError, did_you_mean
from rlprompt.rewards.answers import Answer
from rlprompt.rewards.dialogue import DialogueScore
from rlprompt.rewards.generation import ExactMatch, TokenF1
from rlprompt.rewards.overlap import Rouge
from rlprompt.tasks.task import METRICS
from rlprompt.types import Reward


def metric_score(metric: str | None) -> Reward:
    """Returns what is reported for a generation task: exact match, token F1, the mean of ROUGE-1, 2 and L, ...

    Raises:
        ConfigError: no such metric.
    """
    if metric not in METRICS:
        raise ConfigError(f"unknown metric '{metric}'{did_you_mean(str(metric), METRICS)}")
    if metric == "token-f1":
        return TokenF1()
    return Rouge("mean") if metric == "rouge" else metric_correct(metric)


def metric_correct(metric: str | None) -> Reward:
    """Returns what says whether an answer is right: what is read out of it, exact match, the score of a dialogue."""
    if metric in ("answer-letter", "answer-number"):
        return Answer(metric.removeprefix("answer-"))
    return DialogueScore() if metric == METRIC else ExactMatch()
