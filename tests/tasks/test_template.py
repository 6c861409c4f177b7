"""Templates: one pass, nothing interpreted, one space for an empty prompt, the split where prefixes end."""

import pytest

from rlprompt.errors import TaskError
from rlprompt.tasks.template import MASK, Template
from rlprompt.types import Example


def make_example(text: str = "A fine film.", **columns: object) -> Example:
    return Example(id="test/3", input=text, reference=1, columns=columns)


@pytest.mark.parametrize(
    ("source", "prompt", "text"),
    [
        ("{input} {prompt}", "It was", "A fine film. It was"),
        ("{input} {prompt}", "", "A fine film."),
        ("{prompt} {input}", "", "A fine film."),
        ("{input} {prompt} {mask} .", "It was", "A fine film. It was <mask> ."),
        ("{input} {prompt} {mask} .", "", "A fine film. <mask> ."),
        ("{mask} {prompt} {input}", "", "<mask> A fine film."),
        ("{prompt} {mask} : {input}", "", "<mask> : A fine film."),
        ("{input}  {prompt}", "", "A fine film. "),  # two spaces: exactly one goes
        ("{input}\n{prompt}", "", "A fine film.\n"),  # a line feed is no space
        ("{input}{prompt}", "", "A fine film."),
        ("{prompt}", "", ""),
        ("{{{input}}} {prompt}", "x", "{A fine film.} x"),
        ("{input} {prompt}", " It was", "A fine film.  It was"),  # the prompt is kept as it is
    ],
)
def test_renders_text(source: str, prompt: str, text: str) -> None:
    assert Template(source).render(prompt, make_example()).text == text


def test_an_empty_prompt_never_takes_a_space_of_the_user() -> None:
    assert Template("{input}{prompt}!").render("", make_example("ends in a space ")).text == "ends in a space !"


@pytest.mark.parametrize("text", ["{prompt}", "{0}", "{x.__class__}", "{{input}}", "%s $x \\1 {", "", "é\u2028\n\t"])
def test_text_of_the_user_survives_unread(text: str) -> None:
    rendered = Template("[{input}] {note} {prompt}").render("{input} {note}", make_example(text, note="{input}"))
    assert rendered.text == f"[{text}] {{input}} {{input}} {{note}}"


@pytest.mark.parametrize(
    ("source", "prompt", "split"),
    [
        ("{input} {prompt}", "It was", 13),  # "A fine film. " is 12 + 1 characters
        ("{input} {prompt}", "", 12),  # the space went with the prompt
        ("{input} {prompt} {mask}", "", 13),  # of two spaces the later one goes
        ("{prompt} {input}", "It was", 7),  # "It was " is 6 + 1 characters
        ("{prompt} {input}", "", 0),
        ("Text: {prompt} | {input}", "ab", 11),  # "Text: ab | " is 6 + 2 + 3
        ("{mask} {prompt} {input}", "ab", 10),  # "<mask> ab " is 6 + 1 + 2 + 1
        ("Say {prompt} now", "ab", 10),  # no field of the example: everything is shared
        ("{note}: {input} {prompt}", "ab", 17),  # "n1: A fine film. " is 2 + 2 + 12 + 1
    ],
)
def test_split_is_where_the_faster_field_begins(source: str, prompt: str, split: int) -> None:
    example = make_example(note="n1")
    rendered = Template(source).render(prompt, example)
    assert rendered.split == split


def test_messages_are_rendered_one_by_one_and_split_counts_all_contents() -> None:
    template = Template(
        [
            {"role": "system", "content": "{prompt} Be brief."},
            {"role": "user", "content": "Review: {input}"},
        ]
    )
    rendered = template.render("Judge.", make_example())
    assert rendered.text is None
    assert rendered.messages == (("system", "Judge. Be brief."), ("user", "Review: A fine film."))
    assert rendered.split == 16 + 8  # "Judge. Be brief." + "Review: "
    empty = template.render("", make_example())
    assert empty.messages == (("system", "Be brief."), ("user", "Review: A fine film."))
    assert empty.split == 9 + 8


def test_messages_with_the_input_first_split_at_the_prompt() -> None:
    template = Template([{"role": "user", "content": "{input}"}, {"role": "assistant", "content": "Hm, {prompt}"}])
    assert template.render("ok", make_example()).split == 12 + 4  # "A fine film." + "Hm, "


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{input}", r"has 0 \{prompt\} fields"),
        ("{prompt} {prompt}", r"has 2 \{prompt\} fields"),
        ("{input.__class__} {prompt}", "lone '{'"),
        ("{input[0]} {prompt}", "lone '{'"),
        ("{} {prompt}", "lone '{' at character 0"),
        ("{prompt} }", "lone '}' at character 9"),
        ("{prompt} {mask} {mask}", "may stand once"),
        ([{"role": "user", "content": "{prompt} {mask}"}], "plain-text"),
        ([{"role": "usr", "content": "{prompt}"}], "did you mean 'user'"),
        ([{"role": "user"}], "must have the keys role and content"),
    ],
)
def test_a_wrong_template_says_what_is_wrong(source: object, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Template(source)  # type: ignore[arg-type]


def test_check_names_row_and_field_and_offers_a_close_match() -> None:
    with pytest.raises(TaskError, match=r"test/3 has no column .* \{passage\}; did you mean 'pasage'"):
        Template("{passage} {prompt}").check(make_example(pasage="x"))


def test_check_refuses_a_field_that_is_no_text_or_number() -> None:
    Template("{year} {prompt}").check(make_example(year=1999))
    with pytest.raises(TaskError, match="must be text or a number, got list"):
        Template("{year} {prompt}").check(make_example(year=[1999]))


def test_a_row_that_holds_the_mask_is_refused_only_where_the_template_has_one() -> None:
    Template("{input} {prompt}").check(make_example("a <mask> b"))
    with pytest.raises(TaskError, match="holds '<mask>'"):
        Template("{input} {prompt} {mask}").check(make_example("a <mask> b"))


def test_fields_are_the_examples_own() -> None:
    template = Template("{input} {passage} {prompt} {mask}")
    assert template.fields == {"input", "passage"}
    assert template.has_mask
    assert MASK == "<mask>"


def test_templates_are_equal_by_source() -> None:
    assert Template("{prompt}") == Template("{prompt}")
    assert Template("{prompt}") != Template("{prompt}!")
    assert len({Template("{prompt}"), Template("{prompt}")}) == 1
