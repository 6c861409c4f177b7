"""Rewards that are made of rewards: what they need, spend and keep is that of their parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.rewards.arguments import is_async
from rlprompt.rewards.component import Component, load_part
from rlprompt.rewards.reward_set import common_need, common_original
from rlprompt.rewards.spending import Account, JudgeCalls
from rlprompt.types import Failure, Json

Value: TypeAlias = float | Failure | None
Part: TypeAlias = Mapping[str, Any] | Component
LoadPart: TypeAlias = Callable[[Mapping[str, Any], str], Component]


def make_part(whose: str, entry: Part, label: str, load: LoadPart | None) -> Component:
    """Returns the component of an entry: {name, weight, kwargs}, or a component as it is.

    Args:
        whose: the reward that is made of it, for messages.
        entry: of the configuration.
        label: what it is called in messages and records.
        load: loads it under the allowances of the configuration; by default built-in and installed rewards only.

    Raises:
        ConfigError: no such entry, or a reward that is async.
    """
    if isinstance(entry, Component):
        part = entry
    elif isinstance(entry, Mapping):
        part = (load_part if load is None else load)(entry, label)
    else:
        raise ConfigError(f"{whose}: write a part as {{name: ..., kwargs: ...}}, got {entry!r}")
    if is_async(part.reward):
        raise ConfigError(f"{whose}: reward '{part.name}' is async and cannot be part of another one; name another")
    return part


class Composite:
    """Base of such rewards.

    Args:
        parts: what it is made of.
    """

    def __init__(self, parts: Sequence[Component]) -> None:
        self._parts = tuple(parts)
        self.needs = common_need(parts)
        self.needs_original = any(part.needs_original for part in parts)
        self.original = common_original(parts)
        probabilistic = [part for part in parts if part.needs in ("choices", "logprob")]
        self.reads_text = all(getattr(part.reward, "reads_text", False) for part in probabilistic)
        self.timeout_seconds = sum(part.timeout_seconds for part in parts)
        self.judge_calls = sum((part.judge_calls for part in parts), JudgeCalls())
        bounds = [part.max_abstained_fraction for part in parts if part.max_abstained_fraction is not None]
        self.max_abstained_fraction = min(bounds, default=None)

    @property
    def abstentions(self) -> dict[str, int]:
        """How often a judge among the parts had no verdict, by kind."""
        kinds: dict[str, int] = {}
        for part in self._parts:
            for kind, number in part.abstentions().items():
                kinds[kind] = kinds.get(kind, 0) + number
        return kinds

    def attach(self, account: Account) -> None:
        """Has the parts spend on the run's account."""
        for part in self._parts:
            part.attach(account)

    def run_metrics(self) -> dict[str, float]:
        """Returns the numbers of the parts, as "PART/NUMBER"."""
        return {f"{part.name}/{name}": value for part in self._parts for name, value in part.metrics().items()}

    def state_dict(self) -> Json:
        """Returns the states of the parts that have one, by name."""
        states = {part.name: part.state_dict() for part in self._parts}
        return {name: state for name, state in states.items() if state is not None}

    def load_state_dict(self, state: Json) -> None:
        """Restores what `state_dict` returned; raises CheckpointError for the state of other parts."""
        expected = {part.name for part in self._parts if part.state_dict() is not None}
        if set(state) != expected:
            raise CheckpointError(
                f"the checkpoint holds the state of the parts {sorted(state)}, the run has {sorted(expected)}"
            )
        for part in self._parts:
            part.load_state_dict(state.get(part.name))


def values_of(part: Component, arguments: Mapping[str, Sequence[Any]], chosen: Sequence[int]) -> list[Value]:
    """Returns what a part makes of the chosen pairs: a number, None, or a failure for each.

    Args:
        part: the reward.
        arguments: the keywords of a reward, lists over all pairs.
        chosen: which of them.
    """
    outputs = arguments["outputs"]
    found: dict[int, Value] = {}
    shown = []
    for index in chosen:
        problem = part.missing(outputs[index])
        if problem is None:
            shown.append(index)
        else:
            found[index] = Failure("reward", "malformed", f"'{part.name}' {problem}")
    if shown:
        given = {key: [values[index] for index in shown] for key, values in arguments.items()}
        scored = part.read(part.call(given), len(shown))
        for place, index in enumerate(shown):
            value = float(scored.values[place])
            found[index] = scored.failures.get(place, None if value != value else value)
    return [found[index] for index in chosen]
