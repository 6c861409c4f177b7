"""Promptist's reward for prompts of an image generator: what looks better than before and still shows what was asked.

Reference: Hao et al. 2022, arXiv:2212.09611. The constants are those of its published code (promptist, in LMOps).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from rlprompt.errors import ConfigError
from rlprompt.registry import resolve
from rlprompt.rewards.component import TOTAL
from rlprompt.rewards.images import cosine
from rlprompt.types import Failure, FloatArray, TargetOutput

THRESHOLD = 0.28
"""A cosine above this costs nothing."""
SLOPE = 20.0
OFFSET = -5.6
"""-THRESHOLD * SLOPE: the penalty begins at 0."""

Aesthetic: TypeAlias = Callable[[Sequence[Any]], npt.ArrayLike]
"""Images, as the target answered with them, to one number each, (n,)."""


class Embedder(Protocol):
    """Puts images and texts into one space, as CLIP does."""

    def images(self, images: Sequence[Any]) -> FloatArray:
        """Returns (n, d) for n images, as the target answered with them."""

    def texts(self, texts: Sequence[str]) -> FloatArray:
        """Returns (n, d) for n texts."""


def relevance_penalty(relevance: npt.ArrayLike) -> FloatArray:
    """Returns 0 where max(0, relevance) > 0.28, else 20 max(0, relevance) - 5.6, which is at most 0.

    >>> relevance_penalty([0.3, 0.18, -0.5]).round(6).tolist()
    [0.0, -2.0, -5.6]
    """
    clipped = np.maximum(0.0, np.asarray(relevance, dtype=np.float64))
    return np.where(clipped > THRESHOLD, 0.0, SLOPE * clipped + OFFSET)


def promptist_reward(aesthetic: npt.ArrayLike, aesthetic_of_plain: npt.ArrayLike, relevance: npt.ArrayLike) -> float:
    """Returns r = mean over the images of [aes(x') - mean aes(x) + penalty(relevance)] (arXiv:2212.09611).

    Args:
        aesthetic: scores of the n images of the optimised prompt x', (n,).
        aesthetic_of_plain: scores of the m images of the plain prompt x, (m,).
        relevance: cosines of the images of x' with the text of the *plain* prompt, (n,), in [-1, 1].

    Raises:
        ConfigError: there is no image, or the numbers of images differ.

    >>> round(promptist_reward([6.0, 5.0], [5.0, 4.0], [0.30, 0.18]), 6)
    0.0
    """
    ours, theirs, cosines = (
        np.asarray(values, dtype=np.float64) for values in (aesthetic, aesthetic_of_plain, relevance)
    )
    if ours.ndim != 1 or theirs.ndim != 1 or not ours.size or not theirs.size or ours.shape != cosines.shape:
        raise ConfigError(
            "promptist: give one aesthetic score and one relevance for each image of the prompt, and the scores of at "
            f"least one image of the plain prompt; got shapes {ours.shape}, {cosines.shape} and {theirs.shape}"
        )
    return float(np.mean(ours - theirs.mean() + relevance_penalty(cosines)))


class Promptist:
    """`promptist_reward` of the images in the target's payload, `{"images": [...]}`.

    The images of the plain prompt are the target's answer to the original prompt, which the scorer asks for once for
    each example (and sample). Promptist takes 2 images of each prompt: a payload may hold several, and `env.samples`
    of the target add more answers, whose rewards are averaged.

    It abstains where there is no payload, here or of the original, and where the plain prompt has no embedding (a
    vector of zeros). It also records `aesthetic`, the mean gain aes(x') - mean aes(x), and `relevance`, the mean
    cosine (not below 0).

    Args:
        aesthetic: a name ("contrast", an entry point in `rlprompt.aesthetics`, `my_module:my_name`) or a callable.
        relevance: a name ("scene", an entry point in `rlprompt.embedders`, `my_module:my_name`) or an `Embedder`;
            a class is constructed without arguments.
        plain: the column of the task with the plain prompts.
        original: the original prompt; by default the draft of the env, or at instance level what leaves the user's
            input as it is.
        allow_modules: modules that names may import; filled in.
        search_path: folder of the configuration; filled in.

    Raises:
        ConfigError: a name that does not exist, or one for something of another kind.
    """

    needs: ClassVar[str] = "any"
    needs_original: ClassVar[bool] = True
    gold_not_ordered: ClassVar[bool] = True  # made-up outputs have no images
    resolves_code: ClassVar[bool] = True
    also_records: ClassVar[tuple[str, ...]] = ("aesthetic", "relevance")

    def __init__(
        self,
        aesthetic: str | Aesthetic = "contrast",
        relevance: str | Embedder = "scene",
        plain: str = "input",
        original: str | None = None,
        *,
        allow_modules: Sequence[str] = (),
        search_path: str | Path | None = None,
    ) -> None:
        def found(group: str, given: Any) -> Any:
            made = given
            if isinstance(given, str):
                made = resolve(group, given, allow_modules=allow_modules, search_path=search_path)
            return made() if isinstance(made, type) else made

        self._aesthetic: Aesthetic = found("aesthetics", aesthetic)
        self._embedder: Embedder = found("embedders", relevance)
        if not callable(self._aesthetic):
            raise ConfigError(f"promptist: aesthetic must be a callable or its name, got {aesthetic!r}")
        for method in ("images", "texts"):
            if not callable(getattr(self._embedder, method, None)):
                raise ConfigError(f"promptist: relevance needs the methods images and texts, got {relevance!r}")
        self.plain = plain
        self.original = original

    def __call__(
        self, *, outputs: Sequence[TargetOutput], originals: Sequence[TargetOutput], **columns: Any
    ) -> dict[str, list[Any]]:
        """Scores N pairs.

        Args:
            outputs: the answers to the written prompts.
            originals: the answers to the original prompts; either may be a failure.
            **columns: that with the plain prompts, and others.

        Returns:
            "reward", "aesthetic" and "relevance", N entries each: a number, None, or (reward) a `Failure` of kind
            "malformed" for a payload without a list of images.

        Raises:
            ValueError: the task has no such column, or what judges the images returned something else.
        """
        if self.plain not in columns:
            raise ValueError(f"the task has no column '{self.plain}'; it has {', '.join(columns)}")
        rewards: list[Any] = [None] * len(outputs)
        chosen: dict[int, tuple[list[Any], list[Any]]] = {}
        for index, (output, original) in enumerate(zip(outputs, originals, strict=True)):
            after, before = _images(output), _images(original)
            if isinstance(after, Failure) or isinstance(before, Failure):
                rewards[index] = after if isinstance(after, Failure) else before
            elif after is not None and before is not None:
                chosen[index] = (after, before)
        found: dict[str, list[Any]] = {TOTAL: rewards, **{name: [None] * len(outputs) for name in self.also_records}}
        if not chosen:
            return found
        ours = self._judge([after for after, _ in chosen.values()])
        theirs = self._judge([before for _, before in chosen.values()])
        cosines = self._relevance([columns[self.plain][index] for index in chosen], chosen.values())
        for index, looks, plain_looks, relevance in zip(chosen, ours, theirs, cosines, strict=True):
            if relevance is not None:
                rewards[index] = promptist_reward(looks, plain_looks, relevance)
                found["aesthetic"][index] = float(looks.mean() - plain_looks.mean())
                found["relevance"][index] = float(np.maximum(0.0, relevance).mean())
        return found

    def _judge(self, groups: Sequence[list[Any]]) -> list[FloatArray]:
        """The aesthetic scores of several lists of images, in one call."""
        flat = [image for images in groups for image in images]
        scores = np.asarray(self._aesthetic(flat), dtype=np.float64)
        if scores.shape != (len(flat),):
            raise ValueError(f"the aesthetic scorer returned shape {scores.shape} for {len(flat)} images")
        return _split(scores, groups)

    def _relevance(self, texts: Sequence[Any], pairs: Any) -> list[FloatArray | None]:
        """The cosines of the images with the plain prompts; None where such a text has no embedding."""
        groups = [after for after, _ in pairs]
        flat = [image for images in groups for image in images]
        different = list(dict.fromkeys(str(text) for text in texts))
        rows = np.asarray(self._embedder.texts(different), dtype=np.float64)
        vectors = np.asarray(self._embedder.images(flat), dtype=np.float64)
        if vectors.ndim != 2 or rows.shape != (len(different), vectors.shape[1]) or len(vectors) != len(flat):
            raise ValueError(
                f"the embedder returned shapes {vectors.shape} and {rows.shape} for {len(flat)} images and "
                f"{len(different)} texts"
            )
        known = dict(zip(different, rows, strict=True))
        found: list[FloatArray | None] = []
        for text, images in zip(texts, _split(vectors, groups), strict=True):
            row = known[str(text)]
            found.append(np.array([cosine(image, row) for image in images]) if row.any() else None)
        return found


def _images(output: TargetOutput) -> list[Any] | Failure | None:
    if output.failure is not None or output.payload is None:
        return None
    images = output.payload.get("images") if isinstance(output.payload, dict) else None
    if not isinstance(images, list) or not images:
        return Failure("reward", "malformed", 'the payload has no list of images; answer with {"images": [...]}')
    return images


def _split(values: FloatArray, groups: Sequence[list[Any]]) -> list[FloatArray]:
    ends = np.cumsum([len(images) for images in groups])
    return [np.asarray(part, dtype=np.float64) for part in np.split(values, ends[:-1])]
