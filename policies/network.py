"""An LM as hidden states and an output layer: what policies that are whole LMs compute.

Shapes: B rows, C context length, T tokens, d hidden, V vocabulary.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from rlprompt.errors import ConfigError
from rlprompt.policies.frozen import AroundOutput, output_layer


@dataclass
class Reading:
    """Rows that were read up to some token, and can be continued."""

    last: Tensor
    """Hidden state of the last token read, (B, d) float32."""


class Network(torch.nn.Module):
    """An LM as hidden states and an output layer, without dropout of its own.

    Args:
        model: the LM of transformers, or the `peft.PeftModel` around it.
        vocabulary_size: V; further rows of the output layer are padding.

    Raises:
        ConfigError: the output layer is too small, or the LM does something unknown with its logits.
    """

    def __init__(self, model: Any, vocabulary_size: int) -> None:
        super().__init__()
        self.model: Any = model
        self.vocabulary_size = vocabulary_size
        output_layer(self.lm, vocabulary_size)
        settings = self.lm.config.get_text_config()
        self.around = AroundOutput.of(settings)
        self.most_positions: int | None = getattr(settings, "max_position_embeddings", None)
        self.recomputes = False
        self.held: tuple[Tensor, ...] = ()  # a tuple, so that torch registers nothing
        self._dropouts = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout) and "lora_" in name]
        self.eval()
        with torch.no_grad():
            own, ours = self.probe()
        allowed = 0.02 if self.lm.dtype == torch.float32 else 0.2
        if (own.float() - ours).abs().max() > allowed * own.float().std() + 1e-4:
            raise ConfigError("the policy's LM changes its logits in a way that is not known here; use another LM")

    @property
    def lm(self) -> Any:
        """The LM of transformers, with its adapter's layers where it has any."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def device(self) -> torch.device:
        """Where the LM is."""
        device: torch.device = output_layer(self.lm, self.vocabulary_size).weight.device
        return device

    def forward(self, contexts: list[tuple[int, ...]], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (B, T, V) and hidden states (B, T, d) of written tokens; 0 at tokens (B, T) of -1.

        The output layer reads the hidden states of written positions only.
        """
        written = tokens >= 0
        hidden = self.hidden(contexts, tokens)
        if bool(written.all()):
            return self.project(hidden), hidden
        logits = self.project(hidden[written])
        spread = logits.new_zeros((*tokens.shape, self.vocabulary_size)).index_put((written,), logits)
        return spread, hidden.masked_fill(~written.unsqueeze(-1), 0.0)

    def project(self, hidden: Tensor) -> Tensor:
        """Returns logits (..., V) in float32 for hidden states (..., d)."""
        layer = output_layer(self.lm, self.vocabulary_size)
        weight = in_float32(layer.weight)
        if weight is not layer.weight:
            self.held = (weight,)
        bias = getattr(layer, "bias", None)
        if bias is None:  # BART keeps it beside the layer
            bias = getattr(self.lm, "final_logits_bias", None)
        if bias is not None:
            bias = bias.reshape(-1)[: self.vocabulary_size].float()
        return self.around.logits(hidden, weight[: self.vocabulary_size], bias)

    def ready(self, *, dropout: bool) -> None:
        """Switches everything to evaluation (a trainer may have done otherwise), the adapter's dropout as asked."""
        if self.lm.training or self.model.training:
            self.eval()
        for module in self._dropouts:
            module.train(dropout)
        if self.recomputes:
            for layer in _recomputed_layers(self.lm):  # the layer alone, not what is in it: they ask for it
                layer.training = torch.is_grad_enabled()

    def recompute(self) -> None:
        """Turns gradient checkpointing on."""
        # transformers renamed it on the way to version 6.
        enable = getattr(self.lm, "activation_checkpointing_enable", None) or self.lm.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        self.recomputes = True
        for layer in _recomputed_layers(self.lm):
            for name in ("dropout", "activation_dropout"):  # some layers read their own training flag
                if isinstance(getattr(layer, name, None), float):
                    setattr(layer, name, 0.0)

    @abstractmethod
    def start(self, contexts: list[tuple[int, ...]]) -> Reading:
        """Reads one context per row."""

    @abstractmethod
    def read(self, reading: Reading, tokens: Tensor) -> Tensor:
        """Reads further tokens (B, n) in one pass, moves the reading forward, returns hidden states (B, n, d)."""

    @abstractmethod
    def hidden(self, contexts: list[tuple[int, ...]], tokens: Tensor) -> Tensor:
        """Returns what predicts each of the given tokens, (B, T, d) float32; the last column is never read."""

    @abstractmethod
    def check_length(self, contexts: list[tuple[int, ...]], count: int) -> None:
        """Refuses what is longer than the LM's positions."""

    @abstractmethod
    def probe(self) -> tuple[Tensor, Tensor]:
        """Returns some logits (1, V) as the LM gives them, and as this class does."""


def distinct(contexts: Sequence[tuple[int, ...]], device: torch.device) -> tuple[list[tuple[int, ...]], Tensor]:
    """Returns the different contexts in order of appearance, and which of them each row is, (B,)."""
    index = {ids: place for place, ids in enumerate(dict.fromkeys(contexts))}
    return list(index), torch.tensor([index[ids] for ids in contexts], device=device)


def padded(rows: Sequence[tuple[int, ...]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns token ids (B, C), padded with 0 on the right, and lengths (B,)."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long, device=device)
    return ids, torch.tensor([len(row) for row in rows], device=device)


_COPIES: weakref.WeakValueDictionary[tuple[int, str], Tensor] = weakref.WeakValueDictionary()


def in_float32(weight: Tensor) -> Tensor:
    """Returns a frozen weight in float32: rounded logits of 20 would drown a policy's small changes.

    Policies on the same stored weight share the copy, as long as one of them holds it.
    """
    if weight.dtype == torch.float32:
        return weight
    key = (weight.data_ptr(), str(weight.device))
    found = _COPIES.get(key)
    if found is None:
        found = weight.detach().float()
        _COPIES[key] = found
    return found


def _recomputed_layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
