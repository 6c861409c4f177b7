"""Which arguments a callable takes, and one-line errors for a configuration that gives others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rlprompt.errors import ConfigError, did_you_mean


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """Returns the parameters by name (of a class: those of its constructor); None where they cannot be known."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # not every callable written in C tells its signature
        return None


def takes(function: Callable[..., Any], keyword: str) -> bool:
    """Whether a callable names this parameter."""
    return keyword in (parameters(function) or ())


def check_arguments(what: str, made: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
    """Checks the configured `kwargs` of a class before it is constructed.

    Args:
        what: for the message, such as "reward 'gap'".
        made: the class.
        kwargs: the configured arguments.

    Raises:
        ConfigError: an argument that the class does not have, or one that it needs and does not get.
    """
    found = parameters(made)
    if found is None:
        return
    open_ended = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    known = [key for key, entry in found.items() if entry.kind not in open_ended]
    if not any(entry.kind is inspect.Parameter.VAR_KEYWORD for entry in found.values()):
        for key in kwargs:
            if key not in known:
                raise ConfigError(f"{what} has no argument '{key}'{did_you_mean(key, known)}")
    for key in known:
        if found[key].default is inspect.Parameter.empty and key not in kwargs:
            raise ConfigError(f"{what} needs the argument '{key}'; give it as kwargs: {{{key}: ...}}")


def is_async(reward: Any) -> bool:
    """Whether calling a reward gives a coroutine: an `async` function, or an object with such a `__call__`."""
    called = getattr(reward, "__call__", None)  # noqa: B004 - what a call runs, not whether it can be called
    return inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(called)
