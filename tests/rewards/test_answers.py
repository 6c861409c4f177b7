import time
from fractions import Fraction
from typing import Any

import pytest

from rlprompt.config import RewardConfig
from rlprompt.errors import ConfigError
from rlprompt.rewards import RewardSet, check_rewards
from rlprompt.rewards.answers import Answer, read_letter, read_number
from rlprompt.tasks import Task, Template
from rlprompt.types import Example, Failure, TargetOutput


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" b\n", "B"),
        ("(c)", "C"),
        ("**D**", "D"),
        ("A. bank", "A"),
        ("b) library", "B"),
        ("The answer is (E).", "E"),
        ("Answer: C", "C"),
        ("Answer:\n\n D \n", "D"),
        ("The correct option is B because it fits", "B"),
        ("A is wrong. The answer is D", "D"),
        ("First the answer is A. No, the answer is B.", "B"),
        ("It must be B), the library", "B"),
        ("A bank is a place for money", None),
        ("The answer is A bank", None),
        ("The answer is (A) or (B)", None),
        ("(A) or (B)", None),
        ("It is A) not B)", None),
        ("bank", None),
        ("Be careful", None),
        ("F", None),
        ("The answer is F.", None),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_the_letter_that_a_text_chooses(text: str, letter: str | None) -> None:
    assert read_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", Fraction(12)),
        ("So it is 1,234.5 dollars.", Fraction(2469, 2)),
        ("$5.50", Fraction(11, 2)),
        ("First 3 and then 4.", Fraction(4)),
        ("5 + 7 = 12", Fraction(12)),
        ("3-4=-1", Fraction(-1)),
        ("\N{MINUS SIGN}3", Fraction(-3)),
        ("The answer is 5 apples and 6 pears", Fraction(5)),
        ("The answer is 5. No: the answer is 6.", Fraction(6)),
        ("He has 3.\n#### 42", Fraction(42)),
        (r"we get \boxed{7} of 9", Fraction(7)),
        ("3/4 of it", Fraction(3, 4)),
        ("20%", Fraction(20)),
        (".5", Fraction(1, 2)),
        ("1/0", None),
        ("1.2.3", None),
        ("10/5/2020", None),
        ("12,34", None),
        ("1e5", None),
        ("v2", None),
        ("9" * 200, None),
        ("none", None),
        ("", None),
    ],
)
def test_the_number_that_a_text_answers_with(text: str, number: Fraction | None) -> None:
    assert read_number(text) == number


@pytest.mark.parametrize(
    "text", ["answer" + " " * 20_000 + "x", "answer " * 3000, "(" * 10_000, "1," * 9000, "A or " * 4000]
)
def test_long_texts_are_read_in_no_time(text: str) -> None:
    started = time.perf_counter()
    read_letter(text), read_number(text)
    assert time.perf_counter() - started < 2


def score(reward: Answer, text: str | None, gold: Any) -> float | None:
    return reward(outputs=[TargetOutput(text=text)], references=[gold])[0]


def test_an_answer_that_cannot_be_read_is_wrong_and_not_left_out() -> None:
    assert score(Answer(), "no idea", "B") == 0.0
    assert score(Answer(), "", "B") == 0.0
    assert score(Answer("number"), "no idea", 3) == 0.0


def test_the_gold_answer_is_read_in_the_same_way() -> None:
    assert score(Answer(), "The answer is (B)", "B. bookstore") == 1.0
    assert score(Answer("number"), "It is 42.0", "He has 40 and 2.\n#### 42") == 1.0
    assert score(Answer("number"), "42", 42) == 1.0
    assert score(Answer("number"), "41", ["40", "41"]) == 1.0


def test_without_a_gold_answer_of_that_kind_it_abstains() -> None:
    assert score(Answer(), "B", None) is None
    assert score(Answer(), "B", "bookstore") is None
    assert score(Answer(), None, "B") is None
    failed = TargetOutput(text="B", failure=Failure("target", "http", "500"))
    assert Answer()(outputs=[failed], references=["B"]) == [None]
    assert Answer()(outputs=[TargetOutput(text="B")]) == [None]


def test_other_letters_and_a_tolerance() -> None:
    assert score(Answer(letters="ABCD"), "E", "A") == 0.0
    assert score(Answer(letters="PQ"), "The answer is q.", "Q") == 0.0  # a small letter in a sentence is none
    assert score(Answer(letters="PQ"), "The answer is Q.", "Q") == 1.0
    assert score(Answer("number", tolerance=0.5), "2.5", 3) == 1.0
    assert score(Answer("number", tolerance=0.25), "2.5", 3) == 0.0
    assert score(Answer("number"), "0.1", Fraction(1, 10)) == 1.0  # exact, no rounding


@pytest.mark.parametrize(("kind", "golds"), [("letter", ["A", "B", "C"]), ("number", ["1", "2", "#### 3"])])
def test_the_check_passes_it_and_so_does_a_task_with_that_metric(kind: str, golds: list[str]) -> None:
    rows = {
        split: tuple(Example(f"{split}/{index}", f"{split} {index}", gold) for index, gold in enumerate(golds))
        for split in ("train", "dev", "test")
    }
    task = Task("toy", rows["train"], rows["dev"], rows["test"], None, f"answer-{kind}", Template("{input} {prompt}"))
    (check,) = check_rewards(RewardSet.from_config([RewardConfig(name="answer", kwargs={"kind": kind})]), task)
    assert (check.gold, check.wrong, check.empty) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"kind": "word"}, "kind must be letter or number, got 'word'"),
        ({"letters": "abc"}, "two or more different capital letters, got 'abc'"),
        ({"letters": "AAB"}, "two or more different capital letters"),
        ({"tolerance": -1}, "tolerance must be at least 0, got -1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Answer(**kwargs)
