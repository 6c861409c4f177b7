"""`rlprompt train` and `rlprompt eval RUN` on the planted task."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rlprompt.cli.main import main
from rlprompt.runs import load_run

Config = Callable[..., Path]


def _run(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    return folder


def test_dry_run_prints_the_resolved_configuration_and_makes_nothing(
    small_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(small_config()), "algorithm.lr=1e-3", "--dry-run"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert (resolved["algorithm"]["lr"], resolved["seed"]) == (0.001, 3)
    assert resolved["reward"] == [{"name": "gap", "weight": 1.0, "kwargs": {}}]
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_a_run_prints_its_folder_and_best_prompt_and_eval_reads_it_again(
    small_config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(small_config()), "--quiet"]) == 0
    shown = capfd.readouterr().out
    run = _run(tmp_path)
    assert str(run) in shown
    best = json.loads((run / "result.json").read_text())["best_prompt"]
    assert repr(best) in shown

    assert main(["eval", str(run), "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["prompt"] == best
    assert report["num_examples"] == 8  # the run's test_limit
    assert (report["task"], report["target"], report["dtype"]) == ("planted", "planted:separable", "float32")

    assert main(["eval", str(run), "--prompt", "", "--split", "dev", "--json"]) == 0
    other = json.loads(capfd.readouterr().out)
    assert (other["prompt"], other["split"], other["num_examples"]) == ("", "dev", 4)


def test_t3_eval_of_a_run_imports_no_code_that_its_folder_names(
    small_config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(small_config()), "--quiet"]) == 0
    run = _run(tmp_path)
    (run / "trap_module.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["reward"] = [{"name": "trap_module:reward"}]
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    capfd.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["num_failed"] == 0
    assert not (tmp_path / "canary").exists()


def test_t10_a_run_that_the_budget_stops_exits_3_with_its_best_prompt(
    small_config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # 4 prompts on 4 rows are 16 calls an iteration: the second does not fit
    assert main(["train", str(small_config()), "budget.max_target_calls=24", "--quiet"]) == 3
    assert "budget" in capfd.readouterr().out
    result = json.loads((_run(tmp_path) / "result.json").read_text())
    assert result["stop_reason"] == "budget"
    assert result["best_prompt"] is not None
    assert result["target_calls"] <= 24


def test_resuming_a_stopped_run_with_a_larger_budget_goes_on_in_its_folder(
    small_config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = str(small_config())
    assert main(["train", config, "budget.max_target_calls=24", "--quiet"]) == 3
    run = _run(tmp_path)
    assert main(["train", config, "--resume", str(run), "--quiet"]) == 0
    assert str(run) in capfd.readouterr().out
    assert _run(tmp_path) == run
    result = json.loads((run / "result.json").read_text())
    assert (result["stop_reason"], result["iterations"]) == ("done", 3)


def test_resuming_with_another_seed_is_refused(
    small_config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = str(small_config())
    assert main(["train", config, "budget.max_target_calls=24", "--quiet"]) == 3
    run = str(_run(tmp_path))
    assert main(["train", config, "seed=4", "--resume", run, "--quiet"]) == 2
    assert "error: cannot resume: seed is 4, but the run was started with 3" in capfd.readouterr().err


POLICY = """
from rlprompt.policies.categorical import CategoricalPolicy


class Stubborn(CategoricalPolicy):
    def logits(self, features, head=None):
        logits = super().logits(features, head)
        favoured = logits.new_zeros(logits.shape[-1])
        favoured[7] = 50.0
        return logits + favoured
"""


@pytest.mark.ray
@pytest.mark.parametrize("allowed", ["beside the YAML", "--allow-module"])
def test_rllib_samples_from_a_policy_of_the_users_own(
    small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    beside = allowed == "beside the YAML"
    folder, module = (tmp_path, "my_policy") if beside else (tmp_path / "installed", "my_other_policy")
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(POLICY)
    if not beside:
        monkeypatch.syspath_prepend(str(folder))
    config = small_config(
        policy={"kind": f"{module}:Stubborn", "model": "planted-50"}, algorithm={"name": "ppo", "iterations": 1}
    )
    assert main(["train", str(config), "--quiet", *([] if beside else ["--allow-module", module])]) == 0
    written = [record.prompt for record in load_run(_run(tmp_path)).prompts() if record.phase == "train"]
    assert written == ["w07 w07 w07"] * 4


@pytest.mark.parametrize("mode", ["on", "off", "read-only"])
def test_the_mode_of_the_cache_needs_no_quotes(
    mode: str, small_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """YAML reads on and off as truth values."""
    assert main(["train", str(small_config()), f"target.cache={mode}", "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["target"]["cache"] == mode
