"""Collapse diagnostics against counts made by hand."""

import numpy as np
import pytest
import torch

from rlprompt.algorithms.diagnostics import collapse_diagnostics, iteration_metrics, max_token_probability
from rlprompt.types import Scores, TargetOutput


def everything(rewards: np.ndarray) -> np.ndarray:
    return np.ones(rewards.shape, dtype=bool)


def test_unique_rate_and_spread_are_counted_per_prompt_and_per_example() -> None:
    # Example 0: 1 1 1, no spread; example 1: 0 1 0; examples without spread: 1 of 2. Means 0.5, 1, 0.5 differ.
    rewards = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    found = collapse_diagnostics(["a", "b", "a"], rewards, everything(rewards), entropy=1.5, max_probability=0.25)
    assert found == {
        "entropy": 1.5,
        "max_token_probability": 0.25,
        "unique_prompt_rate": 2 / 3,
        "zero_spread_share": 0.5,
        "zero_spread_step": 0.0,
    }


def test_a_step_has_no_spread_when_the_mean_rewards_agree_even_if_examples_differ() -> None:
    rewards = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = collapse_diagnostics(["a", "b"], rewards, everything(rewards))
    assert (found["zero_spread_share"], found["zero_spread_step"]) == (0.0, 1.0)


def test_failed_pairs_neither_make_nor_hide_spread() -> None:
    # The failed pairs hold 0.0. Example 0 has valid rewards 1, 1: no spread. Example 1 has one valid prompt: no group.
    rewards = np.array([[1.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    valid = np.array([[True, True], [True, False], [False, False]])
    found = collapse_diagnostics(["a", "b", "c"], rewards, valid)
    assert found["zero_spread_share"] == 1.0
    assert found["zero_spread_step"] == 0.0  # means 1.5 and 1.0; the third prompt has none


def test_of_pairs_only_rewrites_of_one_input_are_compared() -> None:
    # Input a: 0.25 and 0.25, no spread, though its samples differ. Input b: 0.5 and 1.0. Input c: 2.0 and a failed one,
    # which is no group. So one of two groups has no spread. Over all prompts of the step there would be spread.
    ids = ("a", "b", "a", "b", "c", "c")
    rewards = np.array([[0.0, 0.5], [0.5, 0.5], [0.25, 0.25], [1.0, 1.0], [2.0, 2.0], [0.0, 0.0]])
    valid = np.array([[True, True]] * 5 + [[False, False]])
    found = collapse_diagnostics(list("abcdef"), rewards, valid, row_example_ids=ids)
    assert found == {"unique_prompt_rate": 1.0, "zero_spread_share": 0.5, "zero_spread_step": 0.0}
    rewards[3] = 0.5  # now input b has none either, while the inputs still differ from each other
    found = collapse_diagnostics(list("abcdef"), rewards, valid, row_example_ids=ids)
    assert found == {"unique_prompt_rate": 1.0, "zero_spread_share": 1.0, "zero_spread_step": 1.0}


def test_one_rewrite_for_each_input_has_nothing_to_be_compared_with() -> None:
    rewards = np.ones((2, 1))
    found = collapse_diagnostics(["a", "b"], rewards, everything(rewards), row_example_ids=("x", "y"))
    assert found == {"unique_prompt_rate": 1.0}


def test_the_metrics_of_an_iteration_know_the_groups() -> None:
    rewards = np.array([[0.0], [1.0], [1.0], [1.0]])
    answer = TargetOutput(text="yes")
    scores = Scores(
        prompts=("p", "q", "r", "s"),
        example_ids=("",),
        components={"accuracy": rewards},
        rewards=rewards,
        correct=rewards,
        valid=everything(rewards),
        outputs=((answer,),) * 4,
        row_example_ids=("x", "x", "y", "y"),
    )
    found = iteration_metrics(scores, None, None)
    assert (found["zero_spread_share"], found["zero_spread_step"]) == (0.5, 0.0)
    assert (found["reward/mean"], found["reward/best"]) == (0.75, 1.0)


def test_what_cannot_be_known_is_left_out() -> None:
    rewards = np.zeros((1, 2))
    assert collapse_diagnostics(["a"], rewards, everything(rewards)) == {"unique_prompt_rate": 1.0}


def test_the_largest_probability_is_averaged_over_written_tokens_only() -> None:
    # softmax: (1/2, 1/2, forbidden) and (3/4, 1/4, forbidden): mean of 0.5 and 0.75; the third position is padding
    wall = float("-inf")
    logits = torch.tensor([[[0.0, 0.0, wall], [float(np.log(3)), 0.0, wall], [9.0, wall, wall]]], dtype=torch.float64)
    assert max_token_probability(logits, torch.tensor([[1.0, 1.0, 0.0]])) == pytest.approx(0.625)


def test_the_largest_probability_of_nothing_is_zero() -> None:
    assert max_token_probability(torch.zeros(1, 2, 3), torch.zeros(1, 2)) == 0.0
