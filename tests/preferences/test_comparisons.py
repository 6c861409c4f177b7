"""The queue of comparisons: the same every time, spread over the examples, and fair to both sides."""

from collections import Counter

import pytest

from rlprompt.errors import ConfigError
from rlprompt.preferences import Candidate, PreferencePair
from rlprompt.preferences.comparisons import Comparison, Shown, ShownGroup, draw_comparisons


def _group(example_id: str, texts: str, shown: str | None = None) -> ShownGroup:
    sides = [
        Shown(Candidate(text, example_id=example_id), text if shown is None else shown[place])
        for place, text in enumerate(texts)
    ]
    return ShownGroup(example_id, f"input {example_id}", tuple(sides))


def _texts(found: list[Comparison]) -> list[tuple[str, str, str]]:
    return [(entry.example_id, entry.a.candidate.text, entry.b.candidate.text) for entry in found]


def test_all_pairs_of_each_group_come_once_and_no_others() -> None:
    found = draw_comparisons([_group("x", "dcba"), _group("y", "ab"), _group("z", "a")], 100, what="prompts", seed=0)
    expected = {("x", a, b) for a in "abcd" for b in "abcd" if a < b} | {("y", "a", "b")}
    assert len(found) == len(expected) == len({entry.id for entry in found})
    assert set(_texts(found)) == expected


def test_a_short_queue_is_the_beginning_of_a_long_one_and_takes_the_examples_in_turns() -> None:
    groups = [_group(name, "abcdef") for name in "vwxyz"]
    long = draw_comparisons(groups, 60, what="prompts", seed=3)
    assert _texts(draw_comparisons(groups, 12, what="prompts", seed=3)) == _texts(long)[:12]
    assert _texts(draw_comparisons(groups, 60, what="prompts", seed=4)) != _texts(long)
    for first in range(0, 60, 5):
        assert {entry.example_id for entry in long[first : first + 5]} == set("vwxyz")


def test_of_a_large_group_single_pairs_are_drawn_without_repeats() -> None:
    names = [f"{number:03d}" for number in range(200)]  # 19,900 pairs
    sides = tuple(Shown(Candidate(name), name) for name in names)
    found = draw_comparisons([ShownGroup("", "", sides)], 3000, what="prompts", seed=1)
    assert len(set(_texts(found))) == 3000
    seen = Counter(text for _, a, b in _texts(found) for text in (a, b))
    assert len(seen) == 200
    assert max(seen.values()) < 60  # 30 on the average


def test_texts_that_look_the_same_are_not_compared() -> None:
    found = draw_comparisons([_group("x", "abc", shown="110")], 9, what="outputs", seed=0)
    assert sorted(_texts(found)) == [("x", "a", "c"), ("x", "b", "c")]


def test_only_the_pairs_of_a_builder_are_compared() -> None:
    allowed = [PreferencePair("1", "c", "a", input="", example_id="x"), PreferencePair("2", "a", "b", input="")]
    found = draw_comparisons([_group("x", "abc"), _group("y", "abc")], 9, what="prompts", seed=0, allowed=allowed)
    assert _texts(found) == [("x", "a", "c")]


def test_sides_are_drawn_evenly_and_apart_for_each_annotator() -> None:
    found = draw_comparisons([_group(str(number), "abcdefgh") for number in range(20)], 500, what="prompts", seed=0)
    left = {name: [entry.left(0, name) for entry in found] for name in ("ann", "bob")}
    for sides in left.values():
        assert 200 < sides.count("a") < 300  # 250 expected, standard deviation 11
    assert 200 < sum(one == other for one, other in zip(*left.values(), strict=True)) < 300
    assert left["ann"] == [entry.left(0, "ann") for entry in found]


def test_the_id_follows_from_what_is_compared() -> None:
    (one,) = draw_comparisons([_group("x", "ab")], 1, what="prompts", seed=0)
    (turned,) = draw_comparisons([_group("x", "ba")], 1, what="prompts", seed=9)
    (outputs,) = draw_comparisons([_group("x", "ab", shown="12")], 1, what="outputs", seed=0)
    assert one.id == turned.id != outputs.id
    with pytest.raises(ConfigError, match="--pairs must be at least 1, got 0"):
        draw_comparisons([], 0, what="prompts", seed=0)
