"""What is computed, what is kept, and that a row's numbers do not depend on its neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rlprompt.models import load_frozen
from rlprompt.seeding import generator
from rlprompt.targets.prefix import CausalScorer, Row
from rlprompt.targets.prefix_store import PrefixStore, TokenTrie, layers_bytes

VOCABULARY = 60
"""planted-60: ids 0 to 60."""


def _scorer(**options: Any) -> CausalScorer:
    settings: dict[str, Any] = {"kv_cache_bytes": 2**30, "batch_tokens": 512, "max_length": 512, **options}
    return CausalScorer(load_frozen("planted-60", dtype="float32", device="cpu"), **settings)


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
        )
        return LlamaForCausalLM(config).eval().requires_grad_(False)


def _row(tokens: tuple[int, ...], split: int) -> Row:
    return Row(tokens, (split,) if split else (), ((3,), (5,)), full=False)


def _tokens(stream: str, length: int, key: int = 0) -> tuple[int, ...]:
    return tuple(int(token) for token in generator(0, stream, key).integers(0, VOCABULARY, size=length))


def _layers(tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One layer of 2 heads of dimension 4: 2 * 2 * 4 * 4 = 64 bytes a token."""
    return [(torch.zeros(2, tokens, 4), torch.zeros(2, tokens, 4))]


class TestPrefixStore:
    def test_the_least_recently_used_prefix_is_dropped(self) -> None:
        store = PrefixStore(200)  # three tokens of 64 bytes
        for key in ((1,), (2,), (3,)):
            store.put(key, _layers(1))
        assert store.get((1,)) is not None  # 2 is now the oldest
        store.put((4,), _layers(1))
        assert store.get((2,)) is None
        assert store.get((1,)) is not None
        assert (len(store), store.used_bytes) == (3, 192)

    def test_a_long_prefix_drops_several_short_ones(self) -> None:
        store = PrefixStore(200)
        for key in ((1,), (2,), (3,)):
            store.put(key, _layers(1))
        store.put((4, 5), _layers(2))  # 128 bytes: only one of 64 can stay
        assert (len(store), store.used_bytes) == (2, 192)

    def test_what_is_larger_than_the_store_is_not_kept(self) -> None:
        store = PrefixStore(100)
        store.put((1, 2), _layers(2))
        assert (len(store), store.used_bytes) == (0, 0)

    def test_bytes_of_keys_and_values(self) -> None:
        assert layers_bytes(_layers(3)) == 3 * 64


class TestTokenTrie:
    def test_shared_prefixes_count_once(self) -> None:
        trie = TokenTrie()
        trie.add([(1, 2, 3), (1, 2, 4), (1, 2)])  # nodes 1, 12, 123, 124
        assert len(trie) == 4
        trie.add([(2, 2, 3)])  # 2, 22, 223: the same tokens at other places
        assert len(trie) == 7

    def test_rows_asked_again_count_nothing(self) -> None:
        trie = TokenTrie()
        rows = [_tokens("row", 9, key) for key in range(20)]
        for _ in range(5):
            trie.add(rows)
        assert len(trie) == len({row[:end] for row in rows for end in range(1, 10)})


class TestWhatIsComputed:
    def test_a_prefix_is_computed_once_and_a_suffix_for_each_row(self) -> None:
        scorer = _scorer()
        prefixes = [_tokens("prefix", 8, key) for key in range(4)]
        suffixes = [_tokens("suffix", 3, key) for key in range(5)]
        rows = [_row(prefix + suffix, 8) for suffix in suffixes for prefix in prefixes]
        scorer.score(rows)
        # 4 prefixes of 8 tokens (no padding) and 4 * 5 suffixes of 3 tokens; a perfect cache shares no more.
        assert scorer.tokens_computed == 4 * 8 + 20 * 3
        assert len(scorer.trie) == 4 * 8 + 20 * 3
        assert (scorer.prefix_misses, scorer.prefix_hits) == (4, 0)
        scorer.score([_row(prefix + _tokens("suffix", 3, 9), 8) for prefix in prefixes])
        assert scorer.tokens_computed == 4 * 8 + 24 * 3
        assert (scorer.prefix_misses, scorer.prefix_hits) == (4, 4)

    def test_padding_and_filling_are_counted(self) -> None:
        scorer = _scorer()
        scorer.score([_row(_tokens("row", 11), 9)])
        # One prefix of 9 tokens, padded to 16, and its suffix of 2, both in batches of 4 rows.
        assert scorer.tokens_computed == 4 * 16 + 4 * 2
        assert len(scorer.trie) == 11

    def test_the_text_of_several_answers_is_computed_once(self) -> None:
        scorer = _scorer()
        text = _tokens("text", 12)
        answers = [_tokens("answer", 2, key) for key in range(4)]
        rows = [Row(text + answer[:-1], (8, 11), (answer,), full=True) for answer in answers]
        scorer.score(rows)
        # Prefix 8 and text 3, in 4 rows each (3 of them fill); then the last token and each answer's first: 4 * 2.
        assert scorer.tokens_computed == 4 * 8 + 4 * 3 + 4 * 2

    def test_small_memory_makes_more_waves_and_the_same_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = [_row(_tokens("a", 20, key % 9) + _tokens("b", 4, key), 20) for key in range(60)]
        expected = _scorer().score(rows)
        monkeypatch.setattr("rlprompt.targets.prefix._WAVE_BYTES", 1)
        scorer = _scorer(kv_cache_bytes=0)
        assert len(list(scorer._waves(rows))) == 9
        assert np.array_equal(scorer.score(rows), expected)
        assert scorer.prefix_misses == 9
        assert len(scorer.store) == 0


class TestIndependence:
    """Equal to the last bit, whatever else is in the call."""

    @pytest.mark.parametrize("threads", [1, 2])
    def test_a_row_among_others(self, threads: int) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            model = _llama()
            rows = [_row(_tokens("p", 13, key % 7) + _tokens("s", 5, key), 13) for key in range(200)]
            rows += [Row(row.tokens, (13, 17), ((4,),), full=True) for row in rows[:9]]
            alone = [CausalScorer(model, kv_cache_bytes=2**30, batch_tokens=128).score([row])[0] for row in rows[:2]]
            for count in (2, 3, 4, 6, 31, len(rows)):
                scorer = CausalScorer(model, kv_cache_bytes=2**30, batch_tokens=128)
                crowd = scorer.score(rows[:count][::-1])
                assert np.array_equal(crowd[-2:], alone[::-1])
        finally:
            torch.set_num_threads(before)

    def test_prefixes_of_other_lengths_nearby(self) -> None:
        rows = [_row(_tokens("p", length, length) + _tokens("s", 4), length) for length in range(1, 70)]
        together = _scorer().score(rows)
        scorer = _scorer()
        for row, expected in zip(rows, together, strict=True):
            assert np.array_equal(scorer.score([row])[0], expected)

    @pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 16, 17, 40])
    @pytest.mark.parametrize("suffix", [1, 3, 8, 9, 14])
    def test_cut_or_whole_the_numbers_agree(self, length: int, suffix: int) -> None:
        tokens = _tokens("whole", length + suffix)
        scorer = CausalScorer(_llama(), kv_cache_bytes=2**30, batch_tokens=512)
        cut = scorer.score([_row(tokens, length)])[0]
        whole = scorer.score([_row(tokens, 0)])[0]
        with torch.inference_mode():
            plain = _llama()(torch.tensor([tokens])).logits[0, -1, [3, 5]].double().numpy()
        assert cut == pytest.approx(plain, abs=1e-5)
        assert whole == pytest.approx(plain, abs=1e-5)
