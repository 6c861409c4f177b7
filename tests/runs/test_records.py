from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rlprompt.config import RewardConfig
from rlprompt.errors import RunError
from rlprompt.rewards import RewardSet
from rlprompt.runs.records import (
    Answer,
    AnswerBook,
    prompt_id,
    prompt_records,
    read_answers,
    read_prompts,
    write_answers,
    write_prompts,
)
from rlprompt.scoring import Scorer
from rlprompt.targets.planted import PlantedTarget
from rlprompt.tasks.planted import planted_task
from rlprompt.types import Failure, Scores, TargetOutput


def make_scores() -> Scores:
    """Two prompts on two examples; the second prompt failed on the first example."""
    failure = Failure("target", "timeout", "too slow", 3)
    right = TargetOutput(choice_logprobs=(-0.1, -2.4), prompt_tokens=7, completion_tokens=1)
    return Scores(
        prompts=("a", "b"),
        example_ids=("train/0", "train/1"),
        components={"gap": np.array([[1.0, 3.0], [np.nan, 5.0]])},
        rewards=np.array([[1.0, 3.0], [0.0, 5.0]]),
        correct=np.array([[1.0, 0.0], [np.nan, 1.0]]),
        valid=np.array([[True, True], [False, True]]),
        outputs=((right, right), (TargetOutput(failure=failure), right)),
        failures=((1, 0, failure),),
    )


def make_scorer(calibration: str = "none") -> Scorer:
    rewards = RewardSet.from_config([RewardConfig(name="gap")])
    target = PlantedTarget(length=2, vocabulary=10)
    return Scorer(planted_task(4, 4, 2), target, rewards, calibration=calibration)


def test_a_record_has_means_over_what_is_valid_and_the_cost() -> None:
    scores = make_scores()
    answers = [Answer("a", "train/0", 0, scores.outputs[0][0]), Answer("b", "train/1", 0, scores.outputs[1][1])]
    first, second = prompt_records(scores, answers, iteration=4, phase="train", training_rewards=np.array([-1.0, 1.0]))
    assert (first.raw_reward, second.raw_reward) == (2.0, 5.0)  # (1 + 3) / 2 and 5 / 1: the failure is no 0
    assert (first.components["gap"], second.components["gap"]) == (2.0, 5.0)
    assert (first.accuracy, second.accuracy) == (0.5, 1.0)
    assert (first.num_valid, second.num_valid, second.num_failed) == (2, 1, 1)
    assert (first.target_calls, first.target_tokens) == (1, 8)
    assert (first.iteration, first.index, second.index, second.training_reward) == (4, 0, 1, 1.0)


def test_prompts_come_back_from_a_part_exactly(tmp_path: Path) -> None:
    records = prompt_records(make_scores(), [], iteration=0, phase="train")
    write_prompts(tmp_path / "part.parquet", records)
    found = read_prompts(tmp_path / "part.parquet")
    assert [repr(record) for record in found] == [repr(record) for record in records]
    assert math.isnan(found[0].training_reward)


def test_answers_come_back_from_a_part_exactly(tmp_path: Path) -> None:
    answers = [
        Answer("a", "train/0", 0, TargetOutput(choice_logprobs=(-0.1, -1 / 3), prompt_tokens=7)),
        Answer("b", "train/0", 2, TargetOutput(text="", completion_tokens=3, cached=True)),
        Answer("b", "train/1", 0, TargetOutput(logprob=-1e-300)),
        Answer("a", "train/1", 0, TargetOutput(failure=Failure("target", "http", "500", 2))),
    ]
    write_answers(tmp_path / "part.parquet", answers)
    texts = {prompt_id(text): text for text in ("a", "b")}
    assert list(read_answers(tmp_path / "part.parquet", texts)) == answers


def test_payloads_come_back_exactly_and_what_json_would_change_is_left_out(tmp_path: Path) -> None:
    kept = [
        Answer("a", "train/0", 0, TargetOutput(payload={"images": [[[0, 255], [0.1, -1 / 3]]], "ok": True})),
        Answer("a", "train/1", 0, TargetOutput(payload="ünïcödé\n")),
        Answer("a", "train/2", 0, TargetOutput(text="both", payload=[])),
    ]
    lost = [
        Answer("a", "train/3", 0, TargetOutput(payload=np.zeros(2))),
        Answer("a", "x", 0, TargetOutput(payload=(1,))),
    ]
    write_answers(tmp_path / "part.parquet", [*lost, *kept])
    assert list(read_answers(tmp_path / "part.parquet", {prompt_id("a"): "a"})) == kept


def test_a_part_from_before_there_were_payloads_can_be_read(tmp_path: Path) -> None:
    answer = Answer("a", "train/0", 0, TargetOutput(text="x"))
    write_answers(tmp_path / "part.parquet", [answer])
    pq.write_table(pq.read_table(tmp_path / "part.parquet").drop_columns(["payload"]), tmp_path / "old.parquet")
    assert list(read_answers(tmp_path / "old.parquet", {prompt_id("a"): "a"})) == [answer]


def test_an_answer_of_an_unknown_prompt_is_an_error(tmp_path: Path) -> None:
    write_answers(tmp_path / "part.parquet", [Answer("a", "train/0", 0, TargetOutput(text="x"))])
    with pytest.raises(RunError, match="which prompts/ does not know"):
        list(read_answers(tmp_path / "part.parquet", {}))


def test_a_damaged_part_is_a_one_line_error(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(RunError, match="cannot read") as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)


def test_an_answer_is_collected_once_however_often_its_prompt_is_scored() -> None:
    scorer = make_scorer()
    book = AnswerBook(scorer)
    first = book.collect(scorer.score(["w00 w01", "w02 w03", "w00 w01"], scorer.task.train))
    assert len(first) == 2 * 4
    assert book.collect(scorer.score(["w00 w01"], scorer.task.train)) == []
    assert len(book.collect(scorer.score(["w00 w01"], scorer.task.dev, phase="dev"))) == 4


def test_a_failed_answer_is_collected_each_time_it_was_asked_for() -> None:
    scorer = make_scorer()
    scorer.target = PlantedTarget(length=2, vocabulary=10, failure_rate=1.0)
    book = AnswerBook(scorer)
    assert len(book.collect(scorer.score(["w00 w01"], scorer.task.train))) == 4
    assert len(book.collect(scorer.score(["w00 w01"], scorer.task.train))) == 4


def test_calibrated_scores_are_recorded_raw_with_what_calibration_asked() -> None:
    scorer, plain = make_scorer("median"), make_scorer()
    book = AnswerBook(scorer, scorer.task.train)
    scores = scorer.score(["w00 w01"], scorer.task.dev, phase="dev")
    answers = {answer.example_id: answer.output for answer in book.collect(scores)}
    raw = plain.answer(["w00 w01"], (*plain.task.train, *plain.task.dev))[0]
    expected = dict(zip([example.id for example in (*plain.task.train, *plain.task.dev)], raw, strict=True))
    assert answers == expected
    assert scores.outputs[0][0] != expected[scores.example_ids[0]]  # what the rewards saw was shifted
    assert len(answers) == scorer.ledger.snapshot()["used"]["calls"] == 8
