"""A target that does as it is told: the planted word of the prompt says what it offers, or which step it asks for."""

import re
from collections.abc import Sequence

from rlprompt.types import Failure, Json, TargetOutput, TargetRequest


class Speaker:
    """Offers n percent of the list price for the word "wn0" with n from 0 to 9 ... "w49" is silence, "w48" fails."""

    def __init__(self, voice: str) -> None:
        self.identity: Json = {"kind": "speaker"}
        self.read: list[str] = []

    def run(self, requests: Sequence[TargetRequest]) -> list[TargetOutput]:
        return [self._answer(str(request.rendered.text)) for request in requests]

    def count_tokens(self, requests: Sequence[TargetRequest]) -> list[int]:
        return [8] * len(requests)

    def _answer(self, text: str) -> TargetOutput:
        self.read.append(text)
        situation, _, prompt = text.rpartition("\n(Advice: ")
        words = re.findall(r"w(\d\d)", prompt)
        if not words or words[0] == "49":
            return TargetOutput(text="Well.", prompt_tokens=8)
        if words[0] == "48":
            return TargetOutput(failure=Failure("target", "timeout", "no answer in 5 s"))
        listed = re.search(r"\$(\d+)", situation)
        share = 2 * int(words[0]) / 100
        return TargetOutput(text=f"I offer ${float(listed[1]) * share:.0f}." if listed else "", prompt_tokens=8)
