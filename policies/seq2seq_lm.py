"""Encoder-decoder LMs that write prompts: the encoder reads the context, the decoder writes.

Shapes: B rows, U different contexts, C context length, T tokens, d hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from rlprompt.errors import ConfigError
from rlprompt.models import Head
from rlprompt.policies.language_model import LanguageModelPolicy
from rlprompt.policies.lora import Task
from rlprompt.policies.network import Network, Reading, distinct, padded


@dataclass
class Seq2SeqReading(Reading):
    """Encoded contexts and the tokens that the decoder read; `Seq2SeqNetwork.read` moves it forward in place."""

    memory: Tensor
    """The encoder's hidden states, (B, C, d)."""
    seen: Tensor
    """(B, C), 1 at real tokens of the context."""
    cache: EncoderDecoderCache


class Seq2SeqNetwork(Network):
    """An encoder-decoder LM. Rows that share a context share its encoding, also in training."""

    def start(self, contexts: list[tuple[int, ...]]) -> Seq2SeqReading:
        """Encodes one context per row, each different one once, and reads the decoder's start token."""
        memory, seen = self._encode(contexts)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        reading = Seq2SeqReading(last=memory[:, 0], memory=memory, seen=seen, cache=cache)
        self.read(reading, self._start_tokens(len(contexts)))
        return reading

    def read(self, reading: Reading, tokens: Tensor) -> Tensor:
        """Reads further tokens (B, n), ids of -1 as 0, in one pass; returns hidden states (B, n, d)."""
        reading = cast(Seq2SeqReading, reading)
        hidden = self._decode(reading.memory, reading.seen, tokens, past_key_values=reading.cache, use_cache=True)
        reading.last = hidden[:, -1]
        return hidden

    def hidden(self, contexts: list[tuple[int, ...]], tokens: Tensor) -> Tensor:
        """Returns what predicts each token, (B, T, d)."""
        inputs = torch.cat([self._start_tokens(len(contexts)), tokens[:, :-1]], dim=1)
        return self._decode(*self._encode(contexts), inputs, use_cache=False)

    def check_length(self, contexts: list[tuple[int, ...]], count: int) -> None:
        """Refuses contexts and prompts beyond the LM's positions."""
        most = self.most_positions
        for what, tokens in (("context", max(map(len, contexts))), ("prompt", count)):
            if most is not None and tokens > most:
                raise ConfigError(
                    f"the policy's LM reads and writes at most {most} tokens each, but the {what} has {tokens}; "
                    "shorten it"
                )

    def probe(self) -> tuple[Tensor, Tensor]:
        """Returns the LM's own logits of a few tokens, and those of this class."""
        ids = torch.arange(4, device=self.device) % self.vocabulary_size
        own = self.lm(input_ids=ids[None], decoder_input_ids=self._start_tokens(1)).logits
        return own[0, :, : self.vocabulary_size], self.project(self.start([tuple(ids.tolist())]).last)

    def _start_tokens(self, rows: int) -> Tensor:
        start = self.lm.config.decoder_start_token_id
        if start is None:
            raise ConfigError("the policy's LM names no decoder_start_token_id; set it in the model's config.json")
        return torch.full((rows, 1), int(start), dtype=torch.long, device=self.device)

    def _encode(self, contexts: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        different, places = distinct(contexts, self.device)
        ids, lengths = padded(different, self.device)
        seen = (torch.arange(ids.shape[1], device=self.device)[None] < lengths[:, None]).long()
        memory = self.lm.get_encoder()(input_ids=ids, attention_mask=seen, return_dict=True)[0]
        return memory[places], seen[places]

    def _decode(self, memory: Tensor, seen: Tensor, tokens: Tensor, **cache: Any) -> Tensor:
        output = self.lm.get_decoder()(
            input_ids=tokens.clamp(min=0),
            encoder_hidden_states=memory,
            encoder_attention_mask=seen,
            return_dict=True,
            **cache,
        )
        hidden: Tensor = output[0].float()
        return hidden


class Seq2SeqLMPolicy(LanguageModelPolicy):
    """An encoder-decoder LM that answers the context with the prompt.

    Args:
        config: `kwargs` are those of `rlprompt.policies.language_model.LMSettings`.
        prompt_length: the most tokens of a prompt.
        seed: the run's seed; decides the adapter's starting weights.

    Raises:
        ModelNotFoundError: the LM cannot be found.
        ConfigError: an argument is unknown or out of range, or the LM has no encoder.
    """

    kind: ClassVar[str] = "seq2seq-lm"
    model_head: ClassVar[Head] = "seq2seq"
    peft_task: ClassVar[Task] = "SEQ_2_SEQ_LM"
    network_class: ClassVar[type[Network]] = Seq2SeqNetwork
