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
from transformers.cache_utils import DynamicLayer

from rlprompt.seeding import generator
from rlprompt.targets.prefix import ROWS, CausalScorer, Row
from rlprompt.types import TargetRequest

_ROOM = 128
_MOST_ROWS = 64
_CACHE_BYTES = 1024**3
_LAYER: Any = DynamicLayer


class Writing:
    """One answer in the making.

    Args:
        request: what is asked.
        tokens: what the model reads.
        tokenizer: turns tokens into text.
        eos: ids that end the answer.
        split: how many of the tokens other texts are likely to share.
    """

    def __init__(
        self, request: TargetRequest, tokens: Sequence[int], tokenizer: Any, eos: frozenset[int], split: int = 0
    ) -> None:
        self.tokens = tuple(tokens)
        self.row = Row(self.tokens, (split,) if split else (), ((0,),), full=True)
        """As it is read; nothing is scored."""
        self.max_tokens = request.max_tokens
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

    Texts are read as `CausalScorer` reads them: what several have in common is computed once. Then they are written
    side by side. A text's keys and values are padded on the left to a multiple of 128 tokens chosen from its own
    length, and batches of texts of that padded length hold a multiple of four rows: what is written does not depend on
    the neighbours. (A step of few rows is bound by reading the weights: few padded lengths are worth more than little
    padding.)

    Args:
        scorer: reads the texts.
        batch_tokens: most tokens in one forward pass (but at least four rows are).
    """

    def __init__(self, scorer: CausalScorer, batch_tokens: int) -> None:
        self._scorer = scorer
        self._head = scorer.head
        self._device = scorer.device
        self._takes_positions = "position_ids" in inspect.signature(scorer.model.forward).parameters
        self._batch_tokens = batch_tokens
        self._tokens_computed = 0

    @property
    def tokens_computed(self) -> int:
        """Tokens read and written, with padding and filled rows."""
        return self._tokens_computed + self._scorer.tokens_read

    @torch.inference_mode()
    def write(self, writings: Sequence[Writing]) -> None:
        """Completes the writings in place."""
        reuses = self._scorer.reuses_prefixes
        step = _ROOM if reuses else 1
        groups: dict[int, list[Writing]] = {}
        for writing in writings:
            if not writing.done:
                groups.setdefault(-(-len(writing.tokens) // step) * step, []).append(writing)
        for length in sorted(groups):
            group = groups[length]
            longest = length + max(writing.max_tokens for writing in group)
            most = self._batch_tokens // longest
            if reuses:
                most = min(_MOST_ROWS, _CACHE_BYTES // (longest * self._scorer.token_bytes))
            most = max(most // ROWS * ROWS, ROWS)
            for start in range(0, len(group), most):
                (self._write_batch if reuses else self._write_anew)(group[start : start + most], length)

    def _write_batch(self, writings: Sequence[Writing], room: int) -> None:
        """Writes after texts whose keys and values fit into `room` tokens each."""
        rows = _filled(list(writings))
        places: dict[Row, list[int]] = {}
        for place, writing in enumerate(rows):
            places.setdefault(writing.row, []).append(place)
        size = room + max(writing.max_tokens for writing in writings)
        cache: Any = DynamicCache()
        logits: Tensor | None = None
        for row, layers, following in self._scorer.read(list(places)):
            if logits is None:
                logits = following.new_empty(len(rows), len(following))
                cache.layers = [RoomyLayer(keys, values, len(rows), room, size) for keys, values in layers]
            logits[places[row]] = following
            for layer, (keys, values) in zip(cache.layers, layers, strict=True):
                layer.put(places[row], keys, values)
        if logits is not None:
            lengths = torch.tensor([len(writing.tokens) for writing in rows])
            mask = (torch.arange(room) >= (room - lengths)[:, None]).long()
            self._go_on(rows, logits, mask, lengths, cache)

    def _go_on(self, rows: list[Writing], logits: Tensor, mask: Tensor, lengths: Tensor, cache: Any) -> None:
        """Writes until all rows are done.

        Args:
            rows: B writings.
            logits: (B, V) what may come first.
            mask: (B, S) 1 where the cache holds a token of the row.
            lengths: (B,) tokens of each row so far.
            cache: of the model.
        """
        while alive := advance(rows, logits):
            keep = _filled(alive)
            if 2 * len(keep) <= len(rows):
                rows = [rows[index] for index in keep]
                cache.batch_select_indices(torch.tensor(keep, device=self._device))
                mask, lengths = mask[keep], lengths[keep]
            ids = torch.tensor([[row.ids[-1] if row.ids else 0] for row in rows])
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            inputs: dict[str, Any] = {"attention_mask": mask.to(self._device), "past_key_values": cache}
            if self._takes_positions:
                inputs["position_ids"] = lengths[:, None].to(self._device)
            logits = self._logits(ids, use_cache=True, **inputs)
            lengths = lengths + 1

    def _write_anew(self, writings: Sequence[Writing], length: int) -> None:
        """Reads everything again for every token: for models whose memory is no keys and values (state spaces)."""
        rows = _filled(list(writings))
        while alive := advance(rows, self._logits(torch.tensor([[*row.tokens, *row.ids] for row in rows]))):
            rows = [rows[index] for index in _filled(alive)]

    def _logits(self, ids: Tensor, **inputs: Any) -> Tensor:
        """Returns the logits (B, V) behind tokens (B, n)."""
        self._tokens_computed += ids.numel()
        last = torch.full((len(ids), 1), ids.shape[1] - 1, device=self._device)
        return self._head.logits(last, None, input_ids=ids.to(self._device), **inputs)[:, 0]


class RoomyLayer(_LAYER):  # type: ignore[misc]  # untyped there
    """A cache layer with memory for all that will be written: a step stores its keys and values without a copy.

    Args:
        keys: (heads, tokens, d) of some row, for the shape.
        values: likewise.
        rows: B.
        room: tokens of the cache at the start; those of a row stand at its end, zeros before them.
        size: most tokens.
    """

    def __init__(self, keys: Tensor, values: Tensor, rows: int, room: int, size: int) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self._both = [side.new_zeros(rows, side.shape[0], size, side.shape[2]) for side in (keys, values)]
        self._used = room
        self.is_initialized = True
        self._show()

    def put(self, rows: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """Stores what some rows have read, (heads, tokens, d)."""
        for memory, side in zip(self._both, (keys, values), strict=True):
            memory[rows, :, self._used - side.shape[1] : self._used] = side

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stores keys and values (B, heads, n, d) of the next n tokens; returns all so far."""
        end = self._used + key_states.shape[-2]
        for memory, new in zip(self._both, (key_states, value_states), strict=True):
            memory[:, :, self._used : end] = new
        self._used = end
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows."""
        self._both = [memory[indices] for memory in self._both]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (memory[:, :, : self._used] for memory in self._both)
        return self.keys, self.values


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
