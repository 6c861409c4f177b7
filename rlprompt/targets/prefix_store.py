"""Where the keys and values of shared prefixes are kept, and how many tokens a perfect cache would compute."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from torch import Tensor

Tokens: TypeAlias = tuple[int, ...]
Layers: TypeAlias = list[tuple[Tensor, Tensor]]
"""Keys and values (heads, tokens, dimension) of each layer."""


class PrefixStore:
    """Keys and values by the exact tokens they belong to; the least recently used ones are dropped.

    Args:
        max_bytes: most bytes that are kept, 0 or more.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._kept: OrderedDict[Tokens, Layers] = OrderedDict()

    def __len__(self) -> int:
        """Returns the number of prefixes."""
        return len(self._kept)

    def get(self, tokens: Tokens) -> Layers | None:
        """Returns what is kept for these tokens, or None."""
        layers = self._kept.get(tokens)
        if layers is not None:
            self._kept.move_to_end(tokens)
        return layers

    def put(self, tokens: Tokens, layers: Layers) -> None:
        """Keeps keys and values; too large ones are not kept."""
        size = layers_bytes(layers)
        if size > self.max_bytes or tokens in self._kept:
            return
        self._kept[tokens] = layers
        self.used_bytes += size
        while self.used_bytes > self.max_bytes:
            self.used_bytes -= layers_bytes(self._kept.popitem(last=False)[1])


class TokenTrie:
    """The number of nodes of the trie over all rows ever asked: the tokens a perfect prefix cache would compute.

    Nodes are 64-bit hashes of their path, 8 bytes each.
    """

    def __init__(self) -> None:
        self._nodes = np.empty(0, dtype=np.int64)
        self._new: list[np.ndarray] = []
        self._pending = 0

    def add(self, rows: Iterable[Tokens]) -> None:
        """Adds rows of token ids."""
        nodes: set[int] = set()
        for tokens in rows:
            node = 0
            for token in tokens:
                node = hash((node, token))  # hashes of integers do not depend on PYTHONHASHSEED
                nodes.add(node)
        self._new.append(np.fromiter(nodes, dtype=np.int64, count=len(nodes)))
        self._pending += len(nodes)
        if self._pending > len(self._nodes):  # merging doubles the size each time: linear work in all
            self._merge()

    def __len__(self) -> int:
        """Returns the number of different nodes."""
        self._merge()
        return len(self._nodes)

    def _merge(self) -> None:
        if self._new:
            self._nodes = np.unique(np.concatenate([self._nodes, *self._new]))
            self._new, self._pending = [], 0


def layers_bytes(layers: Layers) -> int:
    """Returns the memory that keys and values take."""
    return sum(tensor.numel() * tensor.element_size() for pair in layers for tensor in pair)
