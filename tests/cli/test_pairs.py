"""`rlprompt pairs` on runs with the planted target."""

import json
from pathlib import Path
from typing import Any

import pytest
from planted_runs import INPUTS, finished, text_run

from rlprompt.cli.main import main
from rlprompt.preferences import read_pairs
from rlprompt.rewards.learned.feature_model import FeatureModel
from rlprompt.runs import load_run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 inputs, 4 rewrites of each."""
    return finished(tmp_path_factory.mktemp("inputs"), INPUTS)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("task"))


def _report(arguments: list[Any], capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capfd.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert isinstance(report, dict)
    return report


def _fails(arguments: list[Any], code: int, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert main([*map(str, arguments)]) == code
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert message in captured.err


def test_the_pairs_are_the_best_and_worst_of_the_recorded_prompts(
    inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = _report(["pairs", inputs, "-o", tmp_path / "pairs.jsonl"], capfd)
    by_example: dict[str, dict[str, float]] = {}
    for record in load_run(inputs).prompts():
        if record.phase == "train":
            by_example.setdefault(record.example_id, {})[record.prompt] = record.raw_reward
    expected = {
        name: (max(texts.values()), min(texts.values()))
        for name, texts in by_example.items()
        if max(texts.values()) > min(texts.values())
    }
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    assert {
        pair.example_id: (pair.chosen_scores["reward"], pair.rejected_scores["reward"]) for pair in pairs
    } == expected
    for pair in pairs:
        texts = by_example[pair.example_id]
        assert (texts[pair.chosen], texts[pair.rejected]) == expected[pair.example_id]
        assert set(pair.chosen_scores) == {"reward", "gap", "length"}
    distinct = sum(len(texts) for texts in by_example.values())
    assert (report["groups"], report["candidates"], report["pairs"]) == (8, distinct, len(expected))
    assert report["ties"] == sum(len(t) > 1 and max(t.values()) == min(t.values()) for t in by_example.values())
    assert (report["builder"], report["unusable"], report["val_pairs"]) == ("best-worst", 0, 0)


def test_arguments_reach_the_builder_and_files_are_the_same_every_time(
    inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = ["pairs", inputs, "--builder", "dominance", "--arg", "n=3", "--arg", "weight_by=gap"]
    first = _report([*base, "-o", tmp_path / "a.jsonl"], capfd)
    again = _report([*base, "-o", tmp_path / "b.jsonl"], capfd)
    assert first == again
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    pairs = read_pairs(tmp_path / "a.jsonl")
    assert max(sum(pair.example_id == other.example_id for other in pairs) for pair in pairs) > 1
    for pair in pairs:
        high, low = pair.chosen_scores, pair.rejected_scores
        assert high["gap"] >= low["gap"]
        assert high["length"] <= low["length"]  # its weight is negative
        assert pair.margin == pytest.approx(high["reward"] - low["reward"])
    assert sum(pair.weight for pair in pairs) == pytest.approx(len(pairs))


def test_no_example_is_in_both_files_and_sft_gets_the_chosen_texts(
    inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ("train.jsonl", "val.jsonl", "sft.jsonl", "ranked.jsonl")
    train, held_out, sft, ranked = (tmp_path / name for name in names)
    split = ["--val-fraction", 0.25, "--val-output", held_out, "--sft-output", sft, "--ranked-output", ranked]
    report = _report(["pairs", inputs, "-o", train, *split], capfd)
    sides = [{pair.example_id for pair in read_pairs(path)} for path in (train, held_out)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == max(round(0.25 * report["pairs"]), 1)  # one pair an example
    assert (report["train_pairs"], report["val_pairs"]) == (len(sides[0]), len(sides[1]))
    rows = [json.loads(line) for line in sft.read_text().splitlines()]
    assert rows == [{"input": pair.input, "target": pair.chosen} for pair in read_pairs(train)]
    rankings = {row["example_id"]: row for row in map(json.loads, ranked.read_text().splitlines())}
    assert set(rankings) == sides[0]
    for pair in read_pairs(train):
        row = rankings[pair.example_id]
        assert (row["texts"][0], row["scores"][0]) == (pair.chosen, pair.chosen_scores["reward"])
        assert len(row["texts"]) > 1
        assert row["scores"] == sorted(row["scores"], reverse=True)


def test_people_get_a_table(task: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["pairs", str(task), "-o", str(tmp_path / "p.jsonl"), "--arg", "per_iteration=true"]) == 0
    lines = [line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines()]
    assert [name for name, _ in lines][:5] == ["builder", "groups", "candidates", "pairs", "ties"]
    assert dict(lines)["groups"] == "3"  # iterations
    assert {pair.input for pair in read_pairs(tmp_path / "p.jsonl")} == {""}


def test_other_scores_and_a_second_run(inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scores = tmp_path / "scores.jsonl"
    records = [record for record in load_run(inputs).prompts() if record.phase == "train"]
    rows = [
        {"prompt": r.prompt, "example_id": r.example_id, "component/judge": -r.raw_reward, "index": r.index}
        for r in records
    ]
    scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = _report(["pairs", inputs, "-o", tmp_path / "own.jsonl"], capfd)
    judged = ["pairs", inputs, "--scores", scores, "--builder", "self-judged", "--arg", "score=judge"]
    turned = _report([*judged, "-o", tmp_path / "judged.jsonl"], capfd)
    assert own["pairs"] == turned["pairs"] > 0
    texts = [
        {(pair.chosen, pair.rejected)[:: 1 if name == "own" else -1] for pair in read_pairs(tmp_path / f"{name}.jsonl")}
        for name in ("own", "judged")
    ]
    assert texts[0] == texts[1]


def test_counterfactual_pairs_of_two_runs(inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    desired = finished(tmp_path, INPUTS, seed=5, env={"meta_prompt": "w09 w08 {input}"})
    arguments = ["pairs", desired, "--against", inputs, "--builder", "counterfactual", "--arg", "n=2"]
    report = _report([*arguments, "-o", tmp_path / "p.jsonl"], capfd)
    sides = [
        {(r.prompt, r.example_id) for r in load_run(folder).prompts() if r.phase == "train"}
        for folder in (desired, inputs)
    ]
    pairs = read_pairs(tmp_path / "p.jsonl")
    assert len(pairs) == report["pairs"] > 8
    for pair in pairs:
        assert (pair.chosen, pair.example_id) in sides[0]
        assert (pair.rejected, pair.example_id) in sides[1]
        assert pair.context is not None
        assert pair.context.startswith("w01 item ")  # what the plain policy reads


def test_slots_take_the_stored_texts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = text_run(tmp_path)
    wanted = ["--arg", "reference=true"]
    report = _report(["pairs", folder, "-o", tmp_path / "p.jsonl", "--builder", "slots", *wanted], capfd)
    assert report["pairs"] > 0
    for pair in read_pairs(tmp_path / "p.jsonl"):
        assert pair.context is not None
        assert pair.context.endswith(("\nBest known response: yes", "\nBest known response: no"))
    missing = ["pairs", folder, "-o", tmp_path / "q.jsonl", "--builder", "slots", "--arg", "response=true"]
    _fails(missing, 1, "no pairs: 4 groups with", capfd)  # the input alone was never asked about


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--builder", "best"], "unknown pair builder 'best'"),
        (["--arg", "n=3"], "pair builder 'best-worst' has no argument 'n'; known: "),
        (["--arg", "n"], "--arg takes KEY=VALUE, got 'n'"),
        (["--arg", "score=[a"], "override 'score=[a' has a value that is not YAML"),
        (["--arg", "score=judge"], "unknown score 'judge'; known: gap, length, reward"),
        (["--arg", "against=x"], "--arg against: the run says that; for a second run give --against RUN"),
        (["--builder", "counterfactual"], "give the second one (--against RUN)"),
        (["--phase", "test"], "phase must be train or dev, got 'test'"),
        (["--val-fraction", "0.5"], "--val-fraction and --val-output belong together"),
        (["--val-output", "x.jsonl"], "--val-fraction and --val-output belong together"),
        (["--val-fraction", "1.5", "--val-output", "{tmp}/v.jsonl"], "must be between 0 and 1, got 1.5"),
        (["--val-fraction", "0.5", "--val-output", "{tmp}/p.jsonl"], "must be different files"),
        (["--scores", "no/such.jsonl"], "cannot read the file of scores no/such.jsonl"),
        (["--max-failed-fraction", "3"], "the failed share must be between 0 and 1, got 3"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    arguments: list[str], message: str, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    _fails(["pairs", inputs, "-o", tmp_path / "p.jsonl", *given], 2, message, capfd)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_result_is_exit_code_1_with_its_reason(
    inputs: Path, task: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = ["-o", tmp_path / "p.jsonl"]
    _fails(["pairs", inputs, *output, "--builder", "margin", "--arg", "margin=1e6"], 1, "x within the margin", capfd)
    scores = tmp_path / "scores.jsonl"
    rows = [{"prompt": f"w0{number}", "input": f"item {number % 2}", "raw_reward": 1} for number in range(6)]
    scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tied = "no pairs: 2 groups with 6 candidates, 0 of them unusable: 2 x tie"
    _fails(["pairs", inputs, *output, "--scores", scores], 1, tied, capfd)
    scores.write_text("")
    _fails(["pairs", inputs, *output, "--scores", scores], 1, "has no scored prompt of phase 'train'", capfd)
    _fails(["pairs", tmp_path, *output], 1, "is no run folder", capfd)
    split = ["--val-fraction", "0.5", "--val-output", tmp_path / "v.jsonl"]
    _fails(["pairs", task, *output, *split], 2, "needs pairs of at least two examples, got 1", capfd)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.jsonl"]


def test_the_file_trains_a_policy_and_a_reward(inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pairs = tmp_path / "pairs.jsonl"
    report = _report(["pairs", inputs, "-o", pairs, "--builder", "dominance"], capfd)
    stage = {
        "name": "prefer",
        "algorithm": {"name": "dpo", "iterations": 10, "lr": 0.05, "minibatch_size": 4, "pair_weights": "gap"},
        "data": {"pairs": str(pairs)},
    }
    run = finished(tmp_path, INPUTS, stages=[stage])
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    margins = [event["metrics"].get("preference/margin") for event in events if event["event"] == "iteration"]
    assert margins[0] == pytest.approx(0.0, abs=1e-6)  # the policy is its own reference at first
    assert margins[9] > 0
    model = tmp_path / "model"
    trained = _report(["train-reward", "features", pairs, "-o", model], capfd)
    assert 0 < trained["pairs"] <= report["pairs"]
    assert FeatureModel.load(model).reads == "input"
