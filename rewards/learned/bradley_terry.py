"""The Bradley-Terry model of preferences: P(a preferred to b) = sigmoid(r(a) - r(b)).

Reference: Bradley and Terry 1952, Biometrika 39, p. 324; as loss of a reward model: Ouyang et al. 2022,
arXiv:2203.02155, eq. 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlprompt.errors import ConfigError
from rlprompt.preference_pairs import PreferencePair
from rlprompt.types import FloatArray, Json


class TextScorer(Protocol):
    """What a model learnt from pairs can do."""

    def score(self, contexts: Sequence[str], texts: Sequence[str]) -> FloatArray:
        """Returns the reward of N texts, each for its own context, (N,)."""


@dataclass(frozen=True)
class PairAccuracy:
    """How often a model scores the chosen text of a pair higher."""

    right: int
    """Pairs whose chosen text scored strictly higher; a tie is not right."""
    total: int
    low: float
    high: float
    """Wilson's 95 % interval of the share; NaN without pairs."""
    loss: float
    """Mean of -log sigmoid(r(chosen) - r(rejected)), in nats; log 2 is a coin's. NaN without pairs."""

    @property
    def share(self) -> float:
        """Right ones of all pairs, in [0, 1]; NaN without pairs."""
        return self.right / self.total if self.total else math.nan

    def to_json(self) -> Json:
        """Returns the numbers as JSON values; None where there are none."""
        values = {"accuracy": self.share, "low": self.low, "high": self.high, "loss": self.loss}
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        return {**known, "right": self.right, "pairs": self.total}


@dataclass(frozen=True)
class PairComparison:
    """Two models on the same pairs."""

    first: PairAccuracy
    second: PairAccuracy
    only_first: int
    """Pairs that only the first one has right."""
    only_second: int
    p_value: float
    """Two-sided exact McNemar test: the chance of a split as uneven as that where both are equally good."""


def pair_loss(chosen: FloatArray, rejected: FloatArray, margin: float | FloatArray = 0.0) -> FloatArray:
    """Returns -log sigmoid(chosen - rejected - margin) of N pairs, (N,), in nats.

    The margin is that of Touvron et al. 2023, arXiv:2307.09288, eq. 2.

    >>> pair_loss(np.array([0.0, 2.0]), np.array([0.0, 1.0])).round(4).tolist()
    [0.6931, 0.3133]
    """
    return np.asarray(np.logaddexp(0.0, -(chosen - rejected - margin)), dtype=np.float64)


def pair_accuracy(chosen: FloatArray, rejected: FloatArray) -> PairAccuracy:
    """Returns how often the chosen text scored higher, from the rewards of N pairs."""
    right = chosen > rejected
    if not len(right):
        return PairAccuracy(0, 0, math.nan, math.nan, math.nan)
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # 0.3 s, only where it is used

    count = int(right.sum())
    interval = binomtest(count, len(right)).proportion_ci(0.95, method="wilson")
    loss = float(pair_loss(chosen, rejected).mean())
    return PairAccuracy(count, len(right), float(interval.low), float(interval.high), loss)


def score_pairs(model: TextScorer, pairs: Sequence[PreferencePair]) -> tuple[FloatArray, FloatArray]:
    """Returns the rewards of the chosen and of the rejected texts, (N,) each."""
    contexts = [pair.reading for pair in pairs]
    both = model.score(contexts * 2, [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
    return both[: len(pairs)], both[len(pairs) :]


def model_accuracy(model: TextScorer, pairs: Sequence[PreferencePair]) -> PairAccuracy:
    """Returns a model's accuracy on pairs that it did not learn from."""
    return pair_accuracy(*score_pairs(model, pairs))


def compare_models(first: TextScorer, second: TextScorer, pairs: Sequence[PreferencePair]) -> PairComparison:
    """Compares two models on the same held-out pairs, such as one on named features and one that reads the text.

    Raises:
        ConfigError: there are no pairs.
    """
    if not pairs:
        raise ConfigError("a comparison needs held-out pairs; got none")
    from scipy.stats import binomtest

    ours, theirs = score_pairs(first, pairs), score_pairs(second, pairs)
    right, also = ours[0] > ours[1], theirs[0] > theirs[1]
    only_first, only_second = int((right & ~also).sum()), int((also & ~right).sum())
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return PairComparison(pair_accuracy(*ours), pair_accuracy(*theirs), only_first, only_second, p_value)


def fit_bradley_terry(differences: FloatArray, weights: FloatArray, regularisation: float) -> FloatArray:
    """Fits r(x) = w . f(x) by maximum likelihood under a Gaussian prior.

    Logistic regression without an intercept on f(chosen) - f(rejected): turning a pair round turns the sign of its
    label, so an intercept would be a preference for the first place. Minimises
    |w|^2 / 2 + C sum_i v_i log(1 + exp(-w . d_i)).

    Args:
        differences: d, (N, D).
        weights: v, (N,), from 0.
        regularisation: C, above 0: larger fits closer.

    Returns:
        w, (D,).

    Raises:
        ConfigError: C out of range, or no pair counts.
    """
    if not regularisation > 0:
        raise ConfigError(f"regularisation must be above 0, got {regularisation}")
    if not weights.sum() > 0:
        raise ConfigError("all pairs have the weight 0; give at least one that counts")
    from sklearn.linear_model import LogisticRegression

    # scikit-learn wants both labels: every pair comes both ways round, each with half of its weight.
    both = np.concatenate([differences, -differences])
    labels = np.repeat([1, 0], len(differences))
    model = LogisticRegression(C=regularisation, fit_intercept=False, max_iter=5000, tol=1e-8)
    model.fit(both, labels, sample_weight=np.tile(weights / 2, 2))
    return np.asarray(model.coef_[0], dtype=np.float64)
