from typing import Any

import pytest

from rlprompt.config import RewardConfig
from rlprompt.errors import ConfigError
from rlprompt.rewards import RewardSet, check_rewards
from rlprompt.rewards.length import LengthLimits, LengthRule, length_limits, read_length_rule
from rlprompt.tasks.planted import planted_task
from rlprompt.types import TargetOutput


def score(reward: LengthRule, *texts: str | None, **columns: Any) -> list[float | None]:
    return reward(completions=[""] * len(texts), outputs=[TargetOutput(text=text) for text in texts], **columns)


def words(number: int) -> str:
    return " ".join(["word"] * number)


# lengths 0, 2, 3, 5, 6 under each rule: the published rewards, and whether the rule is kept
FIXTURES = [
    ("equal", 3, [-3.0, -1.0, 0.0, -2.0, -3.0]),
    ("range", [3, 5], [-3.0, -1.0, 0.0, 0.0, -1.0]),
    ("less", 3, [0.0, 0.0, 0.0, -2.0, -3.0]),
    ("more", 3, [-3.0, -1.0, 0.0, 0.0, 0.0]),
]


@pytest.mark.parametrize(("rule", "value", "expected"), FIXTURES)
def test_the_rules_are_exact(rule: str, value: Any, expected: list[float]) -> None:
    texts = [words(number) for number in (0, 2, 3, 5, 6)]
    assert score(LengthRule(rule, value), *texts) == expected
    hits = [float(entry == 0) for entry in expected]
    assert score(LengthRule(rule, value, score="hit"), *texts) == hits


def test_tokens_are_those_of_the_named_model_without_special_ones() -> None:
    reward = LengthRule("equal", 3, unit="tokens", tokenizer="planted-10")
    assert score(reward, "w01 w02 w03", "w01", "") == [0.0, -2.0, -3.0]


def test_smollm2_splits_words_into_tokens() -> None:
    reward = LengthRule("less", 2, unit="tokens", tokenizer="smollm2-135m-instruct")
    # a word that no tokeniser has whole: as many words, more tokens
    assert score(reward, "a cat", "antidisestablishmentarianism")[0] == 0.0
    assert score(reward, "antidisestablishmentarianism")[0] != 0.0
    assert score(LengthRule("less", 2), "antidisestablishmentarianism") == [0.0]


def test_the_prompt_can_be_measured_and_a_missing_text_is_left_out() -> None:
    reward = LengthRule("less", 1, of="prompt")
    assert reward.needs == "any"
    assert reward(completions=["one two", ""], outputs=[TargetOutput(text=None)] * 2) == [-1.0, 0.0]
    assert score(LengthRule("less", 1), None) == [None]
    assert LengthRule("less", 1).needs == "text"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write exactly 12 words.", LengthLimits(12, 12)),
        ("Answer in 7 words", LengthLimits(7, 7)),
        ("with a length of 7 tokens", LengthLimits(7, 7)),
        ("use fewer than 20 words", LengthLimits(0, 20)),
        ("no more than 20 words please", LengthLimits(0, 20)),
        ("At MOST 20 Words", LengthLimits(0, 20)),
        ("more than 30 words", LengthLimits(30, None)),
        ("no fewer than 30 words", LengthLimits(30, None)),
        ("no less than 30 words", LengthLimits(30, None)),
        ("between 10 and 20 words", LengthLimits(10, 20)),
        ("between 20 and 10 words", LengthLimits(10, 20)),
        ("a summary of 10-20 words", LengthLimits(10, 20)),
        ("from 10 words to 20 words", LengthLimits(10, 20)),
        ("in 2020 the word was out", None),
        ("a few words", None),
        ("", None),
    ],
)
def test_a_request_for_a_length_is_read_from_a_text(text: str, expected: LengthLimits | None) -> None:
    assert read_length_rule(text) == expected


def test_each_example_may_ask_for_its_own_length() -> None:
    reward = LengthRule(column="wish")
    wishes = ["exactly 2 words", "at least 3 words", "nothing", None]
    assert score(reward, words(4), words(4), words(4), words(4), wish=wishes) == [-2.0, 0.0, None, None]
    with pytest.raises(ValueError, match="the task has no column 'wish'; it has input"):
        score(reward, "x", input=["y"])


def test_the_check_passes_it() -> None:
    config = RewardConfig(name="length-rule", kwargs={"rule": "more", "value": 2, "of": "prompt"})
    (check,) = check_rewards(RewardSet.from_config([config]), planted_task(), prompt="w01")
    assert (check.gold, check.wrong, check.empty) == (-1.0, -1.0, -1.0)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"rule": "least", "value": 3}, "rule must be one of equal, range, less, more; got 'least'"),
        ({"rule": "range", "value": 3}, r"rule 'range' takes two lengths \[from, to\]"),
        ({"rule": "equal", "value": [3, 4]}, "rule 'equal' takes one length"),
        ({"rule": "equal", "value": -1}, "of at least 0 as value, got -1"),
        ({"rule": "equal", "value": True}, "of at least 0 as value, got True"),
        ({"rule": "range", "value": [5, 3]}, "ends before it begins"),
        ({"rule": "less"}, "give rule and value, or column alone"),
        ({"rule": "less", "value": 3, "column": "input"}, "give rule and value, or column alone"),
        ({}, "give rule and value, or column alone"),
        ({"rule": "less", "value": 3, "unit": "letters"}, "unit must be words or tokens"),
        ({"rule": "less", "value": 3, "of": "input"}, "of must be output or prompt"),
        ({"rule": "less", "value": 3, "score": "square"}, "score must be distance or hit"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        LengthRule(**kwargs)


def test_the_ends_are_allowed() -> None:
    assert [length_limits("less", 3).missed_by(length) for length in (3, 4)] == [0, 1]
    assert [length_limits("more", 3).missed_by(length) for length in (3, 2)] == [0, 1]
