"""A policy writes for several texts at once, and for each what it would write for that text alone.

Shapes: B texts, C context length, T tokens, V vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from rlprompt.masks import NOT_WRITTEN, decode, eos_token, static_mask
from rlprompt.models import pick_dtype
from rlprompt.policies import PromptPolicy, Writer
from rlprompt.policies.sampling import write_prompts
from rlprompt.seeding import generator
from rlprompt.served import Served

CERTAIN = 1e-3
"""A token that is ahead by so much stays ahead: what stands beside a row moves its float32 logits by about 1e-5."""


class TextWriter:
    """Writes with the masks and the end of a run.

    Args:
        policy: who writes.
        served: masks and EOS.
    """

    def __init__(self, policy: PromptPolicy, served: Served) -> None:
        self.policy = policy
        self.no_repeat = served.mask.no_repeat
        self.static_mask = static_mask(policy.tokenizer, served.mask, eos=served.eos)
        self.eos_id = eos_token(policy.tokenizer) if served.eos else None
        self.in_float32 = pick_dtype(policy.config.dtype, policy.device) == torch.float32

    def greedy(self, contexts: Sequence[Sequence[int]], length: int, batch_size: int) -> list[str]:
        """Returns the most probable text after each context, whatever stands beside it in its batch.

        A sum over a batch rounds differently from a sum over one row. Where two tokens were so close that this could
        choose between them, the row is written again, alone. LMs in 16 bits round so coarsely that this would be most
        rows; they write one row at a time.
        """
        texts = [""] * len(contexts)
        for places in _batches(contexts, batch_size if self.in_float32 else 1):
            watched = _Watched(self.policy)
            written = self._write(cast(PromptPolicy, watched), [contexts[place] for place in places], length, None)
            for row, place in enumerate(places):
                texts[place] = written[row]
                if len(places) > 1 and watched.margins[row] < CERTAIN:
                    texts[place] = self._write(self.policy, [contexts[place]], length, None)[0]
        return texts

    def sampled(
        self,
        contexts: Sequence[Sequence[int]],
        length: int,
        batch_size: int,
        *,
        temperature: float,
        seed: int,
        keys: Sequence[str],
    ) -> list[str]:
        """Returns a drawn text after each context; the draws depend on seed and key (the user's text) only."""
        texts = [""] * len(contexts)
        for places in _batches(contexts, batch_size):
            watched = _Watched(self.policy, temperature)
            draws = np.array([_draws(seed, keys[place], length) for place in places])
            written = self._write(cast(PromptPolicy, watched), [contexts[place] for place in places], length, draws)
            for row, place in enumerate(places):
                texts[place] = written[row]
        return texts

    def _write(
        self, policy: PromptPolicy, contexts: list[Sequence[int]], length: int, draws: np.ndarray | None
    ) -> list[str]:
        tokens = write_prompts(
            policy,
            _padded(contexts),
            static_mask=self.static_mask,
            eos_id=self.eos_id,
            no_repeat=self.no_repeat,
            length=length,
            uniforms=draws,
        )
        return [decode(self.policy.tokenizer, row) for row in tokens.tolist()]


class _Watched:
    """Stands for a policy before `write_prompts`, which asks it for a writer and nothing else."""

    def __init__(self, policy: PromptPolicy, temperature: float = 1.0) -> None:
        self.policy = policy
        self.temperature = temperature
        self.margins: Tensor = torch.empty(0)
        """(B,) how far the most probable token was ahead of the next one, where it was closest."""

    def writer(self, context: Tensor) -> Writer:
        """Begins one prompt for each context (B, C)."""
        self.margins = torch.full((len(context),), float("inf"))
        return _WatchedWriter(self, self.policy.writer(context))


class _WatchedWriter(Writer):
    def __init__(self, watched: _Watched, writer: Writer) -> None:
        self.watched = watched
        self.inner = writer

    def next_logits(self, last_tokens: Tensor | None = None) -> Tensor:
        return self.inner.next_logits(last_tokens)

    def sampling_logits(self, logits: Tensor, mask: Tensor) -> Tensor:
        found = self.inner.sampling_logits(logits, mask)
        best = found.topk(2, dim=-1).values.cpu()  # inf apart where one token is allowed, as behind the end
        self.watched.margins = torch.minimum(self.watched.margins, best[:, 0] - best[:, 1])
        return found / self.watched.temperature


def _batches(contexts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Places of contexts of like length together, so that little is padded."""
    order = sorted(range(len(contexts)), key=lambda place: len(contexts[place]))
    return [order[first : first + size] for first in range(0, len(order), size)]


def _padded(contexts: Sequence[Sequence[int]]) -> Tensor:
    ids = np.full((len(contexts), max(map(len, contexts))), NOT_WRITTEN, dtype=np.int64)
    for row, context in enumerate(contexts):
        ids[row, : len(context)] = context
    return torch.from_numpy(ids)


def _draws(seed: int, key: str, length: int) -> np.ndarray:
    return generator(seed, "rewrite", zlib.crc32(key.encode())).random(length)
