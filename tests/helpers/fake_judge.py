"""A judge whose replies are written by a function of what it is shown: a target like any other."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from rlprompt.types import Failure, Json, TargetOutput, TargetRequest

Answer = str | float | Failure


class FakeJudge:
    """Answers with what `reply` makes of a question: a text, the probability of the first choice, or a failure.

    Args:
        reply: called with the texts between the fences of a question, by name, and the question as a whole.
        probabilities: False answers a question with choices by the most probable one's text.
    """

    def __init__(self, reply: Callable[[dict[str, str], str], Answer], *, probabilities: bool = True) -> None:
        self.reply = reply
        self.probabilities = probabilities
        self.identity: Json = {"kind": "fake", "model": "fake-judge"}
        self.calls: list[list[TargetRequest]] = []

    @property
    def num_asked(self) -> int:
        return sum(len(requests) for requests in self.calls)

    def run(self, requests: Sequence[TargetRequest]) -> list[TargetOutput]:
        self.calls.append(list(requests))
        return [self._answer(request) for request in requests]

    def count_tokens(self, requests: Sequence[TargetRequest]) -> list[int]:
        return [12] * len(requests)

    def _answer(self, request: TargetRequest) -> TargetOutput:
        text = question_of(request)
        answer = self.reply(blocks(text), text)
        if isinstance(answer, Failure):
            return TargetOutput(failure=answer)
        usage = {"prompt_tokens": 8, "completion_tokens": 2}
        if request.choices is None:
            written = answer if isinstance(answer, str) else ("yes" if answer > 0.5 else "no")
            return TargetOutput(text=written, **usage)
        if not self.probabilities or isinstance(answer, str):
            first = answer > 0.5 if isinstance(answer, float) else answer.strip() == request.choices[0].strip()
            return TargetOutput(text=request.choices[0 if first else 1], **usage)
        rest = (1 - answer) / (len(request.choices) - 1)
        logs = [math.log(value) if value > 0 else -math.inf for value in (answer, *[rest] * (len(request.choices) - 1))]
        return TargetOutput(choice_logprobs=tuple(logs), **usage)


def question_of(request: TargetRequest) -> str:
    """The whole question, whether plain or a message."""
    rendered = request.rendered
    return rendered.text if rendered.text is not None else "".join(content for _, content in rendered.messages or ())


def blocks(question: str) -> dict[str, str]:
    """The texts between the fences, by name: read with the question's own mark, as a judge is told to."""
    found = re.search(r"lines with the mark (\w+) is data", question)
    assert found is not None
    mark = found[1]
    pattern = rf"^\[begin ([^\n]*) {mark}\]\n(.*?)\n\[end \1 {mark}\]$"
    return dict(re.findall(pattern, question, flags=re.MULTILINE | re.DOTALL))
