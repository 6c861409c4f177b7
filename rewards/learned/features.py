"""Named features of a text that was written for a context: cheap, documented, each a number.

A feature is a function `feature(*, contexts, texts)` over N of both that returns N finite numbers, or a class whose
instances are called so. Words are runs of letters, digits and apostrophes, in lower case; numbers are runs of digits,
with points or commas between digits.
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from rlprompt.errors import ConfigError
from rlprompt.registry import resolve
from rlprompt.rewards.encoder import DEFAULT_ENCODER, Encoder
from rlprompt.types import FloatArray

Feature: TypeAlias = Callable[..., Sequence[float]]

DEFAULT_FEATURES = (
    *("length", "length-ratio", "sentences", "line-breaks", "overlap", "coverage", "kept-numbers", "new-numbers"),
    *("type-token-ratio", "repeated-bigrams", "question-mark", "upper-case"),
)
"""All that need no model."""

_WORD = re.compile(r"\w+(?:'\w+)*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")


def length(*, contexts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """log(1 + words of the text)."""
    return [math.log1p(len(words(text))) for text in texts]


def length_ratio(*, contexts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """log((1 + words of the text) / (1 + words of the context)); 0 where both are equally long."""
    pairs = zip(contexts, texts, strict=True)
    return [math.log1p(len(words(text))) - math.log1p(len(words(context))) for context, text in pairs]


def sentences(*, contexts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """How often a sentence ends: ".", "!" or "?" before white space or the end."""
    return [float(len(_SENTENCE_END.findall(text))) for text in texts]


def line_breaks(*, contexts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Line breaks within the text, those around it left out."""
    return [float(text.strip().count("\n")) for text in texts]


def overlap(*, contexts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Share of the text's different words that the context has; 0 without words."""
    return [_share(words(text), words(context), 0.0) for context, text in zip(contexts, texts, strict=True)]


def coverage(*, contexts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Share of the context's different words that the text has; 0 where the context has no words."""
    return [_share(words(context), words(text), 0.0) for context, text in zip(contexts, texts, strict=True)]


def kept_numbers(*, contexts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Share of the context's different numbers that the text has; 1 where the context has none."""
    return [_share(numbers(context), numbers(text), 1.0) for context, text in zip(contexts, texts, strict=True)]


def new_numbers(*, contexts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Different numbers of the text that the context does not have."""
    pairs = zip(contexts, texts, strict=True)
    return [float(len(set(numbers(text)) - set(numbers(context)))) for context, text in pairs]


def type_token_ratio(*, contexts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Different words / words; 1 without words."""
    found = [words(text) for text in texts]
    return [len(set(row)) / len(row) if row else 1.0 for row in found]


def repeated_bigrams(*, contexts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Share of the text's pairs of neighbouring words that stood in it before; 0 with fewer than two pairs."""
    found = [list(itertools.pairwise(words(text))) for text in texts]
    return [1 - len(set(row)) / len(row) if row else 0.0 for row in found]


def question_mark(*, contexts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """1 where the text has a question mark, else 0."""
    return [float("?" in text) for text in texts]


def upper_case(*, contexts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Share of the text's letters that are capitals; 0 without letters."""
    found = [[letter.isupper() for letter in text if letter.isalpha()] for text in texts]
    return [sum(row) / len(row) if row else 0.0 for row in found]


class TextSimilarity:
    """Cosine similarity of the sentence embeddings of text and context, in [-1, 1].

    Reference: Reimers and Gurevych 2019, arXiv:1908.10084.

    Args:
        model: name of the encoder (see `rlprompt.rewards.encoder`).
    """

    def __init__(self, model: str = DEFAULT_ENCODER) -> None:
        self._encoder = Encoder(model)

    def __call__(self, *, contexts: Sequence[str], texts: Sequence[str]) -> list[float]:
        """Returns the similarity of N texts with their contexts."""
        first, second = self._encoder(contexts), self._encoder(texts)
        # Row by row: a product of matrices may round a row differently with other rows beside it.
        return [float(np.dot(a, b)) for a, b in zip(first, second, strict=True)]


def words(text: str) -> list[str]:
    """Returns the words of a text, in lower case.

    >>> words("It's 3 o'clock, Anna.")
    ["it's", '3', "o'clock", 'anna']
    """
    return _WORD.findall(text.lower())


def numbers(text: str) -> list[str]:
    """Returns the numbers of a text as they are written.

    >>> numbers("From 1,200 to 3.5 in 2024.")
    ['1,200', '3.5', '2024']
    """
    return _NUMBER.findall(text)


def load_features(
    names: Sequence[str], *, allow_modules: Sequence[str] = (), search_path: str | Path | None = None
) -> list[Feature]:
    """Returns the features of these names.

    Args:
        names: registered ones (`rlprompt list features`), or `my_module:my_feature`.
        allow_modules: modules that the latter may come from.
        search_path: a folder whose modules are allowed too.

    Raises:
        ConfigError: no names, one twice, or code that is not allowed or is no feature.
        UnknownNameError: nothing is registered under a name.
    """
    if not names:
        raise ConfigError("a feature model needs at least one feature; see 'rlprompt list features'")
    found: list[Feature] = []
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ConfigError(f"feature '{name}' is named twice; name it once")
        feature = resolve("features", name, allow_modules=allow_modules, search_path=search_path)
        feature = feature() if inspect.isclass(feature) else feature
        if not callable(feature):
            raise ConfigError(f"feature '{name}' is {type(feature).__name__}; name a function or a class")
        found.append(feature)
    return found


def compute_features(
    names: Sequence[str], features: Sequence[Feature], contexts: Sequence[str], texts: Sequence[str]
) -> FloatArray:
    """Returns the features of N texts, (N, D).

    Raises:
        ConfigError: a feature raised, or did not return N finite numbers.
    """
    columns = []
    for name, feature in zip(names, features, strict=True):
        try:
            column = np.asarray(feature(contexts=list(contexts), texts=list(texts)), dtype=np.float64)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"feature '{name}' raised {type(error).__name__}: {reason}; mend it") from error
        if column.shape != (len(texts),) or not np.isfinite(column).all():
            raise ConfigError(f"feature '{name}' must return one finite number per text, {len(texts)} in all")
        columns.append(column)
    return np.stack(columns, axis=1)


def _share(of: Sequence[str], among: Sequence[str], empty: float) -> float:
    different = set(of)
    return len(different & set(among)) / len(different) if different else empty
