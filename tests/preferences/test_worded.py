"""The builders in which wording decides, or the context is made."""

import math
from typing import Any

import pytest

from rlprompt.errors import ConfigError
from rlprompt.preferences import Built, Candidate, build_pairs, sft_rows


def _c(text: str, reward: float | None = None, *, index: int = 0, **more: Any) -> Candidate:
    return Candidate(text, reward=reward, index=index, **{"example_id": "train/0", "input": "Why?", **more})


def _texts(built: Built) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in built.pairs]


FULL = {"naive_response": "Because.", "reference": "Because of gravity."}
SCORED = [_c("Why does it fall?", 0.9, columns=FULL), _c("Hm?", 0.1, index=1, columns=FULL)]
HEAD = (
    "Improve the prompt below, so that whoever answers it does so as well as possible. Keep its facts. "
    "Output the new prompt only.\nPrompt: Why?"
)


@pytest.mark.parametrize(
    ("arguments", "context"),
    [
        ({}, HEAD),
        ({"response": True}, f"{HEAD}\nResponse to it: Because."),
        ({"reference": True}, f"{HEAD}\nBest known response: Because of gravity."),
        (
            {"response": True, "reference": True},
            f"{HEAD}\nResponse to it: Because.\nBest known response: Because of gravity.",
        ),
        ({"max_words": 4}, HEAD.replace("facts. ", "facts. Use at most 4 words. ")),
    ],
)
def test_slots_put_the_context_together(arguments: dict[str, Any], context: str) -> None:
    (pair,) = build_pairs("slots", SCORED, **arguments).pairs
    assert (pair.context, pair.input) == (context, None)
    assert (pair.chosen, pair.rejected, pair.margin) == ("Why does it fall?", "Hm?", pytest.approx(0.8))


def test_a_slot_that_a_group_cannot_fill_makes_no_pair() -> None:
    bare = [_c("Why does it fall?", 0.9), _c("Hm?", 0.1, index=1)]
    assert build_pairs("slots", bare, response=True).without_pair == {"no naive_response": 1}
    assert build_pairs("slots", bare, reference=True).without_pair == {"no reference": 1}
    nothing = [_c("a", 0.9, input="", example_id=""), _c("b", 0.1, input="", example_id="", index=1)]
    assert build_pairs("slots", nothing).without_pair == {"no input or draft": 1}
    assert build_pairs("slots", SCORED, max_words=3).without_pair == {"the best one is longer than max_words": 1}


def test_at_task_level_the_draft_is_the_naive_prompt() -> None:
    columns = {"draft": "Classify it."}
    task = [_c(text, reward, input="", example_id="", columns=columns) for text, reward in (("a", 1.0), ("b", 0.0))]
    (pair,) = build_pairs("slots", task).pairs
    assert pair.context is not None
    assert pair.context.endswith("\nPrompt: Classify it.")


PLAIN = [
    _c("plain one", 0.5, context="Rewrite: Why?"),
    _c("plain two", 0.5, index=1, context="Rewrite: Why?"),
]
DESIRED = [
    _c("polite one", 0.2, context="Rewrite politely: Why?"),
    _c("polite two", 0.9, index=1, context="Rewrite politely: Why?"),
]


def test_counterfactual_pairs_prefer_the_desired_text_after_the_plain_context() -> None:
    built = build_pairs("counterfactual", DESIRED, against=PLAIN, n=5)
    assert _texts(built) == [("polite one", "plain one"), ("polite two", "plain two")]
    assert {pair.context for pair in built.pairs} == {"Rewrite: Why?"}
    assert [pair.margin for pair in built.pairs] == pytest.approx([-0.3, 0.4])  # the style decides, not the reward
    assert _texts(build_pairs("counterfactual", DESIRED, against=PLAIN)) == [("polite one", "plain one")]


def test_counterfactual_pairs_can_be_turned_round_and_keep_the_input() -> None:
    built = build_pairs("counterfactual", DESIRED, against=PLAIN, reverse=True, keep_input=True)
    assert _texts(built) == [("plain one", "polite one")]
    assert (built.pairs[0].input, built.pairs[0].context) == ("Why?", None)


