"""`rlprompt rescore` on a run with the planted target."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from planted_runs import INPUTS, finished

from rlprompt.cli.main import main
from rlprompt.preferences import read_pairs
from rlprompt.runs import load_run
from rlprompt.targets.planted import PlantedTarget


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("inputs"), INPUTS)


@pytest.fixture(scope="module")
def task_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("task"))


@pytest.fixture(autouse=True)
def _no_target(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target is neither built nor asked, whatever the command does."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the target was built or asked")

    monkeypatch.setattr("rlprompt.scoring.build.target_from_config", refuse)
    monkeypatch.setattr(PlantedTarget, "__init__", refuse)
    monkeypatch.setattr(PlantedTarget, "run", refuse)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_name_and_yaml_are_components_and_the_pairs_follow_them(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "scores.jsonl"
    rewards = ["--reward", "accuracy", "--reward", "{name: length, weight: 2}"]
    assert main(["rescore", str(run), *rewards, "-o", str(scores), "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    records = load_run(run).prompts()
    assert report == {
        "prompts": len(records),
        "scored": len(records),
        "answers": len({(record.prompt, record.example_id, record.phase) for record in records}),
        "failed": 0,
        "abstained": 0,
        "failures": {},
        "rewards": {"accuracy": 1.0, "length": 2.0},
        "target_calls": 0,
        "judge_calls": 0,
        "left": 0,
    }
    for line, record in zip(_lines(scores), records, strict=True):
        assert line["raw_reward"] == pytest.approx(record.accuracy + 2 * record.components["length"])
    assert main(["pairs", str(run), "--scores", str(scores), "-o", str(tmp_path / "p.jsonl")]) == 0
    for pair in read_pairs(tmp_path / "p.jsonl"):
        assert set(pair.chosen_scores) == {"reward", "accuracy", "length"}
        assert pair.margin > 0


def test_a_file_names_rewards_and_code_beside_it(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "beside_rescoring_rewards.py").write_text(
        "def odd(*, completions, **columns):\n"
        "    return [None if text.endswith('1') else float(len(text)) for text in completions]\n"
    )
    for name, text in (
        ("section.yaml", "reward:\n- name: beside_rescoring_rewards:odd\n"),
        ("list.yaml", "- {name: beside_rescoring_rewards:odd}\n"),
        ("one.yaml", "name: beside_rescoring_rewards:odd\n"),
    ):
        (tmp_path / name).write_text(text)
        command = ["rescore", str(run), "--reward", str(tmp_path / name), "-o", str(tmp_path / "s.parquet")]
        assert main(command) == 0
        shown = capfd.readouterr().out
        assert "rewards       beside_rescoring_rewards:odd (weight 1)\n" in shown
        assert "target calls  0\n" in shown
    assert (tmp_path / "s.parquet").is_file()


def test_code_elsewhere_needs_an_allowance(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "allowed_rescoring_rewards.py").write_text(
        "def one(*, completions):\n    return [1.0] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["rescore", str(run), "--reward", "allowed_rescoring_rewards:one", "-o", str(tmp_path / "s.jsonl")]
    assert main(command) == 2
    assert "allow it with --allow-module allowed_rescoring_rewards" in capfd.readouterr().err
    assert not (tmp_path / "s.jsonl").exists()
    assert main([*command, "--allow-module", "allowed_rescoring_rewards"]) == 0
    assert {line["raw_reward"] for line in _lines(tmp_path / "s.jsonl")} == {1.0}


JUDGE = """
from rlprompt.rewards.judges import LLMJudge
from rlprompt.types import TargetOutput

asked = []


class Reader:
    identity = {"kind": "fake", "model": "reader"}

    def run(self, requests):
        asked.extend(str(request.rendered) for request in requests)
        return [TargetOutput(text="yes" if "w34" in str(request.rendered) else "no") for request in requests]

    def count_tokens(self, requests):
        return [1] * len(requests)


class Judged(LLMJudge):
    def __init__(self):
        super().__init__(Reader(), "Is it a good prompt?", "yes-no", of="prompt", show=["input"], ask="text")
