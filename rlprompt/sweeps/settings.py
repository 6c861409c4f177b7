"""What a sweep varies, over which configuration, and what it may spend: a sweep file, or a run's configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from rlprompt.config import BudgetConfig, describe, read_mapping
from rlprompt.errors import ConfigError, did_you_mean
from rlprompt.overrides import apply_overrides
from rlprompt.sections import Section
from rlprompt.seeding import generator

GRID, CHOICE = "grid", "choice"
RANGES = ("uniform", "loguniform", "randint")
KINDS = (GRID, CHOICE, *RANGES)
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


class SweepConfig(Section):
    """One sweep: trials that differ in the values of some keys."""

    base: str | dict[str, Any]
    """The configuration of all trials: a file, beside the sweep's, or the configuration itself."""
    name: str | None = None
    """What the sweep's folder begins with; None is the name of the base configuration and "-sweep"."""
    seed: int = Field(default=0, ge=0)
    """Of the draws. The seeds of the trials are a parameter like others."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys and what they are tried with: {grid: [...]} or a list, {choice: [...]}, {uniform: [low, high]},
    {loguniform: [low, high]}, {randint: [low, high]} (without high, as in Ray Tune), or one value."""
    samples: int = Field(default=1, ge=1)
    """Draws of the parameters that are drawn. Each draw is tried with every combination of the grids."""
    metric: Literal["dev_accuracy", "dev_reward"] | None = None
    """What the best trial has most of; ties go to the other one. None is what the base configuration selects by."""
    budget: BudgetConfig = BudgetConfig()
    """What all trials may spend together; `budget` of the base configuration is what one of them may."""
    max_concurrent: int = Field(default=1, ge=1)
    """Trials that run at once, each in a process of its own."""
    cpus_per_trial: float = Field(default=1, gt=0)
    gpus_per_trial: float = Field(default=0, ge=0)
    max_trial_restarts: int = Field(default=3, ge=0)
    """How often a trial whose process was lost goes on in a new one."""


MAY_CHANGE = ("samples", "budget", "max_concurrent", "cpus_per_trial", "gpus_per_trial", "max_trial_restarts")
"""What a resumed sweep may have other values of; `samples` may only grow."""


@dataclass(frozen=True)
class Parameter:
    """What one dotted key is tried with."""

    key: str
    kind: str
    values: tuple[Any, ...]
    """All of a grid or a choice; the ends of a range."""

    @property
    def is_drawn(self) -> bool:
        """Whether there is chance in it."""
        return self.kind != GRID

    @property
    def outermost(self) -> tuple[Any, ...]:
        """Values that have to be valid for all that can be drawn to be."""
        return (self.values[0], self.values[1] - 1) if self.kind == "randint" else self.values

    def draw(self, seed: int, sample: int) -> Any:
        """Returns the value of a draw, which depends on seed, key and number only; the distributions are Ray Tune's."""
        from ray import tune

        domain = tune.choice(list(self.values)) if self.kind == CHOICE else getattr(tune, self.kind)(*self.values)
        return domain.sample(random_state=generator(seed, f"sweep/{self.key}", sample))


def load_sweep(path: str | Path, overrides: Sequence[str] = (), settings: Sequence[str] = ()) -> SweepConfig:
    """Reads a sweep file, or the configuration of a run that a sweep is over.

    Args:
        path: a file with `base` or `parameters` is a sweep's; any other one is a base.
        overrides: `KEY=VALUE`, parameters by their dotted keys; they replace those of the file.
        settings: `KEY=VALUE`, other keys of the sweep, for example `budget.max_target_calls=1000`.

    Raises:
        ConfigError: missing file, broken YAML, unknown key, a value out of range, or nothing that varies.
    """
    file = Path(path)
    data = read_mapping(file)
    if not {"base", "parameters"} & set(data):
        data = {"base": file.name}
    if "base" not in data:
        raise ConfigError(f"{file}: base is missing; name the configuration that all trials start from")
    if isinstance(data["base"], str):
        data["base"] = str(file.parent / data["base"])
    parameters = data.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise ConfigError(f"{file}: parameters must be a mapping of dotted keys, got {parameters!r}")
    data["parameters"] = {str(key): value for key, value in parameters.items()} | dict(map(_parameter, overrides))
    found = parse_sweep(apply_overrides(data, list(settings)), source=str(file))
    if not found.parameters:
        raise ConfigError(
            f"{file}: nothing varies; name parameters in the file or as KEY=VALUE, for example 'seed=[0,1,2]'"
        )
    return found


def parse_sweep(data: Mapping[str, Any], *, source: str) -> SweepConfig:
    """Builds the settings of a sweep from a mapping; raises ConfigError as `load_sweep` does."""
    try:
        settings = SweepConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe(error, SweepConfig)}") from error
    space = parse_space(settings.parameters, source=source)
    if settings.samples > 1 and not any(parameter.is_drawn for parameter in space):
        raise ConfigError(
            f"{source}: samples is {settings.samples}, but no parameter is drawn, so the trials would be the same; "
            "remove it, or try seeds: parameters.seed={grid: [0, 1, 2]}"
        )
    return settings


def parse_space(parameters: Mapping[str, Any], *, source: str) -> list[Parameter]:
    """Reads what the dotted keys are tried with.

    Raises:
        ConfigError: an unknown kind, no values, or a range that is none.
    """
    return [_parse(key, numbers(value), f"{source}: parameter {key}") for key, value in parameters.items()]


def numbers(value: Any) -> Any:
    """Returns a YAML value with the numbers that YAML 1.1 takes for text, such as 1e-3.

    >>> numbers({"loguniform": ["1e-5", 1]})
    {'loguniform': [1e-05, 1]}
    """
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _parse(key: str, value: Any, where: str) -> Parameter:
    if not isinstance(value, dict):
        value = {GRID: value if isinstance(value, list) else [value]}
    kinds = list(value)
    if len(kinds) != 1 or kinds[0] not in KINDS:
        wrong = next((str(kind) for kind in kinds if kind not in KINDS), None)
        hint = did_you_mean(wrong, KINDS) if wrong is not None else ""
        raise ConfigError(f"{where} needs one of {', '.join(KINDS)}, got {value!r}{hint}")
    kind, values = str(kinds[0]), value[kinds[0]]
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where}: {kind} needs a list of values, got {values!r}")
    if kind in RANGES:
        _check_range(kind, values, where)
    elif any(one in values[:place] for place, one in enumerate(values)):
        raise ConfigError(f"{where}: {kind} has a value twice: {values!r}")
    return Parameter(key, kind, tuple(values))


def _check_range(kind: str, values: list[Any], where: str) -> None:
    allowed = int if kind == "randint" else int | float
    are_numbers = all(isinstance(one, allowed) and not isinstance(one, bool) for one in values)
    if len(values) != 2 or not are_numbers or not all(map(math.isfinite, values)) or values[0] >= values[1]:
        what = "whole numbers" if kind == "randint" else "numbers"
        raise ConfigError(f"{where}: {kind} needs two {what}, [low, high] with low < high, got {values!r}")
    if kind == "loguniform" and values[0] <= 0:
        raise ConfigError(f"{where}: loguniform needs a low end above 0, got {values!r}")


def _parameter(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"parameter '{override}' is not of the form section.key=value")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"parameter '{override}' has a value that is not YAML: {' '.join(str(error).split())}"
        ) from error
