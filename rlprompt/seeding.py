"""Every random draw comes from a generator keyed by what it is for, never by who draws it.

The key is (seed, stream, iteration, episode, step, ...). Nothing depends on the number of workers, on the
order in which they run, or on how often the run was resumed.
"""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, stream: str, *keys: int) -> np.random.Generator:
    """Returns the generator of one draw.

    Args:
        seed: the run's seed, >= 0.
        stream: what the draw is for, for example "minibatch" or "token".
        *keys: iteration, episode, step, ... ; integers >= 0.

    >>> float(generator(0, "token", 3, 1).random()) == float(generator(0, "token", 3, 1).random())
    True
    >>> float(generator(0, "token", 3, 1).random()) == float(generator(0, "token", 3, 2).random())
    False
    """
    return np.random.Generator(np.random.Philox(_sequence(seed, stream, keys)))


def integer_seed(seed: int, stream: str, *keys: int) -> int:
    """Returns a seed in [0, 2**31) for libraries that take one number (torch, transformers)."""
    return int(_sequence(seed, stream, keys).generate_state(1)[0] >> 1)


def uniforms(seed: int, stream: str, iteration: int, episodes: list[int], step: int) -> np.ndarray:
    """Returns one uniform draw in [0, 1) per episode; shape (len(episodes),), float64."""
    return np.array([generator(seed, stream, iteration, episode, step).random() for episode in episodes])


def _sequence(seed: int, stream: str, keys: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, zlib.crc32(stream.encode()), *keys])
