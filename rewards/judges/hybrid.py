"""Verifier first: what can be checked decides, and a judge only where it cannot be, or as a small bonus on top."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rlprompt.errors import ConfigError
from rlprompt.rewards.component import TOTAL
from rlprompt.rewards.judges.parts import Composite, LoadPart, Part, Value, make_part, values_of
from rlprompt.types import Failure

UNDECIDED = ("judge", "abstain")
VERIFIER, JUDGE = "verifier", "judge"


class Hybrid(Composite):
    """A verifiable reward, with a judge where that abstains, and a bounded bonus where it passes.

    For a pair with the verifier's value v and the judge's j:

        v abstains:                 judge_scale * j   (undecided: judge), or abstain
        v >= passes and bonus > 0:  v + bonus * min(max(j, 0), 1); v where the judge abstains
        else:                       v, and the judge is not asked

    So no judge lifts what the verifier refuses, and it adds `bonus` at most to what passes. Records `verifier` and
    `judge`, each where it had a say.

    Reference: Shen et al. 2025, arXiv:2503.22230, where verifiers decide what they can and a generative reward model
    the rest; the bonus is ours.

    Args:
        verifier: the verifiable reward, {name, kwargs}, for example exact-match.
        judge: the judge, {name, kwargs}: `judge`, `checklist`, `ensemble`, or any other reward.
        undecided: where the verifier abstains: "judge" or "abstain".
        bonus: of a passing answer that the judge likes best, at least 0.
        passes: the verifier's value from which an answer passes.
        judge_scale: brings the judge's value to the verifier's scale where it decides alone.

    Raises:
        ConfigError: an argument out of range, or a judge that would never be asked.
    """

    def __init__(
        self,
        verifier: Part,
        judge: Part,
        *,
        undecided: str = "judge",
        bonus: float = 0.0,
        passes: float = 1.0,
        judge_scale: float = 1.0,
        load_part: LoadPart | None = None,
    ) -> None:
        if undecided not in UNDECIDED:
            raise ConfigError(f"hybrid: undecided must be {' or '.join(UNDECIDED)}, got {undecided!r}")
        for name, value, least in (
            ("bonus", bonus, 0.0),
            ("passes", passes, -math.inf),
            ("judge_scale", judge_scale, 0),
        ):
            if not math.isfinite(value) or value < least:
                raise ConfigError(f"hybrid: {name} must be a finite number of at least {least:g}, got {value}")
        if undecided == "abstain" and bonus == 0:
            raise ConfigError("hybrid: with undecided: abstain and no bonus the judge is never asked; set a bonus")
        self.verifier = make_part("hybrid", verifier, VERIFIER, load_part)
        self.judge = make_part("hybrid", judge, JUDGE, load_part)
        if self.verifier.name == self.judge.name:
            raise ConfigError(f"hybrid: verifier and judge are both called '{self.judge.name}'; rename one")
        super().__init__([self.verifier, self.judge])
        self.undecided = undecided
        self.bonus = bonus
        self.passes = passes
        self.judge_scale = judge_scale
        self.gold_not_ordered = self.verifier.gold_not_ordered
        self.also_records = (VERIFIER, JUDGE)

    def __call__(self, **arguments: Sequence[Any]) -> dict[str, list[Value]]:
        """Scores N pairs; the keywords are those of every reward. The judge sees only the pairs that need it."""
        verified = values_of(self.verifier, arguments, range(len(arguments["outputs"])))
        wanted = [index for index, value in enumerate(verified) if self._asks(value)]
        judged: dict[int, Value] = dict(zip(wanted, values_of(self.judge, arguments, wanted), strict=True))
        rows = [self._combine(value, judged.get(index)) for index, value in enumerate(verified)]
        return {
            TOTAL: rows,
            VERIFIER: [_number(value) for value in verified],
            JUDGE: [_number(judged.get(index)) for index in range(len(verified))],
        }

    def _asks(self, verified: Value) -> bool:
        if verified is None:
            return self.undecided == "judge"
        return isinstance(verified, float) and self.bonus > 0 and verified >= self.passes

    def _combine(self, verified: Value, judged: Value) -> Value:
        if isinstance(verified, Failure) or (isinstance(judged, Failure)):
            return verified if isinstance(verified, Failure) else judged
        if verified is None:
            return None if judged is None else self.judge_scale * judged
        return verified if judged is None else verified + self.bonus * min(max(judged, 0.0), 1.0)


def _number(value: Value) -> float | None:
    return value if isinstance(value, float) else None
