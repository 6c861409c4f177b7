"""Sweeps as a whole, their trials in this process: budget, best trial, Ctrl-C, failures and going on."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_sweeps import SMALL, LocalRuns, without_ray

from rlprompt.config import parse_config
from rlprompt.errors import ConfigError, RunError
from rlprompt.runs import load_run, train
from rlprompt.runs.events import comparable
from rlprompt.runs.run import Run
from rlprompt.sweeps import SweepResult, sweep
from rlprompt.sweeps.report import TrialRow, best_row, last_iteration, progress_line, table
from rlprompt.sweeps.settings import parse_sweep
from rlprompt.sweeps.trials import Job
from rlprompt.targets.planted import PlantedTarget

Start = Callable[..., SweepResult]
SEEDS: dict[str, Any] = {"parameters": {"seed": [0, 1, 2]}}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> LocalRuns:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # half of the time here
    return without_ray(monkeypatch)


@pytest.fixture
def start(runs: LocalRuns, tmp_path: Path) -> Start:
    """Starts, or resumes, a sweep over the small configuration."""

    def begin(resume: Path | None = None, base: dict[str, Any] | None = None, **keys: Any) -> SweepResult:
        run = {**SMALL["run"], "dir": str(tmp_path / "runs")}
        settings = parse_sweep({"base": {**SMALL, "run": run, **(base or {})}, **SEEDS, **keys}, source="sweep")
        return sweep(settings, resume=resume, progress=False, search_path=Path(__file__).parents[1] / "runs")

    return begin


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the target is asked, by all trials."""
    texts: list[str] = []
    ask = PlantedTarget.run

    def listed(target: PlantedTarget, requests: Any) -> Any:
        texts.extend(str(request.rendered.text) for request in requests)
        return ask(target, requests)

    monkeypatch.setattr(PlantedTarget, "run", listed)
    return texts


def found(result: SweepResult) -> list[tuple[Any, ...]]:
    return [
        (row.parameters, row.status, row.dev_accuracy, row.dev_reward, row.best_prompt, row.target_calls)
        for row in result.rows
    ]


def test_each_trial_is_the_run_that_its_configuration_makes_alone(start: Start, tmp_path: Path) -> None:
    result = start()
    assert (result.stop_reason, result.exit_code) == ("done", 0)
    for row, seed in zip(result.rows, (0, 1, 2), strict=True):
        run = load_run(result.folder / row.trial)
        assert run.config.seed == seed
        alone = train(
            parse_config({**SMALL, "seed": seed, "run": {**SMALL["run"], "dir": str(tmp_path / "alone")}}),
            progress=False,
        )
        assert (row.best_prompt, row.dev_accuracy, row.dev_reward) == (
            alone.best_prompt,
            alone.dev_accuracy,
            alone.dev_reward,
        )
        assert row.target_calls == alone.target_calls == 56  # 3 iterations of 4 x 4, then 2 x 4 on dev
        events = [comparable(event) for event in run.events()]
        assert events == [comparable(event) for event in load_run(alone.folder).events()]
    assert result.granted_calls == 168  # what was set aside and not used has been given back


def test_the_files_of_a_sweep_say_what_was_tried_and_found(start: Start) -> None:
    result = start(parameters={"seed": [0, 1], "algorithm.lr": ["1e-4"]}, metric="dev_reward")
    state = json.loads((result.folder / "sweep.json").read_text())
    best = max(state["trials"], key=lambda row: row["dev_reward"])
    assert (state["best"], state["metric"], state["stop_reason"]) == (best["trial"], "dev_reward", "done")
    assert [row["parameters"] for row in state["trials"]] == [
        {"seed": 0, "algorithm.lr": 0.0001},
        {"seed": 1, "algorithm.lr": 0.0001},
    ]
    saved = yaml.safe_load((result.folder / "sweep.yaml").read_text())
    assert saved["base"]["task"]["name"] == "planted"
    kinds = {path.suffix for path in result.folder.rglob("*") if path.is_file()}
    assert kinds <= {".yaml", ".json", ".jsonl", ".parquet", ".safetensors", ""}


