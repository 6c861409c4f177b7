"""Decoder-only policies: positions, and the model that others use."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from rlprompt.config import MaskConfig, PolicyConfig
from rlprompt.errors import ConfigError
from rlprompt.masks import decode, static_mask
from rlprompt.policies import build_policy
from rlprompt.policies.causal_lm import CausalLMPolicy
from rlprompt.policies.sampling import write_prompts

TinyLM = Callable[[str], str]


def build(model: str, length: int = 4, **kwargs: object) -> CausalLMPolicy:
    config = PolicyConfig(kind="causal-lm", model=model, dtype="float32", kwargs=kwargs)
    policy = build_policy(config, prompt_length=length, seed=0)
    assert isinstance(policy, CausalLMPolicy)
    return policy


def test_a_context_may_fill_the_positions_but_not_pass_them(tiny_lm: TinyLM) -> None:
    policy = build(tiny_lm("llama"))  # 32 positions; the last of 4 tokens is never read
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert policy.evaluate(torch.ones(1, 29, dtype=torch.long), tokens)[0].isfinite().all()
    for call in (
        lambda context: policy.evaluate(context, tokens),
        lambda context: policy.reference_logits(context, tokens),
        policy.writer,
    ):
        with pytest.raises(ConfigError, match=r"reads at most 32 tokens, but context and prompt have 33; shorten"):
            call(torch.ones(1, 30, dtype=torch.long))


def test_a_tokenizer_that_begins_every_text_with_bos_does_so_here_once(tiny_lm: TinyLM) -> None:
    policy = build(tiny_lm("llama"))
    policy._surrounding = ((7,), ())
    rows = policy.context_rows(torch.tensor([[3, 1, -1], [7, 3, 1], [-1, -1, -1]]))
    assert rows == [(7, 3, 1), (7, 3, 1), (7, 50)]


def test_the_model_writes_greedily_what_transformers_writes(tiny_lm: TinyLM) -> None:
    policy = build(tiny_lm("llama"), length=6)
    with torch.no_grad():
        for parameter in policy.head.lm.parameters():
            parameter.add_(0.1)
    context = torch.tensor([[3, 1, 4]])
    rules = {"static_mask": np.ones(51, bool), "eos_id": None, "no_repeat": False, "length": 6}
    ours = write_prompts(policy, context, uniforms=None, **rules)
    forbidden = list(range(51, 56))  # rows of the output layer that are no tokens
    theirs = policy.hf_model.generate(
        input_ids=context, attention_mask=torch.ones_like(context), max_new_tokens=6, min_new_tokens=6,
        do_sample=False, suppress_tokens=forbidden, eos_token_id=None,
    )  # fmt: skip
    assert ours[0].tolist() == theirs[0, 3:].tolist()


@pytest.fixture(scope="module")
def smollm2() -> CausalLMPolicy:
    return build("smollm2-135m-instruct", length=6)


class TestSmolLM2:
    def test_the_untrained_rewriter_speaks_through_its_chat_template(self, smollm2: CausalLMPolicy) -> None:
        texts = [
            smollm2.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            for content in ("What is the capital of France? Answer in one word.", "Say hello.")
        ]
        rows = [smollm2.context_ids(text) for text in texts]
        context = torch.tensor([row + [-1] * (max(map(len, rows)) - len(row)) for row in rows])
        eos = smollm2.tokenizer.eos_token_id
        tokens = write_prompts(
            smollm2,
            context,
            static_mask=static_mask(smollm2.tokenizer, MaskConfig(), eos=True),
            eos_id=eos,
            no_repeat=False,
            length=6,
            uniforms=None,
        )
        first, second = (decode(smollm2.tokenizer, [token for token in row if token != eos]) for row in tokens.tolist())
        assert "Paris" in first
        assert "ello" in second

    def test_starting_policy_and_reference_are_one(self, smollm2: CausalLMPolicy) -> None:
        context = torch.tensor(
            [smollm2.context_ids("Rewrite this instruction so that it is clearer: classify it.")] * 2
        )
        tokens = torch.tensor([[100, 200, 300], [400, 500, -1]])
        with torch.no_grad():
            assert torch.equal(smollm2.evaluate(context, tokens)[0], smollm2.reference_logits(context, tokens))
        # A and B of the queries (576 -> 576) and values (576 -> 192) of 30 layers, rank 8, and 577 of the value head
        assert sum(p.numel() for p in smollm2.trainable.parameters()) == 30 * 8 * (4 * 576 - 384) + 577
