import pytest

from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.tasks.extractors import (
    STOP_WORDS,
    check_extractor,
    extract_hint,
    extractor_names,
    hint_keywords,
    keywords,
    shared_words,
    textrank,
)
from rlprompt.types import Example

DOCUMENT = (
    "Sam Sodje denied the charges at the Old Bailey. Sam Sodje, 37, ran a charity. The charity raised money in 2014."
)
SUMMARY = "Footballer Sam Sodje has denied charity fraud at the Old Bailey in 2014, as the money went."


def test_phrases_of_the_reference_that_the_document_has_come_in_the_order_of_the_reference() -> None:
    # "Footballer", "fraud" and "went" are not in the document; "denied charity" is there as two words, not one phrase
    assert keywords(DOCUMENT, SUMMARY, n=9) == ("Sam Sodje", "denied", "charity", "Old Bailey", "2014", "money")


def test_the_best_are_longer_then_names_then_frequent_then_early() -> None:
    # two words: Sam Sodje, Old Bailey; names and numbers: 2014; frequency: charity 2, money 1, denied 1 (first)
    expected = ["Sam Sodje", "Old Bailey", "2014", "charity", "denied", "money"]
    order = ["Sam Sodje", "denied", "charity", "Old Bailey", "2014", "money"]
    for n in range(1, 7):
        assert keywords(DOCUMENT, SUMMARY, n=n) == tuple(part for part in order if part in expected[:n])


def test_a_phrase_does_not_cross_marks_or_stop_words() -> None:
    assert keywords("red car, blue bus", "red car blue bus") == ("red car", "blue bus")
    assert keywords("red of car", "red car") == ("red", "car")
    assert keywords("big red car stops", "big red car stops", phrase_words=2) == ("big red", "car stops")


def test_words_are_compared_without_case_and_possessive() -> None:
    assert keywords("LONDON\N{RIGHT SINGLE QUOTATION MARK}s mayor", "The Mayor of London's north") == (
        "Mayor",
        "London",
    )


def test_numbers_and_other_scripts_are_words() -> None:
    assert keywords("It cost 1,000.50 euros.", "1,000.50 euros were paid") == ("1,000.50 euros",)
    assert keywords("Das Schloß in Köln", "Köln hat ein Schloß") == ("Köln", "Schloß")


def test_texts_that_share_nothing_have_no_hint() -> None:
    for extractor in (keywords, shared_words, textrank):
        assert extractor("", "a summary") == ()
        assert extractor("the and of", "the and of") == ()
        assert extractor("words here", "") == ()


def test_shared_words_are_single() -> None:
    # names and numbers first: Sam 2, Sodje 2, Old 1, Bailey 1, 2014 1; then charity 2
    assert shared_words(DOCUMENT, SUMMARY, n=4) == ("Sam", "Sodje", "Old", "Bailey")
    assert shared_words(DOCUMENT, SUMMARY, n=6) == ("Sam", "Sodje", "charity", "Old", "Bailey", "2014")


def test_textrank_prefers_the_word_with_most_neighbours() -> None:
    # window 2: b is beside a, c and d, each of which is beside b only: b has the highest rank
    assert textrank("aa bb cc. bb dd", "dd cc bb aa", n=1, window=2) == ("bb",)
    # aa, cc and dd are equal: the reference decides
    assert textrank("aa bb cc. bb dd", "dd cc bb aa", n=2, window=2) == ("dd", "bb")


def test_textrank_converges_to_the_ranks_of_the_paper() -> None:
    from rlprompt.tasks.extractors import _ranks

    # words a b, c b, d b: star with centre b. r_b = 0.15 + 0.85 * 3 r, r = 0.15 + 0.85 * r_b / 3
    # r_b = (0.15 + 2.55 * 0.15) / (1 - 0.7225) = 0.5325 / 0.2775, r = 0.15 + 0.85 / 3 * r_b
    ranks = _ranks(["a", "b", "c", "b", "d"], 2)
    centre = 0.5325 / 0.2775
    assert ranks["b"] == pytest.approx(centre, abs=1e-3)
    assert ranks["a"] == ranks["c"] == pytest.approx(0.15 + 0.85 / 3 * centre, abs=1e-3)


def test_what_a_hint_can_hit_has_no_stop_words_and_nothing_twice() -> None:
    assert hint_keywords("A man, a plan and THE Plan: Panama's canal.") == ("man", "plan", "panama", "canal")
    assert not set(hint_keywords(SUMMARY)) & STOP_WORDS


def test_a_hint_is_written_with_semicolons() -> None:
    example = Example("train/0", DOCUMENT, SUMMARY)
    hint = extract_hint("keywords", example, n=3)
    assert hint == "Sam Sodje; Old Bailey; 2014"
    assert extract_hint("keywords", Example("train/1", "", SUMMARY)) == ""


def test_a_hint_is_the_same_every_time() -> None:
    example = Example("train/0", DOCUMENT, SUMMARY)
    for name in extractor_names():
        assert len({extract_hint(name, example) for _ in range(3)}) == 1


def test_extractors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown extractor 'keyword'; did you mean 'keywords'"):
        check_extractor("keyword")
    with pytest.raises(ConfigError, match="extractor 'textrank' has no argument 'windows'; did you mean 'window'"):
        check_extractor("textrank", {"windows": 3})
    with pytest.raises(ConfigError, match="n must be an integer of at least 1"):
        keywords("a", "b", n=0)
    with pytest.raises(ConfigError, match="window must be an integer of at least 2"):
        textrank("a", "b", window=1)
    with pytest.raises(ConfigError, match="train/3 has no text as reference, got 1"):
        extract_hint("keywords", Example("train/3", "x", 1))
