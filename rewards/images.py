"""What images are worth, by NumPy alone: stand-ins for an aesthetic model and for CLIP, made for the target `renderer`.

They hold the places of the two models in Promptist's reward. Neither says anything about real images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlprompt.targets.renderer import COLOURS, SHAPES, shape_mask
from rlprompt.types import FloatArray

_CONCEPTS = (*COLOURS, *SHAPES)
_TINY = 1e-9


def contrast(images: Sequence[Any]) -> FloatArray:
    """Returns 10 times the standard deviation of each image's values, (n,), in [0, 5].

    Args:
        images: n pictures (height, width, 3), values 0 to 255.

    >>> black, white = [[[0, 0, 0]]], [[[255, 255, 255]]]
    >>> contrast([black + white]).tolist()
    [5.0]
    """
    pixels = as_images(images)
    return np.asarray(10 * pixels.reshape(len(pixels), -1).std(axis=1), dtype=np.float64)


class SceneEmbedding:
    """Images and texts as vectors over the colours and shapes that the renderer knows.

    A text has a 1 for each one that it names. An image has, for a colour, the cosine (not below 0) between it and the
    mean colour of what stands out; for a shape, the correlation (not below 0) between the shape and where something
    stands out. A last place says how mixed the colours are that stand out: no text has anything there, so that
    coloured noise is far from all texts. d = a pixel's colour less the median colour of the image's edge is what
    stands out, and |d| is its weight.
    """

    def images(self, images: Sequence[Any]) -> FloatArray:
        """Returns the vectors (n, d) of n square pictures (size, size, 3), values 0 to 255."""
        return np.stack([_embed(image) for image in as_images(images)])

    def texts(self, texts: Sequence[str]) -> FloatArray:
        """Returns the vectors (n, d) of n texts; all 0 for a text that names nothing known."""
        rows = []
        for text in texts:
            words = set(re.findall("[a-z]+", text.lower()))
            rows.append([*(float(concept in words) for concept in _CONCEPTS), 0.0])
        return np.array(rows, dtype=np.float64).reshape(len(texts), len(_CONCEPTS) + 1)


def as_images(images: Sequence[Any]) -> FloatArray:
    """Returns pictures with values 0 to 255 as (n, height, width, 3) in [0, 1].

    Raises:
        ValueError: they are something else, or differ in size.
    """
    pixels = np.asarray(images, dtype=np.float64) / 255
    if pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ValueError(f"images must be of shape (n, height, width, 3), got {pixels.shape}")
    return np.asarray(pixels, dtype=np.float64)


def _embed(image: FloatArray) -> FloatArray:
    if image.shape[0] != image.shape[1]:
        raise ValueError(f"the embedding 'scene' is for square images, got {image.shape[0]} x {image.shape[1]}")
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    difference = (image - np.median(edge, axis=0)).reshape(-1, 3)
    weight = np.linalg.norm(difference, axis=1)
    energy = float((weight**2).sum())
    if energy < _TINY:
        return np.zeros(len(_CONCEPTS) + 1)
    mean = (weight[:, None] * difference).sum(axis=0) / energy
    agreement = float(np.linalg.norm(mean))
    colours = [max(0.0, cosine(mean, np.array(colour) - 0.5)) for colour in COLOURS.values()]
    centred = weight - weight.mean()
    masks = [shape_mask(shape, image.shape[0]).reshape(-1).astype(np.float64) for shape in SHAPES]
    shapes = [max(0.0, cosine(centred, mask - mask.mean())) for mask in masks]
    return np.array([*(agreement * value for value in colours), *shapes, 1 - agreement])


def cosine(first: FloatArray, second: FloatArray) -> float:
    """Returns the cosine of two vectors; 0 where one of them is 0."""
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / length if length > _TINY else 0.0
