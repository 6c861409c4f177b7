"""Several turns of writing: who was wrong writes again, and reads what the target answered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlprompt.tasks import Task
from rlprompt.types import BoolArray, Example, Scores, TargetOutput


class Turns:
    """Where B episodes are in their turns.

    Args:
        batch: episodes B.
        most: turns of an episode.
    """

    def __init__(self, batch: int, most: int) -> None:
        self.most = most
        self.number = 0
        """The turn that is being played, from 0."""
        self.waiting: BoolArray = np.zeros(batch, dtype=np.bool_)
        """True for those that write no more: they were right, or could not be scored."""
        self.settled: list[str | None] = [None] * batch
        """What those wrote."""
        self.feedback: list[str] = [""] * batch
        """What stands in `{feedback}` now."""

    @property
    def left(self) -> bool:
        """Whether another turn may follow."""
        return self.number + 1 < self.most

    def advance(self, scores: Scores, task: Task, examples: Sequence[Example], *, per_input: bool) -> None:
        """Begins the next turn for those that were wrong; the others wait, with their prompt and their score."""
        wrong = is_wrong(scores)
        for row, prompt in enumerate(scores.prompts):
            if self.waiting[row]:
                continue
            if wrong[row]:
                self.feedback[row] = _feedback(scores, row, task, examples, per_input=per_input)
            else:
                self.waiting[row], self.settled[row], self.feedback[row] = True, prompt, ""
        self.number += 1


def is_wrong(scores: Scores) -> BoolArray:
    """Returns which prompts are known to be wrong on an example, (P,); a failed one is not."""
    return np.asarray((scores.correct < 1.0).any(axis=1), dtype=np.bool_)  # NaN, not known, compares as False


def _feedback(scores: Scores, row: int, task: Task, examples: Sequence[Example], *, per_input: bool) -> str:
    """Says what was written and what came of it, on the first example that went wrong."""
    column = int(np.flatnonzero(scores.correct[row] < 1.0)[0])
    answer = _answer(scores.outputs[row][column], task)
    said = f"An earlier version was: {scores.prompts[row]}\nThe answer to it was wrong: {answer}"
    return said if per_input else f"{said}\nIt was given for this input: {examples[column].input}"


def _answer(output: TargetOutput, task: Task) -> str:
    if output.choice_logprobs is not None and task.choices is not None:
        return task.choices[int(np.argmax(output.choice_logprobs))].strip()
    return (output.text or "").strip()
