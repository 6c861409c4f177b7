"""A list of yes-no questions about a text; the reward is the share that a judge answers with yes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rlprompt.errors import ConfigError
from rlprompt.rewards.component import TOTAL
from rlprompt.rewards.judges.judge import LLMJudge
from rlprompt.rewards.spending import Account, JudgeCalls
from rlprompt.types import Failure, Json, Target, TargetOutput

_HALF = 0.5


@dataclass(frozen=True)
class Item:
    """One question of a checklist."""

    name: str
    question: str
    weight: float = 1.0


class Checklist:
    """Weighted share of the questions that the judge answers with yes, in [0, 1]; records the answer to each.

    Each question is asked on its own, as a judge in mode "yes-no" does. Where the judge gives probabilities, an item
    counts 1 where yes is more probable than no and 0 where it is less; with `soft` it counts the probability of yes. An
    item without a verdict is left out, and the reward abstains where what is left weighs less than `min_answered` of
    all.

    Args:
        target: who judges, as in `judge`.
        items: questions: a text, or {question, name, weight}; the name is that of the item in the records, by default
            its number, from 1.
        of: "output" or "prompt".
        soft: whether probabilities count as they are.
        min_answered: share of the weight that must have a verdict, above 0 and at most 1.
        show: columns that the judge sees beside the text, as in `judge`.
        ask: as in `judge`.
        choices: as in `judge`.
        chat: as in `judge`.
        max_tokens: as in `judge`.
        max_abstained_fraction: as in `judge`.

    Raises:
        ConfigError: an argument out of range, or a target that cannot be loaded.
    """

    gold_not_ordered: ClassVar[bool] = True
    needs: ClassVar[str] = "any"
    timeout_seconds: ClassVar[float] = 3600.0

    def __init__(
        self,
        target: str | Mapping[str, Any] | Target,
        items: Sequence[str | Mapping[str, Any]],
        *,
        of: str = "output",
        soft: bool = False,
        min_answered: float = 1.0,
        show: Sequence[str] | None = None,
        ask: str = "auto",
        choices: Sequence[str] = (" yes", " no"),
        chat: bool | None = None,
        max_tokens: int = 16,
        max_abstained_fraction: float = 0.5,
    ) -> None:
        if not 0 < min_answered <= 1:
            raise ConfigError(f"checklist: min_answered must be above 0 and at most 1, got {min_answered}")
        self.items = _items(items)
        self.soft = soft
        self.min_answered = min_answered
        self.also_records = tuple(item.name for item in self.items)
        self.judge = LLMJudge(
            target,
            "Each text has a question of its own.",
            "yes-no",
            of=of,
            show=show,
            ask=ask,
            choices=choices,
            chat=chat,
            max_tokens=max_tokens,
        )
        self.max_abstained_fraction = max_abstained_fraction

    @property
    def judge_calls(self) -> JudgeCalls:
        """The most calls that it makes."""
        one = self.judge.judge_calls
        return JudgeCalls(one.per_pair * len(self.items), one.per_prompt * len(self.items))

    @property
    def abstentions(self) -> dict[str, int]:
        """How often the judge had no verdict on an item, by kind."""
        return self.judge.abstentions

    def attach(self, account: Account) -> None:
        """Spends on the run's account."""
        self.judge.attach(account)

    def __call__(
        self,
        *,
        completions: Sequence[str],
        outputs: Sequence[TargetOutput],
        references: Sequence[Any] | None = None,
        **columns: Sequence[Any],
    ) -> dict[str, list[float | Failure | None]]:
        """Scores N pairs with one call of the target; returns the reward and the answer to each item.

        Raises:
            KeyError: `show` names a column that the task does not have.
            BudgetExceededError: the judge's calls do not fit into the budget.
        """
        texts, shown = self.judge.data(completions, outputs, references, columns)
        return self.answers(texts, shown)

    def answers(
        self, texts: Sequence[str | None], shown: Sequence[Mapping[str, str]] | None = None
    ) -> dict[str, list[float | Failure | None]]:
        """Checks N texts: the reward under "reward", the answer to each item under its name.

        Args:
            texts: what is checked; None abstains.
            shown: what the judge sees beside each, by name.
        """
        count = len(texts)
        beside = None if shown is None else list(shown) * len(self.items)
        rubrics = [item.question for item in self.items for _ in range(count)]
        read = self.judge.readings(list(texts) * len(self.items), beside, rubrics)
        values = [entry if isinstance(entry, Failure) else self._answer(entry.value) for entry in read]
        by_item = [values[start * count : (start + 1) * count] for start in range(len(self.items))]
        found = {TOTAL: [self._share([answers[index] for answers in by_item]) for index in range(count)]}
        for item, answers in zip(self.items, by_item, strict=True):
            found[item.name] = [None if isinstance(value, Failure) else value for value in answers]
        return found

    def run_metrics(self) -> dict[str, float]:
        """Returns the judge's abstentions."""
        return self.judge.run_metrics()

    def state_dict(self) -> Json:
        """Returns the judge's state."""
        return self.judge.state_dict()

    def load_state_dict(self, state: Json) -> None:
        """Restores what `state_dict` returned."""
        self.judge.load_state_dict(state)

    def _answer(self, value: float | None) -> float | None:
        if value is None or self.soft:
            return value
        return None if value == _HALF else float(value > _HALF)

    def _share(self, answers: Sequence[float | Failure | None]) -> float | Failure | None:
        for value in answers:
            if isinstance(value, Failure):
                return value
        known = [
            (value, item.weight) for value, item in zip(answers, self.items, strict=True) if isinstance(value, float)
        ]
        weight = math.fsum(weight for _, weight in known)
        whole = math.fsum(item.weight for item in self.items)
        if not known or weight < self.min_answered * whole:
            return None
        return math.fsum(value * weight for value, weight in known) / weight


def _items(given: Sequence[str | Mapping[str, Any]]) -> tuple[Item, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise ConfigError("checklist: items must be a list of yes-no questions, at least one")
    items = []
    for number, entry in enumerate(given, start=1):
        fields = {"question": entry} if isinstance(entry, str) else entry
        if not isinstance(fields, Mapping) or not set(fields) <= {"question", "name", "weight"}:
            raise ConfigError(f"checklist: item {number} must be a text or {{question, name, weight}}, got {entry!r}")
        question, weight = fields.get("question"), fields.get("weight", 1.0)
        if not isinstance(question, str) or not question.strip():
            raise ConfigError(f"checklist: item {number} has no question")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ConfigError(f"checklist: the weight of item {number} must be a number above 0, got {weight!r}")
        items.append(Item(str(fields.get("name", number)), question, float(weight)))
    names = [item.name for item in items]
    if len(set(names)) < len(names) or TOTAL in names or "" in names:
        raise ConfigError(f"checklist: items need names of their own, got {', '.join(names)}")
    return tuple(items)
