"""`rlprompt check`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rlprompt.cli.main import main
from rlprompt.targets.planted import PlantedTarget
from rlprompt.types import TargetOutput, TargetRequest


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all target calls."""
    sizes: list[int] = []
    run = PlantedTarget.run

    def counted(self: PlantedTarget, requests: list[TargetRequest]) -> list[TargetOutput]:
        sizes.append(len(requests))
        return run(self, requests)

    monkeypatch.setattr(PlantedTarget, "run", counted)
    return sizes


def test_it_says_what_is_resolved_what_the_rewards_give_and_what_the_run_costs(
    small_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], asked: list[int]
) -> None:
    assert main(["check", str(small_config(reward=[{"name": "gap"}, {"name": "accuracy", "weight": 2.0}]))]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "task planted: 4 train, 4 dev, 8 test rows, choices ' no', ' yes'" in lines
    # made-up outputs give 0.9 to one of two choices: gold gap 0.8 * 200, wrong gap -0.8 * 180, empty gap 0
    assert any(line.startswith("gap 1 160.0000 -144.0000 0.0000") for line in lines)
    assert any(line.startswith("accuracy 2 1.0000 0.0000 0.0000") for line in lines)
    # 3 iterations * 4 prompts * 4 train rows, and the best 2 prompts on 4 dev rows
    assert "calls for training 48" in lines
    assert "calls for selection on dev 8" in lines
    assert any(line.startswith("the run, at most 56 calls") for line in lines)
    assert 0 < sum(asked) <= 8


@pytest.mark.parametrize("calibration", ["none", "median", "contextual"])
def test_at_most_eight_target_calls_are_made(
    calibration: str, small_config: Callable[..., Path], asked: list[int]
) -> None:
    task = {"name": "planted", "shots": 16, "dev_shots": 16}
    assert main(["check", str(small_config(task=task)), f"calibration={calibration}"]) == 0
    assert 0 < sum(asked) <= 8


def test_a_budget_below_one_iteration_is_warned_about(
    small_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(small_config()), "budget.max_target_calls=10"]) == 0
    assert "the budget of 10 calls ends before the first iteration, which needs 16" in capsys.readouterr().out
    assert main(["check", str(small_config()), "budget.max_target_calls=50"]) == 0
    assert "the budget may end the run before its 3 iterations" in capsys.readouterr().out


def test_a_target_that_never_answers_fails_the_check(
    small_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    target = {"name": "planted:separable", "kwargs": {"failure_rate": 1.0}}
    assert main(["check", str(small_config(target=target))]) == 1
    assert "error: all 4 scored examples failed: " in capsys.readouterr().err


def test_t3_a_reward_beside_the_configuration_is_found_and_tried(
    small_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "check_reward_here.py").write_text(
        "def mine(*, outputs, **columns):\n    return [1.5 for _ in outputs]\n"
    )
    assert main(["check", str(small_config(reward=[{"name": "check_reward_here:mine"}]))]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "check_reward_here:mine 1 1.5000 1.5000 1.5000" in shown


def test_t3_code_elsewhere_needs_an_allowance(
    small_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(small_config(reward=[{"name": "os:system"}]))
    assert main(["check", config]) == 2
    assert "allow it with --allow-module os" in capsys.readouterr().err


@pytest.mark.parametrize("calibration", ["none", "contextual"])
def test_a_reward_that_compares_with_the_original_keeps_to_eight_calls_and_is_in_the_cost(
    small_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], asked: list[int], calibration: str
) -> None:
    reward = [{"name": "gap-over-original", "kwargs": {"reward": "gap"}}]
    env = {"prompt_length": 3, "num_envs": 4, "draft": "w01"}
    assert main(["check", str(small_config(reward=reward, env=env, calibration=calibration))]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    # both prompts on 4 rows; or on 1 row and on 3 inputs without content
    assert sum(asked) == 8
    assert "calls for the original prompt 8" in lines  # 4 train and 4 dev rows
    # made-up outputs as above, less the original's, which say nothing: gap 0
    assert any(line.startswith("gap-over-original 1 160.0000 -144.0000 0.0000") for line in lines)


def test_prompts_for_single_inputs_are_written_and_scored_in_pairs(
    small_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], asked: list[int]
) -> None:
    env = {"kind": "rewrite", "level": "instance", "meta_prompt": "w01 {input}", "prompt_length": 3, "num_envs": 4}
    stages = [{"name": "warm-up", "algorithm": {"name": "sft", "iterations": 7}}]
    assert main(["check", str(small_config(env={**env, "turns": 1}, stages=stages)), "selection.every=2"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    # 3 iterations * 4 prompts, each on its own example; 4 dev inputs at the end and after each 2 of 10 iterations
    assert "calls for training 12" in lines
    assert "calls for selection on dev 24" in lines
    assert any(line.startswith("reward ") and line.endswith(" on 4 examples") for line in lines)
    assert sum(asked) == 4


def test_a_task_level_rewrite_is_written_after_its_meta_prompt(
    small_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], asked: list[int]
) -> None:
    env = {"kind": "rewrite", "meta_prompt": "w01 {draft}", "draft": "w02", "prompt_length": 3, "num_envs": 4}
    assert main(["check", str(small_config(env=env))]) == 0
    assert "calls for training 48" in " ".join(capsys.readouterr().out.split())
    assert sum(asked) == 4


def test_several_agents_write_one_prompt(small_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    agents = [{"name": "first", "length": 2}, {"name": "second", "length": 1}]
    config = small_config(env={"kind": "multi", "num_envs": 4, "agents": agents})
    assert main(["check", str(config)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    # a table of 2 x 51 logits and 2 values, and one of half of that
    assert "policy categorical on planted-50: 156 trainable parameters in 2 policies of a team" in lines
    assert any(line.startswith("the run, at most 56 calls") for line in lines)
