"""Stored prompts and answers scored with other rewards, without the target."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from planted_runs import INPUTS, finished, text_run

from rlprompt.config import RewardConfig
from rlprompt.errors import ConfigError, RunError
from rlprompt.runs import load_run
from rlprompt.runs.candidates import candidates_of
from rlprompt.runs.folder import remove
from rlprompt.runs.records import PromptRecord, read_prompts
from rlprompt.runs.rescore import Rescored, StoredAnswers, rescore, write_scores
from rlprompt.targets.planted import PlantedTarget

SAME = {"name": "gap-over-original", "kwargs": {"reward": "gap"}}


def _again(folder: Path, *rewards: dict[str, Any], **code: Any) -> Rescored:
    return rescore(load_run(folder), [RewardConfig.model_validate(reward) for reward in rewards], **code)


def _numbers(records: Iterable[PromptRecord], *components: str) -> list[list[Any]]:
    def row(r: PromptRecord) -> list[Any]:
        place = (r.prompt_id, r.iteration, r.index, r.phase, r.example_id, r.num_examples, r.num_valid, r.num_failed)
        numbers = (r.raw_reward, r.accuracy, *(r.components[name] for name in components))
        return [*place, *(pytest.approx(number, nan_ok=True) for number in numbers)]

    return [row(record) for record in records]


@pytest.fixture
def no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nobody builds or asks a target."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the target was built or asked")

    for place in (
        "rlprompt.targets.load_target",
        "rlprompt.targets.target_from_config",
        "rlprompt.scoring.build.target_from_config",
    ):
        monkeypatch.setattr(place, refuse)
    monkeypatch.setattr(PlantedTarget, "__init__", refuse)
    monkeypatch.setattr(PlantedTarget, "run", refuse)
    # The stand-in is asked for what is not stored: nothing, where everything is.
    monkeypatch.setattr(StoredAnswers, "run", lambda self, requests: [refuse()] if requests else [])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("inputs"), INPUTS)


@pytest.mark.parametrize("calibration", ["none", "median", "contextual"])
def test_the_runs_own_reward_gives_the_runs_own_numbers(calibration: str, tmp_path: Path, request: Any) -> None:
    folder = finished(tmp_path, calibration=calibration, reward=[{"name": "gap"}])
    request.getfixturevalue("no_target")
    found = _again(folder, {"name": "gap"})
    records = load_run(folder).prompts()
    assert {record.phase for record in records} == {"train", "dev"}
    assert _numbers(found.records, "gap") == _numbers(records, "gap")
    assert (found.num_failed, found.num_abstained, found.num_scored) == (0, 0, len(records))


def test_other_components_have_other_numbers_and_the_target_is_not_asked(inputs: Path, no_target: None) -> None:
    found = _again(inputs, {"name": "accuracy"}, {"name": "length", "weight": -0.1})
    records = load_run(inputs).prompts()
    assert len(found.records) == len(records)
    for new, old in zip(found.records, records, strict=True):
        assert set(new.components) == {"accuracy", "length"}
        assert new.components["accuracy"] == old.accuracy
        assert new.components["length"] == old.components["length"]
        assert new.raw_reward == pytest.approx(old.accuracy - 0.1 * old.components["length"])
        assert (new.target_calls, new.target_tokens) == (0, 0)
    assert found.weights == {"accuracy": 1.0, "length": -0.1}


def test_drawn_answers_and_texts_are_scored_as_they_are_stored(tmp_path: Path, request: Any) -> None:
    folder = text_run(tmp_path, env={"num_envs": 16, "samples": 2})
    request.getfixturevalue("no_target")
    same = _again(folder, {"name": "exact-match"})
    assert _numbers(same.records, "exact-match") == _numbers(load_run(folder).prompts(), "exact-match")
    texts: dict[tuple[str, str], list[str]] = {}
    for answer in load_run(folder).answers():
        texts.setdefault((answer.prompt, answer.example_id), []).append(str(answer.output.text))
    long = _again(folder, {"name": "length-rule", "kwargs": {"rule": "equal", "value": 1}})
    assert {record.raw_reward for record in long.records} == {0.0}  # every answer is one word
    assert same.num_answers == 2 * len(texts)
    with pytest.raises(ConfigError, match="reward 'cross-entropy' needs log-likelihoods of the reference, but the run"):
        _again(folder, {"name": "cross-entropy"})


def test_failures_are_excluded_and_counted_and_never_scored(tmp_path: Path) -> None:
    folder = finished(
        tmp_path,
        task={"name": "planted", "shots": 1, "dev_shots": 1},
        target={"name": "planted:separable", "kwargs": {"failure_rate": 0.3}},
        run={"dir": str(tmp_path / "runs"), "max_failed_fraction": 1.0},
    )
    records = load_run(folder).prompts()
    found = _again(folder, {"name": "gap"})
    assert _numbers(found.records, "gap") == _numbers(records, "gap")
    distinct = {(record.prompt, record.phase): record.num_failed for record in records}
    assert found.num_failed == sum(distinct.values()) > 0
    assert list(found.failures) == ["the run stored no answer for this, and rescoring asks for none"]
    whole = [record for record in found.records if record.num_valid == 0]
    assert whole
    assert all(record.raw_reward != record.raw_reward for record in whole)  # NaN, not 0


def test_a_prompt_of_several_minibatches_is_scored_on_all_its_answers(tmp_path: Path) -> None:
    folder = finished(
        tmp_path,
        policy={"kind": "categorical", "model": "planted-50"},
        env={"prompt_length": 1, "num_envs": 24, "examples_per_step": 2, "mask": {"candidates": ["w01", "w02"]}},
        algorithm={"name": "random", "iterations": 6},
    )
    run = load_run(folder)
    asked: dict[str, set[str]] = {}
    for answer in run.answers():
        asked.setdefault(answer.prompt, set()).add(answer.example_id)
    found = _again(folder, {"name": "gap"})
    train = [record for record in found.records if record.phase == "train"]
    assert {record.num_examples for record in run.prompts() if record.phase == "train"} == {2}
    for record in train:
        assert record.num_examples == len([name for name in asked[record.prompt] if name.startswith("train/")]) > 2
    assert len({(record.prompt, record.raw_reward) for record in train}) == len({record.prompt for record in train})


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose reward compares with the original prompt."""
    return finished(tmp_path_factory.mktemp("compared"), INPUTS, reward=[SAME])