"""


def test_a_judge_keeps_to_the_calls_that_it_is_given_and_the_same_command_goes_on(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "counted_judges.py").write_text(JUDGE)
    (tmp_path / "r.yaml").write_text("name: counted_judges:Judged\n")
    scores, kept = tmp_path / "scores.jsonl", tmp_path / "scores.jsonl.verdicts.json"
    command = ["rescore", str(run), "--reward", str(tmp_path / "r.yaml"), "--json", "-o"]
    assert main([*command, str(tmp_path / "whole.jsonl")]) == 0
    whole = json.loads(capfd.readouterr().out)
    asked = sys.modules["counted_judges"].asked
    questions = len(asked)
    assert (whole["judge_calls"], whole["left"]) == (questions, 0)

    first = questions // 2 + 1
    assert main([*command, str(scores), "--max-target-calls", str(first)]) == 3
    captured = capfd.readouterr()
    part = json.loads(captured.out)
    assert part["judge_calls"] == len(asked) - questions == first  # all that it may spend, and no more
    assert 0 < part["left"] < part["prompts"] == whole["prompts"]
    assert f"did not hold for {part['left']} of {part['prompts']} prompts; run the same command again" in captured.err
    assert [line["prompt"] for line in _lines(scores)] == [
        line["prompt"] for line in _lines(tmp_path / "whole.jsonl")[: len(_lines(scores))]
    ]
    assert len(_lines(scores)) == part["prompts"] - part["left"]

    assert main([*command, str(scores), "--max-target-calls", str(first)]) == 0
    rest = json.loads(capfd.readouterr().out)
    assert (rest["judge_calls"], rest["left"], kept.exists()) == (questions - first, 0, False)
    assert len(asked) == len(set(asked)) * 2  # each question once for either file
    assert scores.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_limit_that_pays_for_no_prompt_says_so(
    task_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few_judges.py").write_text(JUDGE)
    (tmp_path / "r.yaml").write_text("name: few_judges:Judged\n")
    output = ["-o", str(tmp_path / "s.jsonl"), "--max-target-calls", "3"]  # each prompt has four answers
    assert main(["rescore", str(task_run), "--reward", str(tmp_path / "r.yaml"), *output]) == 3
    assert "it does not pay for a single one of them, so raise it" in capfd.readouterr().err
    assert not (tmp_path / "s.jsonl").exists()


@pytest.mark.parametrize("what", ["raise ValueError('no idea')", "return [None] * len(completions)"])
def test_when_nothing_has_a_score_nothing_is_written(
    what: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad_rescoring_rewards.py").write_text(f"def bad(*, completions):\n    {what}\n")
    (tmp_path / "r.yaml").write_text("name: bad_rescoring_rewards:bad\n")
    assert main(["rescore", str(run), "--reward", str(tmp_path / "r.yaml"), "-o", str(tmp_path / "s.jsonl")]) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    reason = "raised ValueError: no idea" if "raise" in what else "every reward abstained"
    assert len(errors) == 1
    assert reason in errors[0]
    assert not (tmp_path / "s.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward", "gapp"], "unknown reward 'gapp'; did you mean 'gap'?"),
        (["--reward", "{name: gap, wieght: 2}"], "unknown key 'wieght'; did you mean 'weight'?"),
        (["--reward", "{name: gap, weight: heavy}"], "weight: Input should be a valid number"),
        (["--reward", "{name: gap"], "is not valid YAML"),
        (["--reward", "3"], "--reward '3' is no reward; give a name, or {name: NAME"),
        (["--reward", "[]"], "--reward '[]' is no reward"),
        (["--reward", "none.yaml"], "--reward 'none.yaml' cannot be read: No such file"),
        (["--reward", "token-f1"], "a reward reads the target's text, but task 'planted' asks for choices"),
        (["--reward", "{name: gap-over-original, kwargs: {reward: gap}}"], "but the run stored none for its"),
        (["--reward", "gap", "-o", "scores.csv"], "--output must end with .jsonl or .parquet, got 'scores.csv'"),
        ([], "Missing option '--reward'"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = [] if "-o" in arguments else ["-o", str(tmp_path / "s.jsonl")]
    assert main(["rescore", str(run), *output, *arguments]) == 2
    captured = capfd.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert message in captured.err
    assert not (tmp_path / "s.jsonl").exists()
