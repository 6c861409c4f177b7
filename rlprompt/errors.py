"""The exceptions of rlprompt, and the exit code that the command line gives to each.

RLPromptError                   1   anything that rlprompt itself reports
├── ConfigError                 2   the user's configuration, file or argument is wrong (also a ValueError)
│   ├── UnknownNameError        2   a name that is not registered; offers close matches
│   ├── TaskError               2   a task card, row or template that does not fit
│   ├── ModelNotFoundError      2   a model that cannot be found or loaded here
│   └── RewardError             2   a reward that cannot be used: length, type, NaN, exception
├── RunError                    1   a run folder that cannot be written, read or resumed
│   └── CheckpointError         1   a checkpoint that is truncated or does not fit the run
├── TooManyFailuresError        1   the share of failed samples passed `max_failed_fraction`
└── BudgetExceededError         3   the ledger refused to overdraw; the best so far is saved

A target call or a reward that fails for one sample is *data* (`rlprompt.types.Failure`), never an exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RLPromptError(Exception):
    """Base of everything that rlprompt raises on purpose."""

    exit_code = 1


class ConfigError(RLPromptError, ValueError):
    """The user's configuration, file or argument is wrong; the message says what, got, and what to do."""

    exit_code = 2


class UnknownNameError(ConfigError):
    """A name that nothing is registered under."""

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.name = name
        self.known = sorted(known)
        self._arguments = (what, name, self.known, hint)
        super().__init__(f"unknown {what} '{name}'{did_you_mean(name, self.known)}{hint}")

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, list[str], str]]:
        """Workers return errors; by default only the message would be given to the constructor."""
        return type(self), self._arguments


class TaskError(ConfigError):
    """A task card, a row of its data or its template does not fit."""


class ModelNotFoundError(ConfigError):
    """A model that cannot be found or loaded on this machine."""


class RewardError(ConfigError):
    """A reward that cannot be used; found by the check before a run starts."""


class RunError(RLPromptError):
    """A run folder that cannot be written, read or resumed."""


class CheckpointError(RunError):
    """A checkpoint that is truncated, altered or made for another configuration."""


class TooManyFailuresError(RLPromptError):
    """The share of failed samples passed `max_failed_fraction`; everything is saved."""


class BudgetExceededError(RLPromptError):
    """The ledger refused a spending that would overdraw the budget."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the tail of an error message: close matches, else the known names.

    >>> did_you_mean("rotten-tomato", ["imdb", "rotten-tomatoes"])
    "; did you mean 'rotten-tomatoes'?"
    >>> did_you_mean("x", ["imdb", "sst-2"])
    '; known: imdb, sst-2'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return "; did you mean " + " or ".join(f"'{match}'" for match in close) + "?"
    return "; known: " + ", ".join(names) if names else ""
