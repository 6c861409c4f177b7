"""Scores and text of an encoder-decoder model: the encoder reads the text, the decoder answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from rlprompt.targets.generation import Writing, advance
from rlprompt.targets.heads import summed_logprobs

_ROWS = 4
_STEP = 8


@dataclass(frozen=True, slots=True)
class Seq2SeqRow:
    """A tokenised text and the answers that the decoder is asked for, from its start token on."""

    tokens: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


class Seq2SeqScorer:
    """Scores answers and writes text with an encoder-decoder model.

    Texts are padded on the right to a multiple of eight and batched with texts of that padded length, in multiples
    of four rows. The encoder reads each different text of a call once.

    Args:
        model: an encoder-decoder LM.
        pad: id of the padding token.
        batch_tokens: most tokens in one pass of the encoder (but at least four rows are).
        max_length: most tokens that the encoder reads.
    """

    def __init__(self, model: Any, *, pad: int, batch_tokens: int, max_length: int | None = None) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.tokens_computed = 0
        self.perfect_tokens = 0
        start = model.config.decoder_start_token_id
        self._start = int(pad if start is None else start)
        self._pad = pad
        self._batch_tokens = batch_tokens
        self._max_length = max_length

    @torch.inference_mode()
    def score(self, rows: Sequence[Seq2SeqRow]) -> list[np.ndarray]:
        """Returns per row one float64 log-likelihood per answer (sum over its tokens, over the vocabulary)."""
        wanted: dict[tuple[int, ...], dict[tuple[int, ...], float]] = {}
        for row in rows:
            wanted.setdefault(row.tokens, {}).update(dict.fromkeys(row.answers, np.nan))
        self.perfect_tokens += sum(len(tokens) + sum(map(len, answers)) for tokens, answers in wanted.items())
        for batch in self._batches(list(wanted)):
            memory, mask = self._encode(batch)
            pairs = [(index, answer) for tokens, index in _places(batch) for answer in wanted[tokens]]
            for width in sorted({len(answer) for _, answer in pairs}):
                chosen = [pair for pair in pairs if len(pair[1]) == width]
                for start in range(0, len(chosen), len(batch)):
                    part = chosen[start : start + len(batch)]
                    for (index, answer), value in zip(part, self._decode(part, memory, mask), strict=False):
                        wanted[batch[index]][answer] = value
        return [np.array([wanted[row.tokens][answer] for answer in row.answers]) for row in rows]

    @torch.inference_mode()
    def write(self, writings: Sequence[Writing]) -> None:
        """Completes the writings in place."""
        waiting: dict[tuple[int, ...], list[Writing]] = {}
        for writing in writings:
            if not writing.done:
                waiting.setdefault(writing.tokens, []).append(writing)
        for batch in self._batches(list(waiting)):
            memory, mask = self._encode(batch)
            rows = [(index, writing) for tokens, index in _places(batch) for writing in waiting[tokens]]
            for start in range(0, len(rows), len(batch)):
                part = rows[start : start + len(batch)]
                self._write_part(part + [part[-1]] * (-len(part) % _ROWS), memory, mask)

    def _write_part(self, part: Sequence[tuple[int, Writing]], memory: Tensor, mask: Tensor) -> None:
        index = torch.tensor([place for place, _ in part], device=self.device)
        encoded, seen = BaseModelOutput(last_hidden_state=memory[index]), mask[index]
        ids = torch.full((len(part), 1), self._start)
        cache = None
        while True:
            self.tokens_computed += len(part)
            output = self.model(
                encoder_outputs=encoded,
                attention_mask=seen,
                decoder_input_ids=ids.to(self.device),
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            if not advance([writing for _, writing in part], output.logits[:, -1].float()):
                return
            ids = torch.tensor([[writing.ids[-1] if writing.ids else 0] for _, writing in part])

    def _encode(self, batch: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        length = self._padded(batch[0])
        ids = torch.full((len(batch), length), self._pad)
        mask = torch.zeros((len(batch), length), dtype=torch.long)
        for index, tokens in enumerate(batch):
            ids[index, : len(tokens)] = torch.tensor(tokens)
            mask[index, : len(tokens)] = 1
        self.tokens_computed += ids.numel()
        mask = mask.to(self.device)
        encoder = self.model.get_encoder()
        return encoder(input_ids=ids.to(self.device), attention_mask=mask).last_hidden_state, mask

    def _decode(self, pairs: Sequence[tuple[int, tuple[int, ...]]], memory: Tensor, mask: Tensor) -> list[float]:
        filled = [*pairs, *[pairs[-1]] * (-len(pairs) % _ROWS)]
        index = torch.tensor([place for place, _ in filled], device=self.device)
        ids = torch.tensor([[self._start, *answer[:-1]] for _, answer in filled])
        answers = torch.tensor([[answer] for _, answer in filled]).to(self.device)
        self.tokens_computed += ids.numel()
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=memory[index]),
            attention_mask=mask[index],
            decoder_input_ids=ids.to(self.device),
            use_cache=False,
        )
        scores: list[float] = summed_logprobs(output.logits.float(), answers)[:, 0].tolist()
        return scores

    def _padded(self, tokens: tuple[int, ...]) -> int:
        length = -(-len(tokens) // _STEP) * _STEP
        return length if self._max_length is None else min(length, self._max_length)

    def _batches(self, texts: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        groups: dict[int, list[tuple[int, ...]]] = {}
        for tokens in texts:
            groups.setdefault(self._padded(tokens), []).append(tokens)
        for length in sorted(groups):
            most = max(self._batch_tokens // length // _ROWS * _ROWS, _ROWS)
            for start in range(0, len(groups[length]), most):
                batch = groups[length][start : start + most]
                yield batch + [batch[-1]] * (-len(batch) % _ROWS)


def _places(batch: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], int]]:
    """Each different text of a batch with one place of it; the texts that fill the batch are repetitions."""
    return list({tokens: index for index, tokens in enumerate(batch)}.items())
