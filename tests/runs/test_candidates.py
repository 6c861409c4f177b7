"""The scored prompts of runs, and files of scores, as candidates."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planted_runs import INPUTS, TASK, finished, text_run

from rlprompt.errors import ConfigError
from rlprompt.preferences import Candidate, build_pairs
from rlprompt.runs import load_run
from rlprompt.runs.candidates import candidates_of
from rlprompt.tasks import load_task


@pytest.fixture(scope="module")
def task_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("task"), policy={**TASK["policy"], "context": "Write:"})


@pytest.fixture(scope="module")
def input_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("inputs"), INPUTS)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts are stored, those to the original prompt too; two answers are drawn for each prompt."""
    return text_run(
        tmp_path_factory.mktemp("texts"),
        env={"num_envs": 16, "samples": 2},
        reward=[{"name": "gap-over-original", "kwargs": {"reward": "exact-match"}}],
    )


@pytest.fixture
def scores(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: Any) -> Path:
        path = tmp_path / "scores.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def test_a_run_for_the_task_gives_each_scoring_of_a_phase(task_run: Path) -> None:
    run = load_run(task_run)
    records = [record for record in run.prompts() if record.phase == "train"]
    found = candidates_of(run).candidates
    assert len(found) == len(records) == 24
    for candidate, record in zip(found, records, strict=True):
        assert candidate == Candidate(
            record.prompt,
            {"gap": record.components["gap"]},
            record.raw_reward,
            context="Write:",
            iteration=record.iteration,
            index=record.index,
            count=4,
        )
    assert len(candidates_of(run, phase="dev").candidates) == 2


def test_a_run_for_inputs_knows_example_input_and_reading(input_run: Path) -> None:
    found = candidates_of(load_run(input_run))
    rows = {example.id: example for example in load_task("planted").train}
    assert len(found.candidates) == 32
    for candidate in found.candidates:
        example = rows[candidate.example_id]
        assert (candidate.input, candidate.context) == (example.input, f"w01 {example.input}")
        assert candidate.columns == {"reference": ("no", "yes")[int(str(example.reference))]}
        assert candidate.reward == pytest.approx(candidate.scores["gap"] - 0.5 * candidate.scores["length"])  # type: ignore[operator]
    assert found.weights == {"gap": 1.0, "length": -0.5}


def test_stored_texts_become_columns(answered: Path) -> None:
    run = load_run(answered)
    texts = {(a.prompt, a.example_id): a.output.text for a in run.answers() if a.sample == 1}
    for candidate in candidates_of(run).candidates:
        assert candidate.columns["response"] == texts[candidate.text, candidate.example_id]
        assert candidate.columns["naive_response"] in (" yes", " no")
        assert candidate.columns["reference"] in ("yes", "no")
    pairs = build_pairs("constraint", candidates_of(run).candidates, constraints=["question"]).pairs
    assert {str(pair.columns["response"]).strip() for pair in pairs} <= {"yes", "no"}
    assert all(pair.chosen.endswith("\nDo not end with a question.") for pair in pairs)


def test_prompts_with_failed_examples_are_failed_candidates_unless_a_share_is_allowed(tmp_path: Path) -> None:
    folder = finished(
        tmp_path,
        task={"name": "planted", "shots": 1, "dev_shots": 1},
        target={"name": "planted:separable", "kwargs": {"failure_rate": 0.3}},
        run={"dir": str(tmp_path / "runs"), "max_failed_fraction": 1.0},
    )
    run = load_run(folder)
    records = [record for record in run.prompts() if record.phase == "train"]
    shares = [record.num_failed / record.num_examples for record in records]
    assert 0 < sum(share == 0 for share in shares) < len(shares)
    for allowed in (0.0, 0.5, 1.0):
        found = candidates_of(run, max_failed_fraction=allowed).candidates
        assert [candidate.failed for candidate in found] == [share > allowed for share in shares]
    nothing = [c.text for c in candidates_of(run, max_failed_fraction=1.0).candidates if c.unscored]
    assert nothing == [record.prompt for record, share in zip(records, shares, strict=True) if share == 1] != []


