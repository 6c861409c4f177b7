"""Evaluation against a target whose answers are written out."""

import json
import math

import numpy as np
import pytest
from written_target import WrittenTarget, make_task

from rlprompt.config import BudgetConfig
from rlprompt.errors import BudgetExceededError, ConfigError
from rlprompt.evaluation import evaluate
from rlprompt.targets.ledger import Ledger
from rlprompt.targets.planted import PlantedTarget
from rlprompt.tasks import load_task
from rlprompt.types import Example

# P(" bad") for the labels bad, bad, good, good
ANSWERS: dict[str, float | str | None] = {
    "test0 p": 0.9,
    "test1 p": 0.4,
    "test2 p": 0.2,
    "test3 p": 0.5,
    "test0": 0.6,
    "test1": 0.6,
    "test2": 0.6,
    "test3": 0.6,
}


def test_accuracy_and_gap_reward_of_four_rows() -> None:
    # gaps: 0.9 - 0.1 = 0.8 right, 0.4 - 0.6 = -0.2 wrong, 0.8 - 0.2 = 0.6 right, 0.5 - 0.5 = 0 (a tie is wrong)
    # gap reward: (0.8 * 200 - 0.2 * 180 + 0.6 * 200 + 0 * 180) / 4 = (160 - 36 + 120 + 0) / 4 = 61
    (result,) = evaluate(make_task(), WrittenTarget(ANSWERS), ["p"])
    assert result.accuracy == 0.5
    assert result.gap_reward == pytest.approx(61.0)
    assert result.gaps.tolist() == pytest.approx([160.0, -36.0, 120.0, 0.0])
    assert result.correct.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert result.class_accuracies == {" bad": 0.5, " good": 0.5}
    assert (result.num_examples, result.num_failed, result.split, result.metric) == (4, 0, "test", "accuracy")
    # Wilson, 2 of 4: centre 0.5, half = 1.959964 / 1.9603647 * sqrt(0.0625 + 0.0600228) = 0.3499609
    assert result.accuracy_ci95 == pytest.approx((0.1500391, 0.8499609), abs=1e-4)


def test_all_prompts_share_one_call_per_chunk_of_rows() -> None:
    target = WrittenTarget(ANSWERS)
    first, empty = evaluate(make_task(), target, ["p", ""], chunk=3)
    assert target.calls == [
        ["test0 p", "test1 p", "test2 p", "test0", "test1", "test2"],
        ["test3 p", "test3"],
    ]
    assert (first.prompt, first.accuracy) == ("p", 0.5)
    assert (empty.prompt, empty.accuracy) == ("", 0.5)


def test_chunks_do_not_change_the_numbers() -> None:
    whole = evaluate(make_task(), WrittenTarget(ANSWERS), ["p", ""])
    pieces = evaluate(make_task(), WrittenTarget(ANSWERS), ["p", ""], chunk=1)
    assert [result.to_json() for result in whole] == [result.to_json() for result in pieces]


def test_limit_takes_the_first_rows_in_order() -> None:
    target = WrittenTarget(ANSWERS)
    (result,) = evaluate(make_task(), target, ["p"], limit=2)
    assert target.calls == [["test0 p", "test1 p"]]
    assert (result.num_examples, result.accuracy) == (2, 0.5)


def test_a_failed_row_is_excluded_and_counted_and_is_no_wrong_answer() -> None:
    (result,) = evaluate(make_task(), WrittenTarget({**ANSWERS, "test1 p": None}), ["p"])
    # without the wrong row: 2 of 3 right, gap reward (160 + 120 + 0) / 3
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.gap_reward == pytest.approx(280 / 3)
    assert (result.num_examples, result.num_failed) == (4, 1)
    assert np.isnan(result.correct[1])
    assert result.first_failure is not None
    assert result.first_failure.kind == "timeout"


def test_a_nan_among_the_log_probabilities_is_a_failure() -> None:
    (result,) = evaluate(make_task(), WrittenTarget({**ANSWERS, "test1 p": math.nan}), ["p"])
    assert (result.num_failed, result.accuracy) == (1, pytest.approx(2 / 3))
    assert result.first_failure is not None
    assert result.first_failure.kind == "nan"


def test_when_every_row_failed_the_numbers_are_unknown_and_still_json() -> None:
    (result,) = evaluate(make_task(), WrittenTarget(dict.fromkeys(ANSWERS)), ["p"])
    row = result.to_json()
    assert (row["accuracy"], row["accuracy_ci95"], row["gap_reward"], row["num_failed"]) == (
        None,
        [None, None],
        None,
        4,
    )
    json.dumps(row, allow_nan=False)


