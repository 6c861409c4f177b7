"""What rewards spend of their own, such as the calls of a judge: on whose account, and how many at most."""

from __future__ import annotations

from dataclasses import dataclass

from rlprompt.targets.ledger import Ledger, Price, Reservation

JUDGE = "judge"
"""The ledger's role of such calls."""


class Account:
    """A run's ledger as its rewards see it: they spend in the phase of the scoring that they work for.

    Args:
        ledger: the run's; an unlimited one of its own by default.
        phase: "train", "dev", "check", ...; the scorer's rewards set it before each scoring.
    """

    def __init__(self, ledger: Ledger | None = None, phase: str = "train") -> None:
        self.ledger = ledger if ledger is not None else Ledger()
        self.phase = phase

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
