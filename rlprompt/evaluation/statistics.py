"""Intervals and comparisons: one accuracy, two prompts on the same rows, one number over several seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from rlprompt.errors import ConfigError
from rlprompt.seeding import generator
from rlprompt.types import FloatArray

_BLOCK = 1_000_000
"""Resampled indices held at once, so that the bootstrap's memory does not grow with the test set."""


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the Wilson score interval of a share; (nan, nan) for a total of 0.

    Unlike the normal approximation it stays in [0, 1] and is not empty at 0 % or 100 %.
    Reference: Wilson 1927, Journal of the American Statistical Association 22(158), p. 209.

    Args:
        successes: right answers, 0 <= successes <= total.
        total: all answers.
        confidence: between 0 and 1.

    >>> [round(bound, 4) for bound in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    if not 0 <= successes <= total:
        raise ConfigError(f"successes must be between 0 and {total}, got {successes}")
    if total == 0:
        return math.nan, math.nan
    z = NormalDist().inv_cdf(_upper_tail(confidence))
    share = successes / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # at 0 and at `total` the bound is 0 or 1 exactly; rounding would miss it by 1e-17
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == total else centre + half
    return low, high


@dataclass(frozen=True)
class PairedDifference:
    """How much better the first of two prompts is on the rows that both answered."""

    difference: float
    """mean(first) - mean(second)."""
    low: float
    high: float
    """Percentile interval of the difference."""
    p_value: float
    """Two-sided: twice the smaller share of resamples on either side of 0, at most 1 and never 0."""
    num_examples: int
    """Rows that count: both values are known."""


def paired_bootstrap(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Compares two prompts row by row: resamples rows, not prompts, so that hard rows weigh on both alike.

    Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile interval).

    Args:
        first: a number per row (1.0 right, 0.0 wrong, or a reward), (E,); NaN where the row failed.
        second: the same rows in the same order.
        resamples: bootstrap samples.
        confidence: of the interval.
        seed: of the resampling.

    Raises:
        ConfigError: different shapes, no row in common, or no resamples.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ConfigError(f"a paired comparison needs the same rows twice, got shapes {a.shape} and {b.shape}")
    if resamples < 1:
        raise ConfigError(f"resamples must be at least 1, got {resamples}")
    differences = (a - b)[~np.isnan(a - b)]
    count = len(differences)
    if count == 0:
        raise ConfigError("a paired comparison needs at least one row that both prompts answered")
    means = _resampled_means(differences, resamples, seed)
    tail = 1 - _upper_tail(confidence)
    low, high = np.quantile(means, [tail, 1 - tail])
    smaller = int(min((means <= 0).sum(), (means >= 0).sum()))
    return PairedDifference(
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        # the data themselves count as one more resample: a finite number of them cannot show p = 0
        p_value=min(1.0, 2 * (smaller + 1) / (resamples + 1)),
        num_examples=count,
    )


@dataclass(frozen=True)
class SeedSummary:
    """One number over several seeds."""

    mean: float
    std: float
    """Sample standard deviation (divided by n - 1); NaN for one seed."""
    low: float
    high: float
    """Student's t interval of the mean; NaN for one seed."""
    num_seeds: int


def seed_summary(values: Sequence[float], confidence: float = 0.95) -> SeedSummary:
    """Returns mean, spread and interval of the mean over seeds.

    Raises:
        ConfigError: no value, or one that is not finite: a failed seed must be reported, not averaged away.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) == 0 or not np.isfinite(numbers).all():
        raise ConfigError(f"a summary needs a finite number from each seed, got {list(values)!r}")
    count, mean = len(numbers), float(numbers.mean())
    if count == 1:
        return SeedSummary(mean, math.nan, math.nan, math.nan, 1)
    from scipy.stats import t  # type: ignore[import-untyped]  # 0.3 s, only where it is used

    std = float(numbers.std(ddof=1))
    half = float(t.ppf(_upper_tail(confidence), count - 1)) * std / math.sqrt(count)
    return SeedSummary(mean, std, mean - half, mean + half, count)


def _upper_tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be between 0 and 1, got {confidence}; use 0.95")
    return 1 - (1 - confidence) / 2


def _resampled_means(values: FloatArray, resamples: int, seed: int) -> FloatArray:
    rng = generator(seed, "bootstrap")
    block = max(1, _BLOCK // len(values))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate(
        [values[rng.integers(0, len(values), size=(size, len(values)))].mean(axis=1) for size in sizes]
    )
