"""Sweep files and parameters: what is read, and what is refused in one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from local_sweeps import SMALL

from rlprompt.errors import ConfigError
from rlprompt.sweeps.plan import check_trials, draw_trials
from rlprompt.sweeps.settings import Parameter, load_sweep, parse_space


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def sweep_file(beside: Path, **keys: Any) -> Path:
    path = beside.with_name("sweep.yaml")
    path.write_text(yaml.safe_dump({"base": beside.name} | keys))
    return path


def test_a_sweep_file_names_its_base_beside_itself(base: Path) -> None:
    file = sweep_file(base, parameters={"seed": [0, 1]}, samples=1, budget={"max_target_calls": 500})
    found = load_sweep(file)
    assert found.base == str(base)
    assert (found.metric, found.max_concurrent, found.budget.max_target_calls) == (None, 1, 500)


def test_a_runs_configuration_is_a_base_and_options_say_the_rest(base: Path) -> None:
    found = load_sweep(base, ["seed=[0, 1]", "algorithm.lr={loguniform: [1e-5, 1e-3]}"], ["samples=4"])
    assert (found.base, found.samples) == (str(base), 4)
    assert [parameter.kind for parameter in parse_space(found.parameters, source="")] == ["grid", "loguniform"]


def test_options_replace_parameters_of_the_file_and_other_keys(base: Path) -> None:
    file = sweep_file(base, parameters={"seed": [0, 1], "algorithm.lr": [1e-3]})
    found = load_sweep(file, ["seed=7"], ["budget.max_target_calls=9"])
    assert found.parameters == {"seed": 7, "algorithm.lr": [1e-3]}
    assert found.budget.max_target_calls == 9


def test_numbers_that_yaml_takes_for_text_are_numbers() -> None:
    (parameter,) = parse_space({"algorithm.lr": {"grid": ["1e-4", "3E-4", 1]}}, source="")
    assert parameter.values == (0.0001, 0.0003, 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"logunifrom": [1, 2]}, "did you mean 'loguniform'"),
        ({"grid": [1], "choice": [2]}, "needs one of grid, choice, uniform, loguniform, randint, got"),
        ({}, "needs one of grid, choice"),
        ({"grid": 3}, "grid needs a list of values, got 3"),
        ([], "grid needs a list of values"),
        ([1, 2, 1], "grid has a value twice"),
        ({"uniform": [1]}, "uniform needs two numbers, [low, high] with low < high, got [1]"),
        ({"uniform": [2, 1]}, "low < high, got [2, 1]"),
        ({"uniform": [0, float("inf")]}, "low < high"),
        ({"uniform": ["a", "b"]}, "uniform needs two numbers"),
        ({"loguniform": [0, 1]}, "loguniform needs a low end above 0"),
        ({"randint": [0.5, 3]}, "randint needs two whole numbers"),
        ({"randint": [True, 3]}, "randint needs two whole numbers"),
    ],
)
def test_what_is_no_parameter_is_told_of(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space({"algorithm.lr": value}, source="sweep.yaml")
    assert str(caught.value).startswith("sweep.yaml: parameter algorithm.lr")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"parameters": {"seed": [0]}, "sample": 3}, "unknown key 'sample'; did you mean 'samples'"),
        ({"parameters": {"seed": [0]}, "metric": "test_accuracy"}, "metric: Input should be 'dev_accuracy' or"),
        ({"parameters": {"seed": [0]}, "budget": {"max_calls": 3}}, "unknown key 'budget.max_calls'; did you mean"),
        ({"parameters": {"seed": [0]}, "samples": 0}, "samples: Input should be greater than or equal to 1"),
        ({"parameters": {"seed": [0, 1]}, "samples": 2}, "no parameter is drawn, so the trials would be the same"),
        ({"parameters": {}}, "nothing varies"),
        ({"parameters": [1]}, "parameters must be a mapping of dotted keys"),
        ({"parameters": {"seed": [0]}, "base": "nowhere.yaml"}, "configuration not found"),
    ],
)
def test_a_wrong_sweep_file_is_one_sentence(base: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _plan(sweep_file(base, **keys))
    assert message in str(caught.value)


def _plan(file: Path) -> None:
    settings = load_sweep(file)
    config, trials = draw_trials(settings)
    check_trials(config, settings, trials)


def test_draws_depend_on_seed_key_and_number_only() -> None:
    wide = Parameter("algorithm.lr", "loguniform", (1e-5, 1e-3))
    drawn = [wide.draw(0, sample) for sample in range(50)]
    assert drawn == [wide.draw(0, sample) for sample in range(50)]
    assert len(set(drawn)) == 50
    assert all(1e-5 <= value < 1e-3 for value in drawn)
    # Half of the draws on a logarithmic scale lie below 1e-4; of uniform ones, a tenth would. 50 draws: 25 +- 3.5.
    assert 12 <= sum(value < 1e-4 for value in drawn) <= 38
    assert wide.draw(1, 0) != drawn[0]
    assert Parameter("algorithm.beta", "loguniform", (1e-5, 1e-3)).draw(0, 0) != drawn[0]


def test_whole_numbers_leave_out_the_high_end_and_choices_take_what_is_there() -> None:
    whole = {Parameter("x", "randint", (2, 4)).draw(0, sample) for sample in range(30)}
    assert whole == {2, 3}
    assert all(type(value) is int for value in whole)
    chosen = {Parameter("x", "choice", ("a", None)).draw(0, sample) for sample in range(30)}
    assert chosen == {"a", None}
    assert all(0.25 <= Parameter("x", "uniform", (0.25, 0.5)).draw(0, sample) < 0.5 for sample in range(30))
