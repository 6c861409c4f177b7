"""The rules about texts."""

import pytest

from rlprompt.preferences.checks import CONSTRAINTS, DIRECTIVES, MERITS, Limits, failed_merits, sentences

NAIVE = 'Explain the "left join" of 3 tables and 2.5 keys.'
GOOD = 'Explain step by step how a "left join" of 3 tables with 2.5 keys works.'


def _fails(text: str, naive: str = "", **limits: float) -> set[str]:
    return set(failed_merits(text, naive, tuple(MERITS), Limits(**limits)))  # type: ignore[arg-type]


def test_a_good_rewrite_has_all_merits() -> None:
    assert _fails(GOOD, NAIVE) == set()


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("", {"short", "clear", "keeps-numbers", "keeps-quotes", "keeps-words"}),
        (GOOD.replace("3 tables", "some tables"), {"keeps-numbers"}),
        (GOOD.replace("2.5", "2"), {"keeps-numbers"}),
        (GOOD.replace('"left join"', "left outer join"), {"keeps-quotes"}),
        ('What is a "left join" with 3 and 2.5?', set()),  # 4 of 7 content words: left, join, 3, 2.5
        (f"Sure, here is the rewritten prompt: {GOOD}", {"plain"}),
        (f"Here is a better one: {GOOD}", {"plain"}),
        (f"{GOOD} And so on, with such stuff.", {"precise"}),
        (f"{GOOD} {GOOD}", {"concise"}),
        (f"{GOOD} It is (not easy.", {"clear"}),
        (f'{GOOD} Say "yes.', {"clear"}),
        (f"{GOOD} and then,", {"clear"}),
    ],
)
def test_each_merit_is_missed_on_its_own(text: str, failed: set[str]) -> None:
    assert _fails(text, NAIVE) == failed


def test_limits_are_inclusive() -> None:
    assert _fails("one two three", max_words=3) == set()
    assert _fails("one two three", max_words=2) == {"short"}
    assert _fails("one two three. four", max_sentence_words=3) == set()
    assert _fails("one two three four", max_sentence_words=3) == {"clear"}
    assert _fails("red red blue", distinct=2 / 3) == set()
    assert _fails("red red blue red", distinct=2 / 3) == {"concise"}
    assert _fails("storm power", "storm power Leeds north", kept=0.5) == set()
    assert _fails("storm power", "storm power Leeds north", kept=0.51) == {"keeps-words"}


def test_what_the_input_says_itself_is_no_fault() -> None:
    assert _fails("Count the stuff.", "Count my stuff.") == set()
    assert _fails("Surely one can count.", "") == set()


def test_curly_quotes_are_kept_too() -> None:
    naive = "Explain \N{LEFT DOUBLE QUOTATION MARK}yes\N{RIGHT DOUBLE QUOTATION MARK}."
    assert _fails("Explain the word yes.", naive) == set()
    assert _fails("Explain the word no.", naive) == {"keeps-quotes"}


def test_sentences_do_not_end_within_numbers() -> None:
    assert sentences("It costs 3.50 now. Buy it?\n- ...\nlast line") == ["It costs 3.50 now.", "Buy it?", "last line"]
    assert sentences("v1.2.3 works") == ["v1.2.3 works"]


def test_directives_measure_words_and_marked_lines() -> None:
    text = "Do this:\n- read\n2. write\nthen stop"
    assert {name: measure(text) for name, measure in DIRECTIVES.items()} == {
        "concise/detailed": 8,
        "plain/structured": 2,
    }


@pytest.mark.parametrize(
    ("name", "met", "broken"),
    [
        ("words", "one two three", "one two three four"),
        ("sentences", "One sentence only.", "One. Two."),
        ("digits", "It has 4 legs", "It has four legs"),
        ("list", "Steps:\n* first", "Steps - first"),
        ("question", "Is it so? ", "It is so."),
    ],
)
def test_a_constraint_holds_or_its_opposite_does(name: str, met: str, broken: str) -> None:
    assert CONSTRAINTS[name].holds(met, 3)
    assert not CONSTRAINTS[name].holds(broken, 3)
