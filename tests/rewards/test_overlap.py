import math

import pytest

from rlprompt.errors import ConfigError
from rlprompt.rewards.overlap import Bleu, Chrf, LengthDifference, Rouge
from rlprompt.types import Failure, TargetOutput

GOLD = "the cat sat on the mat"


def score(reward: Rouge | Bleu | Chrf | LengthDifference, text: str | None, gold: object) -> float | None:
    return reward(outputs=[TargetOutput(text=text)], references=[gold])[0]


@pytest.mark.parametrize(
    ("variant", "aggregate", "expected"),
    [
        # text: the mat sat (3 words), gold: 6 words. unigrams in common: the, mat, sat = 3
        ("rouge1", "p", 3 / 3),
        ("rouge1", "r", 3 / 6),
        ("rouge1", "f", 2 * 1 * 0.5 / 1.5),
        # bigrams: "the mat" of (the mat, mat sat) is in the gold text's 5
        ("rouge2", "p", 1 / 2),
        ("rouge2", "r", 1 / 5),
        ("rouge2", "f", 2 * 0.5 * 0.2 / 0.7),
        # longest common subsequence: "the mat" or "the sat", 2 words
        ("rougeL", "p", 2 / 3),
        ("rougeL", "r", 2 / 6),
        ("rougeL", "f", 2 * (2 / 3) * (1 / 3) / 1),
        ("rougeLsum", "r", 2 / 6),
        ("mean", "r", (3 / 6 + 1 / 5 + 2 / 6) / 3),
    ],
)
def test_rouge_counts_words_pairs_and_the_longest_common_subsequence(
    variant: str, aggregate: str, expected: float
) -> None:
    assert score(Rouge(variant, aggregate, stem=False), "the mat sat", GOLD) == pytest.approx(expected)


def test_rouge_lsum_takes_the_union_over_lines() -> None:
    # gold lines "a b", "c d"; text lines "c d", "a b": by line both are found whole, as one sequence only 2 of 4 are
    assert score(Rouge("rougeLsum", stem=False), "cc dd\naa bb", "aa bb\ncc dd") == pytest.approx(1.0)
    assert score(Rouge("rougeL", stem=False), "cc dd\naa bb", "aa bb\ncc dd") == pytest.approx(0.5)


def test_rouge_compares_stems_unless_told_otherwise() -> None:
    assert score(Rouge("rouge1"), "cats running", "cat runs") == pytest.approx(1.0)
    assert score(Rouge("rouge1", stem=False), "cats running", "cat runs") == 0.0


def test_rouge_of_other_scripts_and_of_no_text_is_zero() -> None:
    assert score(Rouge(), "Привет", "Привет") == 0.0
    assert score(Rouge(), "", GOLD) == 0.0


def test_bleu_is_the_geometric_mean_of_precisions_times_the_brevity_penalty() -> None:
    # text "the cat sat on mat": 5 words; 1-grams 5/5, 2-grams 3/4, 3-grams 2/3, 4-grams 1/2; penalty exp(1 - 6/5)
    expected = math.exp(1 - 6 / 5) * (1 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert score(Bleu(), "the cat sat on mat", GOLD) == pytest.approx(expected)


def test_bleu_of_a_short_text_counts_the_orders_that_it_has() -> None:
    # two words: orders 1 and 2, both 1; no penalty as the reference has two words as well
    assert score(Bleu(), "hello there", "hello there") == pytest.approx(1.0)
    assert score(Bleu(lowercase=True), "HELLO there", "hello there") == pytest.approx(1.0)
    assert score(Bleu(), "", GOLD) == 0.0


def test_bleu_takes_all_references_together() -> None:
    # all n-grams of "a b c d" are in one or the other: "a b", "b c" in the first, "c d" in the second
    both = score(Bleu(tokenize="none"), "a b c d", ["a b c x", "y b c d"])
    alone = [score(Bleu(tokenize="none"), "a b c d", gold) for gold in ("a b c x", "y b c d")]
    assert both is not None
    assert all(value is not None and value < both for value in alone)
    # 1-grams 4/4, 2-grams 3/3, 3-grams 2/2; the one 4-gram is in neither: smoothed to 1/2 of 1
    assert both == pytest.approx(0.5**0.25)


def test_chrf_is_the_f2_of_mean_character_n_gram_precision_and_recall() -> None:
    # "ab" against "abc", orders 1 and 2: precision 2/2 and 1/1, recall 2/3 and 1/2
    precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
    expected = 5 * precision * recall / (4 * precision + recall)
    assert score(Chrf(char_order=2), "ab", "abc") == pytest.approx(expected, abs=1e-6)
    assert score(Chrf(), "Привет", "Привет") == pytest.approx(1.0)


def test_length_difference_is_negative_and_zero_for_equal_lengths() -> None:
    assert score(LengthDifference(), "one two", "a b c d") == -2.0
    assert score(LengthDifference(), "one two three", "a") == -2.0
    assert score(LengthDifference(unit="characters"), "abc", "abcde") == -2.0
    assert score(LengthDifference(), "one two", ["a", "b c"]) == 0.0


@pytest.mark.parametrize("reward", [Rouge(), Rouge("mean"), Bleu(), Chrf(), LengthDifference()])
def test_equal_texts_have_the_highest_value_and_missing_ones_are_left_out(reward: Rouge) -> None:
    highest = 0.0 if isinstance(reward, LengthDifference) else 1.0
    assert score(reward, GOLD, GOLD) == pytest.approx(highest)
    assert score(reward, GOLD, GOLD) <= highest  # type: ignore[operator]
    assert score(reward, GOLD, ["x", GOLD]) == pytest.approx(highest)
    assert score(reward, None, GOLD) is None
    assert score(reward, GOLD, None) is None
    failed = TargetOutput(text=GOLD, failure=Failure("target", "timeout", "too slow"))
    assert reward(outputs=[failed], references=[GOLD]) == [None]
    assert reward.needs == "text"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Rouge("rouge3"), "variant must be one of rouge1, rouge2, rougeL, rougeLsum, mean; got 'rouge3'"),
        (lambda: Rouge(aggregate="x"), "aggregate must be f, p or r, got 'x'"),
        (lambda: Bleu("words"), "tokenize must be one of"),
        (lambda: Chrf(word_order=-1), "word_order must be an integer of at least 0, got -1"),
        (lambda: Chrf(char_order=0), "char_order must be an integer of at least 1"),
        (lambda: LengthDifference("tokens"), "unit must be words or characters"),
    ],
)
def test_arguments_out_of_range_are_refused(make: object, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()  # type: ignore[operator]
