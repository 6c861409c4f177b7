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


def make_instance_config(folder: Path, *overrides: str, **algorithm: Any) -> RunConfig:
    data = make_config(folder, **algorithm).model_dump(mode="json")
    data["env"] |= {"kind": "rewrite", "level": "instance", "meta_prompt": "{input}", "rewrites_per_input": 2}
    return parse_config(data, overrides)


def test_the_untrained_rewriter_is_sampled_and_its_policy_is_measured_on_dev(tmp_path: Path) -> None:
    result = train(make_instance_config(tmp_path), progress=False)
    records = load_run(result.folder).prompts()
    on_train = [record for record in records if record.phase == "train"]
    on_dev = [record for record in records if record.phase == "dev"]
    assert len(on_train) == 3 * 8
    assert len({record.example_id for record in on_train if record.iteration == 0}) == 4  # 8 / 2 inputs
    assert len({record.example_id for record in on_dev}) == len(on_dev) == 4
    assert all(record.example_id.startswith("dev/") for record in on_dev)
    assert all(record.num_examples == 1 for record in records)
    assert result.best_prompt is None
    assert result.selected_on == "dev"
    known = [record.raw_reward for record in on_dev]
    assert result.dev_reward == sum(known) / len(known)
    answers = load_run(result.folder).answers()
    assert len(answers) == result.target_calls
    assert len({(answer.prompt, answer.example_id, answer.sample) for answer in answers}) == len(answers)


def test_the_greedy_rewrite_is_one_text(tmp_path: Path) -> None:
    result = train(make_config(tmp_path, name="greedy"), progress=False)
    records = [record for record in load_run(result.folder).prompts() if record.phase == "train"]
    assert len({record.prompt for record in records}) == 1
    assert result.target_calls <= 4 + 4  # one prompt on train and dev


def test_a_resumed_run_remembers_the_answers_of_pairs(tmp_path: Path) -> None:
    whole = train(make_instance_config(tmp_path / "whole", "run.checkpoint_every=1"), progress=False)
    config = make_instance_config(tmp_path / "part", "run.checkpoint_every=1", "algorithm.iterations=2")
    part = train(config, progress=False)
    longer = make_instance_config(tmp_path / "part", "run.checkpoint_every=1")
    resumed = train(longer, resume=part.folder, progress=False)
    assert (resumed.target_calls, resumed.dev_reward) == (whole.target_calls, whole.dev_reward)
    one, other = ([(r.prompt, r.raw_reward) for r in load_run(run.folder).prompts()] for run in (whole, resumed))
    assert one == other


def test_several_untrained_agents_write_what_they_write_before_they_are_trained(tmp_path: Path) -> None:
    agents = [{"name": "first", "length": 2}, {"name": "second", "length": 1}]

    def run(**algorithm: Any) -> Any:
        config = make_config(tmp_path / str(algorithm), **algorithm)
        env = {"kind": "multi", "num_envs": 8, "agents": agents}
        sections = config.model_dump(mode="json", exclude={"env"}) | {"env": env}
        return load_run(train(parse_config(sections), progress=False).folder).prompts()

    searched, trained = run(), run(name="ppo", lr=0.5)
    first = [[record.prompt for record in records if record.iteration == 0] for records in (searched, trained)]
    assert first[0][:8] == first[1][:8]
    assert len({record.prompt for record in searched if record.phase == "train"}) > 8
    assert max(record.iteration for record in searched) == 3  # the choice on dev
