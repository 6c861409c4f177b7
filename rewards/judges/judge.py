"""`LLMJudge`: a target that says how good a text is, or which of two is better, by a rubric in the user's words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rlprompt.errors import CheckpointError, ConfigError, did_you_mean
from rlprompt.rewards.judges.asking import Asker, judge_target, reads_messages
from rlprompt.rewards.judges.formats import (
    ABSTENTIONS,
    NO_TEXT,
    ORDER,
    UNDECIDED,
    VERDICT,
    Form,
    Reading,
    pairwise_form,
    question,
    score_form,
    yes_no_form,
)
from rlprompt.rewards.spending import Account, JudgeCalls
from rlprompt.types import Failure, Json, Rendered, Target, TargetOutput

MODES = ("score", "yes-no", "pairwise")
EQUAL = "equal"
"""Both texts of a comparison are the same: a tie without a question."""
FAILED = "failed"
_JUDGED = "text to be judged"
_HALF = 0.5


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a judge says of two texts, asked in both orders."""

    winner: str | None
    """"first" or "second"; None for a tie or without a verdict."""
    kind: str = VERDICT
    """"verdict"; "order" (the winner changed with the order: a tie); "equal" (the same text twice: a tie); or the kind
    of the abstention of one of the two questions."""
    orders: tuple[str | None, str | None] = (None, None)
    """The winner with the first text as A, and with the second as A."""

    @property
    def changed_with_order(self) -> bool:
        """Whether both questions had a winner, and not the same one."""
        return self.kind == ORDER