def _copy(folder: Path, to: Path, without: str) -> Path:
    return Path(shutil.copytree(folder, to / "copy", ignore=shutil.ignore_patterns(without)))


def test_answers_to_the_original_prompt_are_taken_from_the_run(compared: Path, tmp_path: Path, no_target: None) -> None:
    expected = _numbers(load_run(compared).prompts(), "gap-over-original")
    assert _numbers(_again(compared, SAME).records, "gap-over-original") == expected
    killed = _copy(compared, tmp_path, "checkpoint-*")  # before its first checkpoint
    assert _numbers(_again(killed, SAME).records, "gap-over-original") == expected
    other = _again(compared, {"name": "gap-over-original", "kwargs": {"reward": "accuracy"}})
    assert (other.num_failed, other.num_abstained) == (0, 0)


def test_where_an_answer_to_the_original_prompt_is_missing_the_prompt_fails(compared: Path, tmp_path: Path) -> None:
    found = _again(_copy(compared, tmp_path, "journal.jsonl"), SAME)  # that of dev came after the last checkpoint
    for record, old in zip(found.records, load_run(compared).prompts(), strict=True):
        if record.phase == "train":
            assert record.raw_reward == pytest.approx(old.raw_reward)
        else:
            assert (record.num_valid, record.num_failed) == (0, 1)


def test_without_answers_to_the_original_prompt_the_reward_is_refused(inputs: Path, no_target: None) -> None:
    with pytest.raises(ConfigError, match="'gap-over-original' compares with the target's answers to the original"):
        _again(inputs, {"name": "gap-over-original", "kwargs": {"reward": "gap"}})


def test_rewards_that_do_not_fit_are_refused(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a reward reads the target's text, but task 'planted' asks for choices"):
        _again(inputs, {"name": "token-f1"})
    with pytest.raises(ConfigError, match="unknown reward 'gapp'"):
        _again(inputs, {"name": "gapp"})


def test_code_needs_an_allowance(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "def words(*, completions, **columns):\n    return [float(len(text.split())) for text in completions]\n"
    (tmp_path / "my_rescoring_rewards.py").write_text(code)
    mine = {"name": "my_rescoring_rewards:words"}
    with pytest.raises(ConfigError, match="allow it with --allow-module my_rescoring_rewards"):
        _again(inputs, mine)
    found = _again(inputs, mine, search_path=tmp_path)
    assert {record.raw_reward for record in found.records} <= {0.0, 1.0, 2.0, 3.0}
    monkeypatch.syspath_prepend(str(tmp_path))
    assert _again(inputs, mine, allow_modules=("my_rescoring_rewards",)).num_failed == 0


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_file_holds_what_pairs_read(suffix: str, inputs: Path, tmp_path: Path) -> None:
    found = _again(inputs, {"name": "accuracy"}, {"name": "length", "weight": -0.1})
    path = tmp_path / f"scores.{suffix}"
    write_scores(path, found)
    run = load_run(inputs)
    read = candidates_of(run, scores=path)
    own = candidates_of(run)
    assert [(c.text, c.example_id, c.input, c.context, c.iteration, c.index) for c in read.candidates] == [
        (c.text, c.example_id, c.input, c.context, c.iteration, c.index) for c in own.candidates
    ]
    train = [record for record in found.records if record.phase == "train"]
    assert [(c.scores, c.reward) for c in read.candidates] == [(r.components, r.raw_reward) for r in train]
    assert read.weights == {"accuracy": 1.0, "length": -0.1}
    if suffix == "parquet":
        assert _numbers(read_prompts(path), "accuracy") == _numbers(found.records, "accuracy")
    else:
        first = json.loads(path.read_text().splitlines()[0])
        assert first["component/length"] == found.records[0].components["length"]
        assert (first["weight/length"], first["training_reward"]) == (-0.1, None)


def test_scores_that_are_all_missing_in_a_column_can_be_written(tmp_path: Path) -> None:
    record = PromptRecord(
        "id", "w01", 0, 0, "train", float("nan"), {"a": float("nan")}, float("nan"), float("nan"), 1, 0, 1, 0, 0
    )
    write_scores(tmp_path / "s.parquet", Rescored((record,), {"a": 1.0}, 1, 1, 0, {}))
    (again,) = read_prompts(tmp_path / "s.parquet")
    assert again.raw_reward != again.raw_reward


def test_a_run_without_prompts_or_with_other_rows_is_refused(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    config = folder / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("split_seed: 0", "split_seed: 1").replace("shots: 2", "shots: 1"))
    with pytest.raises(RunError, match="which its task does not have"):
        _again(folder, {"name": "gap"})
    config.write_text(text)
    for _, path in load_run(folder).folder.parts("prompts"):
        remove(path)
    for _, path in load_run(folder).folder.parts("outputs"):
        remove(path)
    with pytest.raises(RunError, match="has no scored prompt yet"):
        _again(folder, {"name": "gap"})


def test_rescoring_changes_nothing_in_the_folder(compared: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in compared.rglob("*") if p.is_file()}

    before = state()
    _again(compared, SAME)
    assert state() == before
