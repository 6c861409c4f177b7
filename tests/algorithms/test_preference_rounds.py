"""Which inputs take part in a round and which texts make a pair, by hand."""

import numpy as np
import pytest

from rlprompt.algorithms.preference_rounds import (
    answer_of,
    best_and_worst,
    best_text,
    disagreement,
    draw_items,
    inputs_of_round,
    low_initial_reward,
    lowest_items,
    mean_scores,
    prompts_of_iteration,
    regret,
    same_inputs,
    top_items,
)
from rlprompt.config import AlgorithmConfig, EnvConfig
from rlprompt.seeding import generator
from rlprompt.types import Failure, TargetOutput

NAN = np.nan


def test_regret_is_the_best_less_the_mean_of_what_is_known() -> None:
    scores = np.array([[0.0, 1.0, 5.0], [2.0, NAN, 4.0], [3.0, NAN, NAN], [NAN, NAN, NAN]])
    assert regret(scores).tolist() == [3.0, 1.0, 0.0, 0.0]  # 5 - 2, 4 - 3, one score, none
    means = mean_scores(scores)
    assert means[:3].tolist() == [2.0, 3.0, 3.0]
    assert np.isnan(means[3])


def test_low_initial_reward_takes_the_inputs_that_were_hardest_at_first() -> None:
    first = np.array([0.5, -1.0, NAN, 0.0])
    assert top_items(low_initial_reward(first), 2) == [1, 3]
    assert top_items(low_initial_reward(first), 4) == [0, 1, 2, 3]


def test_disagreement_is_the_chance_that_two_answers_differ() -> None:
    # Shares 3/4 and 1/4: 1 - 9/16 - 1/16. Four different answers: 1 - 4/16.
    assert disagreement([list("aaab"), list("abcd"), list("aa"), []]).tolist() == [0.375, 0.75, 0.0, 0.0]


def test_answers_are_compared_as_choices_or_as_texts_without_case() -> None:
    assert answer_of(TargetOutput(choice_logprobs=(-2.0, -0.1))) == "1"
    assert answer_of(TargetOutput(text=" Yes\n")) == "yes"
    assert answer_of(TargetOutput(failure=Failure("target", "timeout", ""))) is None


def test_items_are_drawn_by_their_weight_and_none_is_left_out_for_ever() -> None:
    weights = np.array([0.0, 3.0, 0.0, 1.0])
    drawn = [draw_items(weights, 2, generator(0, "items", number)) for number in range(400)]
    assert all(len(set(places)) == 2 and places == sorted(places) for places in drawn)
    counts = [sum(place in places for places in drawn) for place in range(4)]
    assert counts[1] > counts[3] > counts[0] > 0
    assert draw_items(weights, 2, generator(0, "items", 7)) == drawn[7]
    # Without any regret all are alike: each of four comes in half of the rounds.
    even = [draw_items(np.zeros(4), 2, generator(1, "items", number)) for number in range(400)]
    assert all(150 < sum(place in places for places in even) < 250 for place in range(4))


def test_the_first_draw_has_the_probability_of_its_weight() -> None:
    # (3 + 0.1) / (4 + 0.4) with weights 3 and 1 and 0 and 0 of mean 1
    drawn = [draw_items(np.array([0.0, 3.0, 0.0, 1.0]), 1, generator(2, "items", n))[0] for n in range(2000)]
    assert drawn.count(1) / 2000 == pytest.approx(3.1 / 4.4, abs=0.03)


def test_the_lowest_are_regenerated_first_and_unknown_ones_before_them() -> None:
    assert lowest_items(np.array([0.5, 0.1, NAN, 0.2]), 3) == [1, 2, 3]
    assert lowest_items(np.array([1.0, 1.0, 1.0]), 2) == [0, 1]


def test_pairs_are_best_with_worst_inwards_and_ties_make_none() -> None:
    scores = np.array([3.0, 1.0, NAN, 2.0, 5.0])
    assert best_and_worst(scores) == [(4, 1)]
    assert best_and_worst(scores, count=9) == [(4, 1), (0, 3)]
    assert best_and_worst(scores, count=9, margin=1.0) == [(4, 1)]  # 3 - 2 is not more than 1
    assert best_and_worst(np.array([1.0, 1.0, 1.0]), count=9) == []
    assert best_and_worst(np.array([2.0, 1.0, 1.0, 1.0]), count=9) == [(0, 3)]
    assert best_and_worst(np.array([2.0, NAN])) == []
    assert best_and_worst(np.array([NAN])) == []


def test_the_best_text_is_none_where_all_tie() -> None:
    assert best_text(np.array([1.0, 2.0, 2.0, NAN])) == 1
    assert best_text(np.array([1.0, 1.0, NAN])) is None
    assert best_text(np.array([1.0, 1.5]), margin=0.5) is None


def test_the_share_of_a_round_is_rounded_up_and_never_none() -> None:
    settings = AlgorithmConfig(name="online-dpo", regenerate=0.1)
    assert [inputs_of_round(settings, 30, number) for number in (0, 1)] == [(30, 30), (30, 3)]
    assert inputs_of_round(settings, 4, 1) == (4, 1)
    assert same_inputs(settings)
    assert not same_inputs(AlgorithmConfig(name="online-dpo"))


@pytest.mark.parametrize(
    ("settings", "env", "wanted"),
    [
        ({"name": "dpo"}, {}, [0, 0]),
        ({"name": "grpo"}, {}, [16, 16]),
        ({"name": "online-dpo", "regenerate": 0.5}, {"kind": "stimulus", "rewrites_per_input": 4}, [16, 8]),
        ({"name": "online-dpo", "items": "regret"}, {"kind": "stimulus", "rewrites_per_input": 4}, [16, 8]),
        ({"name": "online-dpo"}, {}, [16, 16]),
    ],
)
def test_an_iteration_scores_at_most(settings: dict[str, object], env: dict[str, object], wanted: list[int]) -> None:
    algorithm, surroundings = AlgorithmConfig.model_validate(settings), EnvConfig.model_validate(env)
    assert [prompts_of_iteration(algorithm, surroundings, number) for number in (0, 1)] == wanted
