"""`rlprompt judge-report`, and judges in `rlprompt check`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlprompt.cli.main import main

ITEMS = Path(__file__).parents[1] / "evaluation" / "politeness.jsonl"
PLANTED = {"target": "planted:separable", "rubric": "Is it good?"}


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., str]:
    """Writes judge.yaml."""

    def write(*entries: Any) -> str:
        path = tmp_path / "judge.yaml"
        path.write_text(yaml.safe_dump(list(entries) if len(entries) > 1 else entries[0]))
        return str(path)

    return write


def _lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_a_judge_that_answers_in_prose_has_no_verdict(
    judge: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    items = tmp_path / "scores.jsonl"
    items.write_text('{"text": "one", "label": 3}\n{"text": "two", "label": 4}\n')
    assert main(["judge-report", str(items), "--judge", judge({"name": "judge", "kwargs": PLANTED})]) == 0
    lines = _lines(capsys)
    assert "items 2, 0 with a verdict" in lines
    assert "agreement -, 0 of 0" in lines
    assert "no verdict prose 2" in lines


def test_several_judges_are_reported_on_one_after_the_other(
    judge: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"name": "judge", "kwargs": {**PLANTED, "mode": "yes-no"}}
    path = judge(entry, entry)
    assert main(["judge-report", "planted", "--judge", path, "--limit", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["items"] == "planted"
    assert [report["name"] for report in found["judges"]] == ["judge", "judge#2"]
    assert found["judges"][0]["num_items"] == 6
    assert found["judges"][0]["calls"] == 6


def test_pairs_show_the_position_bias(
    judge: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    items = tmp_path / "pairs.jsonl"
    items.write_text('{"a": "item 0 w01", "b": "item 0 w02", "label": "a"}\n')
    kwargs = {**PLANTED, "mode": "pairwise", "ask": "probabilities"}
    assert main(["judge-report", str(items), "--judge", judge({"name": "judge", "kwargs": kwargs})]) == 0
    assert any(line.startswith("position bias ") for line in _lines(capsys))


@pytest.mark.parametrize(
    ("arguments", "entry", "parts"),
    [
        (["no-such.jsonl"], {"name": "judge", "kwargs": PLANTED}, ["no-such.jsonl", "not found"]),
        ([str(ITEMS)], {"name": "juge"}, ["unknown reward 'juge'", "did you mean 'judge'"]),
        ([str(ITEMS)], {"name": "judge", "kwargs": {"target": "planted:separable"}}, ["needs the argument 'rubric'"]),
        ([str(ITEMS)], {"name": "judge", "kwargs": {**PLANTED, "modus": "score"}}, ["no argument 'modus'", "'mode'"]),
        ([str(ITEMS)], {"name": "os:system"}, ["--allow-module os"]),
        ([str(ITEMS)], "judge", ["must hold a judge"]),
        ([str(ITEMS)], {"name": "judge", "kwargs": PLANTED}, ["item 'p1'", "whole number from 1 to 5, got 'yes'"]),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], entry: Any, parts: list[str], judge: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["judge-report", *arguments, "--judge", judge(entry)]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1
    for part in parts:
        assert part in captured.err


def test_a_file_that_cannot_be_read(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["judge-report", str(ITEMS), "--judge", str(tmp_path / "none.yaml")]) == 2
    assert "error: --judge: cannot read" in capfd.readouterr().err


# --- judges in check ---

PROSE = [{"name": "judge", "kwargs": PLANTED}]  # the planted target writes " yes" or " no", which is no score


@pytest.mark.parametrize("verb", ["check", "train"])
def test_a_judge_that_returns_prose_is_refused_before_the_run(
    verb: str, small_config: Callable[..., Path], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([verb, str(small_config(reward=PROSE))]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "reward 'judge' abstained on 12 of 12 made-up outputs (prose 12)" in errors[0]
    assert "max_abstained_fraction = 0.5" in errors[0]
    assert not (tmp_path / "runs").exists()


def test_the_check_shows_what_the_judge_costs(
    small_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    kwargs = {**PLANTED, "mode": "yes-no"}
    reward = [{"name": "judge", "kwargs": kwargs}, {"name": "accuracy", "weight": 0.0}]
    assert main(["check", str(small_config(reward=reward))]) == 0
    lines = _lines(capsys)
    # 3 iterations * 4 prompts * 4 train rows, 2 prompts on 4 dev rows, and both answers to 4 inputs in the check
    assert any(line.startswith("calls of judges 64, about ") for line in lines)
    assert "of which in the check 8 on made-up outputs, as at the start of the run" in lines
    assert any(line.startswith("the run, at most 120 calls, about ") for line in lines)
    assert "calls for training 48" in lines


def test_a_prompt_that_is_judged_alone_costs_one_call(
    small_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    reward = [{"name": "judge", "kwargs": {**PLANTED, "mode": "yes-no", "of": "prompt"}}]
    assert main(["check", str(small_config(reward=reward))]) == 0
    lines = _lines(capsys)
    # 3 * 4 prompts, 2 on dev, 1 made-up one; the planted judge is undecided without an item: no abstention of yes-no
    assert any(line.startswith("calls of judges 15, about ") for line in lines)


def test_abstentions_within_the_bound_are_shown(
    small_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    reward = [{"name": "judge", "kwargs": {**PLANTED, "max_abstained_fraction": 1.0}}, {"name": "gap"}]
    assert main(["check", str(small_config(reward=reward))]) == 0
    assert "without a verdict of 'judge' on 12 outputs: prose 12" in _lines(capsys)


def test_a_monitor_of_what_is_not_recorded_is_refused(
    small_config: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(small_config(monitor={"proxy": "judge", "gold": "accuracy"}))]) == 2
    assert "monitor.proxy: no reward records 'judge'" in capfd.readouterr().err
