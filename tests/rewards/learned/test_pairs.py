import pytest
from preference_pairs import count_of, planted_texts, ruled_pairs

from rlprompt.errors import ConfigError
from rlprompt.preference_pairs import PreferencePair
from rlprompt.rewards.learned.pairs import hold_out, what_is_read


def test_all_pairs_are_for_inputs_or_for_contexts() -> None:
    first = PreferencePair("7", "good", "bad", input="in")
    second = PreferencePair("b", "x", "", context="Rewrite: in")
    assert what_is_read([first]) == "input"
    with pytest.raises(ConfigError, match="some pairs have 'input' and others 'context'"):
        what_is_read([first, second])
    with pytest.raises(ConfigError, match="there are no pairs to learn from"):
        what_is_read([])


def test_no_context_is_on_both_sides_of_a_split() -> None:
    pairs = ruled_pairs(planted_texts, count_of("w03"), 150)  # 100 contexts, some with two pairs
    learnt, rest = hold_out(pairs, 0.25, seed=1)
    assert {pair.reading for pair in learnt} & {pair.reading for pair in rest} == set()
    assert len({pair.reading for pair in rest}) == 25
    assert sorted(pair.id for pair in learnt + rest) == sorted(pair.id for pair in pairs)
    assert hold_out(pairs, 0.25, seed=1) == (learnt, rest)
    assert hold_out(pairs, 0.25, seed=2)[1] != rest
    assert hold_out(pairs[::-1], 0.25, seed=1)[1] == rest[::-1]  # whatever the order of the file


def test_pairs_of_one_context_are_drawn_one_by_one() -> None:
    pairs = [PreferencePair(str(number), "a", "b", input="same") for number in range(10)]
    learnt, rest = hold_out(pairs, 0.2, seed=0)
    assert (len(learnt), len(rest)) == (8, 2)
    assert hold_out(pairs, 0.0, seed=0) == (pairs, [])
    with pytest.raises(ConfigError, match=r"held_out 0.2 of 1 contexts leaves none to learn from"):
        hold_out(pairs[:1], 0.2, seed=0)
    with pytest.raises(ConfigError, match=r"held_out must be in \[0, 1\), got 1"):
        hold_out(pairs, 1, seed=0)
