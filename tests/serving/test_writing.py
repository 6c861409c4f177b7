"""Batches that round differently from single rows do not change what is written."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from rlprompt.config import PolicyConfig
from rlprompt.planted_models import WordTokenizer
from rlprompt.policies import PromptPolicy, Writer, build_policy
from rlprompt.served import Served
from rlprompt.serving.writing import CERTAIN, TextWriter

SERVED = Served(mode="instance", template="{prompt}", meta_prompt="{input}", eos=True)


class RoundingPolicy:
    """Words 1 and 2 are so close that company decides; 5 is far ahead after a context that begins with 5."""

    def __init__(self, dtype: str) -> None:
        self.tokenizer = WordTokenizer(8)
        self.config = SimpleNamespace(dtype=dtype)
        self.device = torch.device("cpu")
        self.batches: list[int] = []

    def writer(self, context: Tensor) -> Writer:
        self.batches.append(len(context))
        return _RoundingWriter(context)


class _RoundingWriter(Writer):
    def __init__(self, context: Tensor) -> None:
        self.logits = torch.zeros(len(context), 9)
        self.logits[:, 1] = 1.0
        self.logits[:, 2] = 1.0 + (CERTAIN / 10 if len(context) > 1 else -CERTAIN / 10)
        self.logits[context[:, 0] == 5, 5] = 2.0

    def next_logits(self, last_tokens: Tensor | None = None) -> Tensor:
        return self.logits

    def sampling_logits(self, logits: Tensor, mask: Tensor) -> Tensor:
        return logits.masked_fill(~mask, float("-inf"))


def test_rows_that_were_close_are_written_again_alone() -> None:
    policy: Any = RoundingPolicy("float32")
    writer = TextWriter(cast(PromptPolicy, policy), SERVED)
    contexts = [[3, 4], [5, 4], [4], [5]]
    assert writer.greedy(contexts, 2, 4) == ["w01 w01", "w05 w05", "w01 w01", "w05 w05"]
    assert policy.batches == [4, 1, 1]


def test_in_16_bits_all_batches_have_one_shape() -> None:
    """Nothing is certain there, so a row is written in a batch even when it is alone."""
    shapes: list[tuple[int, ...]] = []

    class Watching(RoundingPolicy):
        def writer(self, context: Tensor) -> Writer:
            shapes.append(tuple(context.shape))
            return super().writer(context)

    policy: Any = Watching("bfloat16")
    writer = TextWriter(cast(PromptPolicy, policy), SERVED)
    long = [[4] * 17 + [last] for last in range(16)]
    contexts = [[3, 4], [5, 4], *long, [5], long[0]]
    together = writer.greedy(contexts, 2, 4)
    assert shapes == [(16, 16), (16, 32), (16, 32), (16, 32)]  # no batch has a context twice, or none to fill up
    assert [writer.greedy([context], 2, 1)[0] for context in contexts] == together
    assert together[:3] == ["w02 w02", "w05 w05", "w02 w02"]
    assert set(shapes[3:]) == {(16, 16), (16, 32)}


@pytest.mark.parametrize(("longest", "width"), [(None, 32), (20, 20), (17, 17), (16, 17), (64, 32)])
def test_the_width_stays_within_what_the_policy_can_read(longest: int | None, width: int) -> None:
    policy: Any = RoundingPolicy("bfloat16")
    writer = TextWriter(cast(PromptPolicy, policy), SERVED, longest=longest)
    assert writer._width(17) == width


def test_a_real_lm_in_16_bits_writes_the_same_beside_whatever_and_at_every_place() -> None:
    config = PolicyConfig(kind="causal-lm", model="planted-50", dtype="bfloat16", kwargs={"lora": {"r": 2}})
    policy = build_policy(config, prompt_length=6, seed=1)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in policy.head.named_parameters():
            if name.endswith("lora_B.default.weight"):
                parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape).astype(np.float32)))
    contexts = [rng.integers(1, 50, size).tolist() for size in rng.integers(1, 40, 30)]
    writer = TextWriter(policy, SERVED)
    assert not writer.in_float32
    together = writer.greedy_tokens(contexts, 6, 8)
    assert len({tuple(row) for row in together}) > 5
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(30)
        mixed = writer.greedy_tokens([contexts[place] for place in order], 6, 8)
        assert [mixed[list(order).index(place)] for place in range(30)] == together
    assert [writer.greedy_tokens([context], 6, 1)[0] for context in contexts] == together


def test_contexts_of_like_length_stand_together_and_the_order_comes_back() -> None:
    seen: list[Tensor] = []

    class Watching(RoundingPolicy):
        def writer(self, context: Tensor) -> Writer:
            seen.append(context)
            return super().writer(context)

    policy: Any = Watching("float32")
    contexts = [[5, 1, 1], [5], [5, 1, 1], [5]]
    drawn = TextWriter(cast(PromptPolicy, policy), SERVED).sampled(
        contexts, 3, 2, temperature=0.5, seed=0, keys=["a", "b", "c", "b"]
    )
    assert [context.tolist() for context in seen] == [[[5], [5]], [[5, 1, 1], [5, 1, 1]]]
    assert drawn[1] == drawn[3]
    assert len(set(drawn)) == 3
