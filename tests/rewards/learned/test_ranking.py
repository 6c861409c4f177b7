import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rlprompt.rewards.learned.ranking import area, group_bootstrap, measure_ranking, measure_selection, within_groups
from rlprompt.seeding import generator

RNG = generator(0, "ranking")
RIGHT = RNG.random(200) < 0.4
SCORES = np.round(RNG.random(200) + 0.3 * RIGHT, 1)  # with ties
RANKS = np.unique(SCORES, return_inverse=True)[1]


def test_the_area_is_the_chance_of_a_right_one_above_a_wrong_one() -> None:
    # Right at ranks 2 and 0, wrong at 0 and 1: of four pairs two are won, one is tied.
    right = np.array([True, True, False, False])
    assert area(right, np.array([2, 0, 0, 1]), np.ones(4)) == 2.5 / 4
    # The first right one twice: of six pairs 2 * 2 are won, one is tied.
    assert area(right, np.array([2, 0, 0, 1]), np.array([2.0, 1, 1, 1])) == 4.5 / 6
    assert math.isnan(area(right, np.array([2, 0, 0, 1]), np.array([1.0, 1, 0, 0])))


def test_the_area_is_that_of_scikit_learn() -> None:
    weights = RNG.integers(0, 4, size=200).astype(float)
    assert area(RIGHT, RANKS, weights) == pytest.approx(roc_auc_score(RIGHT, SCORES, sample_weight=weights))


def test_an_auc_that_only_knows_hard_inputs_is_a_coin_between_prompts() -> None:
    """Input 0 is always easier, and its prompts all get the same probability."""
    inputs = np.repeat([0, 1], 10)
    right = np.array([True] * 8 + [False] * 2 + [True] * 2 + [False] * 8)
    found = measure_ranking(right, np.where(inputs == 0, 0.8, 0.2), inputs, inputs, 0, 50)
    assert found.auc == pytest.approx(0.8)
    assert found.within_input == 0.5
    assert (found.triples, found.groups) == (20, 2)
    better, total = within_groups(right, np.arange(20.0), inputs)
    assert (better.tolist(), total.tolist()) == ([0.0, 0.0], [16.0, 16.0])


def test_the_interval_draws_whole_groups_and_is_keyed() -> None:
    """Ten groups of twenty equal values: the mean of ten draws, not of two hundred."""
    values, groups = np.repeat(np.arange(10.0), 20), np.repeat(np.arange(10), 20)

    def mean(weights: np.ndarray) -> float:
        return float(weights @ values / weights.sum())

    low, high = group_bootstrap(mean, groups, 0, 2000)
    deviation = np.arange(10.0).std() / np.sqrt(10)  # of a mean of ten draws
    assert [low, high] == pytest.approx([4.5 - 1.96 * deviation, 4.5 + 1.96 * deviation], abs=0.15)
    assert group_bootstrap(mean, groups, 0, 2000) == (low, high)
    assert group_bootstrap(mean, groups, 1, 2000) != (low, high)
    assert all(math.isnan(bound) for bound in group_bootstrap(lambda weights: math.nan, groups, 0, 10))


def test_selection_is_compared_with_the_prompt_that_was_best_where_it_was_learnt() -> None:
    # Prompts 0, 1, 2 on inputs 0 to 3; 0 and 1 are learnt from, where prompt 1 is best. Prompt 3 was asked only there.
    inputs = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0])
    prompts = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 3])
    right = np.array([0, 1, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1], dtype=bool)
    outside = inputs >= 2
    scores = np.array([0.9, 0.5, 0.4, 0.1, 0.2, 0.3])  # takes prompt 0 on input 2, prompt 2 on input 3: both right
    found = measure_selection(right, scores, inputs, prompts, outside, 0, 200)
    assert found is not None
    assert (found.selected, found.best_fixed, found.difference) == (1.0, 0.5, 0.5)
    assert found.average == pytest.approx(3 / 6)
    assert (found.inputs, found.prompts) == (2, 3)
    assert (found.low, found.high) == (0.0, 1.0)
    alone = prompts == 0
    assert measure_selection(right[alone], np.ones(2), inputs[alone], prompts[alone], outside[alone], 0, 10) is None