def test_the_shared_budget_ends_a_sweep_and_is_not_passed_by_a_call(start: Start, asked: list[str]) -> None:
    # Two trials take 112 of 130. For a third, 4 x 4 and the choice on dev, 2 x 4, are 24: more than the 18 left.
    result = start(budget={"max_target_calls": 130})
    assert [row.status for row in result.rows] == ["done", "done", "budget"]
    assert [row.target_calls for row in result.rows] == [56, 56, 0]
    assert (result.stop_reason, result.exit_code, result.granted_calls) == ("budget", 3, 112)
    assert len(asked) == 112
    assert result.best is not None


def test_a_trial_that_the_budget_stops_still_chooses_on_dev(start: Start, asked: list[str]) -> None:
    # The second trial has 54 of 110: two iterations of 16 with 8 for the choice, but not a third one.
    result = start(budget={"max_target_calls": 110})
    assert [(row.status, row.iterations, row.target_calls) for row in result.rows] == [
        ("done", 3, 56),
        ("budget", 2, 40),
        ("budget", 0, 0),
    ]
    assert result.rows[1].dev_accuracy is not None
    assert len(asked) == result.granted_calls == 96


def test_a_larger_budget_lets_the_stopped_trials_go_on_and_the_finished_ones_rest(
    start: Start, runs: LocalRuns, asked: list[str]
) -> None:
    whole = found(start())
    asked.clear()
    stopped = start(budget={"max_target_calls": 110})
    runs.begun.clear()
    result = start(resume=stopped.folder, budget={"max_target_calls": 168})
    assert runs.begun == [1, 2]
    assert result.folder == stopped.folder
    assert (result.exit_code, found(result)) == (0, whole)
    # The choice of the stopped trial was among fewer prompts: at most its 8 calls were for nothing, and are in no run.
    assert 168 <= len(asked) <= 176


def test_trials_at_once_share_the_budget_and_each_that_begins_ends_with_a_choice(
    start: Start, asked: list[str]
) -> None:
    result = start(parameters={"seed": [0, 1, 2, 3, 4, 5]}, budget={"max_target_calls": 200}, max_concurrent=3)
    assert len(asked) <= 200
    assert result.granted_calls == len(asked) == sum(row.target_calls or 0 for row in result.rows)
    assert result.exit_code == 3
    for row in result.rows:
        assert (row.dev_accuracy is not None) == bool(row.target_calls)


def test_a_trials_own_budget_is_no_reason_to_go_on_with_it(start: Start, runs: LocalRuns) -> None:
    result = start(base={"budget": {"max_target_calls": 40}})
    # 16 and 16, then 8 on dev; a third iteration would leave nothing for dev
    assert [(row.status, row.target_calls) for row in result.rows] == [("budget", 40)] * 3
    assert (result.stop_reason, result.exit_code) == ("done", 0)
    runs.begun.clear()
    start(base={"budget": {"max_target_calls": 40}}, resume=result.folder)
    assert runs.begun == []


def test_a_budget_that_holds_for_no_trial_is_a_mistake(start: Start, asked: list[str]) -> None:
    with pytest.raises(ConfigError, match="the budget of the sweep is too small for one iteration and the choice"):
        start(budget={"max_target_calls": 23})
    assert asked == []


def test_a_trial_whose_rewards_cannot_even_be_checked_waits_for_a_larger_budget(start: Start) -> None:
    # The check shows the judge one prompt with each of the four inputs: 4 calls.
    judged = {
        "reward": [{"name": "rigged_rewards:Judged", "kwargs": {"show": ["input"]}}],
        "algorithm": {"name": "random", "iterations": 1},
    }
    alone = start(base=judged, parameters={"seed": [0]}).granted_calls
    result = start(base=judged, parameters={"seed": [0, 1]}, budget={"max_target_calls": alone + 3})
    assert [(row.status, row.target_calls) for row in result.rows] == [("done", alone), ("budget", None)]
    assert (result.exit_code, result.granted_calls) == (3, alone)
    resumed = sweep(
        resume=result.folder,
        changes=[f"budget.max_target_calls={2 * alone}"],
        progress=False,
        search_path=Path(__file__).parents[1] / "runs",
    )
    assert [row.status for row in resumed.rows] == ["done", "done"]


