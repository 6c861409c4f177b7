"""Small random LMs in folders, with a tokenizer of the words w00 to w49 and EOS (id 50)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

EOS = 50


def _models() -> dict[str, Callable[[], Any]]:
    import transformers as t

    ids = {"pad_token_id": EOS, "bos_token_id": None, "eos_token_id": EOS}
    llama = {
        "vocab_size": 56,  # more rows than the tokenizer has tokens, as many LMs have
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 32,
        "initializer_range": 0.4,
        **ids,
    }
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    gpt2 = {"vocab_size": 51, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.4}
    t5 = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": EOS}
    bart = {
        **{f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in _BART.items()},
        "d_model": 16,
        "max_position_embeddings": 32,
        "decoder_start_token_id": EOS,
        "init_std": 0.4,
    }
    return {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(tie_word_embeddings=True, **llama)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**gpt2, **ids)),
        "gemma3": lambda: t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(**llama, sliding_window=3, layer_types=layers, final_logit_softcapping=2.0)
        ),
        "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(vocab_size=51, initializer_factor=2.0, **t5, **ids)),
        "bart": lambda: t.BartForConditionalGeneration(t.BartConfig(vocab_size=51, **bart, **ids)),
    }


_BART = {"layers": 2, "attention_heads": 4, "ffn_dim": 32}


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Makes the folder of a small random LM when it is asked for."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    made: dict[str, str] = {}

    def make(name: str) -> str:
        if name not in made:
            folder: Path = tmp_path_factory.mktemp(name)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = _models()[name]()
                if name == "bart":
                    model.final_logits_bias = torch.randn(1, 51)
            model.save_pretrained(folder)
            words = Tokenizer(WordLevel({f"w{number:02d}": number for number in range(EOS)} | {"<eos>": EOS}))
            words.pre_tokenizer = WhitespaceSplit()
            PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(folder)
            made[name] = str(folder)
        return made[name]

    return make
