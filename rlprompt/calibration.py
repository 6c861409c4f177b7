"""Calibration of choice probabilities: small LMs favour a class whatever the input; offsets take that away.

Offsets live in log space, one per choice, and are subtracted before the probabilities are normalised again.
They are fitted per prompt, on train examples or content-free inputs only, never on dev or test.
"""

from __future__ import annotations

import numpy as np

from rlprompt.errors import ConfigError
from rlprompt.types import Example, FloatArray

KINDS = ("none", "median", "contextual")

CONTENT_FREE = tuple(
    Example(id=f"content-free/{number}", input=text) for number, text in enumerate(("N/A", "", "[MASK]"))
)
"""The inputs of contextual calibration. Reference: Zhao et al. 2021, arXiv:2102.09690, section 5."""


def fit_calibration(kind: str, choice_logprobs: FloatArray) -> FloatArray:
    """Fits the offsets of one prompt.

    Args:
        kind: "none" (zeros), "median" (the median of each choice's log-probability, relative to the mean over the
            choices, on train examples: half of them then fall on either side, right when classes are balanced) or
            "contextual" (the log of the mean probability on content-free inputs, arXiv:2102.09690).
        choice_logprobs: (n, C) log-probabilities over the choices.

    Returns:
        Offsets (C,), with mean 0.

    >>> fit_calibration("median", np.log([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])).round(4).tolist()
    [0.6931, -0.6931]
    """
    if kind not in KINDS:
        raise ConfigError(f"calibration must be one of {', '.join(KINDS)}, got '{kind}'")
    if kind == "none" or not len(choice_logprobs):
        return np.zeros(choice_logprobs.shape[-1])
    if kind == "median":
        offsets = np.median(choice_logprobs - choice_logprobs.mean(axis=1, keepdims=True), axis=0)
    else:
        offsets = np.log(np.exp(choice_logprobs).mean(axis=0))
    return np.asarray(offsets - offsets.mean(), dtype=np.float64)


def apply_calibration(choice_logprobs: FloatArray, offsets: FloatArray) -> FloatArray:
    """Subtracts the offsets (C,) from log-probabilities (..., C) and normalises over the choices again.

    >>> float(np.exp(apply_calibration(np.log([0.8, 0.2]), np.log([2.0, 0.5])))[0])
    0.5
    """
    shifted = choice_logprobs - offsets
    peak = shifted.max(axis=-1, keepdims=True)
    total = np.log(np.exp(shifted - peak).sum(axis=-1, keepdims=True)) + peak
    return np.asarray(shifted - total, dtype=np.float64)
