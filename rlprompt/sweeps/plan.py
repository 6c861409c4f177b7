"""The trials of a sweep: their parameters, drawn and checked before anything is trained."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rlprompt.config import RunConfig, load_config, parse_config
from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.registry import SINGULAR, names
from rlprompt.sweeps.settings import SweepConfig, parse_space
from rlprompt.types import Json


def trial_name(number: int) -> str:
    """Returns the name of a trial, which is that of its folder.

    >>> trial_name(7)
    'trial-007'
    """
    return f"trial-{number:03d}"


def load_base(settings: SweepConfig) -> RunConfig:
    """Returns the base configuration; raises ConfigError as `load_config` does."""
    if isinstance(settings.base, str):
        return load_config(settings.base)
    return parse_config(settings.base, source="base")


def draw_trials(settings: SweepConfig) -> tuple[RunConfig, list[Json]]:
    """Returns the base configuration, and the parameters of each trial.

    Every draw is tried with each combination of the grids, so that seeds, for example, are compared at equal values;
    and all of one draw come before the next one, so that more `samples` are more trials behind those that there are.

    Raises:
        ConfigError: the base cannot be used.
    """
    base, space = load_base(settings), parse_space(settings.parameters, source="sweep")
    grids = [parameter for parameter in space if not parameter.is_drawn]
    trials = []
    for sample in range(settings.samples):
        drawn = {parameter.key: parameter.draw(settings.seed, sample) for parameter in space if parameter.is_drawn}
        for values in itertools.product(*(grid.values for grid in grids)):
            chosen = drawn | {grid.key: value for grid, value in zip(grids, values, strict=True)}
            trials.append({parameter.key: chosen[parameter.key] for parameter in space})
    return base, trials


def check_trials(base: RunConfig, settings: SweepConfig, trials: Sequence[Json]) -> list[RunConfig]:
    """Returns the configuration of each trial.

    The values that nobody drew, ends of ranges and the rest of choices, are checked, too: in the place of those of the
    first trial.

    Raises:
        ConfigError: a key that there is not, or a value that is not valid.
    """
    configs = [trial_config(base, parameters, name=trial_name(number)) for number, parameters in enumerate(trials)]
    for parameter in parse_space(settings.parameters, source="sweep"):
        for value in parameter.outermost if parameter.is_drawn else ():
            trial_config(base, {**trials[0], parameter.key: value}, name=f"{parameter.kind} of {parameter.key}")
    return configs


def trial_config(base: RunConfig, parameters: Mapping[str, Any], *, name: str) -> RunConfig:
    """Returns the base configuration with parameters in their places; raises ConfigError as `check_trials` does."""
    data = base.model_dump(mode="json")
    for key, value in parameters.items():
        set_value(data, key, value)
    source = f"{name} ({say_parameters(parameters)})"
    config = parse_config(data, source=source)
    _check_names(config, source)
    for setting in ("num_env_runners", "num_learners", "num_target_replicas"):
        if number := getattr(config.ray, setting):
            raise ConfigError(
                f"{source}: ray.{setting} is {number}, but a trial works in its own process; set it to 0, and "
                "max_concurrent to the number of trials at once"
            )
    return config


def _check_names(config: RunConfig, source: str) -> None:
    """Raises ConfigError for a name that is not registered: a run would find it in the middle of the sweep only."""
    stages = [stage.algorithm.name for stage in config.stages]
    for group, used in (
        ("algorithms", [config.algorithm.name, *stages]),
        ("policies", [config.policy.kind]),
        ("rewards", [entry.name for entry in config.reward]),
        ("stabilisers", [entry.name for entry in config.stabilisers]),
    ):
        known = names(group)
        for name in used:
            if ":" not in name and name not in known:
                raise ConfigError(f"{source}: {UnknownNameError(SINGULAR[group], name, known)}")


def set_value(data: Any, key: str, value: Any) -> None:
    """Sets a dotted key; parts that are numbers are places in lists, as in reward.0.weight.

    Sections that there are not are made: the validation that follows knows which keys there can be.

    Raises:
        ConfigError: the key leads through something that is neither a section nor a list.
    """
    parts = key.split(".")
    place = data
    for depth, part in enumerate(parts):
        is_last = depth == len(parts) - 1
        if isinstance(place, list):
            if not part.isdecimal() or int(part) >= len(place):
                where = ".".join(parts[:depth])
                raise ConfigError(f"parameter {key}: {where} has {len(place)} entries, counted from 0, no '{part}'")
            index: Any = int(part)
        elif isinstance(place, dict):
            index = part
            if not is_last and place.get(part) is None:
                place[part] = {}
        else:
            raise ConfigError(f"parameter {key}: '{'.'.join(parts[:depth])}' is not a section")
        if is_last:
            place[index] = value
        else:
            place = place[index]


def say_parameters(parameters: Mapping[str, Any]) -> str:
    """Returns parameters for people.

    >>> say_parameters({"algorithm.lr": 0.00012345678, "seed": 1})
    'algorithm.lr=0.00012346 seed=1'
    """
    return " ".join(f"{key}={say_value(value)}" for key, value in parameters.items())


def say_value(value: Any) -> str:
    """Returns a value for people: five digits of a number."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
