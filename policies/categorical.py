"""The categorical policy: a table of token logits per position, which reads no context.

Independent distributions per position, as in black-box discrete prompt learning (Diao et al. 2023, arXiv:2201.08531),
here with softmax logits in place of projected probabilities. It has T * V parameters: with a small vocabulary it is
cheap, and a strict check of an estimator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor

from rlprompt.policies.base import Decoding, FeaturePolicy, parse_settings

if TYPE_CHECKING:
    from rlprompt.config import PolicyConfig


class TableHead(torch.nn.Module):
    """Logits `table` (T, V) and values `value` (T,); all 0, so the policy starts uniform."""

    def __init__(self, prompt_length: int, vocabulary_size: int) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(prompt_length, vocabulary_size))
        self.value = torch.nn.Parameter(torch.zeros(prompt_length))


class CategoricalPolicy(FeaturePolicy):
    """A table of token logits per position. Features are positions: (B, T, 1), int64.

    Args:
        config: `model` names the tokenizer; `kwargs` are those of `Decoding`.
        prompt_length: rows of the table.
        seed: not used; the table starts at 0.
    """

    kind: ClassVar[str] = "categorical"

    def __init__(self, config: PolicyConfig, *, prompt_length: int, seed: int = 0) -> None:
        settings = parse_settings(self.kind, Decoding, config.kwargs)
        super().__init__(config, prompt_length=prompt_length, settings=settings)
        self.head = TableHead(prompt_length, self.vocabulary_size)
        self.freeze_reference()

    def features(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Returns the positions (B, T, 1)."""
        rows, length = tokens.shape
        return torch.arange(length, device=self.device).repeat(rows, 1).unsqueeze(-1)

    def next_features(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Returns the next position (B, 1)."""
        rows, step = tokens.shape
        return torch.full((rows, 1), step, dtype=torch.long, device=self.device)

    def logits(self, features: Tensor, head: torch.nn.Module | None = None) -> Tensor:
        """Returns the table's rows (..., V)."""
        table = cast(TableHead, head if head is not None else self.head).table
        return self._softened(table[features.squeeze(-1).long()])

    def values(self, features: Tensor, head: torch.nn.Module | None = None) -> Tensor:
        """Returns one value per position (...)."""
        value = cast(TableHead, head if head is not None else self.head).value
        return value[features.squeeze(-1).long()]
