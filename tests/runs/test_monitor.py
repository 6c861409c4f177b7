"""The monitor of a run, and runs whose rewards spend."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlprompt.config import MonitorConfig
from rlprompt.errors import ConfigError
from rlprompt.rewards.spending import Account
from rlprompt.runs import RunResult, load_run
from rlprompt.runs.events import comparable
from rlprompt.runs.folder import remove
from rlprompt.runs.monitor import Monitor
from rlprompt.runs.records import PromptRecord
from rlprompt.runs.run import Run
from rlprompt.types import Json

Start = Callable[..., RunResult]
RIGGED = "reward=[{name: 'rigged_rewards:rigged', weight: 5}, {name: 'rigged_rewards:truth', weight: 0}]"
MONITOR = "monitor={proxy: 'rigged_rewards:rigged', gold: 'rigged_rewards:truth', window: 6, threshold: 0.6}"
LONGER = ["algorithm.iterations=16", "stabilisers=[]"]


def events(folder: Path) -> list[Json]:
    return [comparable(event) for event in load_run(folder).events()]


def record(iteration: int, phase: str = "train", accuracy: float = 0.5, **components: float) -> PromptRecord:
    return PromptRecord(
        prompt_id="",
        prompt="w01",
        iteration=iteration,
        index=0,
        phase=phase,
        raw_reward=1.0,
        components=components,
        training_reward=0.0,
        accuracy=accuracy,
        num_examples=1,
        num_valid=1,
        num_failed=0,
        target_calls=1,
        target_tokens=1,
    )


def test_means_are_over_the_train_prompts_that_have_a_value() -> None:
    monitor = Monitor(MonitorConfig(proxy="judge", gold="accuracy", window=4))
    records = [
        record(0, judge=0.2, accuracy=0.5),
        record(0, judge=float("nan"), accuracy=1.0),
        record(0, "dev", judge=9),
    ]
    metrics, event = monitor.look(0, records)
    assert metrics == {"monitor/proxy": 0.2, "monitor/gold": 0.75, "monitor/gap": pytest.approx(-0.55)}
    assert event is None
    assert monitor.look(1, [record(1, other=1.0)]) == ({}, None)  # no judge: the iteration is left out


def test_it_warns_once_for_each_time_that_they_part() -> None:
    monitor = Monitor(MonitorConfig(proxy="judge", gold="gold", window=4, threshold=0.9))
    proxy = [1, 2, 3, 4, 5, 6, 5, 4, 3, 4, 5, 6, 7]
    gold = [9, 8, 7, 6, 5, 4, 4, 4, 4, 3, 2, 1, 0]
    found = [monitor.look(i, [record(i, judge=p, gold=g)])[1] for i, (p, g) in enumerate(zip(proxy, gold, strict=True))]
    begun = [index for index, event in enumerate(found) if event is not None]
    assert begun == [3, 11]
    assert found[3] == {
        "iteration": 3,
        "since": 0,
        "proxy": "judge",
        "gold": "gold",
        "proxy_values": [1, 4],
        "gold_values": [9, 6],
        "proxy_trend": 1.0,
        "gold_trend": -1.0,
    }


def test_without_a_configuration_nothing_is_watched() -> None:
    assert Monitor(None).look(0, [record(0, judge=1.0)]) == ({}, None)


def test_t15_a_rigged_proxy_is_told_of_in_events_metrics_and_on_the_console(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="rlprompt.runs.monitor"):
        result = start(RIGGED, MONITOR, *LONGER)
    told = [event for event in events(result.folder) if event["event"] == "divergence"]
    assert told
    assert told[0]["proxy_values"][1] > told[0]["proxy_values"][0]
    assert told[0]["gold_values"][1] < told[0]["gold_values"][0]
    (first, *_) = [message for message in caplog.messages if "may be gaming the reward" in message]
    assert first.startswith(f"iteration {told[0]['iteration']}: 'rigged_rewards:rigged' rises (")
    metrics = [event["metrics"] for event in events(result.folder) if event["event"] == "iteration"]
    assert metrics[told[0]["iteration"]]["monitor/diverged"] == 1.0
    assert "monitor/diverged" not in metrics[4]  # the window is not full
    assert metrics[0]["monitor/gap"] == pytest.approx(2 * metrics[0]["monitor/proxy"] - 1)


def test_an_honest_proxy_is_not(start: Start) -> None:
    honest = "monitor={proxy: reward, gold: 'rigged_rewards:rigged', window: 6, threshold: 0.6}"
    result = start(RIGGED, honest, *LONGER)
    assert not [event for event in events(result.folder) if event["event"] == "divergence"]


def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(start: Start, tmp_path: Path) -> None:
    whole = events(start(RIGGED, MONITOR, *LONGER, folder=tmp_path / "whole").folder)
    part = start(RIGGED, MONITOR, "algorithm.iterations=7", "stabilisers=[]").folder
    start(RIGGED, MONITOR, *LONGER, resume=part)
    assert [event for event in events(part) if event["event"] in ("iteration", "divergence")] == [
        event for event in whole if event["event"] in ("iteration", "divergence")
    ]


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        ("{proxy: gapp, gold: accuracy}", r"monitor.proxy: no reward records 'gapp'; did you mean 'gap'\?"),
        ("{proxy: gap, gold: judge}", "monitor.gold: no reward records 'judge'"),
        ("{proxy: gap, gold: gap}", "are both 'gap'; name two rewards"),
        ("{proxy: gap, gold: accuracy, window: 3}", "monitor.window: .*greater than or equal to 4"),
        ("{proxy: gap, gold: accuracy, golden: 1}", "unknown key 'monitor.golden'; did you mean 'gold'"),
    ],
)
def test_a_monitor_that_cannot_be_is_refused_before_there_is_a_folder(
    start: Start, tmp_path: Path, monitor: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        start(f"monitor={monitor}")
    assert not (tmp_path / "runs").exists()


def test_a_resumed_run_may_have_another_monitor(start: Start) -> None:
    folder = start(RIGGED, "algorithm.iterations=2").folder
    assert start(RIGGED, MONITOR, "algorithm.iterations=3", resume=folder).iterations == 3


# --- judges in runs ---

JUDGED = "reward=[{name: 'rigged_rewards:Judged'}]"


def by_role(result: RunResult) -> dict[str, Any]:
    return {name: meter["calls"] for name, meter in result.ledger["by_role"].items()}


def test_a_judge_is_charged_in_a_run_and_its_abstentions_are_metrics(start: Start) -> None:
    result = start(JUDGED, "algorithm.iterations=2", "selection={top: 1}")
    assert result.stop_reason == "done"
    assert result.ledger["by_phase"]["check"]["calls"] == 1  # one made-up prompt, judged alone
    assert by_role(result)["judge"] >= 2
    assert result.target_calls == by_role(result)["judge"] + by_role(result)["target"]
    last = [event for event in events(result.folder) if event["event"] == "iteration"][-1]
    assert last["metrics"]["reward/rigged_rewards:Judged/abstained"] == 0.0


def test_a_budget_is_kept_with_a_judge_and_the_run_ends_as_with_the_targets(start: Start) -> None:
    judged = "reward=[{name: 'rigged_rewards:Judged', kwargs: {show: [input]}}]"
    # an iteration takes 4 prompts * 4 examples of the target and as many of the judge, the choice 3 * 8 of each
    result = start(judged, "budget.max_target_calls=140", "selection={top: 3}")
    assert (result.stop_reason, result.exit_code, result.selected_on) == ("budget", 3, "dev")
    assert 0 < result.iterations < 7
    assert 140 - 2 * (16 + 24) - 2 * 16 <= result.target_calls <= 140


def test_a_budget_that_runs_out_inside_of_a_reward_stops_the_run_with_all_saved(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlprompt.runs.run.budget_is_short", lambda *_: False)  # nobody looks ahead
    judged = "reward=[{name: 'rigged_rewards:Judged', kwargs: {show: [input]}}]"
    result = start(judged, "budget.max_target_calls=75", "selection={top: 3}")
    assert (result.stop_reason, result.exit_code) == ("budget", 3)
    assert 0 < result.iterations < 7
    assert result.target_calls <= 75
    assert len(load_run(result.folder).prompts()) >= 4 * result.iterations


def test_a_budget_below_one_judged_iteration_is_refused(start: Start) -> None:
    judged = "reward=[{name: 'rigged_rewards:Judged', kwargs: {show: [input]}}]"
    # the check shows one prompt with each of four inputs
    message = r"is 35, but one iteration takes up to 32 calls .*, 16 calls of judges; 4 were spent by the check"
    with pytest.raises(ConfigError, match=message):
        start(judged, "budget.max_target_calls=35")


def test_a_budget_below_the_check_of_the_rewards_is_refused(start: Start) -> None:
    with pytest.raises(ConfigError, match=r"does not hold for the check of the rewards: budget\.max_target_calls"):
        start("reward=[{name: 'rigged_rewards:Judged', kwargs: {show: [input]}}]", "budget.max_target_calls=3")


def test_a_resumed_run_asks_the_judge_nothing_that_the_check_at_its_start_has_asked(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[str] = []
    reserve = Account.reserve

    def counted(self: Account, *arguments: Any) -> Any:
        spent.append(self.phase)
        return reserve(self, *arguments)

    monkeypatch.setattr(Account, "reserve", counted)
    first = start(JUDGED, "algorithm.iterations=2", "selection={top: 1}")
    assert (spent.count("check"), first.ledger["by_phase"]["check"]["calls"]) == (1, 1)
    second = start(JUDGED, "algorithm.iterations=3", "selection={top: 1}", resume=first.folder)
    for path in (first.folder / "latest", *first.folder.glob("checkpoint-*")):
        remove(path)  # as after a kill before the first checkpoint
    third = start(JUDGED, "algorithm.iterations=3", "selection={top: 1}", resume=first.folder)
    assert spent.count("check") == 1
    for resumed in (second, third):
        assert resumed.ledger["by_phase"]["check"] == first.ledger["by_phase"]["check"]
    assert by_role(third)["judge"] == by_role(second)["judge"]


def test_a_resumed_run_with_a_judge_repeats_the_uninterrupted_one(start: Start, tmp_path: Path) -> None:
    whole = start(JUDGED, folder=tmp_path / "whole")
    part = start(JUDGED, "algorithm.iterations=3").folder
    result = start(JUDGED, resume=part)
    assert result.ledger["by_role"]["judge"]["calls"] == whole.ledger["by_role"]["judge"]["calls"]
    assert [event for event in events(part) if event["event"] == "iteration"] == [
        event for event in events(whole.folder) if event["event"] == "iteration"
    ]


class Killed(BaseException):
    """Ends a session as a kill does: nothing is saved."""


def test_a_killed_run_asks_the_judge_for_no_verdict_twice(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = Account.ask

    def counted(self: Account, target: Any, requests: Any, price: Any) -> Any:
        class Counting:
            """The judge, with a count of what really reaches it."""

            identity = target.identity
            count_tokens = staticmethod(target.count_tokens)

            @staticmethod
            def run(sent: Any) -> Any:
                asked.extend(str(request.rendered) for request in sent)
                return target.run(sent)

        return ask(self, Counting(), requests, price)  # type: ignore[arg-type]

    monkeypatch.setattr(Account, "ask", counted)
    settings = [JUDGED, "run.checkpoint_every=3"]
    whole = start(*settings, folder=tmp_path / "whole")
    asked_alone = sorted(asked)
    asked.clear()
    end_iteration = Run.end_iteration

    def killed_in_the_fifth(self: Run, iteration: int, **given: Any) -> None:
        if iteration == 4:  # scored, not recorded; the newest checkpoint is that of iteration 2
            monkeypatch.setattr(Run, "save", lambda self: None)
            raise Killed
        end_iteration(self, iteration, **given)

    save = Run.save
    monkeypatch.setattr(Run, "end_iteration", killed_in_the_fifth)
    with pytest.raises(Killed):
        start(*settings, folder=tmp_path / "killed")
    monkeypatch.setattr(Run, "end_iteration", end_iteration)
    monkeypatch.setattr(Run, "save", save)
    (folder,) = (tmp_path / "killed").glob("*/*")
    assert (folder / "judge-journal.jsonl").read_bytes().count(b"\n") >= 1
    result = start(*settings, folder=tmp_path / "killed", resume=folder)
    assert sorted(asked) == asked_alone
    assert result.ledger["by_role"]["judge"] == whole.ledger["by_role"]["judge"]
    assert [event for event in events(folder) if event["event"] == "iteration"] == [
        event for event in events(whole.folder) if event["event"] == "iteration"
    ]
