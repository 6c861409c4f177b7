"""A target whose answers are written out, and a task of a few rows."""

import math
from collections.abc import Sequence

from rlprompt.tasks import Task, Template
from rlprompt.types import Example, Failure, Json, TargetOutput, TargetRequest


class WrittenTarget:
    """Answers by the request's text: P(" bad") for choices, a text for generation; None fails."""

    def __init__(self, answers: dict[str, float | str | None]) -> None:
        self.identity: Json = {"kind": "written"}
        self.answers = answers
        self.calls: list[list[str]] = []

    def run(self, requests: Sequence[TargetRequest]) -> list[TargetOutput]:
        texts = [str(request.rendered.text) for request in requests]
        self.calls.append(texts)
        return [self._answer(self.answers[text]) for text in texts]

    def count_tokens(self, requests: Sequence[TargetRequest]) -> list[int]:
        return [10] * len(requests)

    @staticmethod
    def _answer(answer: float | str | None) -> TargetOutput:
        if answer is None:
            return TargetOutput(failure=Failure("target", "timeout", "no answer in 5 s"))
        if isinstance(answer, str):
            return TargetOutput(text=answer, prompt_tokens=4, completion_tokens=1)
        return TargetOutput(choice_logprobs=(math.log(answer), math.log1p(-answer)), prompt_tokens=4)


def make_task(**changes: object) -> Task:
    def row(split: str, number: int, label: int | str) -> Example:
        return Example(id=f"{split}/{number}", input=f"{split}{number}", reference=label)

    settings: dict[str, object] = {
        "name": "small",
        "train": (row("train", 0, 0), row("train", 1, 1)),
        "dev": (row("dev", 0, 0),),
        "test": (row("test", 0, 0), row("test", 1, 0), row("test", 2, 1), row("test", 3, 1)),
        "choices": (" bad", " good"),
        "metric": None,
        "template": Template("{input} {prompt}"),
        "source": "written",
    }
    return Task(**{**settings, **changes})  # type: ignore[arg-type]
