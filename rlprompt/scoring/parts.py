"""Scores of several parts of one step, joined and taken apart again: rows stand in the order of the parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np

from rlprompt.types import Scores


def join_scores(parts: Sequence[Scores]) -> Scores:
    """Returns the scores of all prompts of several scorings with the same columns.

    Args:
        parts: at least one; all on the same examples, or all pairs with the same number of samples.

    Raises:
        ValueError: the parts have different columns.
    """
    first = parts[0]
    if any(
        part.example_ids != first.example_ids
        or part.components.keys() != first.components.keys()
        or (part.row_example_ids is None) != (first.row_example_ids is None)
        for part in parts
    ):
        raise ValueError("only scores with the same columns can be joined")
    starts = _starts([len(part.prompts) for part in parts])
    rows = None
    if first.row_example_ids is not None:
        rows = tuple(example for part in parts for example in part.row_example_ids or ())
    return Scores(
        prompts=tuple(prompt for part in parts for prompt in part.prompts),
        example_ids=first.example_ids,
        components={name: np.concatenate([part.components[name] for part in parts]) for name in first.components},
        rewards=np.concatenate([part.rewards for part in parts]),
        correct=np.concatenate([part.correct for part in parts]),
        valid=np.concatenate([part.valid for part in parts]),
        outputs=tuple(row for part in parts for row in part.outputs),
        failures=tuple(
            (start + row, column, failure)
            for start, part in zip(starts, parts, strict=False)
            for row, column, failure in part.failures
        ),
        row_example_ids=rows,
    )


def split_scores(scores: Scores, sizes: Sequence[int]) -> list[Scores]:
    """Takes scores apart into runs of so many prompts each; what `join_scores` joined.

    Args:
        scores: of P prompts.
        sizes: prompts of each part; their sum is P.
    """
    return [
        replace(
            scores,
            prompts=scores.prompts[start:end],
            components={name: values[start:end] for name, values in scores.components.items()},
            rewards=scores.rewards[start:end],
            correct=scores.correct[start:end],
            valid=scores.valid[start:end],
            outputs=scores.outputs[start:end],
            failures=tuple(
                (row - start, column, failure) for row, column, failure in scores.failures if start <= row < end
            ),
            row_example_ids=None if scores.row_example_ids is None else scores.row_example_ids[start:end],
        )
        for start, end in pairwise(_starts(sizes))
    ]


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *accumulate(sizes)]
