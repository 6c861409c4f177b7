"""Pauses before lost workers are started again."""

import pytest

from rlprompt import restarts


@pytest.mark.parametrize(("losses", "seconds"), [(1, 0.5), (2, 1.0), (3, 2.0), (6, 16.0), (7, 30.0), (60, 30.0)])
def test_each_pause_is_twice_the_one_before_up_to_the_longest(losses: int, seconds: float) -> None:
    assert restarts.pause_before(losses) == seconds


def test_the_losses_that_end_a_run_take_about_a_minute() -> None:
    assert 45 <= sum(restarts.pause_before(losses) for losses in range(1, restarts.MOST_IN_A_ROW)) <= 75
