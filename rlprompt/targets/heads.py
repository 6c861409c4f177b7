"""The output layer of a frozen model, computed only where it is asked for.

Of a vocabulary of 50,000 tokens a classification reads two, at one position. The layer is replaced by one that
multiplies just those rows; everything around it (soft caps, scales, the transform of a masked LM) stays the model's
own code. Where a model does not use its output layer in a way that allows this, its full logits are read instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ROWS_PER_CHUNK = 16384


@dataclass
class _Wanted:
    positions: Tensor
    """(B, M) positions in the sequence."""
    rows: Tensor | None
    """(B, n) token ids; None for the whole vocabulary."""


class _SparseHead(torch.nn.Module):
    """Stands where the model's output layer stood."""

    def __init__(self, inner: torch.nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.wanted: _Wanted | None = None

    @property
    def weight(self) -> Tensor:
        return self.inner.weight

    @property
    def bias(self) -> Tensor | None:
        return self.inner.bias

    def forward(self, hidden: Tensor) -> Tensor:
        if self.wanted is None:
            out: Tensor = self.inner(hidden)
            return out
        hidden = _at(hidden, self.wanted.positions)
        if self.wanted.rows is None:
            return self._full(hidden)
        # A product and a sum per row in float64: no matrix kernel whose rounding depends on the batch.
        number = torch.float32 if hidden.device.type == "mps" else torch.float64
        weight = self.inner.weight[self.wanted.rows].to(number)  # (B, n, d)
        logits = (hidden.to(number)[:, :, None] * weight[:, None]).sum(-1)  # (B, M, n)
        if self.inner.bias is not None:
            logits = logits + self.inner.bias[self.wanted.rows].to(number)[:, None]
        return logits

    def _full(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary in float32; bfloat16 would round a logit of 15 to steps of 1/16."""
        weight, bias = self.inner.weight, self.inner.bias
        if weight.dtype == torch.float32:
            return torch.nn.functional.linear(hidden, weight, bias)
        hidden = hidden.float()
        parts = [
            torch.nn.functional.linear(
                hidden,
                weight[start : start + _ROWS_PER_CHUNK].float(),
                None if bias is None else bias[start : start + _ROWS_PER_CHUNK].float(),
            )
            for start in range(0, weight.shape[0], _ROWS_PER_CHUNK)
        ]
        return torch.cat(parts, dim=-1)


class OutputHead:
    """Asks a causal or masked model for chosen logits at chosen positions.

    Args:
        model: its output layer is replaced, so it must be a module of one's own (see `models.load_frozen`).
        probe: (4, T) token ids on which the replaced layer must reproduce the model.
    """

    def __init__(self, model: Any, probe: Tensor) -> None:
        self.model = model
        self.vocabulary_size = int(model.get_input_embeddings().weight.shape[0])
        self._sparse: _SparseHead | None = None
        inner = model.get_output_embeddings()
        if isinstance(inner, _SparseHead):  # this model was prepared before
            self._sparse = inner
            return
        parents = [
            (module, name)
            for module in model.modules()
            for name, child in module.named_children()
            if child is inner and isinstance(inner, torch.nn.Linear)
        ]
        if parents:
            expected = self.logits(_last(probe), None, input_ids=probe)
            sparse = _SparseHead(inner)
            for module, name in parents:
                setattr(module, name, sparse)
            self._sparse = sparse
            if not self._reproduces(expected, probe):
                for module, name in parents:
                    setattr(module, name, inner)
                self._sparse = None

    def logits(self, positions: Tensor, rows: Tensor | None, **inputs: Any) -> Tensor:
        """Runs the model.

        Args:
            positions: (B, M) positions whose predictions are wanted.
            rows: (B, n) token ids, or None for the whole vocabulary.
            **inputs: arguments of the model's forward.

        Returns:
            Logits, (B, M, n) or (B, M, V); at least float32.
        """
        return self.run(positions, rows, **inputs)[0]

    def run(self, positions: Tensor, rows: Tensor | None, **inputs: Any) -> tuple[Tensor, Any]:
        """As `logits`; returns the model's whole output as well, for its key-value cache."""
        if self._sparse is None:
            output = self.model(**inputs)
            logits = _at(output.logits.float(), positions)
            if rows is not None:
                logits = logits.gather(-1, rows[:, None].expand(-1, logits.shape[1], -1))
            return logits, output
        self._sparse.wanted = _Wanted(positions, rows)
        try:
            output = self.model(**inputs)
        finally:
            self._sparse.wanted = None
        return output.logits, output

    def score(self, positions: Tensor, answers: Tensor, full: bool, **inputs: Any) -> Tensor:
        """Scores n answers per row.

        Args:
            positions: (B, M) positions that predict the tokens of an answer.
            answers: (B, n, M) token ids.
            full: whether to normalise over the vocabulary.
            **inputs: arguments of the model's forward.

        Returns:
            (B, n) float64: the sum over an answer's tokens of their log-probabilities; with `full` False, the logit
            of its one token.
        """
        if not full:
            return self.logits(positions, answers[:, :, 0], **inputs)[:, 0].double()
        return summed_logprobs(self.logits(positions, None, **inputs), answers)

    def _reproduces(self, expected: Tensor, probe: Tensor) -> bool:
        positions = _last(probe)
        rows = torch.arange(4, device=probe.device).expand(len(probe), 4).contiguous()
        try:
            full = self.logits(positions, None, input_ids=probe)
            some = self.logits(positions, rows, input_ids=probe)
        except (RuntimeError, IndexError, AttributeError):  # shapes that the model's own code does not accept
            return False
        number = self.model.dtype
        return (
            full.shape == expected.shape
            and same_logits(expected, full, number)
            and same_logits(expected[..., :4], some, number)
        )


def summed_logprobs(logits: Tensor, answers: Tensor) -> Tensor:
    """Returns (B, n) float64 sums of log-probabilities from logits (B, M, V) and answers (B, n, M)."""
    chosen = logits.gather(-1, answers.transpose(1, 2)).double()  # (B, M, n)
    return (chosen - logits.logsumexp(-1, keepdim=True).double()).sum(1)


def same_logits(expected: Tensor, got: Tensor, number: torch.dtype) -> bool:
    """Whether two ways to compute logits agree but for the rounding of a number type.

    The difference may be 2 % of the logits' spread (20 % in bfloat16 and float16), far less than any mistake makes.
    """
    share = 0.02 if number == torch.float32 else 0.2
    difference = (expected.double() - got.double()).abs().max()
    return bool(difference <= share * expected.double().std() + 1e-4)


def _at(values: Tensor, positions: Tensor) -> Tensor:
    """Picks (B, M, d) out of (B, T, d)."""
    return values.gather(1, positions[:, :, None].expand(-1, -1, values.shape[-1]))


def _last(probe: Tensor) -> Tensor:
    return torch.full((len(probe), 1), probe.shape[1] - 1, device=probe.device)
