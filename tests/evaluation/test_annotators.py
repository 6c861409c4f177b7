"""Agreement of annotators, counted by hand."""

import math
from typing import Any

import pytest

from rlprompt.errors import UnknownNameError
from rlprompt.evaluation.annotators import annotator_report, couple_reports
from rlprompt.evaluation.statistics import wilson_interval
from rlprompt.preferences import Candidate, Vote, VotedPrompts
from rlprompt.preferences.comparisons import comparison_id


def _votes(annotator: str, choices: str, left: str = "aaaaaaaa", simulated: Any = None) -> list[Vote]:
    """Vote k is on the prompts `ak` and `bk`: a, b, t (tie) or s (skip)."""
    found = []
    for number, (choice, side) in enumerate(zip(choices, left, strict=False)):
        a, b, name = f"a{number}", f"b{number}", f"train/{number}"
        said: Any = {"t": "tie", "s": "skip"}.get(choice, choice)
        standing: Any = side
        identity = comparison_id("prompts", name, a, b)
        found.append(Vote(identity, said, standing, "prompts", name, a, b, annotator, "", simulated))
    return found


def _prompts(rewards: list[tuple[float, float]]) -> VotedPrompts:
    made = [
        Candidate(f"{side}{number}", {"gap": -reward}, reward, example_id=f"train/{number}")
        for number, couple in enumerate(rewards)
        for side, reward in zip("ab", couple, strict=True)
    ]
    return VotedPrompts(made, per_input=True)


def test_votes_against_the_score_are_the_noise_as_it_came_out() -> None:
    # decided: numbers 0 to 4; equal in number 4; against the reward: 1 and 3
    prompts = _prompts([(2, 1), (2, 1), (1, 2), (1, 2), (1, 1), (2, 1), (2, 1)])
    votes = _votes("simulated-x", "abbaats", left="aabbbab", simulated={"by": "reward", "noise": 0.5, "seed": 0})
    report = annotator_report(votes, prompts)
    assert (report.num_votes, report.num_ties, report.num_skips) == (6, 1, 1)
    assert (report.against.part, report.against.whole, report.against.value) == (2, 4, 0.5)
    assert report.against.interval == wilson_interval(2, 4)
    assert (report.left.part, report.left.whole) == (2, 5)  # a|a, b|a, b|b, a|b, a|b
    turned = annotator_report(votes, prompts, by="gap")
    assert (turned.by, turned.against.part) == ("gap", 2)
    assert report.to_json()["against"]["share"] == 0.5
    with pytest.raises(UnknownNameError, match="unknown score 'gab'"):
        annotator_report(votes, prompts, by="gab")


def test_people_are_compared_with_the_reward_and_no_case_is_no_number() -> None:
    report = annotator_report(_votes("ann", "ts"), _prompts([(1, 2), (2, 1)]))
    assert (report.by, report.simulated) == ("reward", None)
    assert report.to_json()["against"] == {"part": 0, "whole": 0, "share": None, "low": None, "high": None}


def test_two_annotators_agree_as_cohen_counts_it() -> None:
    # common and not skipped: numbers 0 to 5; the same in 0, 1, 2 and 5
    couples = couple_reports({"ann": _votes("ann", "aabbtts"), "bob": _votes("bob", "aababta")})
    (couple,) = couples
    assert (couple.same.part, couple.same.whole) == (4, 6)
    # ann: a 2, b 2, t 2; bob: a 3, b 2, t 1; chance (6 + 4 + 2) / 36 = 1/3; kappa (2/3 - 1/3) / (1 - 1/3) = 1/2
    assert couple.kappa == pytest.approx(0.5)


def test_without_a_common_comparison_there_is_no_kappa_and_three_make_three_couples() -> None:
    votes = {"ann": _votes("ann", "aa"), "bob": _votes("bob", "ss"), "cy": _votes("cy", "aa")}
    found = {(couple.first, couple.second): couple for couple in couple_reports(votes)}
    assert set(found) == {("ann", "bob"), ("ann", "cy"), ("bob", "cy")}
    assert found["ann", "bob"].same.whole == 0
    assert math.isnan(found["ann", "cy"].kappa)  # one class only: chance agrees always
    assert found["ann", "cy"].to_json()["kappa"] is None
