"""Several rewards as one: the weighted sum, with failures and abstentions kept apart from numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlprompt.config import RewardConfig
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.rewards.component import Component, Pairs, Scored, load_component
from rlprompt.rewards.runner import Runner
from rlprompt.rewards.spending import Account, JudgeCalls
from rlprompt.targets.ledger import Ledger
from rlprompt.types import Failure, FloatArray, Json, TargetOutput

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardResult:
    """The rewards of N pairs."""

    components: dict[str, FloatArray]
    """Raw values of each component by its name, and of what it records beside them by "name/record", (N,); NaN where
    it abstained or failed."""
    rewards: FloatArray
    """Weighted sum, (N,); NaN where a component with a weight abstained or failed, or the target failed."""
    failures: dict[int, Failure]
    """What went wrong in a reward, by pair; the target's own failures are in its outputs."""


class RewardSet:
    """Rewards that are run on the same pairs and added up with their weights.

    Components run one after the other in a private thread, each bounded by its time-out. A pair whose target call
    failed is shown to no reward.

    Args:
        components: at least one, at least one of them with a weight other than 0, all with different names.

    Raises:
        ConfigError: no component, all weights 0, a name given twice, or components that need different answers of
            the target.
    """

    def __init__(self, components: Sequence[Component]) -> None:
        names = [component.name for component in components]
        if not names:
            raise ConfigError("reward: the list is empty; name at least one reward")
        if len(set(names)) != len(names):
            raise ConfigError(f"reward: two components have the same name in {', '.join(names)}; rename one")
        if not any(component.weight for component in components):
            raise ConfigError(f"reward: all weights are 0 ({', '.join(names)}); give at least one a weight")
        self.components = tuple(components)
        self.needs = common_need(self.components)
        self.needs_original = any(component.needs_original for component in self.components)
        """Whether a component compares with the original prompt."""
        self.original = common_original(self.components)
        """The original prompt, where a component names one."""
        self.judge_calls = sum((component.judge_calls for component in self.components), JudgeCalls())
        """The most calls that the rewards make of their own."""
        self.account = Account()
        """On which the rewards spend."""
        for component in self.components:
            component.attach(self.account)
        self._runner = Runner()
        self._warned: set[tuple[str, str]] = set()

    @classmethod
    def from_config(
        cls,
        configs: Sequence[RewardConfig],
        *,
        allow_modules: Sequence[str] = (),
        search_path: str | Path | None = None,
    ) -> RewardSet:
        """Builds the set that a configuration names.

        A name that occurs again is recorded as "name#2", "name#3", ...

        Args:
            configs: one entry per component.
            allow_modules: modules that `my_module:my_name` may import.
            search_path: folder of the user's configuration; modules in it are allowed.

        Raises:
            ConfigError: an unknown name, wrong arguments, code that cannot be loaded (see `load_component`).
        """
        return cls(
            [
                load_component(config, allow_modules=allow_modules, search_path=search_path, name=label)
                for label, config in zip(component_names(configs), configs, strict=True)
            ]
        )

    def __call__(
        self,
        *,
        prompts: Sequence[str],
        completions: Sequence[str],
        outputs: Sequence[TargetOutput],
        references: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
        phase: str = "train",
    ) -> RewardResult:
        """Scores N pairs. Never raises for what a reward does wrong: that is in `RewardResult.failures`.

        Args:
            prompts: what the policy read, (N,).
            completions: what the policy wrote, (N,).
            outputs: what the target answered, (N,).
            references: labels or gold answers, (N,).
            columns: the task's columns by name, each (N,).
            phase: where rewards that spend book it.

        Raises:
            ConfigError: the lists differ in length.
            BudgetExceededError: what a reward wanted to spend does not fit into the budget.
        """
        count = len(outputs)
        for key, values in {
            "prompts": prompts,
            "completions": completions,
            "references": references,
            **columns,
        }.items():
            if len(values) != count:
                raise ConfigError(f"rewards got {len(values)} {key} for {count} outputs; give one per output")
        self.spend_in(phase)
        pairs = Pairs(prompts, completions, outputs, references, columns)
        total = np.zeros(count)
        components: dict[str, FloatArray] = {}
        failures: dict[int, Failure] = {}
        for component in self.components:
            scored = component.score(self._runner, pairs)
            components[component.name] = scored.values
            components |= {f"{component.name}/{name}": values for name, values in scored.further.items()}
            self._warn(component, scored)
            if component.weight:  # a component that is only recorded excludes no pair
                total += component.weight * scored.values
                failures = {**scored.failures, **failures}
        return RewardResult(components, total, failures)

    @property
    def recorded(self) -> tuple[str, ...]:
        """The names in `RewardResult.components`."""
        return tuple(
            name
            for component in self.components
            for name in (component.name, *(f"{component.name}/{record}" for record in component.records))
        )

    def attach(self, ledger: Ledger) -> None:
        """Has the rewards spend on a ledger.

        Raises:
            ConfigError: the ledger limits money and a reward's judge has no known price.
        """
        self.account = Account(ledger)
        for component in self.components:
            component.attach(self.account)

    def spend_in(self, phase: str) -> None:
        """Books what the rewards spend in this phase, until a call of the set names another one."""
        self.account.phase = phase

    def metrics(self) -> dict[str, float]:
        """Returns the numbers that rewards tell of themselves, as "reward/NAME/NUMBER"; cumulative over the run."""
        return {
            f"reward/{component.name}/{name}": value
            for component in self.components
            for name, value in component.metrics().items()
        }

    def state_dict(self) -> Json:
        """Returns the state of the components that have one, by name, as JSON values."""
        states = {component.name: component.state_dict() for component in self.components}
        return {name: state for name, state in states.items() if state is not None}

    def load_state_dict(self, state: Json) -> None:
        """Restores what `state_dict` returned.

        Raises:
            CheckpointError: the state belongs to other rewards.
        """
        expected = set(self.state_dict())
        if set(state) != expected:
            raise CheckpointError(
                f"the checkpoint holds the state of rewards {sorted(state)}, the run has {sorted(expected)}; "
                "resume with the rewards that the run was started with"
            )
        for component in self.components:
            component.load_state_dict(state.get(component.name))

    def _warn(self, component: Component, scored: Scored) -> None:
        for failure in scored.failures.values():
            if (component.name, failure.kind) not in self._warned:  # once each: failures are counted elsewhere
                self._warned.add((component.name, failure.kind))
                _log.warning("%s; such samples are excluded", failure.message, exc_info=scored.error)


