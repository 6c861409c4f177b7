"""Decoder-only LMs that write prompts: chat or base models, with LoRA or trained whole.

Shapes: B rows, U different contexts, C context length, T tokens, d hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from rlprompt.errors import ConfigError
from rlprompt.models import Head
from rlprompt.policies.language_model import LanguageModelPolicy
from rlprompt.policies.lora import Task
from rlprompt.policies.network import Network, Reading, distinct, padded


@dataclass
class CausalReading(Reading):
    """Contexts and tokens that were read; `CausalNetwork.read` moves it forward in place."""

    cache: DynamicCache
    lengths: Tensor
    """Real context tokens per row, (B,)."""
    width: int
    """Columns of the context in the cache; shorter contexts are padded on the left."""
    count: int = 0
    """Tokens read behind the context."""


class CausalNetwork(Network):
    """A decoder-only LM. Rows that share a context share its computation, also in training."""

    def start(self, contexts: list[tuple[int, ...]]) -> CausalReading:
        """Reads one context per row; each different one is computed once."""
        different, places = distinct(contexts, self.device)
        ids, lengths = padded(different, self.device)
        cache = DynamicCache()
        # Padded on the right: padding on the left would see nothing at all, and not every kernel survives that.
        output = self.lm.base_model(
            input_ids=ids,
            attention_mask=_real(ids, lengths),
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        )
        hidden = output[0]
        last = hidden[torch.arange(len(different), device=self.device), lengths - 1].float()
        _align_right(cache, lengths, ids.shape[1])
        if len(different) < len(contexts):
            cache.batch_select_indices(places)
            last, lengths = last[places], lengths[places]
        return CausalReading(last=last, cache=cache, lengths=lengths, width=ids.shape[1])

    def read(self, reading: Reading, tokens: Tensor) -> Tensor:
        """Reads further tokens (B, n), ids of -1 as 0, in one pass; returns hidden states (B, n, d)."""
        reading = cast(CausalReading, reading)
        columns = torch.arange(reading.width, device=self.device)
        real = columns[None] >= reading.width - reading.lengths[:, None]
        positions = torch.arange(reading.count, reading.count + tokens.shape[1], device=self.device)
        output = self.lm.base_model(
            input_ids=tokens.clamp(min=0),
            attention_mask=torch.nn.functional.pad(real.long(), (0, reading.count + tokens.shape[1]), value=1),
            position_ids=reading.lengths[:, None] + positions,
            past_key_values=reading.cache,
            use_cache=True,
            return_dict=True,
        )
        hidden: Tensor = output[0].float()
        reading.count += tokens.shape[1]
        reading.last = hidden[:, -1]
        return hidden

    def hidden(self, contexts: list[tuple[int, ...]], tokens: Tensor) -> Tensor:
        """Returns what predicts each token, (B, T, d)."""
        if self.recomputes:
            return self._whole_rows(contexts, tokens)
        reading = self.start(contexts)
        first = reading.last.unsqueeze(1)
        if tokens.shape[1] == 1:
            return first
        return torch.cat([first, self.read(reading, tokens[:, :-1])], dim=1)

    def check_length(self, contexts: list[tuple[int, ...]], count: int) -> None:
        """Refuses contexts that leave no room for `count` tokens."""
        most, longest = self.most_positions, max(map(len, contexts))
        if most is not None and longest + count - 1 > most:  # the last token is never read
            raise ConfigError(
                f"the policy's LM reads at most {most} tokens, but context and prompt have {longest + count - 1}; "
                "shorten the context or env.prompt_length"
            )

    def probe(self) -> tuple[Tensor, Tensor]:
        """Returns the LM's own logits of a few tokens, and those of this class."""
        ids = torch.arange(4, device=self.device) % self.vocabulary_size
        own = self.lm(input_ids=ids[None]).logits[0, -1:, : self.vocabulary_size]
        return own, self.project(self.start([tuple(ids.tolist())]).last)

    def _whole_rows(self, contexts: list[tuple[int, ...]], tokens: Tensor) -> Tensor:
        """One pass without a cache: gradient checkpointing computes layers again, and a cache would grow twice."""
        count = tokens.shape[1]
        rows = [
            (*ids, *(max(token, 0) for token in row[:-1])) for ids, row in zip(contexts, tokens.tolist(), strict=True)
        ]
        ids, lengths = padded(rows, self.device)
        output = self.lm.base_model(
            input_ids=ids, attention_mask=_real(ids, lengths), use_cache=False, return_dict=True
        )
        hidden = output[0].float()
        places = (lengths - count)[:, None] + torch.arange(count, device=self.device)
        found: Tensor = hidden.gather(1, places.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        return found


class CausalLMPolicy(LanguageModelPolicy):
    """A decoder-only LM that continues the context with the prompt.

    Args:
        config: `kwargs` are those of `rlprompt.policies.language_model.LMSettings`.
        prompt_length: the most tokens of a prompt.
        seed: the run's seed; decides the adapter's starting weights.

    Raises:
        ModelNotFoundError: the LM cannot be found.
        ConfigError: an argument is unknown or out of range, or the LM is an encoder-decoder.
    """

    kind: ClassVar[str] = "causal-lm"
    model_head: ClassVar[Head] = "causal"
    peft_task: ClassVar[Task] = "CAUSAL_LM"
    network_class: ClassVar[type[Network]] = CausalNetwork


def _real(ids: Tensor, lengths: Tensor) -> Tensor:
    """Returns an attention mask (B, C): 1 at the first `lengths` (B,) ids of each row."""
    return (torch.arange(ids.shape[1], device=ids.device)[None] < lengths[:, None]).long()


def _align_right(cache: Any, lengths: Tensor, width: int) -> None:
    """Moves the padding of a cache (U, heads, width, size) from the right to the left.

    Layers that see a few columns back only count columns, so a context's end must stand beside what follows it.
    """
    for layer in cache.layers:
        if not isinstance(getattr(layer, "keys", None), Tensor):
            raise ConfigError("the policy's LM keeps no keys and values; use a causal transformer")
        if bool((lengths == width).all()):
            continue
        source = torch.arange(width, device=lengths.device)[None] - (width - lengths)[:, None]
        place = source.clamp(min=0)[:, None, :, None]  # what then stands at padding is finite, and masked
        layer.keys = layer.keys.gather(2, place.expand_as(layer.keys))
        layer.values = layer.values.gather(2, place.expand_as(layer.values))