def test_ctrl_c_stops_all_trials_and_a_resumed_sweep_is_the_undisturbed_one(
    start: Start, runs: LocalRuns, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = found(start())
    asked_alone = sorted(asked)
    asked.clear()
    end = Run.end_iteration

    def interrupted(run: Run, iteration: int, **values: Any) -> None:
        end(run, iteration, **values)
        if run.config.seed == 1 and iteration == 0:
            (run.folder.parent / "STOP").write_text("interrupt")

    runs.at = lambda job, number: os.kill(os.getpid(), signal.SIGINT) if number == 2 else None
    with monkeypatch.context() as patched:
        patched.setattr(Run, "end_iteration", interrupted)
        result = start()
    assert (result.stop_reason, result.exit_code) == ("interrupt", 130)
    assert [(row.status, row.iterations) for row in result.rows] == [("done", 3), ("interrupt", 1), ("waiting", None)]
    assert result.granted_calls == 72  # 56 and one iteration of 16
    runs.begun.clear()
    runs.at = lambda job, number: None
    resumed = start(resume=result.folder)
    assert runs.begun == [1, 2]
    assert (resumed.exit_code, found(resumed)) == (0, whole)
    assert sorted(asked) == asked_alone  # nothing was asked twice


def test_a_resumed_sweep_needs_no_configuration_and_takes_a_larger_budget(start: Start, asked: list[str]) -> None:
    stopped = start(budget={"max_target_calls": 110})
    result = sweep(resume=stopped.folder, changes=["budget.max_target_calls=168"], progress=False)
    assert (result.exit_code, result.granted_calls) == (0, 168)
    assert yaml.safe_load((result.folder / "sweep.yaml").read_text())["budget"]["max_target_calls"] == 168


def test_more_samples_are_further_trials_of_the_same_sweep(start: Start, runs: LocalRuns) -> None:
    keys: dict[str, Any] = {"parameters": {"algorithm.lr": {"loguniform": [1e-5, 1e-3]}}}
    first = start(samples=1, **keys)
    runs.begun.clear()
    more = start(resume=first.folder, samples=3, **keys)
    assert runs.begun == [1, 2]
    assert more.rows[0].parameters == first.rows[0].parameters
    with pytest.raises(ConfigError, match="the sweep has 3 trials already; samples may only grow"):
        start(resume=first.folder, samples=2, **keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"parameters": {"seed": [0, 1]}}, "cannot resume: parameters is not what"),
        ({"metric": "dev_reward"}, "cannot resume: metric is not what"),
        ({"base": {"algorithm": {"name": "random", "iterations": 4}}}, "cannot resume: base is not what"),
    ],
)
def test_another_sweep_cannot_go_on_in_the_folder(start: Start, keys: dict[str, Any], message: str) -> None:
    folder = start(parameters={"seed": [0]}).folder
    with pytest.raises(ConfigError, match=message):
        start(resume=folder, **{"parameters": {"seed": [0]}, **keys})
    with pytest.raises(ConfigError, match="cannot resume with another seed; only samples, budget"):
        sweep(resume=folder, changes=["seed=3"])