def component_names(configs: Sequence[RewardConfig]) -> list[str]:
    """Returns what the components of a configuration are called in records.

    >>> component_names([RewardConfig(name="gap"), RewardConfig(name="length"), RewardConfig(name="gap")])
    ['gap', 'length', 'gap#2']
    """
    seen: dict[str, int] = {}
    names = []
    for config in configs:
        seen[config.name] = number = seen.get(config.name, 0) + 1
        names.append(config.name if number == 1 else f"{config.name}#{number}")
    return names


def common_original(components: Sequence[Component]) -> str | None:
    """Returns the original prompt that components name; ConfigError where they name different ones."""
    named = {component.original: component.name for component in components if component.original is not None}
    if len(named) > 1:
        raise ConfigError(f"rewards {' and '.join(named.values())} name different original prompts; name one")
    return next(iter(named), None)


def common_need(components: Sequence[Component]) -> str:
    """Returns what the target has to answer for all components; ConfigError where no single answer will do."""
    needs = {component.needs: component.name for component in components if component.needs != "any"}
    if "text" in needs and len(needs) > 1:
        other = "logprob" if "logprob" in needs else "choices"
        raise ConfigError(
            f"reward '{needs['text']}' needs the target's text, but '{needs[other]}' needs {other}; the target is "
            "asked one kind of question, so use one of the two"
        )
    if "choices" in needs:  # rewards that need "logprob" read it from the choices as well
        return "choices"
    return next(iter(needs), "any")
