"""What a scorer may ask of a task, and how it reads what came back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlprompt.calibration import apply_calibration
from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.pairs import COMPOSITIONS
from rlprompt.rewards import RewardSet
from rlprompt.tasks import Task
from rlprompt.types import BoolArray, Failure, FloatArray, Scores, Stabiliser, TargetOutput


def shift(
    outputs: list[list[TargetOutput]], prompts: Sequence[str], prompt: str, offsets: FloatArray
) -> list[list[TargetOutput]]:
    """Returns the answers (P lists of E) with one prompt's calibration offsets taken off its choices."""

    def shifted(output: TargetOutput) -> TargetOutput:
        if output.choice_logprobs is None:
            return output
        calibrated = apply_calibration(np.array(output.choice_logprobs), offsets)
        return replace(output, choice_logprobs=tuple(calibrated.tolist()))

    return [
        [shifted(output) for output in row] if prompts[index] == prompt else row for index, row in enumerate(outputs)
    ]


def choice_correct(output: TargetOutput, reference: Any, choices: tuple[str, ...]) -> float:
    """1.0 when the reference is strictly the most probable choice: a tie is not right (RLPrompt's 1[Gap > 0])."""
    if output.failure is not None or reference is None:
        return np.nan
    label = int(reference)
    if output.choice_logprobs is None:
        return np.nan if output.text is None else float(output.text.strip() == choices[label].strip())
    others = [value for index, value in enumerate(output.choice_logprobs) if index != label]
    return float(output.choice_logprobs[label] > max(others))


def by_group(stabiliser: Stabiliser, rewards: FloatArray, valid: BoolArray) -> FloatArray:
    """Applies a stabiliser to (K, groups); one that compares prompts only ever compares those of one group."""
    if not getattr(stabiliser, "compares_prompts", False):
        return stabiliser(rewards, valid)
    columns = [
        stabiliser(rewards[:, [index]], np.asarray(valid[:, [index]], dtype=np.bool_))
        for index in range(rewards.shape[1])
    ]
    return np.concatenate(columns, axis=1)


def check_composition(task: Task, compose: str, draft: str) -> None:
    """Raises ConfigError where the target would not read the user's input, or would read it twice."""
    if compose not in COMPOSITIONS:
        raise UnknownNameError("composition", compose, COMPOSITIONS, " (env.compose)")
    if compose == "replace":
        return
    shows_input = "input" in task.template.fields
    if draft:
        if not shows_input:
            raise ConfigError(
                f"env.compose is '{compose}' with a draft, but the template of task '{task.name}' has no {{input}}; "
                "add it to task.template, or leave env.draft empty to extend the input"
            )
    elif shows_input:
        raise ConfigError(
            f"env.compose '{compose}' puts the input into {{prompt}}, but the template of task '{task.name}' shows "
            "{input} as well; set task.template without it, or env.compose=replace"
        )


def request_kind(task: Task, rewards: RewardSet) -> str:
    """Returns what the target is asked for: "choices", "text" or "logprob"; ConfigError where the two do not fit."""
    if task.choices is not None:
        if rewards.needs == "logprob":
            return "choices"
        if rewards.needs == "text":
            raise ConfigError(f"a reward reads the target's text, but task '{task.name}' asks for choices")
        return "choices"
    if rewards.needs == "choices":
        raise ConfigError(f"a reward needs choices, but task '{task.name}' has none; give the card `choices:`")
    return "logprob" if rewards.needs == "logprob" else "text"


def failure_share(scores: Scores) -> tuple[int, int]:
    """Returns (failed pairs, all pairs) of one scoring; abstentions are no failures."""
    return len(scores.failures), int(scores.valid.size)


def first_failure(scores: Scores, prompt: int) -> Failure | None:
    """Returns the first failure of a prompt, if it has one."""
    return next((failure for index, _, failure in scores.failures if index == prompt), None)
