"""How tokens are chosen from logits: truncation, draws from given uniforms, and the loop that writes whole prompts.

A forbidden token has the logit -inf. Shapes: B prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rlprompt.errors import ConfigError, RunError
from rlprompt.masks import step_mask
from rlprompt.types import BoolArray, FloatArray

if TYPE_CHECKING:
    from rlprompt.policies.base import PromptPolicy

FORBIDDEN = float("-inf")


def filter_top_k(logits: Tensor, k: int) -> Tensor:
    """Forbids all but the k largest logits of each row; those that tie with the k-th stay.

    >>> filter_top_k(torch.tensor([[3.0, 1.0, 2.0, 2.0]]), 2).tolist()
    [[3.0, -inf, 2.0, 2.0]]
    """
    if k >= logits.shape[-1]:
        return logits
    smallest = torch.topk(logits, k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, FORBIDDEN)


def filter_top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the fewest most probable tokens whose probabilities add up to p or more; always at least one.

    Reference: nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751.

    >>> filter_top_p(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.6).isfinite().tolist()
    [[True, True, False]]
    """
    ordered, places = torch.sort(logits, dim=-1, descending=True, stable=True)
    probabilities = torch.softmax(ordered, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # what the more probable tokens add up to
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, places, before >= p)
    return logits.masked_fill(dropped, FORBIDDEN)


def draw(logits: Tensor, uniforms: FloatArray) -> Tensor:
    """Draws one token per row by inverting its cumulative distribution, in float64.

    A row's token depends on its own logits and uniform only. A forbidden token is never drawn, whatever the uniform.

    Args:
        logits: (B, V).
        uniforms: (B,) in [0, 1).

    Returns:
        Token ids (B,), on the device of the logits.

    Raises:
        RunError: a row has no token that may be written, or logits that are not numbers.
    """
    rows = logits.detach().to("cpu", torch.float64).numpy()
    chosen = np.empty(len(rows), dtype=np.int64)
    for index, (row, uniform) in enumerate(zip(rows, uniforms, strict=True)):
        candidates = np.flatnonzero(row != FORBIDDEN)
        _check_row(row, candidates)
        weights = np.exp(row[candidates] - row[candidates].max())
        cumulative = np.cumsum(weights)
        place = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
        if place == len(cumulative):  # rounding can lift uniform * total to the total
            place = int(np.flatnonzero(weights)[-1])
        chosen[index] = candidates[place]
    return torch.from_numpy(chosen).to(logits.device)


def greedy(logits: Tensor) -> Tensor:
    """Returns the most probable token of each row, (B, V) to (B,); the lowest id of those that tie.

    Raises:
        RunError: as `draw`.
    """
    rows = logits.detach().to("cpu").numpy()
    for row in rows:
        _check_row(row, np.flatnonzero(row != FORBIDDEN))
    return torch.from_numpy(rows.argmax(axis=-1).astype(np.int64)).to(logits.device)


@torch.no_grad()
def write_prompts(
    policy: PromptPolicy,
    context: Tensor,
    *,
    static_mask: BoolArray,
    eos_id: int | None,
    no_repeat: bool,
    length: int,
    uniforms: FloatArray | None,
    before: Tensor | None = None,
) -> Tensor:
    """Writes one prompt per context, token by token.

    Args:
        policy: who writes.
        context: (B, C) token ids, -1 at padding on the right.
        static_mask: (V,) which tokens may ever be written.
        eos_id: the token that ends a prompt; None writes `length` tokens.
        no_repeat: forbids a token that the prompt already holds.
        length: tokens to write, T.
        uniforms: (B, T) in [0, 1), one per token; None writes the most probable token every time.
        before: what other agents wrote into the prompts before, (B, p), -1 where nothing; counts for `no_repeat`.

    Returns:
        Token ids (B, T) on the device of `context`; EOS after the first EOS.

    Raises:
        RunError: nothing may be written any more, or the logits are not numbers.
    """
    if uniforms is not None and uniforms.shape != (len(context), length):
        raise ConfigError(f"uniforms must have the shape {(len(context), length)}, got {uniforms.shape}")
    tokens = torch.full((len(context), length), -1, dtype=torch.long, device=context.device)
    writer = policy.writer(context)
    held = None if before is None else before.cpu().numpy()
    last: Tensor | None = None
    for step in range(length):
        written = tokens[:, :step]
        if eos_id is not None and bool((written == eos_id).any(dim=1).all()) and len(written):
            tokens[:, step:] = eos_id
            break
        logits = writer.next_logits(last)
        allowed = step_mask(static_mask, written.cpu().numpy(), eos_id=eos_id, no_repeat=no_repeat, before=held)
        logits = writer.sampling_logits(logits, torch.from_numpy(allowed).to(logits.device))
        chosen = greedy(logits) if uniforms is None else draw(logits, uniforms[:, step])
        tokens[:, step] = last = chosen.to(tokens.device)
    return tokens


def _check_row(row: np.ndarray, candidates: np.ndarray) -> None:
    if not len(candidates):
        raise RunError("no token may be written: the mask forbids all; loosen env.mask or shorten the prompt")
    if not np.isfinite(row[candidates]).all():
        raise RunError("the policy's logits are not finite numbers; training diverged, lower algorithm.lr")
