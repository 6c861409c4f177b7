"""The journal of answers: exact, each pair once, cut where a kill cut it, and emptied by checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlprompt.rewards.spending import Account
from rlprompt.runs.folder import RunFolder
from rlprompt.runs.journal import AnswerJournal, Journals
from rlprompt.runs.records import Answer, given_pairs
from rlprompt.types import Failure, TargetOutput


def record(prompt: str = "w01", example: str = "train/0", **fields: Any) -> tuple[str, str, int, TargetOutput]:
    return prompt, example, 0, TargetOutput(**fields)


def reload(path: Path) -> AnswerJournal:
    journal = AnswerJournal(path)
    journal.load()
    return journal


def test_answers_come_back_exactly(tmp_path: Path) -> None:
    records = [
        record("naïve \ud800\nline", choice_logprobs=(-0.1, float("-inf"), -1 / 3), prompt_tokens=7, cached=True),
        record(example="dev/3", text="two\nlines", completion_tokens=2),
        record(example="dev/4", logprob=-2.0 / 7),
        record(example="dev/5", payload={"images": [[[0, 255, -1 / 3]]]}),
    ]
    AnswerJournal(tmp_path / "journal.jsonl").append(records)
    assert reload(tmp_path / "journal.jsonl").answers == records


def test_a_pair_is_written_once_and_a_failure_never(tmp_path: Path) -> None:
    journal = AnswerJournal(tmp_path / "journal.jsonl")
    journal.append([record(text="yes")])
    journal.append([record(text="yes"), record(example="train/1", failure=Failure("target", "timeout", "late"))])
    assert (tmp_path / "journal.jsonl").read_bytes().count(b"\n") == 1
    assert reload(tmp_path / "journal.jsonl").answers == [record(text="yes")]


def test_a_payload_that_json_would_change_is_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = AnswerJournal(tmp_path / "journal.jsonl")
    with caplog.at_level(logging.WARNING):
        journal.append([record(payload=(1, 2)), record(example="train/1", payload=[1, 2])])
        journal.append([record(example="train/2", payload=object())])
    assert caplog.text.count("the target's payloads are not kept") == 1
    assert reload(tmp_path / "journal.jsonl").answers == [record(example="train/1", payload=[1, 2])]


@pytest.mark.parametrize("rest", [b'{"prompt": "w02", "exa', b'{"prompt": "w02"}\n', b"\x00\xff\n", b"[]\n"], ids=repr)
def test_a_last_line_that_is_not_whole_is_cut_and_writing_goes_on(
    tmp_path: Path, rest: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal.jsonl"
    AnswerJournal(path).append([record("w01", text="yes")])
    whole = path.read_bytes()
    path.write_bytes(whole + rest)
    with caplog.at_level(logging.WARNING):
        journal = reload(path)
    assert "is not whole" in caplog.text
    assert path.read_bytes() == whole
    journal.append([record("w02", text="no")])
    assert reload(path).answers == [record("w01", text="yes"), record("w02", text="no")]


def test_settled_pairs_leave_the_file_when_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = AnswerJournal(path)
    journal.append([record("w01", text="yes"), record("w02", text="no")])
    journal.settle([("w01", "train/0", 0), ("never seen", "train/0", 0)])
    assert len(reload(path).answers) == 2  # on the disk until a checkpoint is
    journal.cut()
    assert reload(path).answers == [record("w02", text="no")]
    journal.settle([("w02", "train/0", 0)])
    journal.cut()
    assert not path.exists()
    journal.append([record("w03", text="yes")])
    assert reload(path).answers == [record("w03", text="yes")]


def scorer_of(account: Account) -> Any:
    """The part of a scorer that journals read."""
    return SimpleNamespace(log=None, rewards=SimpleNamespace(account=account))


def test_verdicts_that_an_iteration_ahead_needs_stay_until_its_turn(tmp_path: Path) -> None:
    """Also those that a session before the last kill has paid for: they are open before anybody needs them."""
    folder, account = RunFolder(tmp_path), Account()
    AnswerJournal(folder.judge_journal).append([record(key, "judge", text="yes") for key in ("now", "ahead", "later")])
    journals = Journals(folder, scorer_of(account))
    journals.load([])
    account.charged.add("now")
    journals.hold()
    account.charged.add("ahead")
    journals.settle([])
    journals.cut()
    assert [one[0] for one in reload(folder.judge_journal).answers] == ["ahead", "later"]
    journals.release()
    journals.settle([])
    journals.cut()
    assert [one[0] for one in reload(folder.judge_journal).answers] == ["later"]


def test_a_failure_in_the_tables_settles_no_answer() -> None:
    answered = Answer("w01", "train/0", 0, TargetOutput(text="yes"))
    failed = Answer("w01", "train/1", 0, TargetOutput(failure=Failure("target", "timeout", "late")))
    assert list(given_pairs([answered, failed])) == [("w01", "train/0", 0)]
