"""Simulated annotators: right without noise, wrong as often as they are told to, and the same every time."""

import math

import pytest

from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.preferences import Candidate
from rlprompt.preferences.annotators import SimulatedAnnotator, check_score
from rlprompt.preferences.comparisons import Comparison, Shown


def _comparison(a: float | None, b: float | None, name: str = "") -> Comparison:
    sides = (
        Shown(Candidate(f"{side}{name}", {"gap": None if value is None else -value}, value), "")
        for side, value in (("a", a), ("b", b))
    )
    return Comparison("prompts", "", "", *sides)


def test_without_noise_the_higher_score_wins_equal_ones_tie_and_missing_ones_are_skipped() -> None:
    exact = SimulatedAnnotator("x", noise=0.0)
    cases = [(2.0, 1.0), (1.0, 2.0), (0.3, 0.1 + 0.2), (None, 1.0), (1.0, math.nan)]
    assert [exact.choose(_comparison(*case)) for case in cases] == ["a", "b", "tie", "skip", "skip"]
    assert SimulatedAnnotator("x", noise=0.0, by="gap").choose(_comparison(2.0, 1.0)) == "b"


def test_the_stated_share_of_votes_is_wrong_whichever_side_is_right() -> None:
    noisy = SimulatedAnnotator("x", noise=0.25)
    for scores, wrong in (((2.0, 1.0), "b"), ((1.0, 2.0), "a")):
        votes = [noisy.choose(_comparison(*scores, name=str(number))) for number in range(2000)]
        assert votes.count(wrong) == pytest.approx(500, abs=78)  # standard deviation 19.4
        assert "tie" not in votes
    ties = {noisy.choose(_comparison(1.0, 1.0, name=str(number))) for number in range(50)}
    assert ties == {"tie"}


def test_a_vote_depends_on_seed_name_and_comparison_and_on_nothing_else() -> None:
    queue = [_comparison(2.0, 1.0, name=str(number)) for number in range(64)]
    first = SimulatedAnnotator("x", noise=0.5, seed=1)
    votes = {vote.comparison: vote.choice for vote in first.vote(queue)}
    assert {vote.comparison: vote.choice for vote in first.vote(queue[::-1])} == votes
    for other in (SimulatedAnnotator("x", noise=0.5, seed=2), SimulatedAnnotator("y", noise=0.5, seed=1)):
        assert {vote.comparison: vote.choice for vote in other.vote(queue)} != votes


def test_votes_say_that_they_are_simulated_and_how() -> None:
    (vote,) = SimulatedAnnotator("x", noise=0.1, by="gap", seed=7).vote([_comparison(2.0, 1.0)])
    assert vote.annotator == "simulated-x"
    assert vote.to_json()["simulated"] == {"by": "gap", "noise": 0.1, "seed": 7}
    assert SimulatedAnnotator("simulated-x").annotator == "simulated-x"


@pytest.mark.parametrize("noise", [-0.1, 0.51, math.nan])
def test_noise_is_a_probability_of_at_most_a_half(noise: float) -> None:
    with pytest.raises(ConfigError, match="--noise is a probability of wrong votes from 0 to"):
        SimulatedAnnotator("x", noise=noise)


def test_an_unknown_score_is_told_of() -> None:
    check_score("gap", [Candidate("a", {"gap": 1.0})])
    with pytest.raises(UnknownNameError, match="unknown score 'gab'; did you mean 'gap'"):
        check_score("gab", [Candidate("a", {"gap": 1.0})])
