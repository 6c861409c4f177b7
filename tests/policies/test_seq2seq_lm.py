"""Encoder-decoder policies: what the encoder reads."""

from collections.abc import Callable

import pytest
import torch

from rlprompt.config import PolicyConfig
from rlprompt.errors import ConfigError
from rlprompt.policies import build_policy
from rlprompt.policies.seq2seq_lm import Seq2SeqLMPolicy

TinyLM = Callable[[str], str]


def build(model: str, length: int = 4) -> Seq2SeqLMPolicy:
    config = PolicyConfig(kind="seq2seq-lm", model=model, dtype="float32")
    policy = build_policy(config, prompt_length=length, seed=0)
    assert isinstance(policy, Seq2SeqLMPolicy)
    return policy


def test_the_encoder_reads_the_context_with_the_tokenizers_special_tokens(tiny_lm: TinyLM) -> None:
    policy = build(tiny_lm("t5"))
    policy._surrounding = ((), (50,))  # as T5's tokenizer has it
    assert policy.context_rows(torch.tensor([[3, 1, -1], [3, 1, 50], [-1, -1, -1]])) == [(3, 1, 50), (3, 1, 50), (50,)]


def test_special_tokens_are_found_where_the_tokenizer_puts_them(tiny_lm: TinyLM) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    from rlprompt.policies.language_model import _surrounding

    tokenizer = AutoTokenizer.from_pretrained(tiny_lm("t5"))
    assert _surrounding(tokenizer, behind=True) == ((), ())
    template = TemplateProcessing(single="w07 $A <eos>", special_tokens=[("w07", 7), ("<eos>", 50)])
    tokenizer.backend_tokenizer.post_processor = template
    assert _surrounding(tokenizer, behind=True) == ((), (7, 50))  # 7 is no BOS: nothing says that it comes first
    tokenizer.bos_token = "w07"
    assert _surrounding(tokenizer, behind=True) == ((7,), (50,))
    assert _surrounding(tokenizer, behind=False) == ((7,), ())


def test_relative_positions_have_no_end_and_learned_ones_do(tiny_lm: TinyLM) -> None:
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert build(tiny_lm("t5")).evaluate(torch.ones(1, 40, dtype=torch.long), tokens)[0].isfinite().all()
    policy = build(tiny_lm("bart"))
    assert policy.evaluate(torch.ones(1, 32, dtype=torch.long), tokens)[0].isfinite().all()
    with pytest.raises(ConfigError, match="at most 32 tokens each, but the context has 33; shorten it"):
        policy.writer(torch.ones(1, 33, dtype=torch.long))
    with pytest.raises(ConfigError, match="but the prompt has 33"):
        build(tiny_lm("bart"), length=33).writer(torch.ones(1, 3, dtype=torch.long))
