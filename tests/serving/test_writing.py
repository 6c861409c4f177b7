"""Batches that round differently from single rows do not change what is written."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from rlprompt.planted_models import WordTokenizer
from rlprompt.policies import PromptPolicy, Writer
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


@pytest.mark.parametrize(
    ("dtype", "batches"),
    [("float32", [4, 1, 1]), ("bfloat16", [1, 1, 1, 1])],  # in 16 bits nothing is certain
)
def test_rows_that_were_close_are_written_again_alone(dtype: str, batches: list[int]) -> None:
    policy: Any = RoundingPolicy(dtype)
    writer = TextWriter(cast(PromptPolicy, policy), SERVED)
    contexts = [[3, 4], [5, 4], [4], [5]]
    assert writer.greedy(contexts, 2, 4) == ["w01 w01", "w05 w05", "w01 w01", "w05 w05"]
    assert policy.batches == batches


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
