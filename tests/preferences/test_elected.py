"""Pairs of votes, counted by hand."""

from collections.abc import Sequence
from typing import Any

import pytest

from rlprompt.errors import ConfigError
from rlprompt.preferences import Candidate, Vote, VotedPrompts, pairs_of_votes
from rlprompt.preferences.comparisons import comparison_id


def _vote(annotator: str, choice: Any, a: str = "p", b: str = "q", example: str = "train/0") -> Vote:
    return Vote(comparison_id("outputs", example, a, b), choice, "a", "outputs", example, a, b, annotator, "")


def _prompts(example_ids: Sequence[str], per_input: bool = True) -> VotedPrompts:
    made = [
        Candidate(text, {"gap": 2 * reward}, reward, example_id=example_id, input=f"input of {example_id}")
        for example_id in example_ids
        for text, reward in (("p", 1.0), ("q", 3.0), ("r", 2.0))
    ]
    return VotedPrompts(made, per_input=per_input)


def test_the_majority_is_chosen_and_the_lead_is_margin_and_weight() -> None:
    votes = [_vote("ann", "a"), _vote("bob", "a"), _vote("cy", "b"), _vote("di", "tie"), _vote("ed", "skip")]
    found = pairs_of_votes(votes, _prompts(["train/0"]))
    (pair,) = found.pairs
    # two for p, one for q, one tie, of four: p has (2 + 1/2) / 4, q (1 + 1/2) / 4, and the lead is 1/4
    assert (pair.chosen, pair.rejected, pair.margin, pair.weight) == ("p", "q", 0.25, 0.25)
    assert pair.chosen_scores == {"reward": 1.0, "gap": 2.0, "votes": 0.625}
    assert pair.rejected_scores == {"reward": 3.0, "gap": 6.0, "votes": 0.375}
    assert pair.columns == {"votes": {"chosen": 2, "rejected": 1, "tie": 1}, "annotators": 4}
    assert (pair.source, pair.example_id, pair.input, pair.context) == ("votes", "train/0", "input of train/0", None)
    assert found.to_json() == {"pairs": 1, "votes": 4, "skips": 1, "compared": 1, "even": 0}


def test_ties_skips_and_even_votes_make_no_pair() -> None:
    votes = [
        _vote("ann", "tie"),
        _vote("ann", "skip", "p", "r"),
        _vote("ann", "a", "q", "r"),
        _vote("bob", "b", "q", "r"),
    ]
    found = pairs_of_votes(votes, _prompts(["train/0"]))
    assert found.to_json() == {"pairs": 0, "votes": 3, "skips": 1, "compared": 2, "even": 2}


def test_one_annotator_gives_weight_one_and_inputs_are_kept_apart() -> None:
    votes = [_vote("ann", "a"), _vote("ann", "b", example="train/1")]
    pairs = pairs_of_votes(votes, _prompts(["train/0", "train/1"])).pairs
    assert [(pair.chosen, pair.example_id, pair.weight) for pair in pairs] == [("p", "train/0", 1), ("q", "train/1", 1)]
    assert len({pair.id for pair in pairs}) == 2
    turned = pairs_of_votes([_vote("bob", "a")], _prompts(["train/0"])).pairs
    assert turned[0].id == pairs[0].id  # it follows from what the pair says


def test_prompts_of_the_task_are_counted_over_the_examples_they_were_shown_on() -> None:
    votes = [_vote("ann", choice, example=f"train/{number}") for number, choice in enumerate(["a", "b", "b"])]
    (pair,) = pairs_of_votes(votes, _prompts([""], per_input=False)).pairs
    assert (pair.chosen, pair.example_id) == ("q", "")
    assert pair.margin == pytest.approx(1 / 3)


def test_a_vote_on_a_prompt_that_the_run_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the vote of 'ann' on '\w+' is about a prompt that the run has not"):
        pairs_of_votes([_vote("ann", "a", "p", "zzz")], _prompts(["train/0"]))
