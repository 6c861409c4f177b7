"""What rewards spend of their own, such as the calls of a judge: on whose account, and how many at most."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rlprompt.targets.ledger import Ledger, Price, Reservation
from rlprompt.targets.streaming import CallLog, run_logged
from rlprompt.types import Target, TargetOutput, TargetRequest

JUDGE = "judge"
"""The ledger's role of such calls."""
JudgeRecord: TypeAlias = tuple[str, str, int, TargetOutput]
"""(key of the request, "judge", 0, answer): an answer of a judge in the form of a run's other answers."""


class Account:
    """A run's ledger as its rewards see it: they spend in the phase of the scoring that they work for.

    Args:
        ledger: the run's; an unlimited one of its own by default.
        phase: "train", "dev", "check", ...; the scorer's rewards set it before each scoring.
    """

    def __init__(self, ledger: Ledger | None = None, phase: str = "train") -> None:
        self.ledger = ledger if ledger is not None else Ledger()
        self.phase = phase
        self.log: CallLog | None = None
        """Where calls to judges and their answers are written down before anything is made of them."""
        self.charged: set[str] = set()
        """Keys of what was asked since somebody emptied it: the ledger has them."""
        self._stored: dict[str, TargetOutput] = {}

    def ask(self, target: Target, requests: Sequence[TargetRequest], price: Price | None) -> list[TargetOutput]:
        """Asks a judge, and charges all requests; one that an earlier session has the answer to is not asked again.

        Raises:
            BudgetExceededError: they do not fit into the budget; nothing was spent on them.
        """
        keys = [_request_key(target, request) for request in requests]
        with self.reserve(len(requests), target.count_tokens(requests), price) as reservation:
            places = {key: place for place, key in enumerate(keys) if key not in self._stored}
            asked, names = [requests[place] for place in places.values()], [(key, JUDGE, 0) for key in places]
            found = run_logged(target, asked, names, self.log, reservation, list(places.values()))
            answers = dict(zip(places, found, strict=True))
            outputs = [answers[key] if key in answers else self._stored[key] for key in keys]
            reservation.settle(outputs)
        self.charged.update(keys)
        return outputs

    def remember(self, records: Iterable[JudgeRecord]) -> None:
        """Fills in answers of an earlier session that the ledger's state does not have."""
        self._stored |= {key: output for key, _, _, output in records}

    def reserve(self, calls: int, tokens: int | list[int], price: Price | None) -> Reservation:
        """Sets a judge's calls aside; raises as `Ledger.reserve`."""
        return self.ledger.reserve(calls, tokens, role=JUDGE, phase=self.phase, price=price)

    def check_price(self, price: Price | None, whose: str) -> None:
        """Raises ConfigError where the run's money is limited and this price is unknown."""
        self.ledger.check_price(price, whose)


@dataclass(frozen=True, slots=True)
class JudgeCalls:
    """The most calls that rewards make of their own."""

    per_pair: int = 0
    """For each answer of the target, (prompt, example, sample)."""
    per_prompt: int = 0
    """For each distinct prompt, whatever the number of its pairs."""

    def __add__(self, other: JudgeCalls) -> JudgeCalls:
        """Returns the calls of both."""
        return JudgeCalls(self.per_pair + other.per_pair, self.per_prompt + other.per_prompt)

    def most(self, *, prompts: int, pairs: int) -> int:
        """Returns the most calls for so many prompts with so many answers in all.

        >>> JudgeCalls(per_pair=2, per_prompt=1).most(prompts=4, pairs=32)
        68
        """
        return self.per_pair * pairs + self.per_prompt * prompts


def _request_key(target: Target, request: TargetRequest) -> str:
    """The same for the same question to the same judge, in whatever session."""
    rendered = request.rendered
    asked = [rendered.text, rendered.messages, request.choices, request.max_tokens]
    canonical = json.dumps([target.identity, asked], ensure_ascii=True, sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
