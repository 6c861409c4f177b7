"""Random search: the untrained policy's samples, scored and chosen like any other run."""

from pathlib import Path
from typing import Any

from rlprompt.config import RunConfig, parse_config
from rlprompt.runs import load_run, train


def make_config(folder: Path, **algorithm: Any) -> RunConfig:
    return parse_config(
        {
            "name": "random",
            "task": {"name": "planted", "shots": 2, "dev_shots": 2},
            "target": {"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 50}},
            "policy": {"kind": "categorical", "model": "planted-50"},
            "env": {"prompt_length": 3, "num_envs": 8},
            "stabilisers": [{"name": "leave-one-out"}],
            "algorithm": {"name": "random", "iterations": 3, **algorithm},
            "run": {"dir": str(folder), "tensorboard": False},
        }
    )


def test_the_first_prompts_equal_those_of_a_trained_run_and_learning_changes_nothing(tmp_path: Path) -> None:
    searched = train(make_config(tmp_path / "random"), progress=False)
    trained = train(make_config(tmp_path / "trained", name="reinforce", lr=0.5), progress=False)
    one, other = load_run(searched.folder).prompts(), load_run(trained.folder).prompts()

    def of(records: Any, iteration: int) -> list[str]:
        return [record.prompt for record in records if record.iteration == iteration and record.phase == "train"]

    assert of(one, 0) == of(other, 0)
    assert of(one, 2) != of(other, 2)


def test_the_budget_is_that_of_a_trained_run(tmp_path: Path) -> None:
    result = train(make_config(tmp_path), progress=False)
    # 3 iterations x 8 prompts x 4 train examples, then at most 16 prompts x 4 dev examples
    assert result.target_calls <= 3 * 8 * 4 + 16 * 4
    assert result.best_prompt is not None