def test_counterfactual_groups_need_both_sides() -> None:
    other = _c("polite", example_id="train/1", context="x")
    same = [_c("plain one", context="x")]
    spoilt = [_c("broken", math.nan, context="x"), _c("failed", 1.0, index=1, failed=True, context="x")]
    assert build_pairs("counterfactual", [other], against=PLAIN).without_pair == {
        "nothing usable in one of the two sets": 2
    }
    assert build_pairs("counterfactual", same, against=PLAIN).ties == 1
    assert build_pairs("counterfactual", spoilt, against=PLAIN).pairs == ()
    unknown = [_c("plain one")]
    assert build_pairs("counterfactual", DESIRED, against=unknown).without_pair == {"no context of the plain one": 1}
    with pytest.raises(ConfigError, match="compares two sets of candidates; give the second one"):
        build_pairs("counterfactual", DESIRED)


LENGTHS = [
    _c("why does it fall down", index=0),
    _c("say why", index=1),
    _c("tell me why it falls and what makes it fall", index=2),
    _c("just why", index=3),
]


def test_opposite_directives_swap_the_same_two_texts() -> None:
    concise, detailed = build_pairs("directive", LENGTHS).pairs
    assert (concise.chosen, concise.rejected) == ("say why", "tell me why it falls and what makes it fall")
    assert (detailed.chosen, detailed.rejected) == (concise.rejected, concise.chosen)
    assert concise.context is not None
    assert "Be concise." in concise.context
    assert concise.context.endswith("\nQuestion: Why?")
    assert detailed.context == concise.context.replace("Be concise.", "Be detailed.")
    assert [pair.columns for pair in (concise, detailed)] == [{"directive": "concise"}, {"directive": "detailed"}]
    assert concise.id != detailed.id


def test_directives_may_be_others_and_the_template_too() -> None:
    texts = [_c("One.\n- a\n- b"), _c("one and two", index=1)]
    plain, structured = build_pairs(
        "directive", texts, directives="plain/structured", template="{input} ({directive}) {{}}"
    ).pairs
    assert (plain.chosen, plain.context) == ("one and two", "Why? (plain) {}")
    assert (structured.chosen, structured.context) == ("One.\n- a\n- b", "Why? (structured) {}")


def test_texts_that_follow_a_directive_equally_make_no_pair() -> None:
    assert build_pairs("directive", [LENGTHS[1], LENGTHS[3]]).ties == 1
    near = build_pairs("directive", LENGTHS[:2], least=4)
    assert near.without_pair == {"the texts differ by less than `least`": 1}
    assert len(build_pairs("directive", LENGTHS[:2], least=3).pairs) == 2
    lone = [LENGTHS[0], _c("gone", failed=True, index=1), _c("nan", scores={"judge": math.nan}, index=2)]
    assert build_pairs("directive", lone).without_pair == {"fewer than two usable candidates": 1}


def test_the_braces_of_a_user_stay_what_they_are() -> None:
    texts = [_c("a", input="Use {directive}."), _c("a b", index=1, input="Use {directive}.")]
    assert str(build_pairs("directive", texts).pairs[0].context).endswith("Question: Use {directive}.")


def test_a_constraint_that_the_response_meets_beats_its_opposite() -> None:
    response = "It falls. Gravity pulls it with 9.81 m/s2."  # 8 words, two sentences, digits, no list, no question
    built = build_pairs("constraint", [_c("Why?", 0.5, columns={"response": response})], words=8)
    assert _texts(built) == [
        ("Why?\nAnswer in at most 8 words.", "Why?\nAnswer in more than 8 words."),
        ("Why?\nAnswer in several sentences.", "Why?\nAnswer in one sentence."),
        ("Why?\nName at least one number, in digits.", "Why?\nWrite no digits."),
        ("Why?\nDo not write a list.", "Why?\nAnswer as a list with bullets or numbers."),
        ("Why?\nDo not end with a question.", "Why?\nEnd with a question."),
    ]
    assert {pair.context for pair in built.pairs} == {
        f"Write the prompt that the response below fulfils. Output the prompt only.\nResponse: {response}"
    }
    first = built.pairs[0]
    assert (first.columns["constraint"], first.columns["response"], first.chosen_scores) == ("words", response, {})
    (tight,) = build_pairs(
        "constraint", [_c("Why?", columns={"response": response})], words=7, constraints=["words"]
    ).pairs
    assert tight.chosen == "Why?\nAnswer in more than 7 words."


