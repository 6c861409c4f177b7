"""How runs begin and end: done, budget, signals, failures, errors; and how they go on."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planted_runs import INPUTS, finished

from rlprompt.config import parse_config
from rlprompt.errors import BudgetExceededError, CheckpointError, ConfigError, RunError, TooManyFailuresError
from rlprompt.runs import RunResult, best_prompt, load_run, load_run_config, train
from rlprompt.runs.checkpoints import load_checkpoint
from rlprompt.runs.events import comparable
from rlprompt.runs.folder import RunFolder, read_json
from rlprompt.targets.planted import PlantedTarget
from rlprompt.types import Json

Start = Callable[..., RunResult]
# One iteration takes at most 4 prompts * 4 examples = 16 calls, dev at most 8 a prompt.


@pytest.fixture
def hook(tiny: types.ModuleType) -> Callable[[int, str, Callable[[], Any]], None]:
    """hook(iteration, "before" or "after", action): does something in the middle of an iteration, once."""

    def add(iteration: int, where: str, action: Callable[[], Any]) -> None:
        pending = [action]

        def disturb(now: int, place: str) -> None:
            if (now, place) == (iteration, where) and pending:
                pending.pop()()

        tiny.HOOKS.append(disturb)

    return add


@pytest.fixture
def whole(start: Start, tmp_path: Path) -> Json:
    """The events of a run that was left alone."""
    return {"events": events(start(folder=tmp_path / "whole").folder)}


def events(folder: Path) -> list[Json]:
    return [comparable(event) for event in load_run(folder).events()]


def kill(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def test_a_run_leaves_the_documented_files_and_nothing_else(start: Start) -> None:
    result = start()
    suffixes = {path.suffix for path in result.folder.rglob("*") if path.is_file()}
    assert suffixes == {".yaml", ".json", ".jsonl", ".parquet", ".safetensors", ""}  # "" is `latest`
    assert {path.name for path in result.folder.iterdir()} == {
        "config.yaml",
        "environment.json",
        "events.jsonl",
        "journal.jsonl",  # the answers of the choice on dev, which no checkpoint covers
        "prompts",
        "outputs",
        "checkpoint-000005",
        "checkpoint-000006",
        "latest",
        "best",
        "summary.json",
        "result.json",
    }


def test_the_result_is_the_best_on_dev_and_is_read_back(start: Start) -> None:
    result = start()
    run = load_run(result.folder)
    assert (result.stop_reason, result.exit_code, result.iterations, result.selected_on) == ("done", 0, 7, "dev")
    on_dev = {record.prompt: record.accuracy for record in run.prompts() if record.phase == "dev"}
    assert len(on_dev) >= 3
    assert result.dev_accuracy == on_dev[str(result.best_prompt)] == max(on_dev.values())
    assert run.result == result
    assert best_prompt(result.folder) == result.best_prompt
    assert load_run_config(result.folder).seed == 3
    assert read_json(result.folder / "best" / "policy.json", "it")["extra"]["prompt"] == result.best_prompt
    assert str(result).splitlines()[0].startswith(f"best prompt {result.best_prompt!r} (dev accuracy ")


def test_the_summary_does_not_claim_a_test_that_was_not_made(start: Start) -> None:
    result = start()
    (row,) = load_run(result.folder).summary()
    assert row.pop("seconds") >= 0
    assert row == {
        "name": "tiny",
        "kind": "trained",
        "calibration": "none",
        "prompt": result.best_prompt,
        "policy_iterations": None,
        "dev_accuracy": result.dev_accuracy,
        "dev_reward": result.dev_reward,
        "test_accuracy": None,
        "ci95": None,
        "target_calls": result.target_calls,
    }


def test_the_summary_of_a_run_that_writes_for_inputs_has_the_chosen_policys_mean_reward(tmp_path: Path) -> None:
    run = load_run(finished(tmp_path, INPUTS))
    (row,) = run.summary()
    rewards = [record.raw_reward for record in run.prompts() if record.phase == "dev"]
    assert (row["prompt"], row["policy_iterations"]) == (None, 1)
    assert row["dev_reward"] == pytest.approx(sum(rewards) / len(rewards))
    assert row["dev_accuracy"] is not None


def test_the_tables_add_up_to_the_ledger(start: Start) -> None:
    result = start()
    records = load_run(result.folder).prompts()
    train_rows = [record for record in records if record.phase == "train"]
    assert [record.iteration for record in train_rows] == [number for number in range(7) for _ in range(4)]
    assert sum(record.target_calls for record in records) == result.ledger["used"]["calls"] == result.target_calls
    assert sum(record.target_tokens for record in records) == result.ledger["used"]["tokens"]
    assert (
        sum(record.target_calls for record in records if record.phase == "dev")
        == (result.ledger["by_phase"]["dev"]["calls"])
    )
    assert {event["iteration"] for event in events(result.folder) if event["event"] == "iteration"} == set(range(7))


def test_recorded_training_rewards_are_what_the_frozen_stabilisers_make_of_them(start: Start) -> None:
    result = start("stabilisers=[{name: linear-range, kwargs: {old: [0, 1], new: [0, 0.01]}}]")
    for record in load_run(result.folder).prompts():
        if record.phase == "train" and record.num_valid:
            assert record.training_reward == pytest.approx(0.01 * record.raw_reward)


def test_the_environment_is_recorded_without_its_variables(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789")
    monkeypatch.setenv("HARMLESS", "canary-0123456789")
    result = start()
    (session,) = read_json(result.folder / "environment.json", "it")["sessions"]
    assert session["packages"]["numpy"]
    assert session["target"]["kind"] == "planted"
    for path in result.folder.rglob("*"):
        assert path.is_dir() or b"canary-0123456789" not in path.read_bytes()


# --- budget ---


def test_t10_the_budget_stops_the_run_and_is_never_overdrawn(start: Start, whole: Json) -> None:
    result = start("budget.max_target_calls=90")
    assert (result.stop_reason, result.exit_code, result.selected_on) == ("budget", 3, "dev")
    assert 0 < result.iterations < 7
    # what is left would not pay for another iteration and the choice: 16 (+ 8) + 3 * 8
    assert 90 - 16 - 8 - 24 - 24 <= result.target_calls <= 90
    again = start("budget.max_target_calls=1000", resume=result.folder)
    assert again.stop_reason == "done"
    assert events(result.folder) == whole["events"]


def test_the_same_config_resumed_after_its_budget_changes_nothing(start: Start) -> None:
    result = start("budget.max_target_calls=90")
    before = {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file()}
    assert start("budget.max_target_calls=90", resume=result.folder) == result
    assert {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file()} == before


def test_a_budget_that_breaks_in_the_middle_of_an_iteration_keeps_what_is_complete(
    start: Start, hook: Any, whole: Json
) -> None:
    def overdraw() -> None:
        raise BudgetExceededError("no more")

    hook(3, "after", overdraw)
    result = start()
    assert (result.stop_reason, result.iterations, result.selected_on) == ("budget", 3, "dev")
    assert RunFolder(result.folder).checkpoints()[-1][0] == 2
    assert start("budget.max_target_calls=1000", resume=result.folder).iterations == 7
    assert events(result.folder) == whole["events"]


def test_a_budget_of_too_few_calls_for_one_iteration_is_a_config_error(start: Start, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_target_calls is 10, but one iteration takes up to 16 calls"):
        start("budget.max_target_calls=10")
    assert not (tmp_path / "runs").exists()


def test_a_token_budget_stops_the_run_too(start: Start) -> None:
    result = start("budget.max_target_tokens=500")
    assert (result.stop_reason, result.selected_on) == ("budget", "dev")
    assert result.ledger["used"]["tokens"] <= 500


def test_a_token_budget_that_pays_for_nothing_ends_without_a_prompt(start: Start) -> None:
    result = start("budget.max_target_tokens=5")
    assert (result.exit_code, result.best_prompt, result.iterations) == (3, None, 0)
    assert load_run(result.folder).summary() == []
    with pytest.raises(RunError, match="has no best prompt yet"):
        best_prompt(result.folder)


def test_the_clock_stops_the_run_and_runs_on_over_a_resume(start: Start) -> None:
    result = start("budget.max_wall_s=1e-9")
    assert (result.stop_reason, result.exit_code, result.iterations) == ("wall", 3, 0)
    result = start()
    before = load_checkpoint(RunFolder(result.folder).checkpoints()[-1][1])["seconds"]
    again = start("algorithm.iterations=9", "budget.max_wall_s=1e-9", resume=result.folder)
    assert (again.stop_reason, again.iterations) == ("wall", 7)
    assert again.seconds > before


def test_a_stop_file_ends_the_run_well_and_is_gone_after_a_resume(start: Start, hook: Any, tmp_path: Path) -> None:
    def stop() -> None:
        (run,) = (tmp_path / "runs" / "tiny").iterdir()
        (run / "STOP").touch()

    hook(2, "before", stop)
    result = start()
    assert (result.stop_reason, result.exit_code, result.iterations) == ("stop-file", 0, 3)
    assert start(resume=result.folder).stop_reason == "done"
    assert not (result.folder / "STOP").exists()


# --- signals ---


@pytest.mark.parametrize(
    ("number", "reason", "code"), [(signal.SIGINT, "interrupt", 130), (signal.SIGTERM, "terminated", 143)]
)
def test_one_signal_finishes_the_iteration_and_saves(
    start: Start, hook: Any, whole: Json, number: int, reason: str, code: int
) -> None:
    hook(2, "before", kill(number))
    result = start()
    assert (result.stop_reason, result.exit_code, result.iterations) == (reason, code, 3)
    assert RunFolder(result.folder).checkpoints()[-1][0] == 2
    assert result.ledger["by_phase"]["dev"]["calls"] == 8  # only the scoring that was due; no choice on dev
    start(resume=result.folder)
    assert events(result.folder) == whole["events"]


def test_a_second_signal_leaves_at_once_and_saves_the_last_completed_iteration(
    start: Start, hook: Any, whole: Json
) -> None:
    hook(4, "before", kill(signal.SIGINT))
    hook(4, "after", kill(signal.SIGINT))
    result = start()
    assert (result.stop_reason, result.exit_code, result.iterations) == ("interrupt", 130, 4)
    assert RunFolder(result.folder).checkpoints()[-1][0] == 3
    start(resume=result.folder)
    assert events(result.folder) == whole["events"]


def test_handlers_are_taken_back_from_libraries_and_restored_afterwards(start: Start, hook: Any) -> None:
    before = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    hook(1, "before", lambda: signal.signal(signal.SIGTERM, lambda *_: os._exit(9)))
    hook(3, "before", kill(signal.SIGTERM))
    assert start().stop_reason == "terminated"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_run_outside_of_the_main_thread_works_without_handlers(start: Start) -> None:
    results: list[RunResult] = []
    thread = threading.Thread(target=lambda: results.append(start()))
    thread.start()
    thread.join(30)
    assert results[0].stop_reason == "done"


# --- failures and errors ---


def test_t7_too_many_failures_stop_the_run_with_everything_saved(start: Start, tmp_path: Path) -> None:
    overrides = ("target.kwargs.failure_rate=0.9", "selection.every=null", "run.checkpoint_every=100")
    with pytest.raises(TooManyFailuresError, match=r"of 64 samples failed, more than run\.max_failed_fraction = 0\.2"):
        start(*overrides)
    (run,) = (tmp_path / "runs" / "tiny").iterdir()
    # 50 samples are needed: 4 iterations of 16
    assert [iteration for iteration, _ in RunFolder(run).checkpoints()] == [3]
    assert len(load_run(run).prompts()) == 16
    assert read_json(run / "result.json", "it")["stop_reason"] == "failures"
    with pytest.raises(TooManyFailuresError):
        start(*overrides, resume=run)
    assert start(*overrides, "run.max_failed_fraction=1", resume=run).iterations == 7


def test_fewer_failures_than_allowed_are_data(start: Start) -> None:
    result = start("target.kwargs.failure_rate=0.15", "run.max_failed_fraction=0.5")
    records = load_run(result.folder).prompts()
    assert result.stop_reason == "done"
    assert sum(record.num_failed for record in records) > 0


def test_a_bug_in_an_algorithm_loses_no_completed_iteration(
    start: Start, hook: Any, whole: Json, tmp_path: Path
) -> None:
    hook(3, "after", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start()
    (run,) = (tmp_path / "runs" / "tiny").iterdir()
    assert RunFolder(run).checkpoints()[-1][0] == 2
    start(resume=run)
    assert events(run) == whole["events"]


def test_iterations_must_be_reported_in_order(start: Start, tiny: types.ModuleType, monkeypatch: Any) -> None:
    def skipping(run: Any) -> None:
        run.end_iteration(1, scores=None, metrics={}, state=dict)

    monkeypatch.setattr(tiny, "fit", skipping)
    with pytest.raises(ValueError, match="iteration 1 ended, but 0 was next"):
        start()


def test_iterations_without_scores_are_recorded(start: Start, tiny: types.ModuleType, monkeypatch: Any) -> None:
    def silent(run: Any) -> None:
        for iteration in range(2):
            run.end_iteration(iteration, scores=None, metrics={"loss": 1.0}, state=dict)

    monkeypatch.setattr(tiny, "fit", silent)
    result = start()
    assert (result.iterations, result.best_prompt, result.exit_code) == (2, None, 0)


def test_an_unwritable_folder_is_a_one_line_error_before_anything_is_loaded(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        start("target.name=planted:no-such-landscape", folder=tmp_path / "file")


def test_t3_code_that_is_not_beside_the_configuration_is_not_imported(tiny: types.ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="outside the configuration's folder"):
        train(tiny.make_config(tmp_path), progress=False)


# --- resume ---


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=4", "seed"),
        ("env.num_envs=5", "env.num_envs"),
        ("reward=[{name: gap, weight: 2.0}]", "reward.0.weight"),
        ("target.kwargs.noise=0.25", "target.kwargs.noise"),
        ("target.kwargs.latency_s=0.0", "target.kwargs.latency_s"),
        ("algorithm.lr=0.5", "algorithm.lr"),
        ("stabilisers=[]", "stabilisers"),
    ],
)
def test_a_changed_configuration_is_refused_by_the_name_of_the_key(start: Start, override: str, key: str) -> None:
    result = start("algorithm.iterations=1")
    with pytest.raises(ConfigError, match=rf"cannot resume: {key}(\.\S+)? is .* but the run was started with"):
        start(override, resume=result.folder)


def test_more_iterations_go_on_as_if_they_had_been_asked_for_at_once(start: Start, whole: Json) -> None:
    result = start("algorithm.iterations=4")
    start("run.keep=1", resume=result.folder)
    assert events(result.folder) == whole["events"]
    assert load_run_config(result.folder).algorithm.iterations == 7
    assert [iteration for iteration, _ in RunFolder(result.folder).checkpoints()] == [6]
    assert len(read_json(result.folder / "environment.json", "it")["sessions"]) == 2


@pytest.mark.parametrize("calibration", ["median", "contextual"])
def test_a_calibrated_run_resumes_to_the_same_events(start: Start, tmp_path: Path, calibration: str) -> None:
    common = (f"calibration={calibration}", "env.examples_per_step=null", "target.kwargs.failure_rate=0.0")
    alone = start(*common, folder=tmp_path / "alone")
    result = start(*common, "algorithm.iterations=3")
    again = start(*common, resume=result.folder)
    assert events(again.folder) == events(alone.folder)
    assert again.target_calls == alone.target_calls


def test_neither_more_budget_nor_an_older_checkpoint_asks_for_an_answer_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    run = PlantedTarget.run

    def counting(target: PlantedTarget, requests: Any) -> Any:
        asked.extend(request.rendered.text or "" for request in requests)
        return run(target, requests)

    monkeypatch.setattr(PlantedTarget, "run", counting)
    common = ("target.kwargs.failure_rate=0.0",)  # a failure would be asked again
    result = start(*common, "budget.max_target_calls=90")
    dev_calls = result.ledger["by_phase"]["dev"]["calls"]
    assert dev_calls > 8  # the choice on dev came after the last checkpoint
    again = start(*common, "budget.max_target_calls=1000", "algorithm.iterations=6", resume=result.folder)
    assert len(asked) == len(set(asked)) >= again.target_calls
    state = result.folder / "checkpoint-000005" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-8])
    start(*common, "budget.max_target_calls=1000", resume=result.folder)
    assert len(asked) == len(set(asked))


def test_a_damaged_newest_checkpoint_goes_back_to_the_one_before_and_ends_the_same(
    start: Start, whole: Json, caplog: pytest.LogCaptureFixture
) -> None:
    result = start("algorithm.iterations=6")
    state = result.folder / "checkpoint-000005" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-8])
    with caplog.at_level(logging.WARNING):
        start(resume=result.folder)
    assert "going back to checkpoint-000003" in caplog.text
    assert events(result.folder) == whole["events"]


def test_without_a_whole_checkpoint_nothing_is_touched(start: Start) -> None:
    result = start("algorithm.iterations=2")
    (result.folder / "checkpoint-000001" / "state.json").unlink()
    before = (result.folder / "events.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is whole"):
        start(resume=result.folder)
    assert (result.folder / "events.jsonl").read_bytes() == before
    assert len(load_run(result.folder).prompts()) > 8


def test_missing_parts_are_noticed(start: Start) -> None:
    result = start("algorithm.iterations=4")
    (result.folder / "outputs" / "part-000001.parquet").unlink()
    with pytest.raises(CheckpointError, match="put the missing parts back"):
        start(resume=result.folder)


def test_what_is_no_run_folder_is_an_error(start: Start, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is no run folder: it has no config\.yaml"):
        start(resume=tmp_path)


# --- with the package's own parts ---


def test_a_run_of_the_package_itself_is_shown_tracked_and_loaded_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlprompt.policies import load_policy

    monkeypatch.setattr(os, "fsync", lambda _: None)
    data = {
        "name": "search",
        "task": {"name": "planted", "shots": 4, "dev_shots": 4},
        "target": {"name": "planted:separable", "kwargs": {"length": 2, "vocabulary": 10}},
        "policy": {"kind": "categorical", "model": "planted-10"},
        "env": {"prompt_length": 2, "num_envs": 4},
        "algorithm": {"name": "random", "iterations": 3},
        "selection": {"top": 3, "racing": True},
        "run": {"dir": str(tmp_path)},
    }
    result = train(parse_config(data))
    assert "iteration 3/3" in capsys.readouterr().err
    assert load_policy(result.folder).kind == "categorical"
    (board,) = (result.folder / "tensorboard").iterdir()
    assert board.name.startswith("events.out.tfevents")
    assert load_run(result.folder).summary()[0]["kind"] == "random"
    again = train(parse_config(data, ["algorithm.iterations=4"]), resume=result.folder, progress=False)
    assert again.iterations == 4


def test_importing_runs_loads_nothing_heavy() -> None:
    code = "import rlprompt.runs, sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    heavy = {"torch", "ray", "transformers", "gymnasium", "pyarrow", "safetensors", "rich", "tensorboard"}
    assert set(done.stdout.split()) & heavy == set()
