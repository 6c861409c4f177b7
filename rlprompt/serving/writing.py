"""A policy writes for several texts at once, and for each what it would write for that text alone.

Shapes: B texts, C context length, T tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from rlprompt.agents import AgentConfig
from rlprompt.masks import NOT_WRITTEN, decode, eos_token, static_mask
from rlprompt.models import pick_dtype
from rlprompt.policies import FeaturePolicy, PromptPolicy, Writer
from rlprompt.policies.sampling import write_prompts
from rlprompt.seeding import generator
from rlprompt.segments import end_token, segment_mask
from rlprompt.served import Served

CERTAIN = 1e-3
"""A token that is ahead by so much stays ahead: what stands beside a row moves its float32 logits by about 1e-5."""
ROWS, WIDTH, FILLING = 16, 16, 2
"""LMs in 16 bits write so many rows at once, read in a width that is a multiple of this. So many rows at least are
filled in, of different lengths: a batch without padding would be computed in another way. More rows would write more
at a time, and keep a single text waiting longer."""


class TextWriter:
    """Writes with the masks and the end of a run.

    Args:
        policy: who writes.
        served: masks and EOS.
        agent: who writes, where it is one of several: its segment's end is its own.
        longest: the most tokens that the policy can read before it writes; None where there is no limit.
    """

    def __init__(
        self, policy: PromptPolicy, served: Served, agent: AgentConfig | None = None, *, longest: int | None = None
    ) -> None:
        self.policy = policy
        self.longest = longest
        self.no_repeat = served.mask.no_repeat
        if agent is None:
            self.static_mask = static_mask(policy.tokenizer, served.mask, eos=served.eos)
            self.eos_id = eos_token(policy.tokenizer) if served.eos else None
        else:
            self.static_mask = segment_mask(policy.tokenizer, agent, served.mask)
            self.eos_id = end_token(policy.tokenizer, agent)
        self.in_float32 = pick_dtype(policy.config.dtype, policy.device) == torch.float32

    def greedy(self, contexts: Sequence[Sequence[int]], length: int, batch_size: int) -> list[str]:
        """Returns the most probable text after each context, whatever stands beside it in its batch."""
        return [decode(self.policy.tokenizer, row) for row in self.greedy_tokens(contexts, length, batch_size)]

    def greedy_tokens(
        self,
        contexts: Sequence[Sequence[int]],
        length: int,
        batch_size: int,
        before: Sequence[Sequence[int]] | None = None,
    ) -> list[list[int]]:
        """Returns the tokens of the most probable text after each context, whatever stands beside it in its batch.

        A sum over a batch rounds differently from a sum over one row. Where two tokens were so close that this could
        choose between them, the row is written again, alone. LMs in 16 bits round so coarsely that this would be most
        rows: they write batches that all have one shape, whatever `batch_size` is, and in which a row's sums are the
        same at every place. Policies over a frozen LM, whose logits are float32 but whose LM may be not, write one row
        at a time then.
        """
        held = [[] for _ in contexts] if before is None else before
        if not self.in_float32 and not isinstance(self.policy, FeaturePolicy):
            return self._in_one_shape(contexts, length, held)
        found: list[list[int]] = [[] for _ in contexts]
        for places in _batches(contexts, batch_size if self.in_float32 else 1):
            watched = _Watched(self.policy)
            read, kept = [contexts[place] for place in places], [held[place] for place in places]
            written = self._write(cast(PromptPolicy, watched), read, length, None, kept)
            for row, place in enumerate(places):
                found[place] = written[row]
                if len(places) > 1 and watched.margins[row] < CERTAIN:
                    found[place] = self._write(self.policy, [contexts[place]], length, None, [held[place]])[0]
        return found

    def _in_one_shape(
        self, contexts: Sequence[Sequence[int]], length: int, before: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        """Writes rows of like length together, with rows that nobody asked for: one of them has the whole width.

        A policy reads equal contexts once, so no two rows of a batch are equal.
        """
        found: list[list[int]] = [[] for _ in contexts]
        seen: Counter[tuple[int, ...]] = Counter()
        alike: dict[tuple[int, int], list[int]] = {}
        for place, context in enumerate(contexts):
            seen[tuple(context)] += 1
            alike.setdefault((self._width(len(context)), seen[tuple(context)]), []).append(place)
        for (width, _), places in alike.items():
            for first in range(0, len(places), ROWS - FILLING):
                rows = places[first : first + ROWS - FILLING]
                read: list[Sequence[int]] = [contexts[row] for row in rows]
                known = [list(row) for row in read]
                filling = ([read[0][0]] * size for size in range(width, 0, -1))  # the whole width, and less
                read += itertools.islice((row for row in filling if row not in known), ROWS - len(rows))
                kept = [*(before[row] for row in rows), *[[]] * (len(read) - len(rows))]
                written = self._write(self.policy, read, length, None, kept)
                for row, tokens in zip(rows, written, strict=False):
                    found[row] = tokens
        return found

    def _width(self, size: int) -> int:
        width = -(-size // WIDTH) * WIDTH
        return width if self.longest is None else max(size, min(width, self.longest))

    def sampled(
        self,
        contexts: Sequence[Sequence[int]],
        length: int,
        batch_size: int,
        *,
        temperature: float,
        seed: int,
        keys: Sequence[str],
    ) -> list[str]:
        """Returns a drawn text after each context; the draws depend on seed and key (the user's text) only."""
        rows = self.sampled_tokens(contexts, length, batch_size, temperature=temperature, seed=seed, keys=keys)
        return [decode(self.policy.tokenizer, row) for row in rows]

    def sampled_tokens(
        self,
        contexts: Sequence[Sequence[int]],
        length: int,
        batch_size: int,
        *,
        temperature: float,
        seed: int,
        keys: Sequence[str],
        before: Sequence[Sequence[int]] | None = None,
        place: int = 0,
    ) -> list[list[int]]:
        """Returns the tokens of a drawn text after each context; agents of one team (`place`) draw differently."""
        held = [[] for _ in contexts] if before is None else before
        found: list[list[int]] = [[] for _ in contexts]
        for rows in _batches(contexts, batch_size):
            watched = _Watched(self.policy, temperature)
            draws = np.array([_draws(seed, keys[row], length, place) for row in rows])
            read, kept = [contexts[row] for row in rows], [held[row] for row in rows]
            written = self._write(cast(PromptPolicy, watched), read, length, draws, kept)
            for row, tokens in zip(rows, written, strict=True):
                found[row] = tokens
        return found

    def _write(
        self,
        policy: PromptPolicy,
        contexts: list[Sequence[int]],
        length: int,
        draws: np.ndarray | None,
        before: list[Sequence[int]],
    ) -> list[list[int]]:
        tokens = write_prompts(
            policy,
            _padded(contexts),
            static_mask=self.static_mask,
            eos_id=self.eos_id,
            no_repeat=self.no_repeat,
            before=_padded(before),
            length=length,
            uniforms=draws,
        )
        rows: list[list[int]] = tokens.tolist()
        return rows


class _Watched:
    """Stands for a policy before `write_prompts`, which asks it for a writer and nothing else."""

    def __init__(self, policy: PromptPolicy, temperature: float = 1.0) -> None:
        self.policy = policy
        self.temperature = temperature
        self.margins: Tensor = torch.empty(0)
        """(B,) how far the most probable token was ahead of the next one, where it was closest."""

    def writer(self, context: Tensor) -> Writer:
        """Begins one prompt for each context (B, C)."""
        self.margins = torch.full((len(context),), float("inf"))
        return _WatchedWriter(self, self.policy.writer(context))


class _WatchedWriter(Writer):
    def __init__(self, watched: _Watched, writer: Writer) -> None:
        self.watched = watched
        self.inner = writer

    def next_logits(self, last_tokens: Tensor | None = None) -> Tensor:
        return self.inner.next_logits(last_tokens)

    def sampling_logits(self, logits: Tensor, mask: Tensor) -> Tensor:
        found = self.inner.sampling_logits(logits, mask)
        best = found.topk(2, dim=-1).values.cpu()  # inf apart where one token is allowed, as behind the end
        self.watched.margins = torch.minimum(self.watched.margins, best[:, 0] - best[:, 1])
        return found / self.watched.temperature


def _batches(contexts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Places of contexts of like length together, so that little is padded."""
    order = sorted(range(len(contexts)), key=lambda place: len(contexts[place]))
    return [order[first : first + size] for first in range(0, len(order), size)]


def _padded(contexts: Sequence[Sequence[int]]) -> Tensor:
    ids = np.full((len(contexts), max(map(len, contexts))), NOT_WRITTEN, dtype=np.int64)
    for row, context in enumerate(contexts):
        ids[row, : len(context)] = context
    return torch.from_numpy(ids)


def _draws(seed: int, key: str, length: int, place: int) -> np.ndarray:
    keys = (zlib.crc32(key.encode()), place) if place else (zlib.crc32(key.encode()),)
    return generator(seed, "rewrite", *keys).random(length)
