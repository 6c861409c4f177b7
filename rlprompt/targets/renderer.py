"""A stand-in for an image generator: it draws a few words of a prompt with NumPy, and answers with arrays, no text.

There is no model and nothing to learn about images here. The point is the interface: a target may answer with any
`payload`, and rewards, environments, runs and records take it as it is. A diffusion model takes the same place.

What a prompt may name: colours (`COLOURS`), shapes (`SHAPES`), and styles (`STYLES`), which change contrast and
brightness. `ABSTRACT` draws coloured noise in the place of the scene. All other words are left out.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np

from rlprompt.errors import ConfigError
from rlprompt.seeding import generator
from rlprompt.types import BoolArray, Failure, FloatArray, Json, TargetOutput, TargetRequest

IMAGES = "images"
"""Key of the payload: pixels as nested lists (images, size, size, 3) of integers 0 to 255, which JSON keeps exactly."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
}
"""Red, green and blue in [0, 1]."""
SHAPES = ("circle", "square", "triangle", "cross")
STYLES: dict[str, tuple[float, float]] = {
    "vivid": (0.25, 0.0),
    "detailed": (0.15, 0.0),
    "dull": (-0.25, 0.0),
    "bright": (0.0, 0.15),
    "dark": (0.0, -0.15),
}
"""What each adds to contrast and to brightness."""
ABSTRACT = "abstract"

_CONTRAST = 0.4
"""Without a style images are pale, so that there is something to gain."""
_LEAST_CONTRAST = 0.05
_GREY = 0.5
_UNNAMED = (0.9, 0.9, 0.9)
"""Colour of a shape whose colour is not named."""
_WORD = re.compile(r"[a-z]+")


class RendererTarget:
    """Draws `images` small pictures for each request.

    An answer depends only on its own request and on the arguments: the noise is keyed by (seed, text, sample, image).

    Args:
        size: pixels of an edge, 8 to 256; written after the colon: `renderer:16`.
        images: pictures of one answer, 1 to 16; they differ in their noise. Promptist takes 2.
        noise: standard deviation of Gaussian noise on each value, in units of the range from 0 to 1.
        seed: of the noise.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(self, size: int | str = 16, images: int = 2, noise: float = 0.02, seed: int = 0) -> None:
        try:
            self.size = int(size)
        except ValueError as error:
            raise ConfigError(f"renderer: size must be a whole number, got '{size}'; write renderer:16") from error
        for name, value, least, most in (("size", self.size, 8, 256), ("images", images, 1, 16)):
            if not least <= value <= most:
                raise ConfigError(f"renderer: {name} must be in [{least}, {most}], got {value}")
        for name, number in (("noise", noise), ("seed", seed)):
            if number < 0:
                raise ConfigError(f"renderer: {name} must be >= 0, got {number}")
        self.images = images
        self.noise = noise
        self.seed = seed

    @property
    def identity(self) -> Json:
        """What the answers depend on."""
        return {
            "kind": "renderer",
            "size": self.size,
            "images": self.images,
            "noise": self.noise,
            "seed": self.seed,
        }

    def run(self, requests: Sequence[TargetRequest]) -> list[TargetOutput]:
        """Answers all requests, in order, with a payload {"images": pixels}; choices and likelihoods are failures."""
        return [self._answer(request) for request in requests]

    def count_tokens(self, requests: Sequence[TargetRequest]) -> list[int]:
        """Returns the words of each text; images have no tokens."""
        return [len(_text(request).split()) for request in requests]

    def _answer(self, request: TargetRequest) -> TargetOutput:
        if request.choices is not None or request.continuation is not None:
            message = "the renderer only draws; take a task without choices and no reward that needs log-probabilities"
            return TargetOutput(failure=Failure("target", "unsupported", message, attempts=0))
        text = _text(request)
        key = zlib.crc32(text.encode("utf-8", "surrogatepass"))
        drawn = [
            draw(text, self.size, self.noise, generator(self.seed, "renderer", key, request.sample, image))
            for image in range(self.images)
        ]
        pixels = np.rint(255 * np.stack(drawn)).astype(np.int64).tolist()
        return TargetOutput(payload={IMAGES: pixels}, prompt_tokens=len(text.split()))


def draw(text: str, size: int, noise: float, draws: np.random.Generator) -> FloatArray:
    """Returns one image of a text, (size, size, 3), values in [0, 1].

    Several colours are mixed, several shapes drawn over each other; a word counts once.
    """
    words = set(_WORD.findall(text.lower()))
    scene = np.full((size, size, 3), _GREY)
    named = [COLOURS[word] for word in COLOURS if word in words]
    colour = np.mean(named, axis=0) if named else np.array(_UNNAMED)
    if ABSTRACT in words:
        scene = draws.random((size, size, 3))
    else:
        for shape in SHAPES:
            if shape in words:
                scene[shape_mask(shape, size)] = colour
    styles = [STYLES[word] for word in STYLES if word in words]
    contrast = max(_LEAST_CONTRAST, _CONTRAST + sum(style[0] for style in styles))
    brightness = _GREY + sum(style[1] for style in styles)
    image = brightness + contrast * (scene - _GREY) + noise * draws.standard_normal((size, size, 3))
    return np.asarray(np.clip(image, 0.0, 1.0), dtype=np.float64)


@cache
def shape_mask(shape: str, size: int) -> BoolArray:
    """Returns which pixels (size, size) a shape of `SHAPES` covers; it stands in the middle."""
    across = np.linspace(-1.0, 1.0, size)
    y, x = np.meshgrid(across, across, indexing="ij")
    if shape == "circle":
        mask = x**2 + y**2 <= 0.6
    elif shape == "square":
        mask = (abs(x) <= 0.7) & (abs(y) <= 0.7)
    elif shape == "triangle":
        mask = (abs(y) <= 0.8) & (2 * abs(x) <= y + 0.8)
    else:
        mask = ((abs(x) <= 0.2) | (abs(y) <= 0.2)) & (np.maximum(abs(x), abs(y)) <= 0.9)
    mask.setflags(write=False)
    return np.asarray(mask, dtype=np.bool_)


def _text(request: TargetRequest) -> str:
    rendered = request.rendered
    if rendered.messages is not None:
        return "\n".join(content for _, content in rendered.messages)
    return rendered.text or ""