class LLMJudge:
    """A judge's verdict as a reward in [0, 1].

    Modes. `score`: a whole number of `scale`, mapped to [0, 1]. `yes-no`: the rubric is a question, the reward the
    probability of yes against no, or 1 and 0 from a written reply; the proxy reward of Kwon et al. 2023
    (arXiv:2303.00001). `pairwise`: 1 where the text is better than the baseline (by default the original prompt, or the
    answer to it), 0 where it is worse. Both orders are asked (Zheng et al. 2023, arXiv:2306.05685, section 3.4); a
    verdict that changes with the order is a tie. Equal texts are worth 0.5 without a question.

    A reply that is not exactly a verdict abstains and is counted by kind. A call that fails is a `Failure`. Everything
    that is judged or shown is fenced data. A question is asked once a run: what was read is in `state_dict`.

    Args:
        target: who judges: a target's name, the keys of the section `target`, or a target.
        rubric: what is good, in words; in mode "yes-no" a question about the text.
        mode: "score", "yes-no" or "pairwise".
        of: "output" (what the target wrote, or its most probable choice) or "prompt" (what the policy wrote).
        scale: mode "score": lowest and highest score, whole numbers.
        baseline: mode "pairwise": a text to compare with, in the place of the original prompt or its answer.
        tie: mode "pairwise": a verdict that changes with the order is "abstain" or "half" (0.5).
        show: columns that the judge sees beside the text, where they are not empty, "input" and "reference" among
            them; by default the input beside an output, and nothing beside a prompt. A prompt that is judged alone is
            judged once, whatever the number of examples.
        ask: "probabilities" of the possible verdicts, "text" (a written reply), or "auto": probabilities in mode
            "yes-no" where the target gives some, else text.
        choices: mode "yes-no": yes and no as continuations of the question.
        chat: whether the question is a chat message; by default where the target takes those.
        max_tokens: of a written reply.
        max_abstained_fraction: the check before a run refuses a judge that abstains on more of the made-up outputs.

    Raises:
        ConfigError: an argument out of range, or a target that cannot be loaded.
    """

    gold_not_ordered: ClassVar[bool] = True
    needs: ClassVar[str] = "any"
    timeout_seconds: ClassVar[float] = 3600.0

    def __init__(
        self,
        target: str | Mapping[str, Any] | Target,
        rubric: str,
        mode: str = "score",
        *,
        of: str = "output",
        scale: Sequence[int] = (1, 5),
        baseline: str | None = None,
        tie: str = "abstain",
        show: Sequence[str] | None = None,
        ask: str = "auto",
        choices: Sequence[str] = (" yes", " no"),
        chat: bool | None = None,
        max_tokens: int = 16,
        max_abstained_fraction: float = 0.5,
    ) -> None:
        _one_of("mode", mode, MODES)
        _one_of("of", of, ("output", "prompt"))
        _one_of("tie", tie, ("abstain", "half"))
        if not isinstance(rubric, str) or not rubric.strip():
            raise ConfigError("judge: the rubric is empty; say in words what is good, or ask a yes-no question")
        if isinstance(show, str) or (show is not None and not all(isinstance(name, str) for name in show)):
            raise ConfigError(f"judge: show must be a list of column names, got {show!r}")
        if not 0 <= max_abstained_fraction <= 1:
            raise ConfigError(f"judge: max_abstained_fraction must be in [0, 1], got {max_abstained_fraction}")
        if baseline is not None and mode != "pairwise":
            raise ConfigError(f"judge: baseline is for mode pairwise, but mode is {mode}; remove it")
        self.mode = mode
        self.rubric = rubric
        self.of = of
        self.baseline = baseline
        self.tie = tie
        self.scale = tuple(scale)
        self.show: tuple[str, ...] = (("input",) if of == "output" else ()) if show is None else tuple(show)
        self.max_abstained_fraction = float(max_abstained_fraction)
        self.form: Form = _form(mode, scale, choices)
        self.target = judge_target(target)
        self.needs_original = mode == "pairwise" and baseline is None
        self._chat = reads_messages(self.target) if chat is None else chat
        self._asker = Asker(self.target, self.form, "text" if ask == "auto" and mode != "yes-no" else ask, max_tokens)
        self._counts: Counter[str] = Counter()

    @property
    def judge_calls(self) -> JudgeCalls:
        """The most calls that it makes."""
        calls = 2 if self.mode == "pairwise" else 1
        return JudgeCalls(per_prompt=calls) if self.of == "prompt" and not self.show else JudgeCalls(per_pair=calls)

    @property
    def abstentions(self) -> dict[str, int]:
        """How often it had no verdict, by kind; equal questions count as often as they were put."""
        return {kind: self._counts[kind] for kind in ABSTENTIONS if self._counts[kind]}

    def attach(self, account: Account) -> None:
        """Spends on the run's account; raises ConfigError where its money is limited and the price unknown."""
        self._asker.attach(account)

    def __call__(
        self,
        *,
        completions: Sequence[str],
        outputs: Sequence[TargetOutput],
        references: Sequence[Any] | None = None,
        **columns: Sequence[Any],
    ) -> list[float | Failure | None]:
        """Scores N pairs.

        Args:
            completions: what the policy wrote.
            outputs: what the target answered.
            references: labels or gold answers; only read where `show` has "reference".
            **columns: further columns; `choices` names the target's answers, `originals` and `original_prompts` are
                what mode "pairwise" compares with.

        Raises:
            KeyError: `show` names a column that the task does not have.
            BudgetExceededError: the judge's calls do not fit into the budget.
        """
        texts, shown = self.data(completions, outputs, references, columns)
        if self.mode == "pairwise":
            others = self._others(len(texts), columns)
            return [self._worth(found) for found in self.compare(texts, others, shown)]
        return [found if isinstance(found, Failure) else found.value for found in self.readings(texts, shown)]

    def data(
        self,
        completions: Sequence[str],
        outputs: Sequence[TargetOutput],
        references: Sequence[Any] | None,
        columns: Mapping[str, Sequence[Any]],
    ) -> tuple[list[str | None], list[dict[str, str]]]:
        """Returns the texts to be judged of N pairs, and what the judge sees beside each; arguments as in a call."""
        texts: list[str | None] = [*completions]
        if self.of == "output":
            texts = answer_texts(outputs, columns.get("choices"))
        return texts, self._shown(len(texts), references, columns)

    def readings(
        self,
        texts: Sequence[str | None],
        shown: Sequence[Mapping[str, str]] | None = None,
        rubrics: Sequence[str] | None = None,
    ) -> list[Reading | Failure]:
        """Judges N texts one by one (modes "score" and "yes-no").

        Args:
            texts: what is judged; None abstains ("no-text").
            shown: what the judge sees beside each, by name.
            rubrics: a rubric of its own for each text.

        Raises:
            ConfigError: mode "pairwise" compares.
            BudgetExceededError: the calls do not fit into the budget.
        """
        if self.mode == "pairwise":
            raise ConfigError("judge: mode pairwise compares two texts; use compare, or mode score or yes-no")
        asked = [index for index, text in enumerate(texts) if text is not None]
        questions = [
            self._question(
                [(_JUDGED, str(texts[index]))], _row(shown, index), None if rubrics is None else rubrics[index]
            )
            for index in asked
        ]
        found: list[Reading | Failure] = [Reading(None, NO_TEXT)] * len(texts)
        for index, reading in zip(asked, self._asker.readings(questions), strict=True):
            found[index] = reading
        self._count(found)
        return found

    def compare(
        self,
        first: Sequence[str | None],
        second: Sequence[str | None],
        shown: Sequence[Mapping[str, str]] | None = None,
    ) -> list[Comparison | Failure]:
        """Compares N pairs of texts, each in both orders, with one call of the target (mode "pairwise").

        Args:
            first: a text of each pair; None abstains ("no-text").
            second: the other one.
            shown: what the judge sees beside each pair, by name.

        Raises:
            ConfigError: another mode.
            BudgetExceededError: the calls do not fit into the budget.
        """
        if self.mode != "pairwise":
            raise ConfigError(f"judge: mode {self.mode} judges one text; use readings, or mode pairwise")
        pairs = list(zip(first, second, strict=True))
        asked = [index for index, (a, b) in enumerate(pairs) if a is not None and b is not None and a != b]
        questions = []
        for index in asked:
            a, b = map(str, pairs[index])
            row = _row(shown, index)
            questions += [self._question([("text A", one), ("text B", two)], row) for one, two in ((a, b), (b, a))]
        read = self._asker.readings(questions)
        found: list[Comparison | Failure] = [
            Comparison(None, NO_TEXT if a is None or b is None else EQUAL) for a, b in pairs
        ]
        for place, index in enumerate(asked):
            found[index] = _comparison(read[2 * place], read[2 * place + 1])
        self._count(found)
        return found

    def run_metrics(self) -> dict[str, float]:
        """Returns the abstentions of the run so far, in all and by kind."""
        kinds = self.abstentions
        return {"abstained": float(sum(kinds.values())), **{f"abstained/{kind}": float(n) for kind, n in kinds.items()}}

    def state_dict(self) -> Json:
        """Returns the verdicts of the run and the counts, as JSON values."""
        return {**self._asker.state_dict(), "counts": dict(self._counts)}

    def load_state_dict(self, state: Json) -> None:
        """Restores what `state_dict` returned; raises CheckpointError for something else."""
        self._asker.load_state_dict(state)
        try:
            self._counts = Counter({str(kind): int(number) for kind, number in state["counts"].items()})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's counts of a judge cannot be read: {error!r}") from error

    def _question(self, texts: list[tuple[str, str]], row: Mapping[str, str], rubric: str | None = None) -> Rendered:
        parts = [*row.items(), *texts]
        heading = "Question" if self.mode == "yes-no" else "Rubric"
        return question(
            self.rubric if rubric is None else rubric, parts, self.form.instruction, heading=heading, chat=self._chat
        )

    def _others(self, count: int, columns: Mapping[str, Sequence[Any]]) -> list[str | None]:
        """The baselines of mode "pairwise"; None where the original has no answer."""
        if self.baseline is not None:
            return [self.baseline] * count
        if self.of == "prompt":
            return list(columns["original_prompts"])
        return answer_texts(columns["originals"], columns.get("choices"))

    def _shown(
        self, count: int, references: Sequence[Any] | None, columns: Mapping[str, Sequence[Any]]
    ) -> list[dict[str, str]]:
        shown: list[dict[str, str]] = [{} for _ in range(count)]
        for name in self.show:
            values = references if name == "reference" else columns.get(name)
            if values is None:
                raise KeyError(f"judge: show names '{name}', which is no column here{did_you_mean(name, columns)}")
            for index, row in enumerate(shown):
                text = _shown_text(name, values[index], index, columns)
                if text:
                    row[name] = text
        return shown

    def _worth(self, found: Comparison | Failure) -> float | Failure | None:
        if isinstance(found, Failure):
            return found
        if found.winner is not None:
            return float(found.winner == "first")
        tied = found.kind == EQUAL or (found.kind == ORDER and self.tie == "half")
        return _HALF if tied else None

    def _count(self, found: Sequence[Reading | Comparison | Failure]) -> None:
        self._counts.update(FAILED if isinstance(entry, Failure) else entry.kind for entry in found)


