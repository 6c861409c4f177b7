"""One component of the reward: a callable with its name, weight and time-out, and the reading of what it returns.

Every fault of the callable becomes a `Failure` of the pairs that it concerns. A fault is never scored 0.0.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from rlprompt.config import RewardConfig, describe
from rlprompt.errors import BudgetExceededError, ConfigError, RewardError, RLPromptError, did_you_mean
from rlprompt.redaction import redact
from rlprompt.registry import resolve
from rlprompt.rewards.adapters import ADAPTER_KEYWORDS, adapt
from rlprompt.rewards.arguments import check_arguments, parameters, takes
from rlprompt.rewards.runner import Runner
from rlprompt.rewards.spending import Account, JudgeCalls
from rlprompt.types import Failure, FloatArray, TargetOutput

NEEDS = ("choices", "text", "logprob", "any")

_STANDARD = ("prompts", "completions", "outputs", "references")
_ATTRIBUTES = (
    *("needs", "reads_text", "needs_original", "original", "gold_not_ordered", "timeout_seconds"),
    *("state_dict", "load_state_dict"),
    *("also_records", "attach", "judge_calls", "run_metrics", "max_abstained_fraction"),
)
TOTAL = "reward"
"""What a reward that records further numbers calls its own in what it returns."""
_TIMEOUT_SECONDS = 300.0
_MESSAGE_CHARACTERS = 300
# What user code may do wrong while it is imported or constructed; rlprompt's own errors are told as they are.
_USER_ERRORS = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Pairs:
    """N (prompt, example, output) triples as lists of length N."""

    prompts: Sequence[str]
    """What the policy read."""
    completions: Sequence[str]
    """What the policy wrote."""
    outputs: Sequence[TargetOutput]
    references: Sequence[Any]
    columns: Mapping[str, Sequence[Any]]

    def arguments(self, chosen: Sequence[int]) -> dict[str, list[Any]]:
        """The keywords of a reward for some of the pairs, as fresh lists that it may sort or change."""
        given = {
            **self.columns,
            "prompts": self.prompts,
            "completions": self.completions,
            "outputs": self.outputs,
            "references": self.references,
        }
        return {key: [values[index] for index in chosen] for key, values in given.items()}


@dataclass(frozen=True)
class Scored:
    """What one component made of N pairs."""

    values: FloatArray
    """(N,); NaN where it abstained or failed."""
    failures: dict[int, Failure] = field(default_factory=dict)
    """By pair; an abstention is not in here."""
    whole: Failure | None = None
    """The fault of the call as a whole (exception, time-out, wrong length), when there was one."""
    error: BaseException | None = None
    """The exception behind `whole`, for the log."""
    further: dict[str, FloatArray] = field(default_factory=dict)
    """What it records beside its value, (N,) each; NaN where it has none."""
    reported: frozenset[int] = frozenset()
    """The pairs that it said itself to have failed, by returning a `Failure`: a judge's call, for example."""


