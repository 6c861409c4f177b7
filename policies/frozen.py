"""The frozen LM under a policy: hidden states with kept KV caches, and its output layer in float32.

Shapes: B rows, C context length, T tokens, d hidden, V vocabulary.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from rlprompt.errors import ConfigError
from rlprompt.models import load_frozen

KEPT_CONTEXTS = 64
"""Contexts whose KV is kept, least recently used out."""

KeyValues = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ReadContext:
    """What the LM keeps of one context."""

    layers: KeyValues
    """Keys and values per layer, each (1, heads, C, head size)."""
    last: Tensor
    """The hidden state of the last token, (d,)."""
    length: int


@dataclass
class Reading:
    """Rows that were read up to some token, and can be continued; `read` moves it forward in place."""

    contexts: list[tuple[int, ...]]
    """Token ids of the context of each row."""
    cache: DynamicCache
    lengths: Tensor
    """Real context tokens per row, (B,)."""
    width: int
    """Columns of the context in the cache; shorter contexts are padded on the left."""
    last: Tensor
    """Hidden state of the last token read, (B, d) float32."""
    tokens: Tensor
    """What was read behind the context, (B, t)."""

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Returns None: a copy of a policy reads afresh."""


@dataclass(frozen=True)
class AroundOutput:
    """What an LM does before and behind its output layer, by its configuration."""

    scale: float
    soft_cap: float | None

    @classmethod
    def of(cls, settings: Any) -> AroundOutput:
        """Reads a transformers configuration."""
        scale = float(getattr(settings, "logit_scale", None) or 1.0)  # Cohere
        scale /= float(getattr(settings, "logits_scaling", None) or 1.0)  # Granite
        if getattr(settings, "scale_decoder_outputs", False):  # T5
            scale *= float(settings.d_model) ** -0.5
        return cls(scale, getattr(settings, "final_logit_softcapping", None))  # Gemma 2

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns logits (..., V) for hidden states (..., d), weight (V, d) and bias (V,), all of one number type."""
        logits = torch.nn.functional.linear(hidden, weight, bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits


def output_layer(model: Any, vocabulary_size: int) -> Any:
    """Returns an LM's output layer.

    Raises:
        ConfigError: it is smaller than the vocabulary.
    """
    layer = model.get_output_embeddings()
    if layer is None or layer.weight.shape[0] < vocabulary_size:
        rows = 0 if layer is None else layer.weight.shape[0]
        raise ConfigError(f"the policy's LM scores {rows} tokens but its tokenizer has {vocabulary_size}")
    return layer


class FrozenLM:
    """A frozen causal LM: no parameters for optimisers, no state for checkpoints, shared by copies.

    It is no `torch.nn.Module`, so a module that holds it does not register it.

    Args:
        model: a causal LM of transformers, in evaluation mode.
        vocabulary_size: V, tokens that the tokenizer knows; further rows of the output layer are padding.

    Raises:
        ConfigError: the output layer is smaller than the vocabulary.
    """

    def __init__(self, model: Any, vocabulary_size: int) -> None:
        self.body: Any = model.base_model
        layer = output_layer(model, vocabulary_size)
        # In float32 also under a bfloat16 LM: rounding logits of 20 to 0.1 would drown the policy's small changes.
        self.weight: Tensor = layer.weight.detach()[:vocabulary_size].float()
        bias = getattr(layer, "bias", None)
        self.bias: Tensor | None = None if bias is None else bias.detach()[:vocabulary_size].float()
        settings = model.config.get_text_config()
        self.around = AroundOutput.of(settings)
        self.most_tokens: int | None = getattr(settings, "max_position_embeddings", None)
        self._contexts: OrderedDict[tuple[int, ...], ReadContext] = OrderedDict()
        self._lock = threading.Lock()
        """A sampler may write while a learner learns."""
        self.tokens_computed = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenLM:
        """Returns itself: nothing in it ever changes what it computes."""
        return self

    @property
    def hidden_size(self) -> int:
        """Size d of a hidden state."""
        return int(self.weight.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the LM is."""
        return self.weight.device

    def project(self, hidden: Tensor) -> Tensor:
        """Returns the LM's logits (..., V) in float32 for hidden states (..., d); gradients pass through."""
        return self.around.logits(hidden, self.weight, self.bias)

    @torch.no_grad()
    def start(self, contexts: list[tuple[int, ...]]) -> Reading:
        """Reads one context per row; each distinct one is computed once and kept.

        Raises:
            ConfigError: a context is longer than the LM can read.
        """
        read = self._read_contexts(list(dict.fromkeys(contexts)))
        rows = [read[ids] for ids in contexts]
        width = max(row.length for row in rows)
        cache = DynamicCache()
        for layer in range(len(rows[0].layers)):
            keys, values = (_stack([row.layers[layer][part] for row in rows], width) for part in (0, 1))
            cache.update(keys, values, layer)
        return Reading(
            contexts=contexts,
            cache=cache,
            lengths=torch.tensor([row.length for row in rows], device=self.device),
            width=width,
            last=torch.stack([row.last for row in rows]),
            tokens=torch.empty((len(rows), 0), dtype=torch.long, device=self.device),
        )

    @torch.no_grad()
    def read(self, reading: Reading, tokens: Tensor) -> Tensor:
        """Reads further tokens (B, n), ids of -1 as 0, in one forward pass; returns hidden states (B, n, d)."""
        rows, count = tokens.shape
        if count == 0:
            return reading.last.new_empty((rows, 0, self.hidden_size))
        already = reading.tokens.shape[1]
        self._check_length(reading.width + already + count)
        columns = torch.arange(reading.width, device=self.device)
        real = columns[None] >= reading.width - reading.lengths[:, None]
        output = self.body(
            input_ids=tokens.clamp(min=0),
            attention_mask=torch.nn.functional.pad(real.long(), (0, already + count), value=1),
            position_ids=reading.lengths[:, None] + already + torch.arange(count, device=self.device),
            past_key_values=reading.cache,
            use_cache=True,
            return_dict=True,
        )
        self.tokens_computed += rows * count
        hidden: Tensor = output.last_hidden_state.float()
        reading.tokens = torch.cat([reading.tokens, tokens], dim=1)
        reading.last = hidden[:, -1]
        return hidden

    def forget(self) -> None:
        """Drops the contexts that were kept."""
        with self._lock:
            self._contexts.clear()

    def _read_contexts(self, contexts: list[tuple[int, ...]]) -> dict[tuple[int, ...], ReadContext]:
        """Returns what is kept of distinct contexts, new ones too.

        Each is read alone: read side by side they would round a little differently, and what is kept would depend on
        who came with whom.
        """
        with self._lock:
            found: dict[tuple[int, ...], ReadContext] = {}
            for ids in contexts:
                found[ids] = self._contexts[ids] if ids in self._contexts else self._read_alone(ids)
                self._contexts[ids] = found[ids]
                self._contexts.move_to_end(ids)
            while len(self._contexts) > KEPT_CONTEXTS:
                self._contexts.popitem(last=False)
            return found

    def _read_alone(self, ids: tuple[int, ...]) -> ReadContext:
        self._check_length(len(ids))
        cache = DynamicCache()
        inputs = torch.tensor([ids], dtype=torch.long, device=self.device)
        output = self.body(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        )
        self.tokens_computed += len(ids)
        layers = [(_tensor(layer, "keys"), _tensor(layer, "values")) for layer in cache.layers]
        return ReadContext(layers, output.last_hidden_state[0, -1].float(), len(ids))

    def _check_length(self, tokens: int) -> None:
        if self.most_tokens is not None and tokens > self.most_tokens:
            raise ConfigError(
                f"the policy's LM reads at most {self.most_tokens} tokens, but context and prompt have {tokens}; "
                "shorten policy.context"
            )


