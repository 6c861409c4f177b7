"""`rlprompt eval` on a literal prompt; on a run see test_train.py."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlprompt.cli.main import main
from rlprompt.config import load_config
from rlprompt.evaluation import evaluate
from rlprompt.runs import train
from rlprompt.serving import Rewriter
from rlprompt.targets.planted import PlantedTarget
from rlprompt.tasks import load_task

LITERAL = ["eval", "--task", "planted", "--target", "planted:separable"]


def _report(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    captured = capfd.readouterr()
    report = json.loads(captured.out)  # fails when anything else is on standard output
    assert isinstance(report, dict)
    return report


def test_one_json_object_with_the_promised_fields(capfd: pytest.CaptureFixture[str]) -> None:
    report = _report([*LITERAL, "--prompt", PlantedTarget().optimum, "--limit", "10"], capfd)
    assert report["num_examples"] == 10
    assert report["accuracy"] == 1.0
    # Wilson, 10 of 10: low = n / (n + z^2) = 10 / 13.841459
    assert report["accuracy_ci95"] == pytest.approx([10 / 13.841459, 1.0])
    assert 0 < report["gap_reward"] <= 200
    assert report["num_failed"] == 0
    assert report["ledger"]["test"]["calls"] == 10
    assert (report["split"], report["task"], report["target"]) == ("test", "planted", "planted:separable")
    assert (report["calibration"], report["dtype"], report["warnings"]) == ("none", "float32", [])


def test_the_empty_prompt_is_a_prompt(capfd: pytest.CaptureFixture[str]) -> None:
    report = _report([*LITERAL, "--prompt", "", "--limit", "4"], capfd)
    assert (report["prompt"], report["accuracy"]) == ("", 0.0)


def test_split_and_calibration_are_as_asked_and_the_fit_is_metered_apart(
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--prompt", "w01", "--split", "dev", "--limit", "6", "--calibration", "median"]
    report = _report([*LITERAL, *arguments], capfd)
    assert (report["split"], report["num_examples"], report["calibration"]) == ("dev", 6, "median")
    assert report["ledger"]["by_phase"]["calibration"]["calls"] == 32  # 16 train examples of each of two classes
    assert report["ledger"]["test"]["calls"] == 6


def test_a_card_and_a_template_are_used(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    optimum = PlantedTarget().optimum
    for split, first in (("train", 0), ("dev", 10), ("test", 20)):
        rows = [f"item {number}\t{number % 2}" for number in range(first, first + 4)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    card = tmp_path / "card.yaml"
    card.write_text(
        "name: mine\nsplits: {train: train.tsv, dev: dev.tsv, test: test.tsv}\n"
        "columns: {input: text, reference: label}\n"
        'choices: [" no", " yes"]\ntemplate: "{input} {prompt}"\n'
    )
    base = ["eval", "--task", str(card), "--target", "planted:separable"]
    plain = _report([*base, "--prompt", optimum], capfd)
    assert (plain["task"], plain["num_examples"]) == ("mine", 4)
    fixed = _report([*base, "--prompt", "", "--template", f"{{prompt}} {{input}} {optimum}"], capfd)
    assert fixed["accuracy"] == plain["accuracy"]  # the template itself holds the best prompt


def test_without_json_people_get_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LITERAL, "--prompt", PlantedTarget().optimum, "--limit", "10"]) == 0
    shown = capsys.readouterr().out
    assert "accuracy      1.0000  95 % interval 0.7225 to 1.0000" in shown
    assert "target calls  10" in shown


def test_when_every_call_fails_the_object_is_printed_and_the_exit_code_is_1(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlprompt.targets.load_target", lambda *_, **__: PlantedTarget(failure_rate=1.0))
    assert main([*LITERAL, "--prompt", "w01", "--limit", "3", "--json"]) == 1
    captured = capfd.readouterr()
    report = json.loads(captured.out)
    assert (report["num_failed"], report["accuracy"], report["accuracy_ci95"]) == (3, None, [None, None])
    assert "error: every one of the 3 calls failed: " in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--task", "planted"], "--target and --prompt missing; give a run folder, or --task NAME"),
        ([*LITERAL, "--prompt", "x", "--split", "validation"], "split must be one of train, dev, test"),
        ([*LITERAL, "--prompt", "x", "--calibration", "mean"], "calibration must be one of none, median"),
        ([*LITERAL, "--prompt", "x", "--dtype", "int8"], "--dtype: Input should be"),
        ([*LITERAL, "--prompt", "x", "--cache", "maybe"], "--cache: Input should be"),
        ([*LITERAL, "--prompt", "x", "--template", "{inptu} {prompt}"], "inptu"),
        (["eval", "--task", "plantd", "--target", "planted:separable", "--prompt", "x"], "did you mean 'planted'?"),
        (["eval", "--task", "planted", "--target", "planted:flat", "--prompt", "x"], "unknown landscape 'flat'"),
        (["eval", "no/such/run"], "no/such/run"),
    ],
    ids=["missing", "split", "calibration", "dtype", "cache", "template", "task", "target", "run"],
)
def test_a_mistake_is_one_line_and_exit_code_2_or_1(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == (1 if "no/such/run" in arguments else 2)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_of_a_run_that_writes_for_each_row_the_rewriter_is_evaluated(
    small_config: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    config = small_config(
        policy={"kind": "causal-lm", "model": "planted-50", "kwargs": {"lora": {"r": 2, "targets": ["c_attn"]}}},
        env={"kind": "rewrite", "level": "instance", "meta_prompt": "w01 {input}", "prompt_length": 3, "num_envs": 4},
        task={"name": "planted", "shots": 2, "dev_shots": 2, "template": "{input}\n{prompt}"},
        algorithm={"name": "random", "iterations": 1},
    )
    folder = train(load_config(config), progress=False).folder
    capfd.readouterr()
    report = _report(["eval", str(folder), "--limit", "5"], capfd)
    assert (report["prompt"], report["num_examples"], report["left_alone"]) == (None, 5, {})
    assert report["ledger"]["test"]["calls"] == 5
    rows = load_task("planted", template="{input}\n{prompt}").test[:5]
    written = [result.prompt for result in Rewriter.load(folder).write_for(rows)]
    task = load_task("planted", template="{input}\n{prompt}")
    by_hand = [
        evaluate(replace(task, test=(row,)), PlantedTarget(), [prompt])[0].gap_reward
        for row, prompt in zip(rows, written, strict=True)
    ]
    assert report["gap_reward"] == pytest.approx(sum(by_hand) / 5)
    assert main(["eval", str(folder), "--calibration", "median"]) == 2
    assert "needs one prompt for all rows" in capfd.readouterr().err
    assert main(["eval", str(folder), "--limit", "5"]) == 0
    assert "written for each row" in capfd.readouterr().out
