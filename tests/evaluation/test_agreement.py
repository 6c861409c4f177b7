"""Agreement of judges with labels, on twenty sentences that were labelled by hand as polite or not."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge
from written_target import make_task

from rlprompt.config import RewardConfig
from rlprompt.errors import ConfigError
from rlprompt.evaluation.agreement import LabelledItem, agreement_report, load_items
from rlprompt.rewards import Component, load_component
from rlprompt.rewards.judges import Checklist, Ensemble, LLMJudge
from rlprompt.targets.ledger import Ledger
from rlprompt.tasks import Task
from rlprompt.types import Failure

FIXTURE = Path(__file__).parent / "politeness.jsonl"
TEXT = "text to be judged"
WORDS = ("please", "thank")


def items() -> list[LabelledItem]:
    return load_items(FIXTURE)


def courtesy(text: str) -> int:
    """How many words of courtesy a text has."""
    return sum(text.lower().count(word) for word in WORDS)


def counts_words(shown: dict[str, str], _: str) -> str:
    """Polite is what says please or thanks; two marks at the end make it talk."""
    if shown[TEXT].endswith("?!"):
        return "That depends on the tone."
    return "yes" if courtesy(shown[TEXT]) else "no"


def yes_no(reply: Any, **options: Any) -> Component:
    return Component("judge", LLMJudge(FakeJudge(reply), "Is it polite?", "yes-no", **{"ask": "text", **options}))


def test_agreement_kappa_and_abstentions_are_those_of_the_fixture() -> None:
    ledger = Ledger()
    report = agreement_report(yes_no(counts_words), items(), ledger=ledger)
    # 18 verdicts; wrong on p9 (no word of courtesy) and n9 (irony)
    assert (report.num_items, report.num_verdicts, report.num_agreeing) == (20, 18, 16)
    assert report.agreement == pytest.approx(16 / 18)
    # Wilson with z = 1.96: centre (0.88889 + 3.8416 / 36) / 1.21342, half 1.96 / 1.21342 * sqrt(0.0054870 + 0.0029642)
    assert (report.low, report.high) == pytest.approx((0.6720, 0.9690), abs=2e-4)
    # labels and verdicts say yes 9 times of 18: chance agrees with 0.5, and (16 / 18 - 0.5) / 0.5 = 7 / 9
    assert report.kappa == pytest.approx(7 / 9)
    assert report.abstained == {"prose": 2}
    assert (report.num_failed, report.calls, report.tokens) == (0, 20, 200)
    assert ledger.snapshot()["by_role"]["judge"]["calls"] == 20
    assert report.to_json()["position_bias"] is None


def pairs() -> list[LabelledItem]:
    """The polite and the impolite sentences as pairs, the polite one first in every other."""
    found = items()
    made = []
    for index, (polite, rude) in enumerate(zip(found[:10], found[10:], strict=True)):
        a, b = (polite, rude) if index % 2 == 0 else (rude, polite)
        made.append(LabelledItem(f"pair{index}", a.text, "a" if index % 2 == 0 else "b", b.text))
    return made


def more_courteous(shown: dict[str, str], _: str) -> str:
    """The one with more words of courtesy; the first one where they have as many."""
    return "A" if courtesy(shown["text A"]) >= courtesy(shown["text B"]) else "B"


def test_position_bias_is_the_share_of_verdicts_that_change_with_the_order() -> None:
    judge = Component("judge", LLMJudge(FakeJudge(more_courteous), "Which is more polite?", "pairwise"))
    report = agreement_report(judge, pairs())
    # pairs 0 to 7 are right in both orders; in pair 8 irony wins; pair 9 has no word of courtesy: the first one wins
    assert (report.num_verdicts, report.num_agreeing) == (9, 8)
    assert report.position_bias == pytest.approx(0.1)
    assert report.prefers_first == 1.0
    assert report.abstained == {"order": 1}
    assert report.calls == 20


def test_a_score_is_compared_as_a_score_with_a_weighted_kappa() -> None:
    scores = {"a": "1", "b": "2", "c": "3", "d": "9"}
    judge = Component("judge", LLMJudge(FakeJudge(lambda shown, _: scores[shown[TEXT]]), "Good?", scale=(1, 3)))
    given = [LabelledItem(text, text, label) for text, label in zip("abcd", "1332", strict=True)]
    report = agreement_report(judge, given)
    assert (report.num_agreeing, report.num_verdicts, report.abstained) == (2, 3, {"out-of-range": 1})
    # verdicts 1 2 3, labels 1 3 3: chance 1/3 * 1/3 + 1/3 * 2/3 = 1/3, kappa (2/3 - 1/3) / (2/3)
    assert report.kappa == pytest.approx(0.5)
    # mean squared difference 1/3; by chance (3 * 3 pairs): (1,1) 0 (1,3) 4*2 (2,1) 1 (2,3) 1*2 (3,1) 4 (3,3) 0: 15 / 9
    assert report.weighted_kappa == pytest.approx(1 - (1 / 3) / (15 / 9))


def test_a_weighted_kappa_counts_the_scores_that_nobody_gave_too() -> None:
    scores = {"a": "1", "b": "5", "c": "5", "d": "2"}
    judge = Component("judge", LLMJudge(FakeJudge(lambda shown, _: scores[shown[TEXT]]), "Good?", scale=(1, 5)))
    given = [LabelledItem(text, text, label) for text, label in zip("abcd", "1255", strict=True)]
    # squared differences 0 9 0 9, mean 18 / 4; by chance, of each label with each verdict 33 + 19 + 25 + 25, over 16
    assert agreement_report(judge, given).weighted_kappa == pytest.approx(1 - (18 / 4) / (102 / 16))


def test_row_162_an_ensemble_agrees_at_least_as_well_as_its_best_member() -> None:
    def wrong_on(*numbers: int) -> Component:
        truth = {item.text: item.label for item in items()}
        errors = {items()[number].text for number in numbers}

        def reply(shown: dict[str, str], _: str) -> str:
            right = truth[shown[TEXT]]
            return ("no" if right == "yes" else "yes") if shown[TEXT] in errors else right

        return Component(f"wrong{numbers[0]}", LLMJudge(FakeJudge(reply), "Polite?", "yes-no", ask="text"))

    members = [wrong_on(0, 1, 2), wrong_on(3, 4, 12), wrong_on(5, 13)]
    best = max(agreement_report(member, items()).agreement for member in members)
    made = Ensemble(members, "median")
    report = agreement_report(Component("ensemble", made), items())
    assert best == 0.9
    assert report.agreement == 1.0 >= best
    assert report.mode == "value"
    spread = made(completions=["x"] * 2, outputs=_outputs(0, 6), references=[None] * 2, input=[""] * 2)["disagreement"]
    # one of three says no: sqrt(2 / 9); all agree
    assert spread == pytest.approx([(2 / 9) ** 0.5, 0.0])


def _outputs(*numbers: int) -> list[Any]:
    from rlprompt.types import TargetOutput

    return [TargetOutput(text=items()[number].text) for number in numbers]


def test_a_checklist_is_judged_by_its_share() -> None:
    checklist = Checklist(FakeJudge(counts_words), ["Is it polite?"], ask="text")
    report = agreement_report(Component("checklist", checklist), items())
    assert (report.num_verdicts, report.num_agreeing, report.abstained) == (18, 16, {"abstained": 2})


def test_failed_calls_are_counted_apart() -> None:
    def reply(shown: dict[str, str], question: str) -> Any:
        return Failure("target", "http", "500") if "report" in shown[TEXT] else counts_words(shown, question)

    report = agreement_report(yes_no(reply), items())
    assert (report.num_failed, report.num_verdicts, report.abstained) == (2, 16, {"prose": 2})


def test_without_a_verdict_there_is_no_agreement() -> None:
    report = agreement_report(yes_no(lambda *_: "hm"), items())
    assert report.num_verdicts == 0
    values = report.to_json()
    assert [values[name] for name in ("agreement", "low", "high", "kappa")] == [None] * 4
    json.dumps(values, allow_nan=False)


def test_kappa_of_a_single_class_is_unknown() -> None:
    report = agreement_report(yes_no(lambda *_: "yes"), items()[:5])
    assert report.agreement == 1.0
    assert report.to_json()["kappa"] is None


# --- where items come from ---


def test_a_task_gives_its_inputs_or_a_column_with_its_references() -> None:
    found = load_items("planted", limit=3)
    assert [item.text for item in found] == ["item 2000", "item 2001", "item 2002"]
    assert sorted(item.label for item in found[:2]) == ["0", "1"]
    turned = load_items("planted", limit=2, yes="no")
    assert [item.label for item in turned] == [str(1 - int(item.label)) for item in found[:2]]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_pairs_are_read_from_tables(tmp_path: Path, suffix: str) -> None:
    line = "\t" if suffix == ".tsv" else ","
    rows = [["a", "b", "label", "input"], ["x", "y", "a", "Why?"], ["u", "v", "b", "How?"]]
    path = tmp_path / f"pairs{suffix}"
    path.write_text("\n".join(line.join(row) for row in rows) + "\n")
    assert load_items(path) == [
        LabelledItem("0", "x", "a", "y", {"input": "Why?"}),
        LabelledItem("1", "u", "b", "v", {"input": "How?"}),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "x"}'], "has no column 'label'; labelled items need text, label"),
        (['{"a": "x", "label": "a"}'], "has no column 'b'; labelled items need a, b, label"),
        (['{"id": 1, "text": "x", "label": 1}'] * 2, "row 1: the id '1' is there already; ids are unique"),
        (['{"text": "x", "label": null}'], "row 0: no label"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError, match=message):
        load_items(path)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (LabelledItem("i", "x", "maybe"), "item 'i': the label must be yes or no"),
        (LabelledItem("i", "x", "yes", "y"), "'judge' judges single texts"),
    ],
)
def test_items_that_do_not_fit_the_judge_are_named(item: LabelledItem, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agreement_report(yes_no(counts_words), [item])


def test_labels_of_other_modes_are_checked() -> None:
    score = Component("judge", LLMJudge(FakeJudge(lambda *_: "1"), "?"))
    with pytest.raises(ConfigError, match="a whole number from 1 to 5, got '0'"):
        agreement_report(score, [LabelledItem("i", "x", "0")])
    pairwise = Component("judge", LLMJudge(FakeJudge(lambda *_: "A"), "?", "pairwise"))
    with pytest.raises(ConfigError, match="the label must be a or b, got 'first'"):
        agreement_report(pairwise, [LabelledItem("i", "x", "first", "y")])
    with pytest.raises(ConfigError, match="needs labelled items, got none"):
        agreement_report(score, [])


def test_options_that_do_not_fit_the_items_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for options, message in (
        ({"split": "all"}, "split must be train, dev or test, got 'all'"),
        ({"yes": "maybe"}, "--yes is 'maybe', which is none of the choices of task 'planted': no, yes"),
        ({"text": "review"}, "has no column 'review'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_items("planted", **options)
    with pytest.raises(ConfigError, match="--text and --yes are for tasks"):
        load_items(FIXTURE, yes="1")
    three: Task = make_task(choices=(" bad", " good", " fair"))
    monkeypatch.setattr("rlprompt.evaluation.agreement.load_task", lambda _: three)
    with pytest.raises(ConfigError, match="has 3 choices; say with --yes which one yes stands for"):
        load_items("small")
    assert [item.label for item in load_items("small", yes="good")] == ["0", "0", "1", "1"]


def test_a_judge_of_a_configuration_is_reported_on() -> None:
    kwargs = {"target": "planted:separable", "rubric": "Is it yes?", "mode": "yes-no", "show": []}
    report = agreement_report(load_component(RewardConfig(name="judge", kwargs=kwargs)), load_items("planted", limit=8))
    # Without a right word the planted target prefers the wrong choice: of label 0 that is the second one, here no; of
    # label 1 the first one, yes. So it says the label.
    assert (report.num_verdicts, report.num_agreeing) == (8, 8)
