"""Scores of a masked language model: the words it would put in the place of the mask.

A text holds the literal mask of templates once, or gets it at its end. An answer of M tokens is scored with M masks
in that place, as the sum of the log-probabilities of its tokens, each at its own mask and all read in one pass: the
tokens do not see each other. (An answer of one token among answers of one token is the exact distribution.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlprompt.targets.heads import OutputHead
from rlprompt.types import Failure

MASK = "<mask>"
_ROWS = 4
_STEP = 8
_LOGITS = 2**26


@dataclass(frozen=True, slots=True)
class MaskedRow:
    """A tokenised text with M masks and the answers of M tokens that are scored there."""

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    full: bool


def masked_row(tokenizer: Any, text: str, answers: tuple[tuple[int, ...], ...], *, full: bool) -> MaskedRow | Failure:
    """Puts as many masks into a text as the answers have tokens (all have the same number)."""
    if MASK not in text:
        text = f"{text} {MASK}"
    if text.count(MASK) != 1:
        return Failure("target", "malformed", f"the text holds {text.count(MASK)} masks; it must hold one")
    width = len(answers[0])
    filled = text.replace(MASK, tokenizer.mask_token * width)
    tokens = tuple(tokenizer(filled, verbose=False)["input_ids"])
    positions = tuple(index for index, token in enumerate(tokens) if token == tokenizer.mask_token_id)
    if len(positions) != width:
        return Failure("target", "malformed", f"the text itself holds the mask token {tokenizer.mask_token}")
    return MaskedRow(tokens, positions, answers, full)


class MaskedScorer:
    """Scores rows with a masked LM, in batches of equal padded length.

    Args:
        model: a masked LM of one's own (its output layer is replaced).
        pad: id of the padding token.
        batch_tokens: most tokens in one forward pass (but at least four rows are).
        max_length: most tokens that the model reads.
    """

    def __init__(self, model: Any, *, pad: int, batch_tokens: int, max_length: int | None = None) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.tokens_computed = 0
        self.perfect_tokens = 0
        self._pad = pad
        self._batch_tokens = batch_tokens
        self._max_length = max_length
        vocabulary = int(model.get_input_embeddings().weight.shape[0])
        tokens = [token for token in range(vocabulary) if token != pad]
        probe = torch.tensor([tokens[index * 7 % len(tokens)] for index in range(_ROWS * 8)], device=self.device)
        with torch.inference_mode():
            self.head = OutputHead(model, probe.view(_ROWS, 8))

    @torch.inference_mode()
    def score(self, rows: Sequence[MaskedRow]) -> list[np.ndarray]:
        """Returns one float64 number per answer of each row; equal rows are computed once."""
        distinct = list(dict.fromkeys(rows))
        self.perfect_tokens += sum(len(row.tokens) for row in distinct)
        found: dict[MaskedRow, np.ndarray] = {}
        for length, batch in self._batches(distinct):
            ids = torch.full((len(batch), length), self._pad)
            mask = torch.zeros((len(batch), length), dtype=torch.long)
            for index, row in enumerate(batch):
                ids[index, : len(row.tokens)] = torch.tensor(row.tokens)
                mask[index, : len(row.tokens)] = 1
            self.tokens_computed += ids.numel()
            numbers = self.head.score(
                torch.tensor([row.positions for row in batch]).to(self.device),
                torch.tensor([row.answers for row in batch]).to(self.device),
                batch[0].full,
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
            )
            found.update(zip(batch, numbers.cpu().numpy(), strict=True))
        return [found[row] for row in rows]

    def _batches(self, rows: Sequence[MaskedRow]) -> Iterator[tuple[int, list[MaskedRow]]]:
        groups: dict[tuple[int, int, int, bool], list[MaskedRow]] = {}
        for row in rows:
            length = -(-len(row.tokens) // _STEP) * _STEP
            if self._max_length is not None:
                length = min(length, self._max_length)
            groups.setdefault((length, len(row.positions), len(row.answers), row.full), []).append(row)
        for shape in sorted(groups):
            length, width, _, full = shape
            most = self._batch_tokens // length
            if full:
                most = min(most, _LOGITS // (width * self.head.vocabulary_size))
            most = max(most // _ROWS * _ROWS, _ROWS)
            for start in range(0, len(groups[shape]), most):
                batch = groups[shape][start : start + most]
                yield length, batch + [batch[-1]] * (-len(batch) % _ROWS)