def test_median_calibration_is_fitted_on_train_for_each_prompt_and_moves_the_answers() -> None:
    # train: P(bad) 0.8 and 0.8, so the offsets are +-0.5 ln 4; test logits ln(q / (1 - q)) lose ln 4:
    # 0.9: ln 9 - ln 4 > 0 bad, right; 0.4: good, wrong; 0.2: good, right; 0.5: good, right
    target = WrittenTarget({**ANSWERS, "train0 p": 0.8, "train1 p": 0.8})
    ledger = Ledger()
    (result,) = evaluate(make_task(), target, ["p"], calibration="median", ledger=ledger)
    assert result.correct.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert result.calibration == "median"
    assert target.calls[0] == ["train0 p", "train1 p"]
    # odds 9 / 4 -> 0.692308, gap 0.384615; 0.4: odds (2/3)/4 = 1/6 -> 1/7, gap -5/7;
    # 0.2: odds 1/16 -> gap 15/17; 0.5: odds 1/4 -> gap 0.6
    expected = [200 * 5 / 13, -180 * 5 / 7, 200 * 15 / 17, 200 * 0.6]
    assert result.gaps.tolist() == pytest.approx(expected)


def test_calibration_may_be_fitted_on_given_examples() -> None:
    task = make_task()
    target = WrittenTarget({**ANSWERS, "dev0 p": 0.8})
    (result,) = evaluate(task, target, ["p"], calibration="median", calibration_examples=task.dev)
    assert target.calls[0] == ["dev0 p"]
    assert result.accuracy == 0.75


def test_contextual_calibration_asks_content_free_inputs() -> None:
    free: dict[str, float | str | None] = {"N/A p": 0.8, " p": 0.8, "[MASK] p": 0.8}
    target = WrittenTarget({**ANSWERS, **free})
    (result,) = evaluate(make_task(), target, ["p"], calibration="contextual")
    assert set(target.calls[0]) == set(free)
    assert result.accuracy == 0.75  # the same offsets as in the median test


def test_calls_are_booked_as_test_and_are_free_of_the_run_budget() -> None:
    ledger = Ledger(BudgetConfig(max_target_calls=1))
    evaluate(make_task(), WrittenTarget(ANSWERS), ["p", ""], ledger=ledger)
    snapshot = ledger.snapshot()
    assert snapshot["test"]["calls"] == 8
    assert snapshot["used"]["calls"] == 0


def test_another_phase_counts_and_stops_before_it_overdraws() -> None:
    target = WrittenTarget({**ANSWERS, "dev0 p": 0.8, "dev0": 0.8})
    with pytest.raises(BudgetExceededError):
        evaluate(
            make_task(),
            target,
            ["p", ""],
            split="dev",
            phase="dev",
            ledger=Ledger(BudgetConfig(max_target_calls=1)),
        )
    assert target.calls == []


def test_generation_tasks_report_their_metric() -> None:
    def row(number: int, gold: str) -> Example:
        return Example(id=f"test/{number}", input=f"test{number}", reference=gold)

    task = make_task(
        choices=None,
        metric="token-f1",
        train=(Example("train/0", "train0", "x"),),
        dev=(Example("dev/0", "dev0", "x"),),
        test=(row(0, "blue sky"), row(1, "green")),
    )
    (result,) = evaluate(task, WrittenTarget({"test0 p": "blue sea", "test1 p": "green"}), ["p"])
    # exact: 0 and 1; token F1: one of two words on both sides 0.5, and 1
    assert result.accuracy == 0.5
    assert (result.metric, result.score) == ("token-f1", pytest.approx(0.75))
    assert math.isnan(result.gap_reward)
    assert result.class_accuracies == {}
    assert result.to_json()["gap_reward"] is None


def test_progress_is_told_after_every_call() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        make_task(),
        WrittenTarget(ANSWERS),
        ["p"],
        chunk=3,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(3, 4), (4, 4)]


def test_the_planted_optimum_is_right_everywhere_and_the_empty_prompt_nowhere() -> None:
    target = PlantedTarget()
    best, empty = evaluate(load_task("planted"), target, [target.optimum, ""])
    assert (best.accuracy, empty.accuracy) == (1.0, 0.0)
    assert best.gap_reward > 0 > empty.gap_reward


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, "split must be one of train, dev, test, got 'validation'"),
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": "p"}, "must be a list"),
        ({"calibration": "mean"}, "calibration must be one of none, median, contextual, got 'mean'"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_asked(arguments: dict[str, object], message: str) -> None:
    target = WrittenTarget(ANSWERS)
    with pytest.raises(ConfigError, match=message):
        evaluate(make_task(), target, **{"prompts": ["p"], **arguments})  # type: ignore[arg-type]
    assert target.calls == []


def test_calibration_needs_choices() -> None:
    task = make_task(choices=None, metric="exact-match")
    with pytest.raises(ConfigError, match="calibration 'median' needs a task with choices; 'small' has none"):
        evaluate(task, WrittenTarget({}), ["p"], calibration="median")
