"""How close in meaning a text is to another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlprompt.errors import ConfigError
from rlprompt.rewards.encoder import DEFAULT_ENCODER, Encoder
from rlprompt.types import TargetOutput


class Similarity:
    """Cosine similarity of the sentence embeddings of two texts, in [-1, 1].

    A text without any character but white space has similarity 0. With a list of references the closest counts.
    Reference: Reimers and Gurevych 2019, arXiv:1908.10084.

    Args:
        model: name of the encoder: "all-minilm-l6-v2" (an installed package), a local folder or a hub id.
        of: "output" (what the target wrote) or "prompt" (what the policy wrote).
        to: "reference", "input", or another column of the task with texts.
        floor: smaller similarities become this; None leaves them as they are.
        revision: of a hub id.
        device: "auto", "cpu", "cuda", ...
        max_tokens: longer texts are compared by their first so many tokens.
    """

    def __init__(
        self,
        model: str = DEFAULT_ENCODER,
        of: str = "output",
        to: str = "reference",
        *,
        floor: float | None = None,
        revision: str | None = None,
        device: str = "auto",
        max_tokens: int = 256,
    ) -> None:
        if of not in ("output", "prompt"):
            raise ConfigError(f"similarity: of must be output or prompt, got {of!r}")
        if floor is not None and not -1 <= floor <= 1:
            raise ConfigError(f"similarity: floor must lie in [-1, 1], got {floor}")
        self.of = of
        self.to = to
        self.floor = floor
        self.needs = "text" if of == "output" else "any"
        # Only a text of the target that is compared with the gold answer says whether an answer is right.
        self.gold_not_ordered = of != "output" or to != "reference"
        self.encoder = Encoder(model, revision=revision, device=device, max_tokens=max_tokens)

    def __call__(
        self,
        *,
        completions: Sequence[str],
        outputs: Sequence[TargetOutput],
        references: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Scores N pairs; None where one of the two texts is missing.

        Raises:
            ValueError: the task has no column of the configured name.
        """
        texts = list(completions) if self.of == "prompt" else [output.text for output in outputs]
        if self.to != "reference" and self.to not in columns:
            raise ValueError(f"the task has no column '{self.to}'; it has {', '.join(columns)}")
        others = references if self.to == "reference" else columns[self.to]
        golds = [_texts(entry) for entry in others] if others is not None else [[] for _ in texts]
        asked = {text for text in texts if text is not None} | {text for several in golds for text in several}
        ordered = sorted(text for text in asked if text.strip())
        vectors = dict(zip(ordered, self.encoder(ordered), strict=True))
        scores: list[float | None] = []
        for text, several in zip(texts, golds, strict=True):
            if text is None or not several:
                scores.append(None)
                continue
            values = [
                float(np.dot(vectors[text], vectors[other])) if text in vectors and other in vectors else 0.0
                for other in several
            ]
            value = min(1.0, max(-1.0, max(values)))  # rounding takes equal texts to 1.0000001
            scores.append(value if self.floor is None else max(value, self.floor))
        return scores


def _texts(entry: Any) -> list[str]:
    several = entry if isinstance(entry, list | tuple) else [entry]
    return [str(text) for text in several if text is not None]
