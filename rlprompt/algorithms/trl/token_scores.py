"""Log-probabilities of written tokens and their gradients, in chunks of rows: computed here, or by several learners.

A loss reads log-probabilities and entropies of single tokens. Whoever computes them needs to know nothing of the loss:
its gradient by the weights is the sum over the chunks of their vector-Jacobian products with its gradient by their
values. Where rows are cut, and in which order the products are added, depends on the batch alone, so neither the number
of learners nor the loss of one changes a bit of the weights.

Shapes: B rows, C context, T completion, S scored tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor

from rlprompt.algorithms.chunks import row_chunks
from rlprompt.masks import NOT_WRITTEN
from rlprompt.policies.sampling import FORBIDDEN

Outer: TypeAlias = tuple[Tensor | None, Tensor | None]
"""The loss's gradient by the `log_probs` and by the `entropy` of a chunk, (S,) each; None for nothing."""


@dataclass(frozen=True)
class Rows:
    """Some rows, computed at once."""

    context: Tensor
    """(B, C), -1 at padding on the right."""
    tokens: Tensor
    """(B, T), -1 behind the end."""


@dataclass(frozen=True)
class TokenScores:
    """Of the written tokens of some rows, row by row."""

    log_probs: Tensor
    """(S,), under the masks."""
    entropy: Tensor
    """(S,), of the distribution that the token was drawn from, in nats."""
    is_top1: Tensor
    """(S,), whether the token was the most probable one."""


class Scored(Protocol):
    """Chunks that were scored, and can be differentiated once."""

    def values(self) -> list[TokenScores]:
        """Returns the scores of each chunk, without gradient."""

    def gradients(self, outer: Sequence[Outer]) -> list[Tensor | None]:
        """Returns the gradient of each trained parameter, None for one that takes no part."""


class Scorer(Protocol):
    """Computes chunks, here or elsewhere."""

    def start(self, chunks: Sequence[Rows], *, gradient: bool) -> Scored:
        """Scores chunks; with `gradient` they can be differentiated afterwards."""


def cut(context: Tensor, tokens: Tensor, vocabulary_size: int, *, gradient: bool) -> list[Rows]:
    """Cuts a batch into chunks that fit into memory; context (B, C) and tokens (B, T)."""
    return [
        Rows(context[rows], tokens[rows, :width])
        for rows, width in row_chunks(context, tokens, vocabulary_size, gradient=gradient)
    ]


def score(rows: Rows, log_softmax: Any, *, entropy_gradient: bool) -> TokenScores:
    """Scores one chunk.

    Args:
        rows: the chunk.
        log_softmax: from context and tokens to log-probabilities (B, T, V) under the masks.
        entropy_gradient: whether `entropy` has one; without it, it costs no memory.
    """
    places = (rows.tokens != NOT_WRITTEN).nonzero(as_tuple=True)
    logp = log_softmax(rows.context, rows.tokens)[places]  # (S, V)
    chosen = rows.tokens[places].to(logp.device)
    with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_gradient):
        entropy = -(logp.exp() * logp.masked_fill(logp == FORBIDDEN, 0.0)).sum(dim=-1)
    return TokenScores(logp.gather(1, chosen[:, None]).squeeze(1), entropy, logp.argmax(dim=-1) == chosen)


class ScoredHere:
    """Chunks whose graphs are kept until they are differentiated."""

    def __init__(self, found: Sequence[TokenScores], parameters: Sequence[Tensor]) -> None:
        self._found, self._parameters = list(found), parameters

    def values(self) -> list[TokenScores]:
        """Returns the scores of each chunk, without gradient."""
        return [without_graph(one) for one in self._found]

    def gradients(self, outer: Sequence[Outer]) -> list[Tensor | None]:
        """Returns the gradient of each trained parameter."""
        return added(self.by_chunk(outer))

    def by_chunk(self, outer: Sequence[Outer]) -> Iterator[list[Tensor | None]]:
        """Yields the part of each chunk; a graph is freed as soon as it is not needed."""
        for place, by_values in enumerate(outer):
            yield products(self._found[place], by_values, self._parameters)
            self._found[place] = without_graph(self._found[place])


def without_graph(scores: TokenScores) -> TokenScores:
    """Returns the values alone."""
    return TokenScores(scores.log_probs.detach(), scores.entropy.detach(), scores.is_top1)


def products(scores: TokenScores, outer: Outer, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Returns the vector-Jacobian product of one chunk, by parameter.

    Args:
        scores: of the chunk, with their graph.
        outer: the loss's gradient by `log_probs` and by `entropy`.
        parameters: what is trained.
    """
    parts = [
        (value, gradient)
        for value, gradient in zip((scores.log_probs, scores.entropy), outer, strict=True)
        if gradient is not None and value.requires_grad
    ]
    if not parts:
        return [None] * len(parameters)
    values, gradients = zip(*parts, strict=True)
    return list(torch.autograd.grad(values, parameters, gradients, allow_unused=True))


def added(found: Iterable[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """Returns the sum of the gradients of several chunks, added up in their order, by parameter."""
    total: list[Tensor | None] = []
    for gradients in found:
        total = total or [None] * len(gradients)
        for place, gradient in enumerate(gradients):
            if gradient is not None:
                before = total[place]
                total[place] = gradient if before is None else before + gradient
    return total


class _Scores(torch.autograd.Function):
    """Lets a loss be differentiated through scores that were computed chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, scorer: Scorer, chunks: Sequence[Rows], *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the scores of all chunks side by side; the further arguments are what is trained."""
        with torch.enable_grad():
            ctx.scored = scorer.start(chunks, gradient=True)
        found = ctx.scored.values()
        ctx.sizes = [len(one.log_probs) for one in found]
        ctx.set_materialize_grads(False)
        joined = joined_scores(found)
        ctx.mark_non_differentiable(joined.is_top1)
        return joined.log_probs, joined.entropy, joined.is_top1

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor | None, ...]:
        """Returns the gradient of each trained parameter."""
        log_probs, entropy = ([None] * len(ctx.sizes) if one is None else one.split(ctx.sizes) for one in outer[:2])
        return (None, None, *ctx.scored.gradients(list(zip(log_probs, entropy, strict=True))))


def joined_scores(found: Sequence[TokenScores]) -> TokenScores:
    """Returns the scores of several chunks as those of one."""
    return TokenScores(
        *(torch.cat([getattr(one, name) for one in found]) for name in ("log_probs", "entropy", "is_top1"))
    )


def score_all(scorer: Scorer, chunks: Sequence[Rows], parameters: Sequence[Tensor]) -> TokenScores:
    """Scores chunks, so that a loss on the result can be differentiated where gradients are enabled.

    Args:
        scorer: who computes.
        chunks: at least one.
        parameters: what is trained; without any there is no gradient.
    """
    if not parameters or not torch.is_grad_enabled():
        with torch.no_grad():
            return joined_scores(scorer.start(chunks, gradient=False).values())
    found = cast(tuple[Tensor, Tensor, Tensor], _Scores.apply(scorer, chunks, *parameters))  # type: ignore[no-untyped-call]  # untyped there
    return TokenScores(*found)