_SHARED: weakref.WeakValueDictionary[tuple[str, str | None, str, str, int], FrozenLM] = weakref.WeakValueDictionary()


def shared_frozen_lm(
    name: str, *, revision: str | None, dtype: str, device: torch.device, vocabulary_size: int
) -> FrozenLM:
    """Returns the process's one `FrozenLM` of these arguments: policies share its output layer and kept contexts.

    Raises:
        ModelNotFoundError: no such model, or no causal LM.
        ConfigError: dtype or device cannot be had.
    """
    key = (name, revision, dtype, str(device), vocabulary_size)
    found = _SHARED.get(key)
    if found is None:
        model = load_frozen(name, revision=revision, dtype=dtype, device=str(device), head="causal")
        found = FrozenLM(model, vocabulary_size)
        _SHARED[key] = found
    return found


def _stack(rows: list[Tensor], width: int) -> Tensor:
    """(1, heads, c, size) per row to (B, heads, width, size), padded on the left."""
    if all(row is rows[0] for row in rows):
        return rows[0].expand(len(rows), -1, -1, -1)
    return torch.cat([torch.nn.functional.pad(row, (0, 0, width - row.shape[2], 0)) for row in rows])


def _tensor(layer: Any, name: str) -> Tensor:
    value = getattr(layer, name, None)
    if not isinstance(value, Tensor):
        raise ConfigError("the policy's LM keeps no keys and values; use a causal transformer")
    return value
