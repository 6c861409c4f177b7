"""Memory and arithmetic of larger models, worked out from their shapes; nothing here is measured.

2 FLOP per parameter and token forwards; backwards through frozen weights as much again, since only the gradients of
activations are computed. Attention over the context, activations and the LoRA adapters' own arithmetic are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HOUR = 3600.0
BF16, F32 = 2, 4


@dataclass(frozen=True)
class Shape:
    """A decoder-only LM with grouped queries and gated feed-forward layers."""

    name: str
    parameters: float
    layers: int
    hidden: int
    inner: int
    """Width of the feed-forward layers."""
    kv_heads: int
    head_dim: int

    @property
    def weight_bytes(self) -> float:
        """In bfloat16."""
        return BF16 * self.parameters

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token, in bfloat16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BF16

    def adapter(self, rank: int) -> int:
        """Parameters of LoRA on all linear layers: rank x (inputs + outputs) of each."""
        keys = self.kv_heads * self.head_dim
        attention = 2 * (self.hidden + self.hidden) + 2 * (self.hidden + keys)
        forward = 3 * (self.hidden + self.inner)
        return self.layers * rank * (attention + forward)


ONE = Shape("1B", 1.24e9, 16, 2048, 8192, 8, 64)
EIGHT = Shape("8B", 8.03e9, 32, 4096, 14336, 8, 128)
SEVENTY = Shape("70B", 70.6e9, 80, 8192, 28672, 8, 128)
"""Shapes of Llama 3.2 and 3.1, as common ones of these sizes."""


@dataclass(frozen=True)
class Gpu:
    """What is assumed of a GPU."""

    flops: float
    """Peak FLOP/s in bfloat16, dense."""
    memory_bytes: float
    reading: float
    """Part of the peak that is reached while a context is read."""
    writing: float
    """The same for tokens that are written one by one in a batch."""
    learning: float


@dataclass(frozen=True)
class Work:
    """Tokens of one sample: a prompt that is written, learnt from, and asked about."""

    context: int
    """Tokens that the rewriter reads."""
    written: int
    examples: int
    """Questions to the target about each prompt."""
    question: int
    """Tokens of each."""
    answer: int
    epochs: int

    @property
    def tokens(self) -> int:
        """That the rewriter has read and written."""
        return self.context + self.written


def writing_flop(parameters: float, work: Work) -> float:
    """Returns FLOP that writing one prompt takes."""
    return 2 * parameters * work.tokens


def learning_flop(parameters: float, work: Work) -> float:
    """Returns FLOP that learning from one prompt takes: before and reference forwards, then forwards and backwards."""
    return 2 * parameters * work.tokens * (2 + 2 * work.epochs)


def asking_flop(parameters: float, work: Work) -> float:
    """Returns FLOP that a target takes for all questions about one prompt, without any shared prefix."""
    return 2 * parameters * work.examples * (work.question + work.answer)


def writing_hours(shape: Shape, work: Work, gpu: Gpu) -> float:
    """Returns GPU-hours of writing one prompt."""
    seconds = work.context / gpu.reading + work.written / gpu.writing
    return 2 * shape.parameters * seconds / gpu.flops / HOUR


def learning_hours(shape: Shape, work: Work, gpu: Gpu) -> float:
    """Returns GPU-hours of learning from one prompt."""
    return learning_flop(shape.parameters, work) / (gpu.learning * gpu.flops) / HOUR


def asking_hours(shape: Shape, work: Work, gpu: Gpu) -> float:
    """Returns GPU-hours of a target for all questions about one prompt."""
    seconds = work.examples * (work.question / gpu.reading + work.answer / gpu.writing)
    return 2 * shape.parameters * seconds / gpu.flops / HOUR


def core_hours(shape: Shape, work: Work, core_flops: float) -> float:
    """Returns core-hours of writing one prompt on cores that reach so many FLOP/s."""
    return writing_flop(shape.parameters, work) / core_flops / HOUR


def training_bytes(shape: Shape, rank: int, batch_tokens: int) -> float:
    """Returns memory of a rewriter that is trained: weights, adapter with gradient and both moments, KV cache."""
    return shape.weight_bytes + 4 * F32 * shape.adapter(rank) + batch_tokens * shape.kv_bytes


def serving_bytes(shape: Shape, cached_tokens: int) -> float:
    """Returns memory of a target: weights and the KV cache of all calls that it works on at a time."""
    return shape.weight_bytes + cached_tokens * shape.kv_bytes


def gpus(needed_bytes: float, gpu: Gpu, usable: float = 0.9) -> int:
    """Returns how many GPUs hold so much; a part of each is left to activations and the like."""
    return math.ceil(needed_bytes / (usable * gpu.memory_bytes))
