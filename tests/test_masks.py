import time

import numpy as np
import pytest

from rlprompt.config import MaskConfig
from rlprompt.errors import ConfigError
from rlprompt.masks import context_ids, decode, static_mask, step_mask
from rlprompt.models import load_tokenizer

PLAIN = MaskConfig()


class ListTokenizer:
    """A tokenizer made of a list of token texts; the last one is EOS."""

    def __init__(self, texts, pieces=None, special=()):
        self.texts = [*texts, "</s>"]
        self.pieces = [*(pieces or texts), "</s>"]
        self.eos_token_id = len(texts)
        self.bos_token_id = None
        self.all_special_ids = [*special, self.eos_token_id]

    def __len__(self):
        return len(self.texts)

    def convert_ids_to_tokens(self, ids):
        return [self.pieces[token] for token in ids]

    def decode(self, ids, **kwargs):
        return "".join(self.texts[token] for token in ids)

    def batch_decode(self, rows, **kwargs):
        return [self.decode(row) for row in rows]

    def encode(self, text, add_special_tokens=True):
        return [token for token, known in enumerate(self.texts) if known == text]


def allowed_texts(tokenizer, config=PLAIN, eos=False):
    mask = static_mask(tokenizer, config, eos=eos)
    return [tokenizer.texts[token] for token in np.flatnonzero(mask)]


def test_static_mask_leaves_out_special_empty_undecodable_and_control_tokens():
    texts = [
        "a",
        " b",
        "",
        "\ufffd",
        "x\ufffd",
        "\n",
        "a\tb",
        "\x00",
        "\u200b",
        "\u202e",
        "\u2028",
        "é",
        "<s>",
        " ",
    ]
    tokenizer = ListTokenizer(texts, special=[12])
    assert allowed_texts(tokenizer) == ["a", " b", "é", " "]


def test_static_mask_has_eos_only_when_asked():
    tokenizer = ListTokenizer(["a"])
    assert allowed_texts(tokenizer, eos=True) == ["a", "</s>"]
    assert allowed_texts(tokenizer, eos=False) == ["a"]


def test_readable_ascii_needs_visible_ascii():
    tokenizer = ListTokenizer(["a", "é", "  ", " it's"])
    assert allowed_texts(tokenizer, MaskConfig(readable_ascii=True)) == ["a", " it's"]


def test_word_start_follows_the_leading_space_of_byte_level_vocabularies():
    tokenizer = ListTokenizer(["ing", " the", "  ", "."])
    assert allowed_texts(tokenizer, MaskConfig(word_start=True)) == [" the"]


def test_word_start_follows_the_marker_of_sentencepiece_vocabularies():
    tokenizer = ListTokenizer(["ing", "the"], pieces=["ing", "▁the"])
    assert allowed_texts(tokenizer, MaskConfig(word_start=True)) == ["the"]


def test_word_start_leaves_out_continuations_of_wordpiece_vocabularies():
    tokenizer = ListTokenizer(["##ing", "the"])
    assert allowed_texts(tokenizer, MaskConfig(word_start=True)) == ["the"]


def test_candidates_allow_both_forms_of_a_text_and_nothing_else(tmp_path):
    tokenizer = ListTokenizer(["great", " great", "bad", " bad", "other"])
    assert allowed_texts(tokenizer, MaskConfig(candidates=["great"])) == ["great", " great"]
    file = tmp_path / "words.txt"
    file.write_text("great\n\nbad\n", encoding="utf-8")
    assert allowed_texts(tokenizer, MaskConfig(candidates=str(file))) == ["great", " great", "bad", " bad"]


def test_a_candidate_that_begins_with_a_space_does_not_allow_a_space_alone():
    tokenizer = load_tokenizer("smollm2-135m-instruct")
    allowed = np.flatnonzero(static_mask(tokenizer, MaskConfig(candidates=[" great"]), eos=False))
    assert [tokenizer.decode([token]) for token in allowed] == [" great"]


def test_missing_candidates_file_and_empty_masks_are_configuration_errors(tmp_path):
    tokenizer = ListTokenizer(["a", "b"])
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.txt"):
        static_mask(tokenizer, MaskConfig(candidates=str(tmp_path / "absent.txt")), eos=False)
    with pytest.raises(ConfigError, match="allows no token"):
        static_mask(tokenizer, MaskConfig(candidates=["z"]), eos=True)


def test_wanting_eos_from_a_tokenizer_without_one_is_a_configuration_error():
    tokenizer = ListTokenizer(["a"])
    tokenizer.eos_token_id = None
    with pytest.raises(ConfigError, match=r"no EOS token; set env\.eos=false"):
        static_mask(tokenizer, PLAIN, eos=True)


def test_step_mask_without_options_repeats_the_static_mask():
    static = np.array([True, False, True])
    mask = step_mask(static, np.array([[0], [2]]), eos_id=None, no_repeat=False)
    assert mask.tolist() == [[True, False, True], [True, False, True]]


