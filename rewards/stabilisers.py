"""Stabilisers: maps from the raw rewards of one step to training rewards.

Each takes rewards (P, E) with a mask of the valid entries and returns (P, E). Entries that are not valid, or not
finite, enter no statistic and come back as 0; what the others become is what they would become in a batch without
those. The scorer averages the result over the valid examples of each prompt.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from rlprompt.config import StabiliserConfig
from rlprompt.errors import CheckpointError, ConfigError, RLPromptError
from rlprompt.registry import resolve
from rlprompt.rewards.arguments import check_arguments
from rlprompt.types import BoolArray, FloatArray, Json, Stabiliser, masked_mean


class _Stabiliser(ABC):
    """Masks the entries and leaves the map to subclasses. Without a state unless a subclass adds one."""

    compares_prompts: ClassVar[bool] = False
    """Whether what a prompt gets depends on the other prompts: the scorer then shows it one input's prompts at a time
    where prompts are written for single inputs."""

    def __init__(self) -> None:
        self.frozen = False

    def __call__(self, rewards: FloatArray, valid: BoolArray) -> FloatArray:
        """Maps rewards (P, E) to training rewards (P, E); entries that are not valid become 0."""
        if rewards.ndim != 2 or rewards.shape != valid.shape:
            raise ConfigError(
                f"a stabiliser takes rewards (P, E) and a mask like them, got {rewards.shape} and {valid.shape}"
            )
        used = np.asarray(valid & np.isfinite(rewards), dtype=np.bool_)
        return np.where(used, self._map(np.where(used, rewards, 0.0), used), 0.0)

    @abstractmethod
    def _map(self, rewards: FloatArray, used: BoolArray) -> FloatArray:
        """The map; entries where `used` is False are 0 on entry, and may be anything on return."""

    def state_dict(self) -> Json:
        """Returns the state as JSON values."""
        return {}

    def load_state_dict(self, state: Json) -> None:
        """Restores what `state_dict` returned; raises CheckpointError for the state of another stabiliser."""
        if state:
            raise CheckpointError(f"the checkpoint holds a state for {type(self).__name__}, which has none")


class ZScore(_Stabiliser):
    """Deviation from the mean in units of the standard deviation: z = (r - mean) / (std + epsilon).

    Reference: Deng et al. 2022, arXiv:2205.12548, section 3. The published code for classification standardises
    over the prompts of the step, with the population standard deviation and epsilon 1e-4; the one for style
    transfer per input.

    Args:
        over: "step" standardises the prompts' mean rewards over the prompts of the step, and every entry of a
            prompt's row becomes its z. "input" standardises the rewards on each example over the prompts, so that
            easy and hard examples weigh the same.
        epsilon: added to the standard deviation, above 0. Rewards that are all equal become 0. Larger values damp
            steps in which the prompts hardly differ.
    """

    compares_prompts = True

    def __init__(self, over: str = "step", epsilon: float = 1e-4) -> None:
        super().__init__()
        if over not in ("step", "input"):
            raise ConfigError(f"z-score: over must be step or input, got {over!r}")
        self.over = over
        self.epsilon = _positive("z-score: epsilon", epsilon)

    def _map(self, rewards: FloatArray, used: BoolArray) -> FloatArray:
        if self.over == "input":
            return _standardise(np.where(used, rewards, np.nan), self.epsilon)
        means = masked_mean(rewards, used)[:, None]
        return np.broadcast_to(_standardise(means, self.epsilon), rewards.shape)


class RunningNormalisation(_Stabiliser):
    """Standardises by the mean and population standard deviation of all valid rewards seen so far in the run.

    The statistics take in the step's rewards first and are applied then, so the first step is standardised too.
    While `frozen` they do not move. What a reward becomes depends on the history of the run.

    Reference: Welford 1962; Chan et al. 1979 for the update by whole batches.

    Args:
        epsilon: added to the standard deviation, above 0.
    """

    def __init__(self, epsilon: float = 1e-4) -> None:
        super().__init__()
        self.epsilon = _positive("running-normalisation: epsilon", epsilon)
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0
        """Sum of squared deviations from the mean (Welford's M2)."""

    def _map(self, rewards: FloatArray, used: BoolArray) -> FloatArray:
        if not self.frozen:
            self._take_in(rewards[used])
        if self.count == 0:
            return rewards
        return (rewards - self.mean) / (math.sqrt(self.squares / self.count) + self.epsilon)

    def _take_in(self, values: FloatArray) -> None:
        if not values.size:
            return
        mean = float(values.mean())
        difference = mean - self.mean
        total = self.count + values.size
        # M2 = M2_a + M2_b + d^2 n_a n_b / n (Chan et al. 1979, eq. 2.1b)
        squares = float(((values - mean) ** 2).sum())
        self.squares += squares + difference**2 * self.count * values.size / total
        self.mean += difference * values.size / total
        self.count = total

    def state_dict(self) -> Json:
        """Returns count, mean and sum of squared deviations; they survive JSON without loss."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Json) -> None:
        """Restores what `state_dict` returned; raises CheckpointError for anything else."""
        try:
            count, mean, squares = int(state["count"]), float(state["mean"]), float(state["squares"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"running-normalisation cannot use the checkpoint's state: {error!r}") from error
        if count < 0 or squares < 0 or not math.isfinite(mean) or not math.isfinite(squares):
            raise CheckpointError(f"running-normalisation: the checkpoint's state is out of range: {state}")
        self.count, self.mean, self.squares = count, mean, squares


class Clip(_Stabiliser):
    """Limits each reward to [low, high].

    Args:
        low: the least a reward may be; None leaves it open.
        high: the most, above `low`; None leaves it open.
    """

    def __init__(self, low: float | None = None, high: float | None = None) -> None:
        super().__init__()
        if low is None and high is None:
            raise ConfigError("clip: neither low nor high is given; give at least one")
        self.low = -math.inf if low is None else float(low)
        self.high = math.inf if high is None else float(high)
        if not self.low < self.high:
            raise ConfigError(f"clip: low must be below high, got {low} and {high}")

    def _map(self, rewards: FloatArray, used: BoolArray) -> FloatArray:
        return np.clip(rewards, self.low, self.high)


class LinearRange(_Stabiliser):
    """The straight line that maps the range `old` to the range `new`; rewards outside are not clipped.

    Reference: the reward shaping of arXiv:2205.12548: [0, 1] to [0, 5] for classification.

    Args:
        old: (from, to) before, two different numbers.
        new: (from, to) after.
    """

    def __init__(self, old: Sequence[float] = (0.0, 1.0), new: Sequence[float] = (0.0, 1.0)) -> None:
        super().__init__()
        self.old = _pair("linear-range: old", old)
        self.new = _pair("linear-range: new", new)
        if self.old[0] == self.old[1]:
            raise ConfigError(f"linear-range: old must hold two different numbers, got {list(old)}")

    def _map(self, rewards: FloatArray, used: BoolArray) -> FloatArray:
        slope = (self.new[1] - self.new[0]) / (self.old[1] - self.old[0])
        return (rewards - self.old[0]) * slope + self.new[0]


class LeaveOneOut(_Stabiliser):
    """A prompt's mean reward minus the mean of those of the other prompts of the step.

    Only prompts with a valid entry count; one such prompt alone has nothing to be compared with and gets 0. Every
    entry of a prompt's row becomes its difference.

    Reference: Ahmadian et al. 2024, arXiv:2402.14740, section 3 (RLOO).

    Args:
        scale: "none", or "std" to divide by the population standard deviation of the prompts' means + `epsilon`.
        epsilon: added to the standard deviation, above 0.
    """

    compares_prompts = True

    def __init__(self, scale: str = "none", epsilon: float = 1e-4) -> None:
        super().__init__()
        if scale not in ("none", "std"):
            raise ConfigError(f"leave-one-out: scale must be none or std, got {scale!r}")
        self.scale = scale
        self.epsilon = _positive("leave-one-out: epsilon", epsilon)

    def _map(self, rewards: FloatArray, used: BoolArray) -> FloatArray:
        means = masked_mean(rewards, used)[:, None]
        count = int((~np.isnan(means)).sum())
        if count < 2:
            return np.zeros_like(rewards)
        deviation, std = _deviation(means)
        # r - (sum - r) / (n - 1) = (r - mean) n / (n - 1)
        advantages = deviation * count / (count - 1)
        if self.scale == "std":
            advantages = advantages / (std + self.epsilon)
        return np.broadcast_to(advantages, rewards.shape)


def build_stabilisers(
    configs: Sequence[StabiliserConfig],
    *,
    allow_modules: Sequence[str] = (),
    search_path: str | Path | None = None,
) -> list[Stabiliser]:
    """Builds the stabilisers of a configuration, in its order.

    Args:
        configs: name and kwargs of each.
        allow_modules: modules that `my_module:MyStabiliser` may import.
        search_path: folder of the user's configuration; modules in it are allowed.

    Raises:
        ConfigError: an unknown name, or an argument that does not fit.
    """
    built = []
    for config in configs:
        what = f"stabiliser '{config.name}'"
        made = resolve("stabilisers", config.name, allow_modules=allow_modules, search_path=search_path)
        if not isinstance(made, type):
            raise ConfigError(f"{what} is no class; write it as a class with __call__(rewards, valid)")
        check_arguments(what, made, config.kwargs)
        try:
            stabiliser = made(**config.kwargs)
        except RLPromptError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{what}: {error}; check its kwargs {config.kwargs}") from error
        built.append(stabiliser)
    return built


def _standardise(values: FloatArray, epsilon: float) -> FloatArray:
    """z-scores of each column of (P, K); NaN entries are ignored and become 0."""
    deviation, std = _deviation(values)
    return deviation / (std + epsilon)


def _deviation(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Deviations from each column's mean (0 for NaN entries), (P, K), and population standard deviations, (K,)."""
    known = ~np.isnan(values)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, values, 0.0).sum(axis=0) / count
    # The mean of equal numbers is off by a rounding error; divided by a small epsilon that would be noise.
    equal = np.where(known, values, -np.inf).max(axis=0) == np.where(known, values, np.inf).min(axis=0)
    deviation = np.where(known & ~equal, values - mean, 0.0)
    return deviation, np.sqrt((deviation**2).sum(axis=0) / count)


def _positive(what: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ConfigError(f"{what} must be a number above 0, got {value}")
    return float(value)


def _pair(what: str, values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2 or not all(math.isfinite(value) for value in values):
        raise ConfigError(f"{what} must be two finite numbers [from, to], got {list(values)}")
    return float(values[0]), float(values[1])
