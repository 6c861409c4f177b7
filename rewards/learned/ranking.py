"""How well predicted probabilities rank logged outcomes, with intervals that know that outcomes come in groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from rlprompt.seeding import generator
from rlprompt.types import BoolArray, FloatArray, IntArray, Json


@dataclass(frozen=True)
class HeldOutRanking:
    """A model on triples that it did not learn from."""

    auc: float
    """Chance that a right triple has a higher probability than a wrong one, ties count half; NaN without both."""
    low: float
    high: float
    """95 % percentile interval; whole groups (inputs, or prompts) are drawn, because their triples hang together."""
    within_input: float
    """The same chance for two prompts on one input: what a choice of prompts needs. An AUC alone can come from knowing
    which inputs are hard. NaN where no input has both outcomes."""
    within_low: float
    within_high: float
    """95 % percentile interval of that; inputs are drawn."""
    triples: int
    groups: int

    def to_json(self) -> Json:
        """Returns the numbers as JSON values; None where there are none."""
        return _known(asdict(self))


@dataclass(frozen=True)
class Selection:
    """The model's choice among logged prompts for each held-out input: no call of the target but those in the log."""

    selected: float
    """Share of held-out inputs that the chosen prompt answers right."""
    best_fixed: float
    """The same for the prompt that was right most often on the inputs that the model learnt from."""
    average: float
    """The same for a prompt at random."""
    difference: float
    """selected - best_fixed."""
    low: float
    high: float
    """95 % percentile interval of the difference, over inputs."""
    inputs: int
    prompts: int
    """Those that were asked about all of these inputs."""

    def to_json(self) -> Json:
        """Returns the numbers as JSON values; None where there are none."""
        return _known(asdict(self))


def _known(values: Json) -> Json:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def measure_ranking(
    right: BoolArray, scores: FloatArray, groups: IntArray, inputs: IntArray, seed: int, resamples: int
) -> HeldOutRanking:
    """Measures N held-out triples.

    Args:
        right: outcomes, (N,).
        scores: predicted, (N,).
        groups: what is drawn as a whole in the bootstrap, (N,).
        inputs: the input of each triple, (N,).
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    ranks = np.unique(scores, return_inverse=True)[1]
    low, high = group_bootstrap(lambda weights: area(right, ranks, weights), groups, seed, resamples)
    auc = area(right, ranks, np.ones(len(right)))
    better, total = within_groups(right, scores, inputs)

    def within(weights: FloatArray) -> float:
        return float(weights @ better / (weights @ total)) if weights @ total > 0 else math.nan

    spread = group_bootstrap(within, np.arange(len(total)), seed, resamples)
    share = within(np.ones(len(total)))
    return HeldOutRanking(auc, low, high, share, *spread, triples=len(right), groups=len(np.unique(groups)))


def area(right: BoolArray, ranks: IntArray, weights: FloatArray) -> float:
    """Returns the area under the ROC curve of weighted rows; NaN where one of the outcomes has no weight.

    scikit-learn's `roc_auc_score` gives the same and sorts the rows again for every resample, which takes seconds.

    Args:
        right: outcomes, (N,).
        ranks: of the scores, whole numbers from 0, equal where those are, (N,).
        weights: (N,), from 0.
    """
    won = np.bincount(ranks, weights=weights * right)
    lost = np.bincount(ranks, weights=weights * ~right)
    pairs = won.sum() * lost.sum()
    below = np.cumsum(lost) - lost
    return float((won * (below + lost / 2)).sum() / pairs) if pairs > 0 else math.nan


def within_groups(right: BoolArray, scores: FloatArray, groups: IntArray) -> tuple[FloatArray, FloatArray]:
    """Counts the (right, wrong) pairs of each group: (those whose right one scores higher, all), ties count half.

    >>> better, total = within_groups(np.array([True, False, True]), np.array([0.2, 0.1, 0.0]), np.array([0, 0, 1]))
    >>> better.tolist(), total.tolist()
    ([1.0, 0.0], [1.0, 0.0])
    """
    better, total = [], []
    for group in np.unique(groups):
        ours = groups == group
        won, lost = scores[ours & right], scores[ours & ~right]
        gaps = won[:, None] - lost[None, :]
        better.append(float((gaps > 0).sum() + 0.5 * (gaps == 0).sum()))
        total.append(float(gaps.size))
    return np.array(better), np.array(total)


def group_bootstrap(
    statistic: Callable[[FloatArray], float], groups: IntArray, seed: int, resamples: int
) -> tuple[float, float]:
    """Returns the 95 % percentile interval of a statistic of row weights when whole groups are drawn with replacement.

    Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.

    Args:
        statistic: (N,) weights of the rows, whole numbers from 0 -> a number; NaN is left out.
        groups: (N,).
        seed: of the draws.
        resamples: how many; with fewer than two values left the interval is NaN.
    """
    _, places = np.unique(groups, return_inverse=True)
    count = int(places.max(initial=-1)) + 1
    rng = generator(seed, "group-bootstrap")
    values = []
    for _ in range(resamples):
        drawn = np.bincount(rng.integers(0, count, size=count), minlength=count).astype(np.float64)
        values.append(statistic(drawn[places]))
    known = np.array([value for value in values if math.isfinite(value)])
    if len(known) < 2:
        return math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def measure_selection(
    right: BoolArray,
    scores: FloatArray,
    inputs: IntArray,
    prompts: IntArray,
    outside: BoolArray,
    seed: int,
    resamples: int,
) -> Selection | None:
    """Compares the model's choice of a prompt for each held-out input with the best fixed prompt.

    Args:
        right: outcomes of all N triples, (N,).
        scores: predicted for the held-out ones, (those in `outside`,).
        inputs: number of the input of each triple, (N,).
        prompts: number of its prompt, (N,).
        outside: which triples are of held-out inputs, (N,).
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        None where fewer than two prompts were asked about all held-out inputs and about others.
    """
    rows, row = np.unique(inputs[outside], return_inverse=True)
    shape = (len(rows), int(prompts.max()) + 1)
    asked, won, predicted = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    np.add.at(asked, (row, prompts[outside]), 1.0)
    np.add.at(won, (row, prompts[outside]), right[outside].astype(np.float64))
    predicted[row, prompts[outside]] = scores  # equal pairs have equal scores
    known = np.bincount(prompts[~outside], minlength=shape[1])
    hits = np.bincount(prompts[~outside], weights=right[~outside].astype(np.float64), minlength=shape[1])
    candidates = np.flatnonzero((asked > 0).all(axis=0) & (known > 0))
    if len(candidates) < 2:
        return None
    outcome = won[:, candidates] / asked[:, candidates]
    chosen = outcome[np.arange(len(rows)), predicted[:, candidates].argmax(axis=1)]
    fixed = outcome[:, (hits[candidates] / known[candidates]).argmax()]
    gaps = chosen - fixed
    low, high = group_bootstrap(
        lambda weights: float(weights @ gaps / weights.sum()), np.arange(len(rows)), seed, resamples
    )
    return Selection(
        selected=float(chosen.mean()),
        best_fixed=float(fixed.mean()),
        average=float(outcome.mean()),
        difference=float(gaps.mean()),
        low=low,
        high=high,
        inputs=len(rows),
        prompts=len(candidates),
    )
