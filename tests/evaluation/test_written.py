"""Texts written for single rows, against a target whose answers are written out."""

import numpy as np
import pytest
from written_target import WrittenTarget, make_task

from rlprompt.config import BudgetConfig
from rlprompt.errors import BudgetExceededError, ConfigError
from rlprompt.evaluation import evaluate_written
from rlprompt.targets.ledger import Ledger
from rlprompt.tasks import Template


def test_each_row_is_answered_with_its_own_text_and_all_methods_in_one_call() -> None:
    answers: dict[str, float | str | None] = {
        **{f"test{row} p{row}": 0.9 for row in range(4)},  # P(" bad"): rows 0 and 1 are right
        **{f"test{row} q": 0.2 for row in range(3)},
        "test3 q": None,
    }
    target = WrittenTarget(answers)
    found = evaluate_written(
        make_task(), target, {"p": [f"p{row}" for row in range(4)], "q": ["q"] * 4}, keep_outputs=True
    )
    assert list(found) == ["p", "q"]
    assert found["p"].correct.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert found["p"].accuracy == 0.5
    np.testing.assert_array_equal(found["q"].correct, [0.0, 0.0, 1.0, np.nan])
    assert (found["q"].accuracy, found["q"].num_failed) == (pytest.approx(1 / 3), 1)
    assert [len(call) for call in target.calls] == [8]
    assert len(found["q"].outputs) == 4
    assert found["p"].prompt == "p"


def test_rows_that_are_left_alone_show_the_draft_or_the_input() -> None:
    target = WrittenTarget({f"test{row} Say.": 0.9 for row in range(2)} | {"test0": 0.9, "test1": 0.9})
    evaluate_written(make_task(), target, {"kept": [None, None]}, limit=2, draft="Say.")
    task = make_task(template=Template("{prompt}"))
    evaluate_written(task, target, {"kept": [None, None]}, limit=2)
    assert target.calls == [["test0 Say.", "test1 Say."], ["test0", "test1"]]


def test_additions_are_composed_and_derived_prompts_are_answered_first() -> None:
    task = make_task(
        template=Template("{prompt}"),
        choices=None,
        metric="exact-match",
        max_tokens=4,
        test=tuple(make_task().test[:2]),
    )
    target = WrittenTarget(
        {"test0\nBe brief.": "0", "test1": "1", "How?": "so", "Why?": None, "How?\nso\n\ntest0": "0"}
        | {"Why?\n\n\ntest1": "0"}
    )
    appended = evaluate_written(task, target, {"a": ["Be brief.", ""]}, compose="append")["a"]
    assert target.calls == [["test0\nBe brief.", "test1"]]
    assert appended.num_failed == 0
    derived = evaluate_written(task, target, {"d": ["How?", "Why?"]}, compose="demonstration")["d"]
    assert target.calls[1:] == [["How?", "Why?"], ["How?\nso\n\ntest0", "Why?\n\n\ntest1"]]
    assert derived.num_failed == 1  # the answer to the derived prompt is missing, so there is no demonstration


def test_chunks_change_nothing_and_calls_are_metered() -> None:
    answers: dict[str, float | str | None] = {f"test{row} p": 0.9 for row in range(4)}
    ledger = Ledger()
    seen: list[tuple[int, int]] = []
    found = evaluate_written(
        make_task(),
        WrittenTarget(answers),
        {"p": ["p"] * 4},
        chunk=3,
        ledger=ledger,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert found["p"].accuracy == 0.5
    assert ledger.snapshot()["test"]["calls"] == 4
    assert seen == [(3, 4), (4, 4)]
    with pytest.raises(BudgetExceededError):
        evaluate_written(
            make_task(),
            WrittenTarget(answers),
            {"p": ["p"] * 4},
            ledger=Ledger(BudgetConfig(max_target_calls=3)),
            phase="train",
        )


@pytest.mark.parametrize(
    ("written", "message"),
    [({}, "at least one method"), ({"p": ["a"]}, "'p' has 1 texts for 4 rows")],
)
def test_mistakes_are_named(written: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_written(make_task(), WrittenTarget({}), written)