def test_a_candidate_without_a_response_or_with_a_failure_varies_nothing() -> None:
    candidates = [
        _c("a"),
        _c("b", columns={"response": " "}),
        _c("c", columns={"response": "x"}, failed=True),
        _c("d", math.nan, columns={"response": "x"}),
    ]
    built = build_pairs("constraint", candidates)
    assert (built.pairs, built.without_pair, built.num_unusable) == ((), {"no response": 1}, 4)


REVISED = [
    _c("first", 0.4),
    _c("better", 0.7, index=1, columns={"revises": "first", "critique": "Too short."}),
    _c("worse", 0.3, index=2, columns={"revises": "better", "critique": "Too long."}),
    _c("same", 0.4, index=3, columns={"revises": "first", "critique": "Other words."}),
    _c("lost", 0.9, index=4, columns={"revises": "never scored", "critique": "?"}),
    _c("broken", math.nan, index=5, columns={"revises": "first", "critique": "?"}),
]


def test_a_revision_that_scores_higher_is_preferred_to_what_it_revises() -> None:
    built = build_pairs("critique-revision", REVISED)
    assert _texts(built) == [("better", "first")]
    (pair,) = built.pairs
    assert (pair.input, pair.margin, pair.columns) == ("Why?", pytest.approx(0.3), {"critique": "Too short."})
    assert (built.num_candidates, built.num_unusable) == (6, 1)


def test_triples_become_rows_for_sft() -> None:
    built = build_pairs("critique-revision", REVISED, show_critique=True)
    assert sft_rows(built.pairs) == [
        {
            "context": "Revise the prompt below so that it meets the critique. Output the new prompt only.\n"
            "Prompt: first\nCritique: Too short.",
            "target": "better",
        }
    ]
    assert sft_rows(build_pairs("critique-revision", REVISED).pairs) == [{"input": "Why?", "target": "better"}]


def test_revisions_that_do_not_help_make_no_pair() -> None:
    assert build_pairs("critique-revision", [REVISED[0], REVISED[3]]).ties == 1
    assert build_pairs("critique-revision", REVISED[1:3]).without_pair == {"no revision scores higher": 1}
    assert build_pairs("critique-revision", [REVISED[0], REVISED[4]]).without_pair == {
        "no revision of a scored text": 1
    }


def test_gap_weights_of_swapped_pairs_are_the_same() -> None:
    candidates = [_c("a b c d", 0.75), _c("a", 0.25, index=1)]
    pairs = build_pairs("directive", candidates, weight_by="gap").pairs
    assert [(pair.margin, pair.weight) for pair in pairs] == [(-0.5, 1.0), (0.5, 1.0)]
    with pytest.raises(ConfigError, match="weight_by=gap: no pair has a gap in the reward"):
        build_pairs("directive", LENGTHS, weight_by="gap")


@pytest.mark.parametrize(
    ("builder", "arguments", "message"),
    [
        ("directive", {"directives": "short/long"}, "unknown couple of directives 'short/long'"),
        ("directive", {"template": "Be {directive}."}, "pair builder 'directive': the template has no slot {input}"),
        ("directive", {"template": "{directive} {inptu}"}, "unknown slot {inptu}; did you mean 'input'?"),
        ("directive", {"template": 3}, "template must be a text, got 3"),
        ("directive", {"least": 0}, "least must be an integer of at least 1, got 0"),
        ("constraint", {"constraints": ["word"]}, "unknown constraint 'word'; did you mean 'words'?"),
        ("constraint", {"constraints": "words"}, "constraints must be a list of names"),
        ("constraint", {"words": 0}, "words must be an integer of at least 1, got 0"),
        ("slots", {"response": "yes"}, "response must be true or false, got 'yes'"),
        ("critique-revision", {"template": "{prompt}"}, "the template has no slot {critique}; add it"),
    ],
)
def test_wrong_arguments_are_one_line(builder: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_pairs(builder, SCORED, **arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("builder", ["directive", "constraint", "critique-revision"])
def test_the_order_of_the_candidates_has_no_part_in_the_result(builder: str) -> None:
    candidates = [*LENGTHS, *SCORED, *REVISED]
    candidates = [
        _c(c.text, 0.1 * number, index=number, columns={**c.columns, "response": f"answer {number}"})
        for number, c in enumerate(candidates)
    ]
    expected = build_pairs(builder, candidates)
    assert expected.pairs
    assert build_pairs(builder, candidates[::-1]) == expected