def test_a_file_of_scores_takes_the_place_of_the_runs_own(input_run: Path, scores: Callable[..., Path]) -> None:
    path = scores(
        {
            "prompt": "w03",
            "example_id": "train/24",
            "raw_reward": 2,
            "component/judge": 7,
            "weight/judge": -2,
            "note": "x",
        },
        {"prompt": "w04", "example_id": "train/24", "raw_reward": None, "component/judge": None, "phase": "train"},
        {"prompt": "w05", "example_id": "train/24", "raw_reward": 1.0, "phase": "dev"},
        {"prompt": "w06", "input": "of my own"},
    )
    run = load_run(input_run)
    first, second, third = candidates_of(run, scores=path).candidates
    example = next(example for example in load_task("planted").train if example.id == "train/24")
    assert (first.text, first.reward, first.scores, first.input) == ("w03", 2.0, {"judge": 7.0}, example.input)
    assert first.columns == {"reference": ("no", "yes")[int(str(example.reference))], "note": "x"}
    assert (second.index, second.unscored) == (1, True)
    assert (third.text, third.input, third.example_id) == ("w06", "of my own", "")
    assert candidates_of(run, scores=path).weights == {"judge": -2.0}
    assert [c.text for c in candidates_of(run, scores=path, phase="dev").candidates] == ["w03", "w05", "w06"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "w03"}, "line 2 has no text 'prompt'; a line has prompt, raw_reward and component/NAME"),
        ("w03", "line 2 has no text 'prompt'"),
        ({"prompt": "w03", "example_id": 3}, "line 2: 'example_id' must be a text, got 3"),
        ({"prompt": "w03", "example_id": "train/24", "raw_reward": "high"}, "'raw_reward' must be a number or null"),
        ({"prompt": "w03", "example_id": "train/24", "component/a": True}, "'component/a' must be a number or null"),
        ({"prompt": "w03", "example_id": "train/24", "num_valid": 0.5}, "'num_valid' must be an integer, got 0.5"),
        ({"prompt": "w03"}, "line 2: the run writes for single inputs, so give example_id or input"),
    ],
)
def test_a_bad_line_of_scores_is_named(row: Any, message: str, input_run: Path, scores: Callable[..., Path]) -> None:
    path = scores({"prompt": "w03", "example_id": "train/24", "raw_reward": 1.0}, row)
    with pytest.raises(ConfigError) as caught:
        candidates_of(load_run(input_run), scores=path)
    assert message in str(caught.value)


def test_files_and_settings_that_cannot_be_used(input_run: Path, tmp_path: Path, scores: Callable[..., Path]) -> None:
    run = load_run(input_run)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for path, message in (
        (tmp_path / "none.jsonl", r"cannot read the file of scores .*none\.jsonl"),
        (tmp_path / "broken.parquet", r"cannot read the file of scores .*broken\.parquet"),
    ):
        with pytest.raises(ConfigError, match=message):
            candidates_of(run, scores=path)
    with pytest.raises(ConfigError, match="example 'train/999' is not in the run's task; name one"):
        candidates_of(run, scores=scores({"prompt": "a", "example_id": "train/999"}))
    with pytest.raises(ConfigError, match="phase must be train or dev, got 'test'"):
        candidates_of(run, phase="test")
    with pytest.raises(ConfigError, match="the failed share must be between 0 and 1, got 2"):
        candidates_of(run, max_failed_fraction=2)


def test_examples_in_the_meta_prompt_are_those_that_the_policy_saw(tmp_path: Path) -> None:
    folder = finished(tmp_path, INPUTS, env={"meta_prompt": "{examples}\n{input}"})
    candidate = candidates_of(load_run(folder)).candidates[0]
    served = json.loads((folder / "best" / "policy.json").read_text())["extra"]["examples"]
    assert served
    assert candidate.context == f"{served}\n{candidate.input}"


def test_reading_changes_nothing_in_the_folder(answered: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in answered.rglob("*") if p.is_file()}

    before = state()
    first = candidates_of(load_run(answered)).candidates
    assert state() == before
    assert [replace(c, reward=0.0) for c in first] == [
        replace(c, reward=0.0) for c in candidates_of(load_run(answered)).candidates
    ]
    assert not any(math.isnan(c.reward or 0.0) for c in first)