class Component:
    """A reward function or object with its weight.

    Args:
        name: how it is called in records and messages.
        reward: a callable with the signature of `rlprompt.types.Reward`, or a part of it: without `**columns` it
            gets only the keywords that it names. May be async. Optional attributes: `needs` (what the target must
            answer: "choices", "text", "logprob" or "any", the default), `reads_text` (True where choices need no
            probabilities, an answered text will do), `gold_not_ordered` (True where a right
            output need not score at least as high as a wrong one), `needs_original` (True where it compares with
            the original prompt: it then gets `original_prompts` and `originals`, the answers to those) and
            `original` (a prompt to take for it), `timeout_seconds`, `state_dict`, `load_state_dict`; `also_records`
            (names of further numbers: it then returns a dict of lists, "reward" and those);
            and for rewards that spend: `attach(account)` (see `rlprompt.rewards.spending.Account`), `judge_calls` (a
            `JudgeCalls`), `run_metrics()` (numbers for the run's metrics) and `max_abstained_fraction` (of the made-up
            outputs of the check before a run).
        weight: factor in the sum; 0 only records the component.
        timeout_seconds: bound of one call over all pairs; None takes the reward's attribute, or 300.

    Raises:
        ConfigError: an argument out of range, or a callable that cannot be a reward.
    """

    def __init__(
        self,
        name: str,
        reward: Callable[..., Any],
        weight: float = 1.0,
        *,
        timeout_seconds: float | None = None,
    ) -> None:
        if not math.isfinite(weight):
            raise ConfigError(f"reward '{name}': weight must be a finite number, got {weight}")
        if timeout_seconds is None:
            timeout_seconds = getattr(reward, "timeout_seconds", _TIMEOUT_SECONDS)
        if not isinstance(timeout_seconds, int | float) or not 0 < timeout_seconds < math.inf:
            raise ConfigError(f"reward '{name}': timeout_seconds must be above 0, got {timeout_seconds!r}")
        self.name = name
        self.reward = reward
        self.weight = float(weight)
        self.timeout_seconds = float(timeout_seconds)
        self.needs: str = getattr(reward, "needs", "any")
        self.gold_not_ordered = bool(getattr(reward, "gold_not_ordered", False))
        self.needs_original = bool(getattr(reward, "needs_original", False))
        self.original: str | None = getattr(reward, "original", None)
        self.records: tuple[str, ...] = tuple(getattr(reward, "also_records", ()))
        self.judge_calls: JudgeCalls = getattr(reward, "judge_calls", JudgeCalls())
        self.max_abstained_fraction: float | None = getattr(reward, "max_abstained_fraction", None)
        if self.needs not in NEEDS:
            raise ConfigError(f"reward '{name}': needs must be one of {', '.join(NEEDS)}, got {self.needs!r}")
        self._keywords = _accepted_keywords(name, reward)

    def score(self, runner: Runner, pairs: Pairs) -> Scored:
        """Scores N pairs; every fault comes back as a `Failure`.

        The reward does not see pairs whose target call failed (NaN here, no failure of the reward), nor those
        without the answer that it needs (a failure).

        Raises:
            BudgetExceededError: what the reward wanted to spend does not fit into the run's budget.
        """
        count = len(pairs.outputs)
        values = np.full(count, np.nan)
        failures: dict[int, Failure] = {}
        chosen = []
        for index, output in enumerate(pairs.outputs):
            if output.failure is not None:
                continue
            if (problem := self.missing(output)) is not None:
                failures[index] = self._failure("malformed", problem)
            else:
                chosen.append(index)
        further = {name: np.full(count, np.nan) for name in self.records}
        if not chosen:
            return Scored(values, failures, further=further)
        scored = self._score(runner, pairs.arguments(chosen), len(chosen))
        values[chosen] = scored.values
        for name, numbers in scored.further.items():
            further[name][chosen] = numbers
        failures |= {chosen[position]: failure for position, failure in scored.failures.items()}
        reported = frozenset(chosen[position] for position in scored.reported)
        return Scored(values, failures, scored.whole, scored.error, further, reported)

    def attach(self, account: Account) -> None:
        """Tells a reward that spends on whose account it does; raises ConfigError where the account refuses it."""
        attach = getattr(self.reward, "attach", None)
        if callable(attach):
            attach(account)

    def metrics(self) -> dict[str, float]:
        """Returns what the reward has to say about itself, cumulative over the run, by name."""
        metrics = getattr(self.reward, "run_metrics", None)
        return {name: float(value) for name, value in metrics().items()} if callable(metrics) else {}

    def abstentions(self) -> dict[str, int]:
        """Returns how often the reward abstained by kind, where it counts that."""
        return dict(getattr(self.reward, "abstentions", {}))

    def state_dict(self) -> Any:
        """Returns the reward's state as JSON values; None for a reward without one."""
        save = getattr(self.reward, "state_dict", None)
        return save() if callable(save) else None

    def load_state_dict(self, state: Any) -> None:
        """Restores what `state_dict` returned."""
        if state is not None:
            getattr(self.reward, "load_state_dict")(state)  # noqa: B009 - optional part of the protocol

    def call(self, arguments: Mapping[str, Any]) -> Any:
        """Calls the reward with those of the keywords that it takes; whatever goes wrong is raised."""
        return self.reward(
            **{key: values for key, values in arguments.items() if self._keywords is None or key in self._keywords}
        )

    def missing(self, output: TargetOutput) -> str | None:
        """Says what an answer lacks for this reward; None when nothing."""
        if self.needs == "text" and output.text is None:
            return "needs the target's text, which answered with probabilities; use a reward that reads those"
        if self.needs in ("choices", "logprob") and output.choice_logprobs is None and output.logprob is None:
            reads_text = getattr(self.reward, "reads_text", False) and output.text is not None
            return None if reads_text else "needs probabilities, and the target gave none; use one that reads text"
        return None

    def _score(self, runner: Runner, arguments: dict[str, list[Any]], count: int) -> Scored:
        outcome = runner.run(partial(self.call, arguments), self.timeout_seconds)
        if outcome.timed_out:
            return self._all_failed(count, "timeout", f"took longer than {self.timeout_seconds:g} s")
        if isinstance(outcome.error, BudgetExceededError):  # the run stops for it, as for one of the target
            raise outcome.error
        if outcome.error is not None:
            problem = f"raised {type(outcome.error).__name__}: {_one_line(outcome.error)}"
            return self._all_failed(count, "exception", problem, outcome.error)
        return self.read(outcome.value, count)

    def _failure(self, kind: str, problem: str) -> Failure:
        return Failure("reward", kind, f"reward '{self.name}' {problem}")

    def _all_failed(self, count: int, kind: str, problem: str, error: BaseException | None = None) -> Scored:
        failure = self._failure(kind, problem)
        return Scored(np.full(count, np.nan), dict.fromkeys(range(count), failure), failure, error)

    def read(self, returned: Any, count: int) -> Scored:
        """Reads what the reward returned for so many pairs; what does not fit is a `Failure`."""
        if not (self.records and isinstance(returned, Mapping)):
            return self._read(returned, count)
        if set(returned) != {TOTAL, *self.records}:
            problem = f"returned {', '.join(map(str, returned))}; it has to be {', '.join((TOTAL, *self.records))}"
            return self._all_failed(count, "malformed", problem)
        parts = {name: self._read(returned[name], count) for name in (TOTAL, *self.records)}
        faulty = next((part for part in parts.values() if part.whole is not None), None)
        if faulty is not None:
            return faulty
        total = parts.pop(TOTAL)
        return replace(total, further={name: part.values for name, part in parts.items()})

    def _read(self, returned: Any, count: int) -> Scored:
        if isinstance(returned, np.ndarray) and returned.ndim == 1:
            returned = returned.tolist()
        if not isinstance(returned, list | tuple):
            problem = f"returned {_article(returned)}, not a list of {count} numbers"
            return self._all_failed(count, "malformed", problem)
        if len(returned) != count:
            problem = f"returned {len(returned)} values for {count} samples"
            return self._all_failed(count, "malformed", problem)
        values = np.full(count, np.nan)
        failures: dict[int, Failure] = {}
        reported = set()
        for index, entry in enumerate(returned):
            if entry is None:
                continue
            if isinstance(entry, Failure):
                failures[index] = replace(entry, where="reward", message=f"reward '{self.name}': {entry.message}")
                reported.add(index)
            elif not isinstance(entry, bool | int | float | np.bool_ | np.integer | np.floating):
                problem = f"returned {_article(entry)}, not a number or None"
                failures[index] = self._failure("malformed", problem)
            elif not np.isfinite(number := _as_float(entry)):
                failures[index] = self._failure("nan", f"returned {number}")
            else:
                values[index] = number
        return Scored(values, failures, reported=frozenset(reported))