def test_step_mask_accepts_prompts_without_any_token():
    mask = step_mask(np.array([True, True, True]), np.zeros((2, 0), dtype=np.int64), eos_id=2, no_repeat=True)
    assert mask.tolist() == [[True, True, False]] * 2  # EOS may not come first


def test_step_mask_forbids_repeats_per_row_and_ignores_what_is_not_written():
    mask = step_mask(np.ones(4, dtype=bool), np.array([[1, 2], [3, -1]]), eos_id=None, no_repeat=True)
    assert mask.tolist() == [[True, False, False, True], [True, True, True, False]]


def test_step_mask_lets_an_ended_row_write_eos_only():
    static = np.array([True, True, True])
    mask = step_mask(static, np.array([[0, 2], [0, 1], [-1, -1]]), eos_id=2, no_repeat=True)
    assert mask.tolist() == [[False, False, True], [False, False, True], [True, True, False]]


def test_step_mask_does_not_change_the_static_mask():
    static = np.ones(3, dtype=bool)
    step_mask(static, np.array([[0]]), eos_id=2, no_repeat=True)
    assert static.all()


def test_decode_ends_before_eos_ignores_padding_and_drops_one_leading_space():
    tokenizer = ListTokenizer([" It", " was", "  two"])
    assert decode(tokenizer, [0, 1, -1]) == "It was"
    assert decode(tokenizer, np.array([0, 3, 1])) == "It"
    assert decode(tokenizer, [2]) == " two"
    assert decode(tokenizer, [3, 0]) == ""
    assert decode(tokenizer, []) == ""


def test_the_context_is_read_as_written_and_an_empty_one_is_bos_else_eos():
    tokenizer = ListTokenizer(["a", "b"])
    assert context_ids(tokenizer, "b") == [1]
    assert context_ids(tokenizer, "") == [2]  # EOS: the tokenizer has no BOS
    tokenizer.bos_token_id = 0
    assert context_ids(tokenizer, "") == [0]
    assert context_ids(tokenizer, "spells nothing") == [0]
    tokenizer.bos_token_id = tokenizer.eos_token_id = None
    with pytest.raises(ConfigError, match="neither BOS nor EOS"):
        context_ids(tokenizer, "")


def test_the_planted_vocabulary_allows_its_words_and_eos_when_asked():
    tokenizer = load_tokenizer("planted-50")
    assert static_mask(tokenizer, PLAIN, eos=False).tolist() == [True] * 50 + [False]
    assert static_mask(tokenizer, PLAIN, eos=True).all()
    assert static_mask(tokenizer, MaskConfig(word_start=True, readable_ascii=True), eos=False).sum() == 50
    assert np.flatnonzero(static_mask(tokenizer, MaskConfig(candidates=["w03 w07"]), eos=False)).tolist() == [3, 7]
    assert decode(tokenizer, [3, 7, 50, 1]) == "w03 w07"


def test_the_mask_of_a_real_vocabulary_is_fast_cached_and_decodable():
    tokenizer = load_tokenizer("smollm2-135m-instruct")
    started = time.perf_counter()
    mask = static_mask(tokenizer, MaskConfig(readable_ascii=True, word_start=True), eos=False)
    assert time.perf_counter() - started < 5.0  # 2 s on an idle machine
    assert mask.shape == (len(tokenizer),) == (49152,)
    started = time.perf_counter()
    assert static_mask(tokenizer, MaskConfig(readable_ascii=True, word_start=True), eos=False) is mask
    assert time.perf_counter() - started < 0.05
    for text in (" great", " terrible"):
        (token,) = tokenizer.encode(text, add_special_tokens=False)
        assert mask[token]
    plain = static_mask(tokenizer, PLAIN, eos=True)
    assert plain[tokenizer.eos_token_id]
    for token in np.random.default_rng(0).choice(np.flatnonzero(plain), 300, replace=False).tolist():
        if token == tokenizer.eos_token_id:
            continue
        text = decode(tokenizer, [token, token])
        assert "\ufffd" not in text
        assert not any(ord(character) < 32 for character in text)
        assert not text.startswith("<|")
    assert not any(static_mask(tokenizer, PLAIN, eos=False)[list(tokenizer.all_special_ids)])


def test_the_cached_mask_cannot_be_written_to():
    mask = static_mask(load_tokenizer("planted-50"), PLAIN, eos=False)
    with pytest.raises(ValueError, match="read-only"):
        mask[0] = False


def test_what_other_agents_wrote_before_counts_for_no_repeat_only():
    static, own, before = np.ones(5, dtype=bool), np.array([[1]]), np.array([[2, 4, -1]])
    mask = step_mask(static, own, eos_id=4, no_repeat=True, before=before)
    assert np.flatnonzero(mask[0]).tolist() == [0, 3, 4]  # an EOS before does not end this one
    assert step_mask(static, own, eos_id=4, no_repeat=False, before=before).all()
