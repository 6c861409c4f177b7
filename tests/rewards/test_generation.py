import pytest

from rlprompt.errors import ConfigError
from rlprompt.rewards.generation import ExactMatch, Length, TokenF1, normalise
from rlprompt.types import Failure, TargetOutput


def texts(*values: str | None) -> list[TargetOutput]:
    return [TargetOutput(text=value) for value in values]


def test_normalisation_drops_case_punctuation_articles_and_spaces() -> None:
    assert normalise(" The  Theatre, a (new) one! ") == "theatre new one"
    assert normalise("An apple") == "apple"
    assert normalise("ÉTÉ 1990s") == "été 1990s"


def test_exact_match_compares_normalised_texts() -> None:
    outputs = texts("the Eiffel Tower.", "Eiffel", "")
    assert ExactMatch()(outputs=outputs, references=["Eiffel tower"] * 3) == [1.0, 0.0, 0.0]


def test_exact_match_can_keep_punctuation() -> None:
    assert ExactMatch()(outputs=texts("-5"), references=["5"]) == [1.0]
    strict = ExactMatch(normalisation="strip")
    assert strict(outputs=texts("-5", " 5\n"), references=["5", 5]) == [0.0, 1.0]


def test_token_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    # words: cat sat on mat (4) and cat sat (2), 2 in common: P = 2/4, R = 2/2, F1 = 2 * 0.5 * 1 / 1.5 = 2/3
    assert TokenF1()(outputs=texts("The cat sat on the mat."), references=["a cat sat"]) == pytest.approx([2 / 3])


def test_token_f1_counts_repeated_words_as_often_as_both_have_them() -> None:
    # "no no no" and "no": 1 in common: P = 1/3, R = 1, F1 = 2 * 1 / (3 + 1) = 0.5
    # "no no yes" and "no no maybe": "no" twice in common: F1 = 2 * 2 / (3 + 3) = 2/3
    outputs = texts("no no no", "no no yes")
    assert TokenF1()(outputs=outputs, references=["no", "no no maybe"]) == pytest.approx([0.5, 2 / 3])


def test_texts_without_words_agree_only_with_each_other() -> None:
    assert TokenF1()(outputs=texts("", "", "word"), references=["the", "word", "the"]) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("reward", [ExactMatch(), TokenF1()])
def test_the_best_of_several_gold_answers_counts(reward: ExactMatch | TokenF1) -> None:
    assert reward(outputs=texts("Holland"), references=[["The Netherlands", "Holland"]]) == [1.0]


@pytest.mark.parametrize("reward", [ExactMatch(), TokenF1()])
def test_what_has_no_text_or_no_gold_answer_is_left_out(reward: ExactMatch | TokenF1) -> None:
    outputs = [*texts(None, "x", "x"), TargetOutput(text="x", failure=Failure("target", "http", "500"))]
    assert reward(outputs=outputs, references=["x", None, [], "x"]) == [None] * 4
    assert reward(outputs=texts("x")) == [None]


def test_length_is_minus_the_number_of_words_of_the_prompt() -> None:
    length = Length()
    assert length(completions=["It was", "", " one\ntwo  three "], outputs=texts("a", "b", "c")) == [
        -2.0,
        0.0,
        -3.0,
    ]
    assert length.needs == "any"


def test_length_counts_what_lies_outside_of_the_range() -> None:
    length = Length(of="output", unit="characters", minimum=2, maximum=4)
    # 1 is 1 too short, 2 and 4 fit, 7 is 3 too long
    outputs = texts("a", "ab", "abcd", "abcdefg", None)
    assert length(completions=[""] * 5, outputs=outputs) == [-1.0, 0.0, 0.0, -3.0, None]
    assert length.needs == "text"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ExactMatch(normalisation="lower"), "normalisation must be squad or strip, got 'lower'"),
        (lambda: Length(of="input"), "of must be prompt or output, got 'input'"),
        (lambda: Length(unit="tokens"), "unit must be words or characters"),
        (lambda: Length(minimum=3, maximum=2), "need 0 <= minimum <= maximum"),
        (lambda: Length(minimum=-1), "need 0 <= minimum <= maximum"),
    ],
)
def test_arguments_out_of_range_are_refused(make: object, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()  # type: ignore[operator]