def load_component(
    config: RewardConfig,
    *,
    allow_modules: Sequence[str] = (),
    search_path: str | Path | None = None,
    name: str | None = None,
) -> Component:
    """Builds the component that a configuration names.

    A class is constructed with the `kwargs`; a function gets them as further keywords. Two keys of `kwargs` belong
    to rlprompt where the reward itself has no such parameter: `timeout_seconds`, and those of
    `rlprompt.rewards.adapters`. A class with a parameter `load_part` gets a function that loads the rewards it is made
    of, (mapping with name and kwargs, label) -> Component, under the same allowances.

    Args:
        config: name, weight and kwargs.
        allow_modules: modules that `my_module:my_name` may import.
        search_path: folder of the user's configuration.
        name: used in records and messages instead of the configured name.

    Raises:
        UnknownNameError: nothing is registered under the name.
        RewardError: the code cannot be imported, constructed or called as a reward.
        ConfigError: an argument of a built-in reward is out of range.
    """
    label = name if name is not None else config.name
    kwargs = dict(config.kwargs)
    try:
        found = resolve("rewards", config.name, allow_modules=allow_modules, search_path=search_path)
        timeout = kwargs.pop("timeout_seconds", None) if not takes(found, "timeout_seconds") else None
        if isinstance(found, type):
            own = {key: kwargs.pop(key) for key in ADAPTER_KEYWORDS if key in kwargs and not takes(found, key)}
            check_arguments(f"reward '{config.name}'", found, kwargs)
            allowed = _allowed_code(config.name, found, kwargs, allow_modules, search_path)
            if takes(found, "load_part"):
                allowed["load_part"] = partial(load_part, allow_modules=allow_modules, search_path=search_path)
            reward, kwargs = found(**kwargs, **allowed), own
        else:
            reward = found
    except RLPromptError:
        raise
    except _USER_ERRORS as error:
        raise RewardError(
            f"reward '{config.name}' cannot be loaded: {type(error).__name__}: {_one_line(error)}; mend its code"
        ) from error
    if not callable(reward):
        raise RewardError(f"reward '{config.name}' is {_article(reward)}; name a function or a class")
    adapted, rest = adapt(config.name, reward, kwargs)
    if rest:
        _check_keywords(config.name, adapted, rest)
        adapted = partial(adapted, **rest)
    if adapted is not reward:
        for attribute in _ATTRIBUTES:
            if hasattr(reward, attribute):
                setattr(adapted, attribute, getattr(reward, attribute))
    return Component(label, adapted, config.weight, timeout_seconds=timeout)


