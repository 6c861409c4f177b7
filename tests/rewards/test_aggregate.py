from itertools import combinations

import numpy as np
import pytest

from rlprompt.errors import ConfigError
from rlprompt.rewards.aggregate import best_of


def test_the_expected_best_of_two_among_four() -> None:
    # 1 2 4 8: of the 6 pairs 8 is the best of 3, 4 of 2, 2 of 1: (3 * 8 + 2 * 4 + 1 * 2) / 6 = 34 / 6
    rewards = np.array([[4.0, 1.0, 8.0, 2.0]])
    assert best_of(rewards, np.ones((1, 4), dtype=bool), 2) == pytest.approx([34 / 6])


def test_one_sample_is_the_mean_and_all_samples_the_maximum() -> None:
    rewards, valid = np.array([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]]), np.ones((2, 3), dtype=bool)
    assert best_of(rewards, valid, 1) == pytest.approx([3.0, 3.0])
    assert best_of(rewards, valid, 3) == pytest.approx([6.0, 3.0])


def test_it_is_the_mean_over_all_subsets() -> None:
    rewards = np.random.default_rng(0).normal(size=(1, 7))
    for n in range(1, 8):
        expected = np.mean([max(subset) for subset in combinations(rewards[0], n)])
        assert best_of(rewards, np.ones((1, 7), dtype=bool), n) == pytest.approx([expected])


def test_it_is_what_groups_of_a_cut_give_on_average() -> None:
    # cut 4 samples into two pairs: 12|48, 14|28, 18|24 -> means of maxima 5, 6, 6; 17/3 = 34/6
    cuts = [((1, 2), (4, 8)), ((1, 4), (2, 8)), ((1, 8), (2, 4))]
    mean = np.mean([np.mean([max(group) for group in cut]) for cut in cuts])
    assert best_of(np.array([[1.0, 2.0, 4.0, 8.0]]), np.ones((1, 4), dtype=bool), 2) == pytest.approx([mean])


def test_samples_that_are_not_valid_are_left_out() -> None:
    rewards = np.array([[1.0, 99.0, 3.0], [5.0, 0.0, 0.0], [7.0, 7.0, 7.0]])
    valid = np.array([[True, False, True], [True, False, False], [False, False, False]])
    # (1, 3): the only pair has 3; (5): fewer than two, its maximum; nothing: NaN
    np.testing.assert_array_equal(best_of(rewards, valid, 2), [3.0, 5.0, np.nan])


def test_many_samples_do_not_overflow() -> None:
    rewards = np.arange(2000.0)[None]
    value = best_of(rewards, np.ones((1, 2000), dtype=bool), 1000)
    # E[max] of n from {0..S-1} is n (S + 1) / (n + 1) - 1
    assert value == pytest.approx([1000 * 2001 / 1001 - 1])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="n must be at least 1, got 0"):
        best_of(np.ones((1, 2)), np.ones((1, 2), dtype=bool), 0)
    with pytest.raises(ConfigError, match="a mask like them"):
        best_of(np.ones((1, 2)), np.ones((1, 3), dtype=bool), 1)
