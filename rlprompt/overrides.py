"""`section.key=value`: what a command line puts in the place of values of a configuration file."""

from __future__ import annotations

from typing import Any

import yaml

from rlprompt.errors import ConfigError


def apply_overrides(data: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """Returns a copy of the mapping with every `a.b=c` set.

    >>> apply_overrides({"seed": 1}, ["algorithm.lr=1e-3"])
    {'seed': 1, 'algorithm': {'lr': 0.001}}
    """
    merged: dict[str, Any] = _copy(data)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override '{override}' is not of the form section.key=value")
        place = merged
        *parents, last = key.split(".")
        for part in parents:
            if not isinstance(place.setdefault(part, {}), dict):
                raise ConfigError(f"override '{override}': '{part}' is not a section")
            place = place[part]
        place[last] = _scalar(text, override)
    return merged


def _scalar(text: str, override: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override '{override}' has a value that is not YAML: {' '.join(str(error).split())}"
        ) from error
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value
