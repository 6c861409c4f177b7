import math

import pytest

from rlprompt.targets.choices import (
    NoAnswer,
    constraint_body,
    from_echo,
    from_top_tokens,
    normalise,
    parse_choice,
    read_constrained,
)

BAD_GOOD = (" bad", " good")


def test_normalised_probabilities_sum_to_one_even_far_from_zero() -> None:
    assert normalise([math.log(0.2), math.log(0.6)]) == pytest.approx([math.log(0.25), math.log(0.75)])
    assert normalise([-1000.0, -1000.0]) == pytest.approx([math.log(0.5)] * 2)


@pytest.mark.parametrize("values", [[float("nan"), 0.0], [-math.inf, -math.inf]])
def test_no_numbers_are_no_answer(values: list[float]) -> None:
    with pytest.raises(NoAnswer, match="not finite"):
        normalise(values)


def test_top_tokens_of_a_choice_are_added_up() -> None:
    # bad: 0.1 + 0.1; good: 0.3 + 0.2 + 0.1; so 0.2 / 0.8 and 0.6 / 0.8. "the" and "goods" are no beginnings.
    masses = {" bad": 0.1, "ba": 0.1, " good": 0.3, "good": 0.2, "go": 0.1, "the": 0.1, "goods": 0.05}
    logprobs, text = from_top_tokens([(token, math.log(mass)) for token, mass in masses.items()], BAD_GOOD)
    assert text is None
    assert logprobs == pytest.approx([math.log(0.25), math.log(0.75)])


def test_a_choice_that_is_not_among_the_top_tokens_gets_no_made_up_probability() -> None:
    top = [(" good", math.log(0.7)), ("x", math.log(0.2))]
    assert from_top_tokens(top, BAD_GOOD) == (None, " good")


def test_tokens_that_fit_no_choice_are_no_answer() -> None:
    with pytest.raises(NoAnswer, match="none of the most probable"):
        from_top_tokens([("x", -0.1), (" ", -2.0), ("", -2.5)], BAD_GOOD)


def test_choices_that_begin_alike_need_another_way_of_asking() -> None:
    with pytest.raises(NoAnswer, match="does not tell the choices apart"):
        from_top_tokens([(" very", -0.1), ("bad", -3.0)], (" very good", " very bad"))


def test_a_rare_ambiguous_token_does_not_matter() -> None:
    logprobs, _ = from_top_tokens([("good", -0.7), ("great", -0.7), ("g", -9.0)], ("good", "great"))
    assert logprobs == pytest.approx([math.log(0.5)] * 2)


def test_echo_sums_the_tokens_of_the_continuation_only() -> None:
    scored = [
        (["It", " was", " bad"], [None, -1.0, -2.0]),
        (["It", " was", " very", " good"], [None, -1.0, -0.5, -0.25]),
    ]
    assert from_echo((" bad", " very good"), scored) == (-2.0, -0.75)


def test_a_token_across_the_border_moves_the_border_for_all() -> None:
    # Prompt "It was ": "bad" is cut as "It| was| bad", "good" as "It| was| |good". All sums begin at position -1.
    scored = [
        (["It", " was", " bad"], [None, -1.0, -2.0]),
        (["It", " was", " ", "good"], [None, -1.0, -3.0, -0.5]),
    ]
    assert from_echo(("bad", "good"), scored) == (-2.0, -3.5)


def test_the_border_moves_until_no_token_crosses_it() -> None:
    # "b" is cut as "x| y z|b"... position -1 lies inside the other's token " y" + "zb": all begin at -3.
    scored = [
        (["x", " yz", "b"], [None, -1.0, -2.0]),
        (["x", " y", "zc"], [None, -4.0, -8.0]),
    ]
    assert from_echo(("b", "c"), scored) == (-3.0, -12.0)


def test_special_tokens_and_garbled_characters_in_front_do_not_matter() -> None:
    scored = [(["<s>", "caf", "\ufffd", "\ufffd", " good"], [None, -1.0, -1.0, -1.0, -0.5])]
    assert from_echo((" good",), scored) == (-0.5,)


@pytest.mark.parametrize(
    ("tokens", "logprobs", "match"),
    [
        (["It", " was", " bad", "."], [None, -1.0, -1.0, -1.0], "do not end with"),
        (["It", " bad"], [-1.0], "2 tokens came with 1"),
        ([" bad"], [None], "lacks log-probabilities"),
        (["It", " bad"], [None, None], "lacks log-probabilities"),
        (["It", " bad"], [None, float("nan")], "lacks log-probabilities"),
    ],
)
def test_an_echo_that_does_not_fit_is_no_answer(tokens: list[str], logprobs: list[float | None], match: str) -> None:
    with pytest.raises(NoAnswer, match=match):
        from_echo((" bad",), [(tokens, logprobs)])


@pytest.mark.parametrize(
    ("text", "choices", "index"),
    [
        ("Good.", BAD_GOOD, 1),
        ("It is bad, really BAD", BAD_GOOD, 0),
        ("I'd say very positive", ("positive", "very positive"), 1),
        ("The answer is B", ("A", "B"), 1),
        ("A: a film", ("A", "B"), 0),
        ("5", ("1", "5", "50"), 1),
        ("C++", ("C", "C++"), 1),
    ],
)
def test_a_text_that_names_one_choice_is_understood(text: str, choices: tuple[str, ...], index: int) -> None:
    assert parse_choice(text, choices) == index


@pytest.mark.parametrize("text", ["", "goods", "neither", "good or bad", "badly good-bad"])
def test_a_text_that_names_none_or_several_is_no_answer(text: str) -> None:
    with pytest.raises(NoAnswer, match="of the choices"):
        parse_choice(text, BAD_GOOD)


def test_constraints_list_the_stripped_choices() -> None:
    assert constraint_body("structured-outputs", BAD_GOOD) == {"structured_outputs": {"choice": ["bad", "good"]}}
    assert constraint_body("guided-choice", BAD_GOOD) == {"guided_choice": ["bad", "good"]}
    schema = constraint_body("json-schema", BAD_GOOD)["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["choice"]["enum"] == ["bad", "good"]


@pytest.mark.parametrize("text", ["good", '{"choice": "fine"}', "[]", '{"choice": 1}', '"good"'])
def test_a_broken_constraint_is_no_answer(text: str) -> None:
    with pytest.raises(NoAnswer, match="constrained answer"):
        read_constrained("json-schema", text, BAD_GOOD)
    assert read_constrained("json-schema", '{"choice": "good"}', BAD_GOOD) == 1