def test_what_is_no_sweep_cannot_be_resumed(start: Start, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is no sweep: it has no sweep\.yaml and sweep\.json"):
        sweep(resume=tmp_path)
    folder = start(parameters={"seed": [0]}).folder
    spent = (folder / "budget.json").read_bytes()
    (folder / "budget.json").unlink()
    with pytest.raises(RunError, match=r"budget\.json is missing, and without it nobody knows what the sweep has"):
        sweep(resume=folder)
    (folder / "budget.json").write_bytes(spent)
    (folder / "sweep.json").write_text('{"trials": 3}')
    with pytest.raises(RunError, match=r"sweep\.json is damaged"):
        sweep(resume=folder)
    with pytest.raises(ConfigError, match="a sweep needs its settings"):
        sweep()


def test_a_trial_that_fails_does_not_stop_the_others(start: Start, runs: LocalRuns) -> None:
    result = start(parameters={"task.name": ["planted", "nowhere"]})
    assert [row.status for row in result.rows] == ["done", "error"]
    assert "unknown task 'nowhere'" in str(result.rows[1].failure)
    assert "trial-001 failed: unknown task 'nowhere'" in str(result)
    assert (result.stop_reason, result.exit_code) == ("failures", 1)
    runs.begun.clear()
    again = start(parameters={"task.name": ["planted", "nowhere"]}, resume=result.folder)
    assert runs.begun == [1]
    assert again.exit_code == 1


def test_where_every_configuration_is_refused_the_sweep_is(start: Start) -> None:
    with pytest.raises(ConfigError, match="trial-000: unknown landscape 'flat'"):
        start(parameters={"target.name": ["planted:flat", "planted:steep"]})


def test_a_bug_leaves_its_traceback_and_a_mended_sweep_goes_on(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = found(start())
    end = Run.end_iteration

    def broken(run: Run, iteration: int, **values: Any) -> None:
        end(run, iteration, **values)
        if run.config.seed == 1 and iteration == 1:
            raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(Run, "end_iteration", broken)
        result = start()
    assert [row.status for row in result.rows] == ["done", "error", "done"]
    assert result.rows[1].failure == "ZeroDivisionError: a bug (see trial-001.error.txt)"
    assert "in broken" in (result.folder / "trial-001.error.txt").read_text()
    resumed = start(resume=result.folder)
    assert found(resumed) == whole
    assert not (result.folder / "trial-001.error.txt").exists()


def test_the_end_of_the_time_ends_the_sweep_as_the_budget_does(
    start: Start, runs: LocalRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    def much_later(job: Job, number: int) -> None:
        if number == 1:
            monkeypatch.setattr("rlprompt.sweeps.sweeping._Session._seconds", lambda _: 1000.0)

    runs.at = much_later
    result = start(budget={"max_wall_s": 1000})
    assert [row.status for row in result.rows] == ["done", "waiting", "waiting"]
    assert (result.stop_reason, result.exit_code) == ("wall", 3)
    runs.begun.clear()
    longer = start(budget={"max_wall_s": 1001}, resume=result.folder)
    assert runs.begun == [1, 2]
    assert longer.exit_code == 0


def test_a_stop_file_stops_the_trials_which_choose_on_dev(start: Start, runs: LocalRuns) -> None:
    def stop(job: Job, number: int) -> None:
        if number == 1:
            job.folder.stop.touch()

    runs.at = stop
    result = start()
    assert [row.status for row in result.rows] == ["done", "waiting", "waiting"]
    assert (result.stop_reason, result.exit_code) == ("stop-file", 0)


def test_a_finished_sweep_is_not_worked_on_again(start: Start, runs: LocalRuns) -> None:
    first = start()
    runs.begun.clear()
    again = start(resume=first.folder)
    assert runs.begun == []
    assert found(again) == found(first)


def row(number: int, accuracy: float | None, reward: float | None, **more: Any) -> TrialRow:
    values = {"trial": f"trial-{number:03d}", "parameters": {"seed": number, "x": 1}, "status": "done"}
    return TrialRow(**{**values, "budget_ended": False, **more}, dev_accuracy=accuracy, dev_reward=reward)


def test_the_best_trial_has_most_of_the_metric_ties_go_to_the_other_number_then_to_the_earlier_trial() -> None:
    rows = [row(0, None, None), row(1, 0.5, 3.0), row(2, 0.75, 1.0), row(3, 0.75, 2.0), row(4, 0.75, 2.0)]
    assert best_row(rows, "dev_accuracy") is rows[3]
    assert best_row(rows, "dev_reward") is rows[1]
    assert best_row(rows[:1], "dev_reward") is None
    without = [row(0, None, 1.0), row(1, None, 2.0)]  # tasks without labels have no accuracy
    assert best_row(without, "dev_accuracy") is without[1]


def test_the_table_leaves_out_what_never_varies_and_marks_the_best() -> None:
    rows = [row(0, 0.5, 1.25, iterations=3, target_calls=1056), row(1, None, None, unreturned_calls=24)]
    assert table(rows, rows[0]) == [
        ["", "trial", "seed", "dev accuracy", "dev reward", "iterations", "calls", "ended"],
        ["*", "trial-000", "0", "0.5000", "1.2500", "3", "1,056", "done"],
        ["", "trial-001", "1", "-", "-", "-", "- (+24 unreturned)", "done"],
    ]


def test_progress_tells_which_trials_run_and_how_far_they_are(tmp_path: Path) -> None:
    rows = [row(0, 0.75, 1.0), row(1, None, None, status="unfinished")]
    line = progress_line(rows, rows[0], "1,000 calls left", running=["trial-001 at iteration 4"])
    assert line == (
        "1 of 2 trials ended · trial-001 at iteration 4 · best trial-000 seed=0 x=1 dev accuracy 0.7500 · "
        "1,000 calls left"
    )
    events = tmp_path / "events.jsonl"
    assert last_iteration(events) is None
    events.write_text('{"event": "start"}\n{"event": "iteration", "iteration": 3}\n{"event": "iteration", "iter')
    assert last_iteration(events) == 3
