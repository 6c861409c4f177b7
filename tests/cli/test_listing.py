"""`rlprompt list`."""

import json
from pathlib import Path

import pytest

from rlprompt.cli.listing import recipe_files
from rlprompt.cli.main import main
from rlprompt.preferences import builder_names
from rlprompt.registry import BUILT_IN


def _listed(kind: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["list", kind]) == 0
    return [line.split()[0] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("kind", ["rewards", "stabilisers", "policies", "algorithms", "roles", "dialogues"])
def test_registered_names_are_listed_with_their_place(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(BUILT_IN[kind]) <= set(_listed(kind, capsys))


def test_targets_are_listed_as_they_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"MODEL", "openai:MODEL", "planted:LANDSCAPE"} <= set(_listed("targets", capsys))


def test_tasks_models_and_envs(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"rotten-tomatoes", "imdb", "planted", "sst-2", "negotiation", "workflow"} <= set(_listed("tasks", capsys))
    assert "smollm2-135m-instruct" in _listed("models", capsys)
    assert {"rlprompt/TokenPrompt-v0", "rlprompt/MultiPrompter-v0"} <= set(_listed("envs", capsys))


def test_pair_builders_are_listed_with_their_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "pair-builders"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(lines) == set(builder_names())
    assert "dominance criteria n over_original Pairs in which the chosen text" in " ".join(lines["dominance"].split())


def test_an_unknown_kind_offers_the_close_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "reward"]) == 2
    assert capsys.readouterr().err == "error: unknown kind 'reward'; did you mean 'rewards'?\n"


def test_recipes_are_found_beside_the_source_and_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("source/experiments/rlprompt/a.yaml", "here/experiments/b.yaml"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text("# A recipe.\nseed: 1\n")
    monkeypatch.chdir(tmp_path / "here")
    assert [file.name for file in recipe_files(tmp_path / "source")] == ["b.yaml", "a.yaml"]


def test_a_recipe_is_shown_with_its_first_comment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text("# What it shows.\nseed: 1\n")
    monkeypatch.chdir(tmp_path)
    assert main(["list", "recipes"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["experiments/mine.yaml", "What it shows."] in lines


def test_runs_are_listed_with_their_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = {
        "compared": {"summary.json": json.dumps([{"name": "trained", "test_accuracy": 0.75}])},
        "done": {"result.json": json.dumps({"stop_reason": "budget", "dev_accuracy": 0.5})},
        "broken": {"summary.json": "[{"},
        "odd": {"result.json": "[]"},
        "open": {},
    }
    for name, files in written.items():
        folder = tmp_path / "demo" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("seed: 0\n")
        for file, text in files.items():
            (folder / file).write_text(text)
    monkeypatch.setenv("RLPROMPT_RUN_DIR", str(tmp_path))
    assert main(["list", "runs"]) == 0
    states = {Path(line.split()[0]).name: line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()}
    assert states == {
        "compared": "trained 0.7500",
        "done": "budget, dev accuracy 0.5000",
        "broken": "its result cannot be read",
        "odd": "its result cannot be read",
        "open": "unfinished",
    }


def test_no_runs_is_said_on_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RLPROMPT_RUN_DIR", str(tmp_path))
    assert main(["list", "runs"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "no runs found\n")
