"""How several answers of the target to one prompt become one number: the expected best of n of them."""

from __future__ import annotations

from math import comb

import numpy as np

from rlprompt.errors import ConfigError
from rlprompt.types import BoolArray, FloatArray


def best_of(rewards: FloatArray, valid: BoolArray, n: int) -> FloatArray:
    """Expected maximum of n samples that are drawn without replacement from each row.

    RLPrompt's text style transfer (Deng et al. 2022, arXiv:2205.12548) cuts the samples of a prompt into groups of n
    and averages the groups' maxima: a bootstrap estimate of what the best of n is worth at test time. This is its
    expectation over all ways to cut: the k-th smallest of S values is the largest of n in C(k - 1, n - 1) of C(S, n)
    subsets. With n = 1 it is the mean.

    Args:
        rewards: (P, S), a sample of the answer in each column.
        valid: (P, S); entries that are not valid are left out, and S is then smaller for that row. A row with fewer
            than n valid entries gives its maximum.
        n: at least 1.

    Returns:
        (P,); NaN for a row without a valid entry.

    Raises:
        ConfigError: n is below 1, or the shapes differ.

    >>> best_of(np.array([[1.0, 2.0, 4.0]]), np.ones((1, 3), dtype=bool), 2)  # maxima of the pairs: 2, 4, 4
    array([3.33333333])
    """
    if n < 1:
        raise ConfigError(f"best-of: n must be at least 1, got {n}")
    if rewards.ndim != 2 or rewards.shape != valid.shape:
        raise ConfigError(f"best-of takes rewards (P, S) and a mask like them, got {rewards.shape} and {valid.shape}")
    return np.array([_expected_maximum(row[used], n) for row, used in zip(rewards, valid, strict=True)])


def _expected_maximum(values: FloatArray, n: int) -> float:
    size = len(values)
    if size == 0:
        return float("nan")
    drawn = min(n, size)
    # Integers up to the division: C(S, n) alone may be beyond the range of float.
    weights = [comb(rank, drawn - 1) / comb(size, drawn) for rank in range(size)]
    return float(np.dot(np.sort(values), weights))
