"""How many rows a whole LM scores at once, so that memory does not grow with the batch.

Shapes: B rows, C context length, T tokens.
"""

from __future__ import annotations

import torch

LOGIT_BYTES = 64 * 2**20
"""Logits of one chunk. A loss holds about five tensors of this size."""
TOKENS_WITH_GRADIENT = 512
"""Tokens of one chunk that is differentiated: a 135M LM keeps about 2 MiB for each until its backward pass."""
TOKENS_WITHOUT_GRADIENT = 4096


def row_chunks(
    context: torch.Tensor, tokens: torch.Tensor, vocabulary_size: int, *, gradient: bool
) -> list[tuple[slice, int]]:
    """Cuts a batch into runs of rows, of at least one row each, by lengths alone.

    A context that several rows of a run have counts once, since it is read once.

    Args:
        context: (B, C) token ids, -1 at padding on the right.
        tokens: (B, T) token ids, -1 where not written.
        vocabulary_size: logits per token.
        gradient: whether the runs will be differentiated.

    Returns:
        For each run its rows, and the number of columns of `tokens` that they use, at least 1.
    """
    limit = TOKENS_WITH_GRADIENT if gradient else TOKENS_WITHOUT_GRADIENT
    contexts = [tuple(token for token in row if token >= 0) for row in context.tolist()]
    lengths = (tokens >= 0).sum(dim=1).clamp(min=1).tolist()
    found: list[tuple[slice, int]] = []
    start, read, longest = 0, set[tuple[int, ...]](), 1
    for row, (ids, length) in enumerate(zip(contexts, lengths, strict=True)):
        also_read, now_longest = read | {ids}, max(longest, length)
        written = (row + 1 - start) * now_longest
        is_full = sum(map(len, also_read)) + written > limit or written * vocabulary_size * 4 > LOGIT_BYTES
        if is_full and row > start:
            found.append((slice(start, row), longest))
            start, also_read, now_longest = row, {ids}, length
        read, longest = also_read, now_longest
    found.append((slice(start, len(contexts)), longest))
    return found
