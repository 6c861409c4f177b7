"""A checklist: the weighted share of yes, and the answer to each item."""

from typing import Any

import pytest
from fake_judge import FakeJudge
from reward_sets import NAN, assert_values, run

from rlprompt.errors import ConfigError
from rlprompt.rewards import Component, RewardSet
from rlprompt.rewards.judges import Checklist
from rlprompt.types import Failure

ITEMS = [
    {"question": "Does it name a price?", "name": "price", "weight": 3},
    {"question": "Is it polite?", "name": "polite"},
]


def judged(answers: dict[tuple[str, str], Any], **options: Any) -> FakeJudge:
    """A judge with an answer for each (text, word of the question)."""

    def reply(shown: dict[str, str], question: str) -> Any:
        word = next(word for _, word in answers if word in question)
        return answers[shown["text to be judged"], word]

    return FakeJudge(reply, **options)


ANSWERS = {("a", "price"): 0.9, ("a", "polite"): 0.2, ("b", "price"): 0.4, ("b", "polite"): 0.7}


def test_the_reward_is_the_weighted_share_of_yes_and_each_item_is_recorded() -> None:
    target = judged(ANSWERS)
    result = run(RewardSet([Component("check", Checklist(target, ITEMS))]), texts=["a", "b"])
    assert_values(result.rewards, [0.75, 0.25])  # 3 / 4 and 1 / 4
    assert_values(result.components["check/price"], [1.0, 0.0])
    assert_values(result.components["check/polite"], [0.0, 1.0])
    # the four questions: one that finds out whether there are probabilities, then the rest in one call
    assert [len(requests) for requests in target.calls] == [1, 3]


def test_soft_items_count_their_probability() -> None:
    found = Checklist(judged(ANSWERS), ITEMS, soft=True).answers(["a", "b"])
    assert found["reward"] == pytest.approx([(3 * 0.9 + 0.2) / 4, (3 * 0.4 + 0.7) / 4])
    assert found["price"] == pytest.approx([0.9, 0.4])


def test_an_item_without_a_verdict_is_left_out_as_far_as_is_allowed() -> None:
    answers = {**ANSWERS, ("a", "polite"): "Hard to say.", ("b", "price"): "Maybe."}
    strict = Checklist(judged(answers), ITEMS, ask="text")
    assert strict.answers(["a", "b"])["reward"] == [None, None]
    assert strict.abstentions == {"prose": 2}
    lenient = Checklist(judged(answers), ITEMS, ask="text", min_answered=0.5)
    found = lenient.answers(["a", "b"])
    assert found["reward"] == [1.0, None]  # of "b" a quarter of the weight is answered
    assert found["polite"] == [None, 1.0]
    assert Checklist(judged({("a", "price"): 0.5, ("a", "polite"): 1.0}), ITEMS).answers(["a"])["reward"] == [None]


def test_a_failed_item_fails_the_pair() -> None:
    answers = {**ANSWERS, ("b", "polite"): Failure("target", "timeout", "too slow")}
    result = run(RewardSet([Component("check", Checklist(judged(answers), ITEMS))]), texts=["a", "b"])
    assert_values(result.rewards, [0.75, NAN])
    assert result.failures[1].kind == "timeout"
    assert_values(result.components["check/price"], [1.0, 0.0])


def test_items_are_texts_too_and_their_names_are_their_numbers() -> None:
    checklist = Checklist(judged(ANSWERS), ["Does it name a price?", "Is it polite?"])
    assert checklist.also_records == ("1", "2")
    assert checklist.judge_calls.per_pair == 2


def test_the_state_is_the_judges() -> None:
    checklist = Checklist(judged(ANSWERS), ITEMS)
    checklist.answers(["a"])
    fresh = judged(ANSWERS)
    resumed = Checklist(fresh, ITEMS)
    resumed.load_state_dict(checklist.state_dict())
    assert resumed.answers(["a"])["reward"] == [0.75]
    assert fresh.num_asked == 0


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        ([], {}, "a list of yes-no questions"),
        ("Is it polite?", {}, "a list of yes-no questions"),
        ([{"question": "?", "wieght": 2}], {}, "item 1 must be a text or"),
        ([{"name": "x"}], {}, "item 1 has no question"),
        ([{"question": "?", "weight": 0}], {}, "the weight of item 1 must be a number above 0"),
        ([{"question": "?", "name": "reward"}], {}, "names of their own"),
        (["?", {"question": "!", "name": "1"}], {}, "names of their own, got 1, 1"),
        (["?"], {"min_answered": 0}, "min_answered must be above 0"),
    ],
)
def test_wrong_arguments_are_named(items: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Checklist(judged(ANSWERS), items, **options)