def load_part(
    entry: Mapping[str, Any], label: str, *, allow_modules: Sequence[str] = (), search_path: str | Path | None = None
) -> Component:
    """Builds a reward that is part of another one from its entry in the configuration; raises as `load_component`.

    Args:
        entry: `name`, and if wanted `weight` and `kwargs`.
        label: what it is called in messages and records.
        allow_modules: as in `load_component`.
        search_path: as in `load_component`.
    """
    try:
        config = RewardConfig.model_validate(entry)
    except ValidationError as error:
        raise ConfigError(f"reward '{label}': {describe(error, RewardConfig)}") from error
    return load_component(config, allow_modules=allow_modules, search_path=search_path, name=label)


def _allowed_code(
    name: str, made: type, kwargs: Mapping[str, Any], allow_modules: Sequence[str], search_path: str | Path | None
) -> dict[str, Any]:
    """What a reward that resolves names of code itself (`resolves_code`) may import: never what its kwargs say."""
    if not getattr(made, "resolves_code", False):
        return {}
    allowed = {"allow_modules": tuple(allow_modules), "search_path": search_path}
    for key in allowed:
        if key in kwargs:
            raise ConfigError(f"reward '{name}': kwargs may not set '{key}'; use --allow-module")
    return allowed


def _check_keywords(name: str, reward: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
    accepted = _accepted_keywords(name, reward)
    for key in kwargs:
        if key in _STANDARD:
            raise ConfigError(f"reward '{name}': kwargs may not set '{key}'; rlprompt fills it in")
        if accepted is not None and key not in accepted:
            own = accepted.difference(_STANDARD)
            raise ConfigError(f"reward '{name}' has no argument '{key}'{did_you_mean(key, own)}")


def _accepted_keywords(name: str, reward: Callable[..., Any]) -> frozenset[str] | None:
    """The keywords that a reward can be given; None for all."""
    known = parameters(reward)
    if known is None or any(entry.kind is entry.VAR_KEYWORD for entry in known.values()):
        return None
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    accepted = frozenset(key for key, entry in known.items() if entry.kind in kinds)
    if not accepted.intersection(_STANDARD):
        raise RewardError(
            f"reward '{name}' takes ({', '.join(known)}); write it as "
            "def reward(*, prompts, completions, outputs, references, **columns)"
        )
    return accepted


def _as_float(entry: Any) -> float:
    try:
        return float(entry)
    except OverflowError:  # an int beyond the range of float
        return math.inf


def _article(value: Any) -> str:
    kind = "None" if value is None else type(value).__name__
    return kind if value is None else f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def _one_line(error: BaseException) -> str:
    text = redact(" ".join(str(error).split()))
    return text if len(text) <= _MESSAGE_CHARACTERS else text[:_MESSAGE_CHARACTERS] + "..."
