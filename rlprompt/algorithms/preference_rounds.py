"""Which inputs take part in a round, which texts make a pair, and what a round may cost: pure functions.

Shapes: N inputs, K texts for each. Scores of texts that failed are NaN.

References: selective regeneration, OPTune, Chen et al. 2024, arXiv:2406.07657; regret, eva, Ye et al. 2024,
arXiv:2411.00062; low initial reward, Pre-PPO, Shen et al. 2025, arXiv:2503.22230; disagreement, Active Instruction
Tuning, Kung et al. 2023, arXiv:2311.00288.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from rlprompt.config import AlgorithmConfig, EnvConfig
from rlprompt.types import BoolArray, FloatArray, TargetOutput, masked_mean

OFFLINE = frozenset({"sft", "dpo", "rrhf"})
"""Algorithms that learn from files and never ask the target."""
IN_ROUNDS = frozenset({"online-dpo", "expert-iteration"})
"""Algorithms whose iteration is a round: write, score, learn."""
FLOOR = 0.1
"""Share of the mean regret that every input has on top, so that none is left out for ever."""


def same_inputs(settings: AlgorithmConfig) -> bool:
    """Returns whether all rounds have the inputs of the first one; else each draws its own."""
    return settings.regenerate < 1 or settings.items != "all"


def inputs_of_round(settings: AlgorithmConfig, count: int, number: int) -> tuple[int, int]:
    """Returns how many inputs take part in a round, and for how many of them texts are written.

    Args:
        settings: the shares.
        count: inputs of the first round.
        number: the round, from 0.

    >>> inputs_of_round(AlgorithmConfig(items="regret", items_share=0.5, regenerate=0.25), 16, 3)
    (8, 2)
    """
    if number == 0:
        return count, count
    used = count if settings.items == "all" else _share(settings.items_share, count)
    return used, _share(settings.regenerate, used)


def prompts_of_iteration(settings: AlgorithmConfig, env: EnvConfig, number: int) -> int:
    """Returns the most prompts that an iteration of an algorithm has scored, 0 for those that only read files.

    Args:
        settings: the algorithm.
        env: texts of one iteration, and texts for one input.
        number: its iteration, from 0 where the algorithm begins.
    """
    if settings.name in OFFLINE:
        return 0
    if settings.name not in IN_ROUNDS or not env.per_input:
        return env.num_envs
    _, written = inputs_of_round(settings, env.num_envs // env.rewrites_per_input, number)
    return written * env.rewrites_per_input


def mean_scores(scores: FloatArray) -> FloatArray:
    """Returns the mean of the known scores (N, K) of each input, (N,); NaN without one."""
    return masked_mean(scores, ~np.isnan(scores))


def regret(scores: FloatArray) -> FloatArray:
    """Returns the best score of each input less their mean, (N,): what writing it well would bring. 2411.00062.

    Args:
        scores: (N, K). An input with less than two known scores has no regret.

    >>> regret(np.array([[1.0, 3.0], [2.0, 2.0], [5.0, np.nan]])).tolist()
    [1.0, 0.0, 0.0]
    """
    known = ~np.isnan(scores)
    best = np.where(known, scores, -np.inf).max(axis=1)
    enough = known.sum(axis=1) >= 2
    return np.where(enough, np.where(enough, best, 0.0) - np.nan_to_num(mean_scores(scores)), 0.0)


def low_initial_reward(first_means: FloatArray) -> FloatArray:
    """Returns what is highest for the inputs whose untrained reward (N,) is lowest; NaN stays NaN. 2503.22230."""
    return -first_means


def disagreement(answers: Sequence[Sequence[str]]) -> FloatArray:
    """Returns the chance that two answers for an input, drawn with replacement, differ, (N,). After 2311.00288.

    Args:
        answers: the target's answers under the texts for each input; those that failed are left out.

    >>> disagreement([["yes", "no"], ["yes", "yes"], ["a", "b", "c", "a"], []]).tolist()
    [0.5, 0.0, 0.625, 0.0]
    """
    found = np.zeros(len(answers))
    for place, given in enumerate(answers):
        shares = np.array(list(Counter(given).values())) / max(len(given), 1)
        found[place] = 1.0 - float((shares**2).sum()) if given else 0.0
    return found


def answer_of(output: TargetOutput) -> str | None:
    """Returns an answer in a form that can be compared: the most probable choice, or the text without case and ends."""
    if output.choice_logprobs is not None:
        return str(int(np.argmax(output.choice_logprobs)))
    return None if output.text is None else output.text.strip().casefold()


def draw_items(weights: FloatArray, count: int, rng: np.random.Generator) -> list[int]:
    """Draws different inputs with probabilities proportional to weight + `FLOOR` x mean weight.

    Args:
        weights: (N,), 0 or more; all 0 draws uniformly.
        count: how many, at most N.
        rng: keyed by the round.

    Returns:
        Their places, ascending.
    """
    total = weights + FLOOR * weights.mean()
    chances = total / total.sum() if total.sum() > 0 else np.full(len(weights), 1.0 / len(weights))
    return sorted(int(place) for place in rng.choice(len(weights), size=count, replace=False, p=chances))


def top_items(priority: FloatArray, count: int) -> list[int]:
    """Returns the places of the highest priorities (N,), ascending; earlier ones win ties, NaN is below all.

    >>> top_items(np.array([0.5, np.nan, 2.0, 0.5]), 2)
    [0, 2]
    """
    known = np.where(np.isnan(priority), -np.inf, priority)
    return sorted(np.argsort(-known, kind="stable")[:count].tolist())


def lowest_items(means: FloatArray, count: int) -> list[int]:
    """Returns the places of the lowest mean scores (N,), ascending; an input without a score comes first of all.

    >>> lowest_items(np.array([3.0, 1.0, np.nan, 1.0]), 2)
    [1, 2]
    """
    return sorted(np.argsort(np.where(np.isnan(means), -np.inf, means), kind="stable")[:count].tolist())


def best_and_worst(scores: FloatArray, *, margin: float = 0.0, count: int = 1) -> list[tuple[int, int]]:
    """Returns pairs (better, worse) of the texts for one input: best with worst, second with second last, ...

    Args:
        scores: (K,), NaN where a text failed. Texts that tie make no pair.
        margin: scores of a pair are further apart than this.
        count: most pairs.

    >>> best_and_worst(np.array([1.0, np.nan, 4.0, 2.0, 0.0]), count=2)
    [(2, 4), (3, 0)]
    """
    known = np.flatnonzero(~np.isnan(scores))
    order = known[np.argsort(-scores[known], kind="stable")].tolist()
    pairs = list(zip(order[: len(order) // 2], order[::-1], strict=False))[:count]
    return [(better, worse) for better, worse in pairs if scores[better] - scores[worse] > margin]


def best_text(scores: FloatArray, *, margin: float = 0.0) -> int | None:
    """Returns the place of the best score (K,), the first of those that tie; None where all scores tie."""
    pairs = best_and_worst(scores, margin=margin)
    return pairs[0][0] if pairs else None


def known_scores(values: FloatArray, valid: BoolArray) -> FloatArray:
    """Returns values (K,) with NaN where not valid."""
    return np.where(valid, values, math.nan)


def _share(share: float, count: int) -> int:
    return max(1, math.ceil(share * count - 1e-9))  # 0.1 * 30 is 3.0000000000000004
