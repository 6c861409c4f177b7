"""Hand-computed Bradley-Terry numbers."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from rlprompt.errors import ConfigError
from rlprompt.preference_pairs import PreferencePair
from rlprompt.rewards.learned.bradley_terry import (
    compare_models,
    fit_bradley_terry,
    model_accuracy,
    pair_accuracy,
    pair_loss,
)


class Table:
    """Scores texts by a table."""

    def __init__(self, **scores: float) -> None:
        self.scores = scores

    def score(self, contexts: list[str], texts: list[str]) -> np.ndarray:
        return np.array([self.scores[text] for text in texts])


def pairs(*names: str) -> list[PreferencePair]:
    return [PreferencePair(name, name[0], name[1], input="c") for name in names]


def test_the_loss_is_minus_the_log_of_the_preference_probability() -> None:
    # sigmoid(1) = 1 / (1 + e^-1) = 0.731059; -log of it is 0.313262. A margin of 1 makes it a coin: log 2.
    losses = pair_loss(np.array([2.0, 2.0, -40.0]), np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0]))
    assert losses == pytest.approx([0.313262, math.log(2), 40.0], abs=1e-6)
    assert pair_loss(np.array([-1e4]), np.array([1e4]))[0] == 2e4  # no overflow


def test_accuracy_counts_strictly_higher_scores_with_wilsons_interval() -> None:
    chosen, rejected = np.array([1.0] * 8 + [0.0, -1.0]), np.zeros(10)
    found = pair_accuracy(chosen, rejected)
    assert (found.right, found.total, found.share) == (8, 10, 0.8)
    # Wilson with z = 1.96: centre (0.8 + 0.19207) / 1.38415, as in the text books' 8 of 10.
    assert [found.low, found.high] == pytest.approx([0.4902, 0.9433], abs=1e-4)
    expected = (8 * math.log1p(math.exp(-1)) + math.log(2) + math.log1p(math.e)) / 10
    assert found.loss == pytest.approx(expected)
    empty = pair_accuracy(np.zeros(0), np.zeros(0))
    assert math.isnan(empty.share)
    assert empty.to_json() == {"accuracy": None, "low": None, "high": None, "loss": None, "right": 0, "pairs": 0}


def test_weights_are_those_of_the_penalised_likelihood() -> None:
    # Three pairs that differ by +1 and one by -1, C = 2: d/dw [w^2 / 2 + 2 (3 log(1 + e^-w) + log(1 + e^w))] = 0,
    # so w - 6 / (1 + e^w) + 2 / (1 + e^-w) = 0.
    expected = brentq(lambda w: w - 6 / (1 + math.exp(w)) + 2 / (1 + math.exp(-w)), 0, 5)
    differences = np.array([[1.0], [1.0], [1.0], [-1.0]])
    assert fit_bradley_terry(differences, np.ones(4), 2.0) == pytest.approx([expected], abs=1e-5)
    # One pair of weight 3 is three pairs; one of weight 0 is none.
    shorter = np.array([[1.0], [-1.0], [9.0]])
    assert fit_bradley_terry(shorter, np.array([3.0, 1.0, 0.0]), 2.0) == pytest.approx([expected], abs=1e-5)


def test_without_a_penalty_to_speak_of_the_odds_are_those_of_the_votes() -> None:
    # Preferred in 30 of 40: the maximum of the likelihood is the log-odds log 3.
    votes = np.array([[1.0]] * 30 + [[-1.0]] * 10)
    assert fit_bradley_terry(votes, np.ones(40), 1e6) == pytest.approx([math.log(3)], abs=1e-4)


def test_pairs_that_cannot_be_fitted_are_refused() -> None:
    with pytest.raises(ConfigError, match="regularisation must be above 0, got 0"):
        fit_bradley_terry(np.ones((1, 1)), np.ones(1), 0)
    with pytest.raises(ConfigError, match="all pairs have the weight 0"):
        fit_bradley_terry(np.ones((1, 1)), np.zeros(1), 1)


def test_two_models_are_compared_on_the_pairs_where_they_differ() -> None:
    held_out = pairs("ab", "ac", "ad", "bc", "bd", "cd")
    right, reverse = Table(a=4, b=3, c=2, d=1), Table(a=1, b=2, c=3, d=4)
    assert model_accuracy(right, held_out).share == 1.0
    found = compare_models(right, reverse, held_out)
    assert (found.first.right, found.second.right) == (6, 0)
    assert (found.only_first, found.only_second) == (6, 0)
    assert found.p_value == pytest.approx(2 / 2**6)  # six of six on one side, two-sided
    assert compare_models(right, right, held_out).p_value == 1.0
    with pytest.raises(ConfigError, match="a comparison needs held-out pairs"):
        compare_models(right, reverse, [])
