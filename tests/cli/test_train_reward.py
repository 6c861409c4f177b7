"""`rlprompt train-reward`: every kind writes its folder and reports; every mistake is one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from preference_pairs import count_of, planted_texts, ruled_pairs, write_pairs

from rlprompt.cli.main import main
from rlprompt.config import PolicyConfig
from rlprompt.policies import build_policy

PLANTED = ["--model", "planted-10", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    return str(write_pairs(tmp_path / "pairs.jsonl", ruled_pairs(planted_texts, count_of("w03"), 60)))


def test_bradley_terry_trains_an_lm(tmp_path: Path, pairs: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "rm")
    arguments = ["train-reward", "bradley-terry", pairs, "-o", out, *PLANTED, "--lr", "0.02", "--epochs", "3"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "pairs              48"
    assert "held-out accuracy" in captured.out
    assert "0.6931 at the first step" in captured.out
    assert captured.err.strip().endswith(f"use it as a reward: {{name: reward-model, kwargs: {{model: {out}}}}}")
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["reward"], report["pairs"], report["steps"]) == ("reward-model", 48, 18)


def test_features_report_their_weights(tmp_path: Path, pairs: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my_words.py").write_text(
        "def threes(*, contexts, texts):\n    return [text.split().count('w03') for text in texts]\n"
    )
    arguments = ["--feature", "length", "--feature", "my_words:threes", "--feature", "overlap"]
    assert main(["train-reward", "features", pairs, "-o", str(tmp_path / "fm"), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("weight of my_words:threes  +")  # the file beside the pairs; largest weight first
    assert main(["train-reward", "features", pairs, "-o", str(tmp_path / "fm"), "--json"]) == 0
    assert "kept-numbers" in json.loads(capsys.readouterr().out)["weights"]


def test_a_preference_head_goes_beside_its_policy(
    tmp_path: Path, pairs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = PolicyConfig(kind="causal-lm", model="planted-10", dtype="float32")
    build_policy(config, prompt_length=4, seed=0).save(tmp_path / "policy")
    arguments = ["train-reward", "preference-head", pairs, "--policy", str(tmp_path / "policy"), "--device", "cpu"]
    assert main(arguments) == 0
    assert "held-out accuracy" in capsys.readouterr().out
    assert (tmp_path / "policy" / "preference-head.json").is_file()


def test_success_reads_the_logs_of_runs(
    tmp_path: Path, small_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--quiet", str(small_config())]) == 0
    (run,) = (tmp_path / "runs" / "small").iterdir()
    capsys.readouterr()
    arguments = ["train-reward", "success", str(run), "-o", str(tmp_path / "sm"), "--device", "cpu"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "AUC on new inputs" in text
    assert "by cross-validation" in text
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reward"] == "success-model"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bradley-terry", "no.jsonl", "-o", "out"], "cannot read the pairs file no.jsonl"),
        (["features", "empty.jsonl", "-o", "out"], "empty.jsonl holds no pair"),
        (["features", "columns.jsonl", "-o", "out"], "columns.jsonl, line 1: there is no 'rejected'"),
        (["preference-head", "twice.jsonl", "--policy", "p"], "line 2 has the id 'a' of line 1"),
        (["bradley-terry", "twice.jsonl", "-o", "out", "--lr", "0"], "--lr: Input should be greater than 0, got 0.0"),
        (["features", "one.jsonl", "-o", "out", "--feature", "nix"], "unknown feature 'nix'"),
        (["features", "one.jsonl", "-o", "out"], "held_out 0.2 of 1 contexts leaves none to learn from"),
        (["preference-head", "one.jsonl", "--policy", "p"], "no policy at p"),
        (["features", "one.jsonl"], "Missing option '--output' / '-o'"),
        (["forest", "one.jsonl"], "No such command 'forest'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    row = '{"id": "a", "input": "x", "chosen": "y", "rejected": "z"}\n'
    for name, text in {
        "empty.jsonl": "",
        "columns.jsonl": '{"id": "a", "input": "x", "chosen": "y"}\n',
        "twice.jsonl": row * 2,
        "one.jsonl": row,
    }.items():
        (tmp_path / name).write_text(text)
    assert main(["train-reward", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_logs_that_are_none_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-reward", "success", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    assert "is no run folder" in capsys.readouterr().err
