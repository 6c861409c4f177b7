"""How far a judge can be trusted: its agreement with labels, its position bias, and where it has no verdict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from rlprompt.errors import ConfigError
from rlprompt.evaluation.statistics import wilson_interval
from rlprompt.rewards import Component
from rlprompt.rewards.judges.judge import EQUAL, FAILED, Comparison, LLMJudge
from rlprompt.rewards.spending import Account
from rlprompt.targets.ledger import Ledger
from rlprompt.tasks import Task, load_task
from rlprompt.tasks.sources import SUFFIXES, Table, read_file
from rlprompt.types import Failure, Json, TargetOutput

Verdict: TypeAlias = int | str
"""Mode "score": the score; "pairwise": "a" or "b"; else 1 (yes) or 0 (no)."""

_YES = {"yes": 1, "no": 0, "true": 1, "false": 0, "1": 1, "0": 0}
_HALF = 0.5


@dataclass(frozen=True)
class LabelledItem:
    """A text, or a pair of texts, with what a person says of it."""

    id: str
    text: str
    label: str
    other: str | None = None
    """The second text of a pair."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """What a judge may be shown beside it: `input` and further columns."""


@dataclass(frozen=True)
class AgreementReport:
    """What a judge says of labelled items, against the labels."""

    name: str
    mode: str
    num_items: int
    num_verdicts: int
    num_agreeing: int
    agreement: float
    """Share of the verdicts that are the label; NaN without a verdict."""
    low: float
    high: float
    """95 % Wilson interval of the agreement."""
    kappa: float
    """Cohen's kappa of verdicts and labels (1960): (agreement - chance) / (1 - chance); NaN where both name one and the
    same class only, or without a verdict."""
    weighted_kappa: float
    """Mode "score": kappa with quadratic weights (Cohen 1968); else NaN."""
    position_bias: float
    """Mode "pairwise": share of the pairs decided in both orders whose winner changed with the order; else NaN."""
    prefers_first: float
    """Of those that changed: the share in which the text that stood first won both times; NaN without any."""
    abstained: Mapping[str, int]
    """Items without a verdict, by kind."""
    num_failed: int
    calls: int
    """Calls of the judge; the tokens are prompt and completion."""
    tokens: int

    def to_json(self) -> Json:
        """Returns the fields as JSON values, None for NaN."""
        values = asdict(self)
        return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def agreement_report(
    judge: Component, items: Sequence[LabelledItem], *, ledger: Ledger | None = None
) -> AgreementReport:
    """Has a judge judge labelled items and compares.

    A verdict is: in mode "score" the score (with probabilities, the nearest one); in mode "pairwise" the winner in both
    orders; of every other reward with values in [0, 1], yes above 0.5 and no below it, and none at 0.5.

    Args:
        judge: a `judge`, or any other reward: a checklist, an ensemble.
        items: with labels: whole numbers of the scale; "a" or "b" (the better one); yes or no, 1 or 0.
        ledger: meters the calls; a fresh one by default.

    Raises:
        ConfigError: no items, or an item whose label or texts do not fit the judge.
    """
    if not items:
        raise ConfigError("an agreement report needs labelled items, got none")
    llm = judge.reward if isinstance(judge.reward, LLMJudge) else None
    mode = "value" if llm is None else llm.mode
    labels = [_label(item, judge.name, llm) for item in items]
    spent = ledger if ledger is not None else Ledger()
    before = spent.snapshot()["used"]
    judge.attach(Account(spent, "report"))
    comparisons: list[Comparison | Failure] = []
    if llm is not None and llm.mode == "pairwise":
        comparisons = _compare(llm, items)
    verdicts = [_winner(found) for found in comparisons] if comparisons else _verdicts(judge, llm, items)
    known = [(label, found) for label, found in zip(labels, verdicts, strict=True) if not isinstance(found, _None)]
    missing = Counter(found.kind for found in verdicts if isinstance(found, _None))
    failed = missing.pop(FAILED, 0)
    agreeing = sum(label == found for label, found in known)
    low, high = wilson_interval(agreeing, len(known))
    used = spent.snapshot()["used"]
    decided = [found for found in comparisons if isinstance(found, Comparison) and None not in found.orders]
    changed = [found for found in decided if found.changed_with_order]
    return AgreementReport(
        name=judge.name,
        mode=mode,
        num_items=len(items),
        num_verdicts=len(known),
        num_agreeing=agreeing,
        agreement=_share(agreeing, len(known)),
        low=low,
        high=high,
        kappa=_kappa(known),
        weighted_kappa=math.nan if llm is None or mode != "score" else _kappa(known, llm.scale),
        position_bias=_share(len(changed), len(decided)),
        prefers_first=_share(sum(found.orders[0] == "first" for found in changed), len(changed)),
        abstained=dict(sorted(missing.items())),
        num_failed=failed,
        calls=used["calls"] - before["calls"],
        tokens=used["tokens"] - before["tokens"],
    )


def load_items(
    source: str | Path,
    *,
    split: str = "test",
    limit: int | None = None,
    text: str | None = None,
    yes: str | None = None,
) -> list[LabelledItem]:
    """Reads labelled items.

    A data file (.jsonl, .csv, .tsv) has the columns `label` and `text`, or `label`, `a` and `b`; `id`, `input` and
    further columns if wanted. Of a task (its name or card) the input is judged, or the column `text`, and the reference
    is the label; of a task with choices the label is yes for one of the choices and no for the others.

    Args:
        source: the file, or the task.
        split: of a task.
        limit: the first so many items; None takes all.
        text: of a task: the column that is judged; the input is then shown beside it, where the judge is shown any.
        yes: of a task with choices: the one that yes stands for, its text or index; of two the second one by default.

    Raises:
        ConfigError: a missing column or label, an id that comes twice, or as `load_task`.
    """
    path = Path(source)
    if path.suffix.lower() in SUFFIXES:
        if text is not None or yes is not None:
            raise ConfigError(f"{path} has the columns text and label; --text and --yes are for tasks")
        items = _from_table(read_file(path))
    else:
        items = _from_task(load_task(source), split, text, yes)
    return items[:limit]


@dataclass(frozen=True)
class _None:
    """Stands for a verdict that is missing."""

    kind: str


def _from_table(table: Table) -> list[LabelledItem]:
    paired = "a" in table.columns or "b" in table.columns
    needed = ("a", "b", "label") if paired else ("text", "label")
    absent = [name for name in needed if name not in table.columns]
    if absent:
        raise ConfigError(f"{table.name} has no column '{absent[0]}'; labelled items need {', '.join(needed)}")
    items: list[LabelledItem] = []
    seen: set[str] = set()
    for number, row in table.rows:
        identity = str(row.get("id", number))
        for name in needed:
            if row.get(name) is None:
                raise ConfigError(f"{table.name}, row {number}: no {name}; every labelled item needs one")
        if identity in seen:
            raise ConfigError(f"{table.name}, row {number}: the id '{identity}' is there already; ids are unique")
        seen.add(identity)
        further = {key: _plain(value) for key, value in row.items() if key not in (*needed, "id") and value is not None}
        text, other = (row["a"], str(row["b"])) if paired else (row["text"], None)
        items.append(LabelledItem(identity, str(text), _plain(row["label"]), other, further))
    return items


def _from_task(task: Task, split: str, text: str | None, yes: str | None) -> list[LabelledItem]:
    if split not in ("train", "dev", "test"):
        raise ConfigError(f"split must be train, dev or test, got '{split}'")
    positive = None if task.choices is None else _positive(task, yes)
    items = []
    for example in getattr(task, split):
        if text is not None and text not in example.columns:
            raise ConfigError(f"task '{task.name}' has no column '{text}'; it has {', '.join(task.column_names)}")
        if example.reference is None:
            raise ConfigError(f"task '{task.name}': example '{example.id}' has no reference to agree with")
        label = str(example.reference) if positive is None else str(int(example.reference == positive))
        columns = {key: _plain(value) for key, value in example.columns.items() if value is not None}
        judged = example.input if text is None else _plain(columns.pop(text))
        items.append(LabelledItem(example.id, judged, label, None, {"input": example.input, **columns}))
    return items


def _positive(task: Task, yes: str | None) -> int:
    choices = task.choices or ()
    if yes is None:
        if len(choices) != 2:
            raise ConfigError(f"task '{task.name}' has {len(choices)} choices; say with --yes which one yes stands for")
        return 1
    names = [choice.strip() for choice in choices]
    if yes.strip() in names:
        return names.index(yes.strip())
    if yes.isdecimal() and int(yes) < len(choices):
        return int(yes)
    raise ConfigError(f"--yes is '{yes}', which is none of the choices of task '{task.name}': {', '.join(names)}")


def _label(item: LabelledItem, name: str, judge: LLMJudge | None) -> Verdict:
    pairwise = judge is not None and judge.mode == "pairwise"
    if (item.other is not None) != pairwise:
        kind = "pairs (columns a and b)" if pairwise else "single texts (column text)"
        raise ConfigError(f"item '{item.id}': '{name}' judges {kind}; give those, or another mode")
    label = item.label.strip().lower()
    if pairwise:
        if label in ("a", "b"):
            return label
        raise ConfigError(f"item '{item.id}': the label must be a or b, got '{item.label}'")
    if judge is not None and judge.mode == "score":
        if label in judge.form.options:
            return int(label)
        low, high = judge.scale
        raise ConfigError(
            f"item '{item.id}': the label must be a whole number from {low} to {high}, got '{item.label}'"
        )
    if label in _YES:
        return _YES[label]
    raise ConfigError(f"item '{item.id}': the label must be yes or no (or 1 or 0), got '{item.label}'")


def _compare(judge: LLMJudge, items: Sequence[LabelledItem]) -> list[Comparison | Failure]:
    shown = [_beside(judge, item) for item in items]
    return judge.compare([item.text for item in items], [item.other for item in items], shown)


def _winner(found: Comparison | Failure) -> Verdict | _None:
    if isinstance(found, Failure):
        return _None(FAILED)
    if found.winner is None:
        return _None(found.kind if found.kind != EQUAL else "equal-texts")
    return "a" if found.winner == "first" else "b"


def _verdicts(judge: Component, llm: LLMJudge | None, items: Sequence[LabelledItem]) -> list[Verdict | _None]:
    if llm is not None:
        read = llm.readings([item.text for item in items], [_beside(llm, item) for item in items])
        pairs = [(FAILED, None) if isinstance(entry, Failure) else (entry.kind, entry.value) for entry in read]
    else:
        pairs = _values(judge, items)
    return [_decide(value, kind, llm) for kind, value in pairs]


def _decide(value: float | None, kind: str, judge: LLMJudge | None) -> Verdict | _None:
    if value is None:
        return _None(kind)
    if judge is not None and judge.mode == "score":
        low, high = judge.scale
        return round(low + value * (high - low))
    return _None("undecided") if value == _HALF else int(value > _HALF)


def _values(judge: Component, items: Sequence[LabelledItem]) -> list[tuple[str, float | None]]:
    """Calls any reward on the texts, as outputs and as prompts alike; of a missing value the kind is not known."""
    names = dict.fromkeys(name for item in items for name in item.columns)
    columns: dict[str, list[Any]] = {name: [item.columns.get(name) for item in items] for name in (*names, "input")}
    texts = [item.text for item in items]
    given = {
        **columns,
        "prompts": [""] * len(items),
        "completions": texts,
        "outputs": [TargetOutput(text=text) for text in texts],
        "references": [None] * len(items),
    }
    scored = judge.read(judge.call(given), len(items))
    found: list[tuple[str, float | None]] = []
    for index, value in enumerate(scored.values.tolist()):
        kind = FAILED if index in scored.failures else "abstained"
        found.append((kind, None if math.isnan(value) else value))
    return found


def _beside(judge: LLMJudge, item: LabelledItem) -> dict[str, str]:
    """What the judge is shown beside an item: those columns of `show` that the item has."""
    return {name: item.columns[name] for name in judge.show if name in item.columns}


def _kappa(known: Sequence[tuple[Verdict, Verdict]], scale: Sequence[int] | None = None) -> float:
    """Cohen's kappa; of a scale (lowest, highest) with quadratic weights."""
    labels, verdicts = [label for label, _ in known], [found for _, found in known]
    if len({*labels, *verdicts}) < 2:  # chance agrees always: nothing to divide by
        return math.nan
    from sklearn.metrics import cohen_kappa_score

    if scale is None:
        return float(cohen_kappa_score(labels, verdicts))
    # Of the whole scale: scikit-learn's weights count the scores that it is told of, not those that it leaves out.
    scores = list(range(scale[0], scale[1] + 1))
    return float(cohen_kappa_score(labels, verdicts, labels=scores, weights="quadratic"))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _plain(value: Any) -> str:
    """A cell as text; YAML's and JSON's 1.0 is 1."""
    whole = isinstance(value, bool) or (isinstance(value, float) and value.is_integer())
    return str(int(value)) if whole else str(value)
