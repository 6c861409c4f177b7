"""`rlprompt sweep` on the planted task: mistakes before anything is trained, and what is shown in the end."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from local_sweeps import LocalRuns, without_ray

from rlprompt.cli.main import main

Config = Callable[..., Path]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> LocalRuns:
    return without_ray(monkeypatch)


def _sweep(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "runs").iterdir()
    return folder


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["algorithm.lrr=[1]"], ["unknown key 'algorithm.lrr'", "did you mean 'lr'?"]),
        (["algorithm.lr=[1e-4,-1]"], ["trial-001", "algorithm.lr=-1", "greater than 0"]),
        (["algorithm.lr={loguniform: [0, 1]}"], ["loguniform needs a low end above 0"]),
        (["algorithm.lr={logunifrom: [1, 2]}"], ["did you mean 'loguniform'"]),
        (["algorithm.lr"], ["is not of the form section.key=value"]),
        (["algorithm.lr=["], ["has a value that is not YAML"]),
        ([], ["nothing varies"]),
        (["seed=[0,1]", "--set", "sample=2"], ["unknown key 'sample'", "did you mean 'samples'"]),
        (["seed=[0,1]", "--set", "metric=test_accuracy"], ["metric", "'dev_accuracy' or 'dev_reward'"]),
        (["seed=[0,1]", "--set", "budget.max_target_calls=8"], ["the budget of the sweep is too small"]),
        (["seed=[0,1]", "--set", "name=../x"], ["name '../x' is no folder name"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_trains_nothing(
    small_config: Config,
    tmp_path: Path,
    runs: LocalRuns,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    parts: list[str],
) -> None:
    assert main(["sweep", str(small_config()), *arguments, "--quiet"]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err
    assert not list(tmp_path.glob("runs/*/trial-*/prompts"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep"], "give a sweep file or a configuration, or --resume SWEEP"),
        (["sweep", "--resume", "x", "--dry-run"], "--dry-run needs CONFIG"),
        (["sweep", "nowhere.yaml"], "configuration not found: nowhere.yaml"),
    ],
)
def test_wrong_usage_is_told_of(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_dry_run_prints_the_trials_and_makes_nothing(
    small_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(small_config()), "seed=[0,1]", "algorithm.lr=[1e-4,3e-4]", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "trial-000  seed=0 algorithm.lr=0.0001",
        "trial-001  seed=0 algorithm.lr=0.0003",
        "trial-002  seed=1 algorithm.lr=0.0001",
        "trial-003  seed=1 algorithm.lr=0.0003",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_a_sweep_prints_its_table_and_exits_3_where_the_budget_ends_it_and_goes_on(
    small_config: Config, tmp_path: Path, runs: LocalRuns, capfd: pytest.CaptureFixture[str]
) -> None:
    small_config()
    file = tmp_path / "sweep.yaml"
    file.write_text(
        yaml.safe_dump({"base": "small.yaml", "parameters": {"seed": [0, 1]}, "budget": {"max_target_calls": 60}})
    )
    assert main(["sweep", str(file)]) == 3  # 56 calls of the first trial leave 4
    captured = capfd.readouterr()
    folder = _sweep(tmp_path)
    assert folder.name.startswith("small-sweep-")
    shown = captured.out.splitlines()
    assert shown[0].split() == ["trial", "seed", "dev", "accuracy", "dev", "reward", "iterations", "calls", "ended"]
    assert shown[1].startswith("*  trial-000  0 ")
    assert shown[2].split()[-3:] == ["0", "0", "budget"]
    assert f"best trial trial-000 on dev_accuracy: rlprompt eval {folder / 'trial-000'}" in shown
    assert f"sweep folder: {folder}" in shown
    assert "trials ended" in captured.err

    assert main(["sweep", "--resume", str(folder), "--set", "budget.max_target_calls=112", "--quiet"]) == 0
    assert runs.begun == [0, 1, 1]
    assert json.loads((folder / "sweep.json").read_text())["granted_calls"] == 112
    capfd.readouterr()
    assert main(["eval", str(folder / "trial-000"), "--json"]) == 0  # an ordinary run
    assert json.loads(capfd.readouterr().out)["num_examples"] == 8


REWARD = """
def reward(*, prompts, completions, outputs, references=None, **columns):
    return [output.choice_logprobs[reference] for output, reference in zip(outputs, references, strict=True)]
"""


def test_code_in_a_sweeps_folder_needs_the_users_allowance_again(
    small_config: Config, tmp_path: Path, runs: LocalRuns, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(REWARD)
    config = str(small_config(reward=[{"name": "own:reward"}]))
    limit = ["--set", "budget.max_target_calls=60"]
    assert main(["sweep", config, "seed=[0,1]", *limit, "--quiet"]) == 3
    folder = str(_sweep(tmp_path))
    more = ["--set", "budget.max_target_calls=112", "--quiet"]
    assert main(["sweep", "--resume", folder, *more]) == 1
    assert "own" in capfd.readouterr().out
    assert main(["sweep", config, "seed=[0,1]", "--resume", folder, *more]) == 0
