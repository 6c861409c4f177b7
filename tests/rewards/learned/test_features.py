"""Each feature on texts whose value is counted by hand, and features of one's own."""

import math
from pathlib import Path

import numpy as np
import pytest

from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.registry import names
from rlprompt.rewards.learned.features import DEFAULT_FEATURES, compute_features, load_features

CONTEXT = "Anna paid 1,200 on May 3. Anna left."  # 8 words with 1 and 200 apart; numbers 1,200 and 3
TEXT = "Who paid 1,200?\nAnna. Anna paid it."  # words: who paid 1 200 anna anna paid it


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("length", math.log(9)),
        ("length-ratio", math.log(9 / 10)),
        ("sentences", 3.0),
        ("line-breaks", 1.0),
        ("overlap", 4 / 6),  # of who, paid, 1, 200, anna and it four are in the context
        ("coverage", 4 / 8),  # of anna, paid, 1, 200, on, may, 3 and left
        ("kept-numbers", 1 / 2),
        ("new-numbers", 0.0),
        ("type-token-ratio", 6 / 8),
        ("repeated-bigrams", 0.0),
        ("question-mark", 1.0),
        ("upper-case", 3 / 21),
    ],
)
def test_the_value_is_the_counted_one(name: str, expected: float) -> None:
    values = compute_features([name], load_features([name]), [CONTEXT], [TEXT])
    assert values.tolist() == [[pytest.approx(expected)]]


def test_empty_texts_have_values_too() -> None:
    values = compute_features(DEFAULT_FEATURES, load_features(DEFAULT_FEATURES), ["", CONTEXT], ["", ""])
    by_name = dict(zip(DEFAULT_FEATURES, values.T.tolist(), strict=True))
    assert by_name["kept-numbers"] == [1.0, 0.0]
    assert by_name["type-token-ratio"] == [1.0, 1.0]
    assert by_name["length-ratio"] == pytest.approx([0.0, -math.log(10)])


def test_repeated_pairs_of_words_and_new_numbers() -> None:
    texts = ["no no no no", "7 of 9, 7 of 9"]
    values = compute_features(
        ["repeated-bigrams", "new-numbers"], load_features(["repeated-bigrams", "new-numbers"]), ["9", "9"], texts
    )
    # Three pairs "no no"; and 7 of, of 9, 9 7, 7 of, of 9. The number 7 is new.
    assert values == pytest.approx(np.array([[2 / 3, 0.0], [2 / 5, 1.0]]))


def test_similarity_is_the_cosine_of_the_embeddings() -> None:
    texts = ["A wonderful film.", "The bank raised its rates."]
    values = compute_features(["similarity"], load_features(["similarity"]), ["A great movie."] * 2, texts)
    assert values[0, 0] > 0.6 > 0.3 > values[1, 0]


def test_every_registered_feature_is_documented_and_the_defaults_are_those_without_a_model() -> None:
    registered = set(names("features"))
    assert registered - set(DEFAULT_FEATURES) == {"similarity"}
    assert set(DEFAULT_FEATURES) < registered
    assert all(feature.__doc__ for feature in load_features(DEFAULT_FEATURES))


def test_a_feature_of_ones_own_needs_leave(tmp_path: Path) -> None:
    (tmp_path / "own_feature.py").write_text(
        "def shouts(*, contexts, texts):\n    return [text.count('!') for text in texts]\n"
        "def short(*, contexts, texts):\n    return [1.0]\n"
        "def broken(*, contexts, texts):\n    raise ValueError('two\\nlines')\n"
        "NUMBER = 3\n"
    )
    found = load_features(["own_feature:shouts"], search_path=tmp_path)
    assert compute_features(["own_feature:shouts"], found, ["", ""], ["a!", "b"]).tolist() == [[1.0], [0.0]]
    with pytest.raises(ConfigError, match="allow it with --allow-module own_feature"):
        load_features(["own_feature:shouts"])
    for name, message in (
        ("own_feature:short", "'own_feature:short' must return one finite number per text, 2 in all"),
        ("own_feature:broken", "'own_feature:broken' raised ValueError: two lines; mend it"),
    ):
        with pytest.raises(ConfigError, match=message):
            compute_features([name], load_features([name], search_path=tmp_path), ["", ""], ["a", "b"])
    with pytest.raises(ConfigError, match="'own_feature:NUMBER' is int; name a function or a class"):
        load_features(["own_feature:NUMBER"], search_path=tmp_path)


def test_wrong_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown feature 'lenght'; did you mean 'length'"):
        load_features(["lenght"])
    with pytest.raises(ConfigError, match="feature 'length' is named twice"):
        load_features(["length", "length"])
    with pytest.raises(ConfigError, match="needs at least one feature"):
        load_features([])
