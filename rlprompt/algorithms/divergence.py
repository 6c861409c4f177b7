"""A sign of reward hacking: the proxy reward rises while the gold reward falls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlprompt.types import FloatArray

_CONSTANT = 1e-12
"""A series whose standard deviation is at most this is constant, and has no trend."""


@dataclass(frozen=True)
class Divergence:
    """The trends of two series of equal length."""

    proxy_trend: float
    """Correlation of the proxy with time, in [-1, 1]; 0 for a constant series."""
    gold_trend: float
    gold_change: float
    """By how much the fitted line of the gold reward changes from the first point to the last."""
    diverged: bool


def divergence(
    proxy: Sequence[float], gold: Sequence[float], *, threshold: float = 0.7, min_fall: float = 0.0
) -> Divergence:
    """Looks whether a proxy reward rises while the gold reward falls.

    The trend of a series x_0 ... x_(n-1) is its correlation with time, r(x) = cov(x, t) / (sd(x) sd(t)): the slope of
    the least-squares line when both axes are divided by their standard deviations. The two diverge where

        r(proxy) >= threshold  and  r(gold) <= -threshold  and  slope(gold) (n - 1) <= -min_fall.

    With independent noise, n = 10 and the threshold 0.7, a trend is that clear by chance with a probability of 0.012,
    and both with one of 1.5e-4.

    Args:
        proxy: mean proxy reward of each iteration, oldest first.
        gold: mean gold reward of the same iterations.
        threshold: above 0 and at most 1.
        min_fall: in the unit of the gold reward, at least 0.

    >>> divergence([1, 2, 3], [8, 8, 4])  # r(gold) = -4 / sqrt(2 * 32 / 3), slope -2
    Divergence(proxy_trend=1.0, gold_trend=-0.866025403784, gold_change=-4.0, diverged=True)
    """
    first, second = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"two series of equal length are compared, got shapes {first.shape} and {second.shape}")
    proxy_trend, _ = trend(first)
    gold_trend, gold_change = trend(second)
    diverged = proxy_trend >= threshold and gold_trend <= -threshold and gold_change <= -min_fall
    return Divergence(proxy_trend, gold_trend, gold_change, diverged)


def trend(values: npt.ArrayLike) -> tuple[float, float]:
    """Returns the correlation of a series with time, and the change of its fitted line from first to last point."""
    series: FloatArray = np.asarray(values, dtype=np.float64)
    if len(series) < 2 or series.std() <= _CONSTANT:
        return 0.0, 0.0
    time = np.arange(len(series)) - (len(series) - 1) / 2
    centred = series - series.mean()
    covariance = float(time @ centred)
    squares = float(time @ time)
    correlation = covariance / float(np.sqrt(squares * (centred @ centred)))
    # Rounding: the trend of a straight line is 1, and meets a threshold of 1.
    return round(min(1.0, max(-1.0, correlation)), 12), covariance / squares * (len(series) - 1)