def answer_texts(outputs: Sequence[TargetOutput], choices: Sequence[Sequence[str]] | None = None) -> list[str | None]:
    """Returns what each output says: its text, or its most probable choice; None where it says nothing.

    Args:
        outputs: N answers.
        choices: the choices of each.
    """
    texts: list[str | None] = []
    for index, output in enumerate(outputs):
        if output.text is None and output.choice_logprobs is not None and choices is not None:
            best = max(range(len(output.choice_logprobs)), key=output.choice_logprobs.__getitem__)
            texts.append(str(choices[index][best]).strip())
        else:
            texts.append(output.text)
    return texts


def _form(mode: str, scale: Sequence[int], choices: Sequence[str]) -> Form:
    if mode == "score":
        return score_form(scale)
    return yes_no_form(choices) if mode == "yes-no" else pairwise_form()


def _comparison(one: Reading | Failure, two: Reading | Failure) -> Comparison | Failure:
    """Puts together the answers with the first text as A (`one`) and with the second as A (`two`)."""
    for reading in (one, two):
        if isinstance(reading, Failure):
            return reading
    winners: list[str | None] = []
    kinds = []
    for reading, (a, b) in ((one, ("first", "second")), (two, ("second", "first"))):
        value = reading.value if isinstance(reading, Reading) else None
        winners.append(None if value is None or value == _HALF else a if value > _HALF else b)
        kinds.append(UNDECIDED if value == _HALF else reading.kind)
    orders = (winners[0], winners[1])
    if None in winners:
        return Comparison(None, next(kind for kind in kinds if kind != VERDICT), orders)
    return Comparison(winners[0], VERDICT, orders) if winners[0] == winners[1] else Comparison(None, ORDER, orders)


def _shown_text(name: str, value: Any, index: int, columns: Mapping[str, Sequence[Any]]) -> str:
    if name == "reference" and type(value) is int and "choices" in columns:
        return str(columns["choices"][index][value]).strip()
    return "" if value is None else str(value)


def _row(shown: Sequence[Mapping[str, str]] | None, index: int) -> Mapping[str, str]:
    return {} if shown is None else shown[index]


def _one_of(what: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"judge: {what} must be {', '.join(known[:-1])} or {known[-1]}, got {value!r}")
