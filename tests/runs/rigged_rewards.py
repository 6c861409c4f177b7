"""A reward that likes one word, what that does to the truth, and a judge that spends; for the tests of runs."""

from __future__ import annotations

from typing import Any

from rlprompt.rewards.judges import LLMJudge
from rlprompt.types import TargetOutput, TargetRequest

WORD = "w07"


def rigged(*, completions: list[str], **columns: Any) -> list[float]:
    """Share of the words that are WORD."""
    return [prompt.split().count(WORD) / max(1, len(prompt.split())) for prompt in completions]


def truth(*, completions: list[str], **columns: Any) -> list[float]:
    """Share of the words that are not."""
    return [1.0 - value for value in rigged(completions=completions)]


rigged.gold_not_ordered = True  # type: ignore[attr-defined]
truth.gold_not_ordered = True  # type: ignore[attr-defined]


class Flatterer:
    """A target that says yes where WORD is in the question."""

    identity = {"kind": "planted", "model": "flatterer"}  # noqa: RUF012

    def run(self, requests: list[TargetRequest]) -> list[TargetOutput]:
        return [
            TargetOutput(text="yes" if WORD in str(request.rendered) else "no", prompt_tokens=1, completion_tokens=1)
            for request in requests
        ]

    def count_tokens(self, requests: list[TargetRequest]) -> list[int]:
        return [2] * len(requests)


class Judged(LLMJudge):
    """A judge of prompts whose target is the flatterer."""

    def __init__(self, show: list[str] | None = None) -> None:
        super().__init__(Flatterer(), "Is it a good prompt?", "yes-no", of="prompt", show=show, ask="text")
