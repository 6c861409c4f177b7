"""The trials of a sweep: which there are, and what is found wrong before any of them."""

from typing import Any

import pytest
from local_sweeps import SMALL

from rlprompt.config import RunConfig, parse_config
from rlprompt.errors import ConfigError
from rlprompt.sweeps.plan import check_trials, draw_trials, set_value
from rlprompt.sweeps.settings import SweepConfig, parse_sweep
from rlprompt.types import Json


def settings_of(parameters: dict[str, Any], **keys: Any) -> SweepConfig:
    return parse_sweep({"base": SMALL, "parameters": parameters, **keys}, source="sweep")


def planned(parameters: dict[str, Any], **keys: Any) -> tuple[list[Json], list[RunConfig]]:
    settings = settings_of(parameters, **keys)
    base, trials = draw_trials(settings)
    return trials, check_trials(base, settings, trials)


def test_a_grid_is_every_combination_the_last_key_fastest() -> None:
    trials, configs = planned({"seed": [0, 1], "algorithm.lr": {"grid": [1e-4, 3e-4]}, "env.num_envs": 8})
    assert [(trial["seed"], trial["algorithm.lr"]) for trial in trials] == [
        (0, 1e-4),
        (0, 3e-4),
        (1, 1e-4),
        (1, 3e-4),
    ]
    assert [(config.seed, config.algorithm.lr, config.env.num_envs) for config in configs] == [
        (0, 1e-4, 8),
        (0, 3e-4, 8),
        (1, 1e-4, 8),
        (1, 3e-4, 8),
    ]
    assert configs[0].task == parse_config(SMALL).task


def test_every_draw_is_tried_with_every_seed_and_more_samples_come_behind() -> None:
    parameters = {"algorithm.lr": {"uniform": [0.1, 0.2]}, "seed": [0, 1]}
    two, _ = planned(parameters, samples=2)
    three, _ = planned(parameters, samples=3)
    assert [trial["seed"] for trial in two] == [0, 1, 0, 1]
    assert two[0]["algorithm.lr"] == two[1]["algorithm.lr"] != two[2]["algorithm.lr"]
    assert three[:4] == two
    assert len(three) == 6


def test_entries_of_lists_are_keys_too_and_the_base_stays_as_it_was() -> None:
    base = {**SMALL, "reward": [{"name": "gap"}, {"name": "length", "weight": -0.5, "kwargs": {"unit": "words"}}]}
    settings = parse_sweep({"base": base, "parameters": {"reward.1.weight": [-1, -2]}}, source="sweep")
    config, trials = draw_trials(settings)
    configs = check_trials(config, settings, trials)
    assert [one.reward[1].weight for one in configs] == [-1, -2]
    assert config.reward[1].weight == -0.5


def test_sections_that_are_not_there_are_made() -> None:
    data: Json = {"monitor": None, "kwargs": {}}
    set_value(data, "monitor.proxy", "judge")
    set_value(data, "kwargs.a.b", 1)
    assert data == {"monitor": {"proxy": "judge"}, "kwargs": {"a": {"b": 1}}}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"algorithm.lrr": [1e-4]}, "unknown key 'algorithm.lrr'; did you mean 'lr'?"),
        ({"algoritm.lr": [1e-4]}, "unknown key 'algoritm'; did you mean 'algorithm'?"),
        ({"lr": [1e-4]}, "unknown key 'lr'"),
        ({"seed.x": [1]}, "parameter seed.x: 'seed' is not a section"),
        ({"reward.3.weight": [1]}, "parameter reward.3.weight: reward has 1 entries, counted from 0, no '3'"),
        ({"reward.gap.weight": [1]}, "counted from 0, no 'gap'"),
        ({"algorithm.lr": [1e-4, -1]}, "trial-001 (algorithm.lr=-1): algorithm.lr: Input should be greater than 0"),
        ({"algorithm.lr": {"uniform": [-1e-9, 1]}}, "uniform of algorithm.lr (algorithm.lr=-1e-09)"),
        ({"algorithm.clip": {"uniform": [0.1, 1]}}, "algorithm.clip: Input should be less than 1"),
        ({"algorithm.epochs": {"randint": [0, 200]}}, "randint of algorithm.epochs (algorithm.epochs=0)"),
        ({"algorithm.epochs": {"uniform": [1, 8]}}, "algorithm.epochs: Input should be a valid integer"),
        ({"algorithm.name": ["random", "randon"]}, "unknown algorithm 'randon'; did you mean 'random'?"),
        ({"reward.0.name": ["gapp"]}, "unknown reward 'gapp'; did you mean 'gap'?"),
        ({"policy.kind": {"choice": ["categorical", "categoric"]}}, "did you mean 'categorical'?"),
        ({"ray.num_env_runners": [2], "algorithm.name": "ppo"}, "ray.num_env_runners is 2, but a trial works in"),
        ({"ray.num_target_replicas": [1]}, "ray.num_target_replicas is 1, but a trial works in"),
        ({"algorithm.name": ["ppo"], "ray.num_learners": [1]}, "ray.num_learners is 1, but a trial works in"),
    ],
)
def test_a_wrong_value_is_found_before_anything_is_trained(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(parameters)
    assert message in str(caught.value)


def test_the_high_end_of_whole_numbers_is_not_tried() -> None:
    # gae_lambda goes to 1: randint [0, 2] draws 0 or 1 only
    _, configs = planned({"algorithm.gae_lambda": {"randint": [0, 2]}})
    assert configs[0].algorithm.gae_lambda in (0, 1)


def test_values_that_go_together_are_checked_together() -> None:
    # 'leave-one-out' needs two prompts a step: the first of these trials is wrong, though each key alone is not
    base = {**SMALL, "stabilisers": [{"name": "leave-one-out"}]}
    settings = parse_sweep({"base": base, "parameters": {"env.num_envs": [1, 4]}}, source="sweep")
    config, trials = draw_trials(settings)
    with pytest.raises(ConfigError, match=r"trial-000 \(env.num_envs=1\): stabiliser leave-one-out compares"):
        check_trials(config, settings, trials)
