"""Text that a frozen model writes: greedy, or sampled with a generator that belongs to the request."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from rlprompt.seeding import generator
from rlprompt.targets.heads import OutputHead
from rlprompt.types import TargetRequest

ROWS = 4
_BUCKET = 16


class Writing:
    """One answer in the making.

    Args:
        request: what is asked.
        tokens: what the model reads.
        tokenizer: turns tokens into text.
        eos: ids that end the answer.
    """

    def __init__(self, request: TargetRequest, tokens: Sequence[int], tokenizer: Any, eos: frozenset[int]) -> None:
        self.tokens = tuple(tokens)
        self.ids: list[int] = []
        self.text = ""
        self.valid = True
        self.temperature = request.temperature
        self._request = request
        self._tokenizer = tokenizer
        self._eos = eos
        self.done = request.max_tokens <= 0
        if request.temperature > 0:
            # Keyed by the text as well, so that two examples do not share their luck.
            key = zlib.crc32(np.asarray(self.tokens, dtype=np.int64).tobytes())
            draws = generator(request.seed, "generation", request.sample, key)
            self._uniforms = draws.random(max(request.max_tokens, 1))

    def choose(self, logits: Tensor) -> int:
        """Returns the next token for logits (V,): the most likely one, or by inverse cumulative distribution."""
        if not bool(torch.isfinite(logits).any()) or bool(torch.isnan(logits).any()):
            self.valid, self.done = False, True
            return 0
        if self.temperature == 0:
            return int(logits.argmax())
        number = torch.float32 if logits.device.type == "mps" else torch.float64
        total = torch.softmax(logits.to(number) / self.temperature, -1).cumsum(-1)
        drawn = total.new_tensor([self._uniforms[len(self.ids)]]) * total[-1]
        return min(int(torch.searchsorted(total, drawn, right=True)), len(total) - 1)

    def add(self, token: int) -> None:
        """Appends a token, unless it ends the answer or the text now holds a stop string."""
        if self.done:
            return
        self.ids.append(token)
        kept = self.ids[:-1] if token in self._eos else self.ids
        self.text = self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ends = [place for stop in self._request.stop if stop and (place := self.text.find(stop)) >= 0]
        if ends:
            self.text = self.text[: min(ends)]
        self.done = bool(ends) or token in self._eos or len(self.ids) >= self._request.max_tokens


class CausalWriter:
    """Writes continuations with a causal model, in batches with a key-value cache.

    A text is padded on the left to a multiple of 16 chosen from its own length and batched only with texts of that
    padded length, in multiples of four rows: what is written does not depend on the neighbours.

    Args:
        model: a causal LM.
        head: its output layer.
        batch_tokens: most tokens in one forward pass (but at least four rows are).
    """

    def __init__(self, model: Any, head: OutputHead, batch_tokens: int) -> None:
        self.head = head
        self.tokens_computed = 0
        self._device = next(model.parameters()).device
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._batch_tokens = batch_tokens

    @torch.inference_mode()
    def write(self, writings: Sequence[Writing]) -> None:
        """Completes the writings in place."""
        groups: dict[int, list[Writing]] = {}
        for writing in writings:
            if not writing.done:
                groups.setdefault(-(-len(writing.tokens) // _BUCKET) * _BUCKET, []).append(writing)
        for bucket in sorted(groups):
            most = max(self._batch_tokens // bucket // ROWS * ROWS, ROWS)
            for start in range(0, len(groups[bucket]), most):
                self._write_batch(groups[bucket][start : start + most], bucket)

    def _write_batch(self, writings: Sequence[Writing], bucket: int) -> None:
        rows = _filled(list(writings))
        lengths = torch.tensor([len(row.tokens) for row in rows])
        ids = torch.tensor([[*[0] * (bucket - len(row.tokens)), *row.tokens] for row in rows])
        mask = (torch.arange(bucket) >= (bucket - lengths)[:, None]).long()
        positions = (torch.arange(bucket) - (bucket - lengths)[:, None]).clamp(min=0)
        cache: Any = DynamicCache()
        while True:
            logits = self._step(ids, mask, positions, cache)
            alive = advance(rows, logits)
            if not alive:
                return
            keep = _filled(alive)
            if 2 * len(keep) <= len(rows):
                rows = [rows[index] for index in keep]
                cache.batch_select_indices(torch.tensor(keep, device=self._device))
                mask, lengths = mask[keep], lengths[keep]
            ids = torch.tensor([[row.ids[-1] if row.ids else 0] for row in rows])
            positions = lengths[:, None].clone()
            lengths = lengths + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)

    def _step(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        self.tokens_computed += ids.numel()
        inputs: dict[str, Any] = {
            "input_ids": ids.to(self._device),
            "attention_mask": mask.to(self._device),
            "past_key_values": cache,
            "use_cache": True,
        }
        if self._takes_positions:
            inputs["position_ids"] = positions.to(self._device)
        last = torch.full((len(ids), 1), ids.shape[1] - 1, device=self._device)
        return self.head.logits(last, None, **inputs)[:, 0]


def advance(rows: Sequence[Writing], logits: Tensor) -> list[int]:
    """Lets every writing choose its next token from logits (B, V).

    Returns:
        The places of those that go on. A writing that stands in several places (it fills the batch) acts once.
    """
    first = {id(row): place for place, row in reversed(list(enumerate(rows)))}
    places = sorted(first.values())
    for place in places:
        if not rows[place].done:
            rows[place].add(rows[place].choose(logits[place]))
    return [place for place in places if not rows[place].done]


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Returns the ids that end an answer: those of the generation settings and the tokenizer's EOS."""
    settings = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = settings if isinstance(settings, list) else [settings]
    return frozenset(int(token) for token in [*listed, tokenizer.eos_token_id] if token is not None)


def _filled(rows: list[Any]) -> list[Any]:
    return rows + [rows[-1]] * (-len(rows) % ROWS)
