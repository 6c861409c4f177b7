"""Several turns of writing: who was wrong writes again, and reads what the target answered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlprompt.dialogues import derived, dialogue_of, feedback
from rlprompt.tasks import Task
from rlprompt.types import BoolArray, Example, Json, Scores, TargetOutput


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

    def asked(self, examples: Sequence[Example]) -> tuple[Example, ...]:
        """Returns what the prompts are scored on in this turn: what they are written for."""
        return tuple(examples)

    def open_rows(self, scores: Scores) -> BoolArray:
        """Returns which prompts would be written again, (P,)."""
        return is_wrong(scores) & ~self.waiting

    @property
    def left(self) -> bool:
        """Whether another turn may follow."""
        return self.number + 1 < self.most

    def advance(self, scores: Scores, task: Task, examples: Sequence[Example], *, per_input: bool) -> None:
        """Begins the next turn for those that were wrong; the others wait, with their prompt and their score."""
        again = self.open_rows(scores)
        for row, prompt in enumerate(scores.prompts):
            if self.waiting[row]:
                continue
            if again[row]:
                self.feedback[row] = self._said(scores, row, task, examples, per_input=per_input)
            else:
                self.waiting[row], self.settled[row], self.feedback[row] = True, prompt, ""
        self.number += 1

    def _said(self, scores: Scores, row: int, task: Task, examples: Sequence[Example], *, per_input: bool) -> str:
        return _feedback(scores, row, task, examples, per_input=per_input)


class DialogueTurns(Turns):
    """Dialogues of the target with scripted partners: the policy writes, the target speaks, the partner answers.

    What the target reads grows with the dialogue. The policy reads the last exchange and a critic's comment.

    Args:
        batch: episodes B.
        most: turns of an episode.
        examples: where the dialogues begin, (B,).

    Raises:
        ConfigError: an example is no dialogue.
    """

    def __init__(self, batch: int, most: int, examples: Sequence[Example]) -> None:
        super().__init__(batch, most)
        self.examples = list(examples)
        """Each dialogue as the target reads it in this turn."""
        for example in self.examples:
            dialogue_of(example.reference, example.id)

    def asked(self, examples: Sequence[Example]) -> tuple[Example, ...]:
        """Returns the dialogues as far as they are."""
        return tuple(self.examples)

    def open_rows(self, scores: Scores) -> BoolArray:
        """Returns which dialogues go on; one whose target failed does not."""
        rows = range(len(scores.prompts))
        goes_on = [bool(scores.prompt_valid[row]) and not self._replied(scores, row)["over"] for row in rows]
        return np.array(goes_on, dtype=np.bool_) & ~self.waiting

    def _said(self, scores: Scores, row: int, task: Task, examples: Sequence[Example], *, per_input: bool) -> str:
        state = self._replied(scores, row)
        self.examples[row] = derived(self.examples[row], state)
        return feedback(state)

    def _replied(self, scores: Scores, row: int) -> Json:
        partner, state = dialogue_of(self.examples[row].reference, self.examples[row].id)
        return partner.reply(state, scores.outputs[row][0].text or "")


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
