"""Small random models of many kinds, and the straightforward computation: one text at a time, no padding, no cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from rlprompt.targets.transformers import TransformersTarget
from rlprompt.types import Rendered, TargetRequest

INPUTS = (
    "He said \"fine\", she said 'no'.",
    "Ünïcödé 日本語 🎬 text",
    "",
    "a",
    "tab\tand\nnew line and  two spaces ",
    "It was long and dull, and then it went on for a good while before it came to any end at all.",
)
PROMPTS = ("It was", "In one word, it was", "", "verdict:")
SINGLE = (" great", " bad")
MULTI = (" great", " really bad", " not good at all")
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CHAT = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save_tokenizer(folder: Path, *, mask: bool = False, template: str | None = None) -> Any:
    """A byte-level BPE tokenizer in which the words of `SINGLE` are one token each."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<pad>", "<s>", "</s>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["It was great bad really good not in one word and then it was"] * 9, trainer)
    if mask:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", mask_token="<mask>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def causal_models() -> dict[str, Callable[[int], Any]]:
    t = transformers
    small = {**SIZE, "initializer_range": 0.2, "max_position_embeddings": 256, "pad_token_id": 0}
    return {
        "llama": lambda v: t.LlamaForCausalLM(t.LlamaConfig(vocab_size=v, num_key_value_heads=2, **small)),
        "gpt2": lambda v: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=v, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2)
        ),
        # A window of 8 is shorter than the texts, so keys and values at wrong distances would show.
        "gemma3": lambda v: t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(
                vocab_size=v,
                num_key_value_heads=1,
                head_dim=8,
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention"],
                **small,
            )
        ),
        # Soft caps on logits and attention.
        "gemma2": lambda v: t.Gemma2ForCausalLM(
            t.Gemma2Config(
                vocab_size=v,
                num_key_value_heads=2,
                head_dim=8,
                final_logit_softcapping=2.0,
                attn_logit_softcapping=5.0,
                sliding_window=8,
                query_pre_attn_scalar=8,
                **small,
            )
        ),
        # Logits times a scale, layer norm with another order.
        "cohere": lambda v: t.CohereForCausalLM(
            t.CohereConfig(vocab_size=v, num_key_value_heads=2, logit_scale=0.3, **small)
        ),
        # An output layer with a bias.
        "phi": lambda v: t.PhiForCausalLM(t.PhiConfig(vocab_size=v, **small)),
        # No keys and values at all.
        "mamba": lambda v: t.MambaForCausalLM(
            t.MambaConfig(vocab_size=v, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.2)
        ),
    }


def other_models() -> dict[str, Callable[[int], Any]]:
    t = transformers
    small = {**SIZE, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {
        "bert": lambda v: t.BertForMaskedLM(t.BertConfig(vocab_size=v, **small)),
        "roberta": lambda v: t.RobertaForMaskedLM(t.RobertaConfig(vocab_size=v, max_position_embeddings=130, **small)),
        "t5": lambda v: t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=v, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
        ),
        "bart": lambda v: t.BartForConditionalGeneration(
            t.BartConfig(
                vocab_size=v,
                d_model=32,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=48,
                decoder_ffn_dim=48,
                max_position_embeddings=256,
                init_std=0.2,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=2,
            )
        ),
    }


def rendered_texts() -> list[Rendered]:
    found = []
    for prompt in PROMPTS:
        for text in INPUTS:
            whole = f"{text} {prompt}" if prompt else text
            found.append(Rendered(text=whole, split=len(text)))
    return found


def plain_model(folder: str, head: str = "causal") -> tuple[Any, Any]:
    name = {
        "causal": "AutoModelForCausalLM",
        "masked": "AutoModelForMaskedLM",
        "seq2seq": "AutoModelForSeq2SeqLM",
    }[head]
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def normalised(scores: list[float]) -> np.ndarray:
    values = np.array(scores)
    return values - np.log(np.exp(values - values.max()).sum()) - values.max()


@torch.inference_mode()
def causal_reference(model: Any, tokenizer: Any, text: str, choices: tuple[str, ...]) -> list[float]:
    """Sum of the log-probabilities of each choice's tokens."""
    ids = tokenizer(text)["input_ids"] or [tokenizer.bos_token_id]
    found = []
    for choice in choices:
        answer = tokenizer(choice, add_special_tokens=False)["input_ids"]
        logprobs = model(torch.tensor([ids + answer])).logits[0].double().log_softmax(-1)
        found.append(sum(float(logprobs[len(ids) - 1 + k, token]) for k, token in enumerate(answer)))
    return found


@torch.inference_mode()
def masked_reference(model: Any, tokenizer: Any, text: str, choices: tuple[str, ...]) -> list[float]:
    text = text if "<mask>" in text else text + " <mask>"
    found = []
    for choice in choices:
        answer = tokenizer(choice, add_special_tokens=False)["input_ids"]
        ids = tokenizer(text.replace("<mask>", "<mask>" * len(answer)))["input_ids"]
        places = [place for place, token in enumerate(ids) if token == tokenizer.mask_token_id]
        logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        found.append(sum(float(logprobs[place, token]) for place, token in zip(places, answer, strict=True)))
    return found


@torch.inference_mode()
def seq2seq_reference(model: Any, tokenizer: Any, text: str, choices: tuple[str, ...]) -> list[float]:
    ids = tokenizer(text)["input_ids"] or [tokenizer.bos_token_id]
    found = []
    for choice in choices:
        answer = tokenizer(choice, add_special_tokens=False)["input_ids"]
        start = [model.config.decoder_start_token_id, *answer[:-1]]
        logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([start])).logits
        logprobs = logits[0].double().log_softmax(-1)
        found.append(sum(float(logprobs[k, token]) for k, token in enumerate(answer)))
    return found


def check_agreement(
    target: TransformersTarget, reference: Callable[..., list[float]], model: Any, tokenizer: Any
) -> None:
    rendered = rendered_texts()
    requests = [TargetRequest(one, choices=choices) for choices in (SINGLE, MULTI) for one in rendered]
    requests += [TargetRequest(one, continuation=" good word") for one in rendered]
    outputs = target.run(requests)
    for request, output in zip(requests, outputs, strict=True):
        assert output.failure is None
        text = request.rendered.text
        if request.choices is None:
            expected = reference(model, tokenizer, text, (request.continuation,))
            assert output.logprob == pytest.approx(expected[0], abs=1e-5)
        else:
            expected = normalised(reference(model, tokenizer, text, request.choices))
            assert output.choice_logprobs == pytest.approx(expected, abs=1e-5)
            assert sum(math.exp(value) for value in output.choice_logprobs) == pytest.approx(1, abs=1e-12)
