"""Meta-prompts: every registered one is sound, and slots are filled in one pass."""

import pytest

from rlprompt.cli.listing import list_kind
from rlprompt.meta_prompts import META_PROMPTS, SLOTS, MetaPrompt, load_meta_prompt

NASTY = "{input} {{draft}} «é» {0}"


@pytest.mark.parametrize("name", sorted(META_PROMPTS))
def test_a_registered_meta_prompt_has_its_slot_and_a_source(name):
    slots = MetaPrompt(META_PROMPTS[name].text).slots
    assert META_PROMPTS[name].source
    turns = 2 if "feedback" in slots else 1
    composed = True if "composed" in slots else None
    meta = load_meta_prompt(name, per_input="input" in slots, turns=turns, composed=composed)
    filled = meta.fill(dict.fromkeys(SLOTS, NASTY))
    assert filled.count(NASTY) == len(slots)


def test_prewrite_is_the_published_wording():
    text = load_meta_prompt("prewrite").fill({"draft": "Classify the review."})
    assert text == (
        "Rewrite the following instruction via rephrasing and/or adding specific requirements. Add instructions which "
        "would be helpful to solve the problem correctly. Output the new instruction only.\n"
        "Instruction: Classify the review."
    )


def test_an_empty_slot_takes_its_line_break_and_double_braces_are_braces():
    meta = MetaPrompt("{{x}} {draft}\n{feedback}")
    assert meta.fill({"draft": "a"}) == "{x} a"
    assert meta.fill({"draft": "a", "feedback": "b"}) == "{x} a\nb"


def test_they_are_listed_with_slots_and_sources(capsys):
    assert list_kind("meta-prompts") == 0
    lines = capsys.readouterr().out
    assert all(name in lines for name in META_PROMPTS)
    assert "arXiv:2401.08189" in lines
