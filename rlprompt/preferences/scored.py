"""Pair builders that let scores decide: each makes the pairs of one group of texts.

Ties make no pairs, nor does a candidate that failed or has no number for a score that is looked at. Of equal
candidates the earlier one counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.preferences.candidates import (
    ABSOLUTE,
    ALONE,
    RELATIVE,
    REWARD,
    TIE,
    Candidate,
    Draft,
    Group,
    Verdict,
    check_flag,
    check_number,
    check_numbers,
    exceeds,
    make_groups,
)
from rlprompt.preferences.checks import MERITS, Limits, failed_merits
from rlprompt.types import BoolArray, FloatArray, Json


def best_worst(group: Group, *, score: str = REWARD) -> Verdict:
    """The best and the worst of K.

    Args:
        group: the candidates.
        score: which score.
    """
    ranked = group.ranked(score)
    best, worst, reason = ends(ranked)
    if best is None or worst is None:
        return Verdict(reason=reason, usable=len(ranked))
    return Verdict((Draft(best[1], worst[1], best[0] - worst[0]),), usable=len(ranked))


def self_judged(group: Group, *, score: str) -> Verdict:
    """The best and the worst by the score that a judge gave, for example the rewriter itself.

    Reference: Yang et al. 2025, arXiv:2505.16763: one model rewrites the prompts and judges what comes of them.

    Args:
        group: the candidates.
        score: the judge's name among the scores; it has none where the judge abstained.
    """
    return best_worst(group, score=score)


def dominance(
    group: Group, *, criteria: Sequence[str] | None = None, n: int = 1, over_original: bool = False
) -> Verdict:
    """Pairs in which the chosen text is at least as good by all criteria and better by one.

    Reference: Question Rewriter, arXiv:2408.10573: a better rewrite is one whose answer is at least as good as the
    answer to the original question by all criteria and better by one, a worse one the reverse.

    Args:
        group: the candidates.
        criteria: the scores, by default those with a weight in the reward; where that is negative, less is better.
        n: most pairs; those with the largest margin, the weighted sum of the differences, come first.
        over_original: the chosen text must also dominate the original one, which must dominate the rejected one. The
            original is the candidate that equals the input (at task level the draft).
    """
    check_number("n", n, least=1, integer=True)
    check_flag("over_original", over_original)
    if criteria is not None and (isinstance(criteria, str) or not criteria):
        raise ConfigError(f"pair builder: criteria must be a list of scores, such as [gap, fluency]; got {criteria!r}")
    names = [name for c in group.candidates for name in c.scores if name != REWARD and group.weights.get(name, 1.0)]
    names = list(dict.fromkeys(names if criteria is None else criteria))
    values = [(c, [c.value(name) for name in names]) for c in group.candidates if not c.failed]
    usable = [c for c, row in values if None not in row]
    if not names or len(usable) < 2:
        return Verdict(reason=ALONE if names else "no criteria", usable=len(usable))
    weights = np.array([group.weights.get(name, 1.0) or 1.0 for name in names])
    rows = np.array([row for _, row in values if None not in row], dtype=np.float64) * np.sign(weights)
    better = worse = np.arange(len(usable))
    if over_original:
        place = next((index for index, c in enumerate(usable) if c.text == c.naive), None)
        if place is None:
            return Verdict(reason="the original was not scored", usable=len(usable))
        better, worse = (np.flatnonzero(dominates(a, b)) for a, b in ((rows, rows[place]), (rows[place], rows)))
    found: list[tuple[float, int, int]] = []
    for first in better:
        margins = (rows[first] - rows[worse]) @ np.abs(weights)
        order = np.argsort(-np.round(margins, 9), kind="stable")
        beaten = order[dominates(rows[first], rows[worse[order]])][:n]
        found += [(float(margins[second]), int(first), int(worse[second])) for second in beaten]
    if not found:
        equal = not _exceed(rows.max(axis=0), rows.min(axis=0)).any()
        return Verdict(reason=TIE if equal else "no candidate dominates another", usable=len(usable))
    found.sort(key=lambda entry: (-round(entry[0], 9), entry[1:]))
    drafts = [Draft(usable[first], usable[second], gap) for gap, first, second in found[:n]]
    return Verdict(tuple(drafts), usable=len(usable))


def margin(
    group: Group,
    *,
    score: str = REWARD,
    weights: Mapping[str, float] | None = None,
    margin: float = 0.0,
    floors: Mapping[str, float] | None = None,
    ceilings: Mapping[str, float] | None = None,
    top: int = 1,
    max_words: int | None = None,
) -> Verdict:
    """The best candidates that keep to a floor in every metric, over the worst, by more than a margin.

    Reference: Prompt-A-Video, arXiv:2412.15156: a weighted sum of the metrics, thresholds that the chosen prompt must
    pass in each, a margin between chosen and rejected, the two best as chosen, and at most 130 words.

    Args:
        group: the candidates.
        score: the combined score.
        weights: instead of `score`, the weight of each metric in their sum.
        margin: the combined score of the chosen one must be higher by more than this.
        floors: least value of a metric for the chosen one; the value itself is allowed.
        ceilings: the same for metrics of which less is better.
        top: how many of the best that pass are chosen, each against the worst.
        max_words: most words of the chosen one.
    """
    check_number("margin", margin, least=0)
    check_number("top", top, least=1, integer=True)
    if max_words is not None:
        check_number("max_words", max_words, least=1, integer=True)
    for name, given in (("weights", weights), ("floors", floors), ("ceilings", ceilings)):
        if given is not None:
            check_numbers(name, given)
    ranked = group.ranked(score) if weights is None else _summed(group, weights)
    best, worst, reason = ends(ranked)
    if best is None or worst is None:
        return Verdict(reason=reason, usable=len(ranked))
    passing = [
        (value, c)
        for value, c in ranked
        if _within(c, floors or {}, ceilings or {}) and (max_words is None or len(c.text.split()) <= max_words)
    ]
    if not passing:
        return Verdict(reason="below a floor", usable=len(ranked))
    drafts = [Draft(c, worst[1], value - worst[0]) for value, c in passing[:top] if exceeds(value - worst[0], margin)]
    return Verdict(tuple(drafts), reason="" if drafts else "within the margin", usable=len(ranked))


def merit(
    group: Group,
    *,
    score: str = REWARD,
    checks: Sequence[str] = tuple(MERITS),
    max_words: int = 60,
    max_sentence_words: int = 40,
    kept: float = 0.5,
    distinct: float = 0.5,
) -> Verdict:
    """The best candidate among those with all merits, over the worst of all.

    Reference: MePO, arXiv:2505.09930, whose merits are clarity, precision, conciseness and keeping the original
    information; the rules that stand for them are ours (`rlprompt.preferences.checks.MERITS`).

    Args:
        group: the candidates.
        score: which score.
        checks: names of the merits that the chosen text must have.
        max_words: of "short".
        max_sentence_words: of "clear".
        kept: of "keeps-words", in [0, 1].
        distinct: of "concise", in [0, 1].
    """
    if isinstance(checks, str):
        raise ConfigError(f"pair builder: checks must be a list of names, such as [short, clear]; got {checks!r}")
    for name in checks:
        if name not in MERITS:
            raise UnknownNameError("merit check", name, MERITS)
    check_number("max_words", max_words, least=1, integer=True)
    check_number("max_sentence_words", max_sentence_words, least=1, integer=True)
    check_number("kept", kept, least=0)
    check_number("distinct", distinct, least=0)
    ranked = group.ranked(score)
    best, worst, reason = ends(ranked)
    if best is None or worst is None:
        return Verdict(reason=reason, usable=len(ranked))
    limits = Limits(max_words, max_sentence_words, kept, distinct)
    for value, candidate in ranked:
        if exceeds(value, worst[0]) and not failed_merits(candidate.text, candidate.naive, tuple(checks), limits):
            return Verdict((Draft(candidate, worst[1], value - worst[0]),), usable=len(ranked))
    return Verdict(reason="no better candidate has all merits", usable=len(ranked))


def ranked_rows(candidates: Sequence[Candidate], *, score: str = REWARD, per_iteration: bool = False) -> list[Json]:
    """Returns what RRHF learns from: the texts of each group, best first, with their scores.

    Groups with fewer than two texts that have the score, and those whose scores all tie, are left out.

    Args:
        candidates: scored texts.
        score: which score.
        per_iteration: whether only texts of one iteration are compared.
    """
    rows: list[Json] = []
    for group in make_groups(candidates, per_iteration=per_iteration):
        ranked = group.ranked(score)
        if ends(ranked)[0] is None:
            continue
        own: Json = {} if group.iteration is None else {"iteration": group.iteration}
        rows.append(
            {
                "id": f"ranked-{len(rows)}",
                "input": group.first.input,
                "texts": [candidate.text for _, candidate in ranked],
                "scores": [value for value, _ in ranked],
                "example_id": group.first.example_id,
                **own,
            }
        )
    return rows


def ends(
    ranked: Sequence[tuple[float, Candidate]],
) -> tuple[tuple[float, Candidate] | None, tuple[float, Candidate] | None, str]:
    """Returns the best and the worst, of equal ones the earliest, and why there are none: too few, or a tie."""
    if len(ranked) < 2:
        return None, None, ALONE
    highest, lowest = ranked[0][0], ranked[-1][0]
    if not exceeds(highest, lowest):
        return None, None, TIE
    best = min((entry for entry in ranked if not exceeds(highest, entry[0])), key=_place)
    worst = min((entry for entry in ranked if not exceeds(entry[0], lowest)), key=_place)
    return best, worst, ""


def _place(entry: tuple[float, Candidate]) -> tuple[int, int, str]:
    return entry[1].iteration, entry[1].index, entry[1].text


def dominates(first: FloatArray, second: FloatArray) -> BoolArray:
    """Whether all criteria, on the last axis, are at least equal and one is better; more is better in all of them.

    >>> dominates(np.array([1.0, 2.0]), np.array([[1.0, 1.0], [1.0, 2.0], [0.0, 3.0]])).tolist()
    [True, False, False]
    """
    above, below = _exceed(first, second).any(axis=-1), _exceed(second, first).any(axis=-1)
    return np.asarray(above & ~below, dtype=np.bool_)


def _exceed(first: FloatArray, second: FloatArray) -> BoolArray:
    """`exceeds` of arrays."""
    largest = np.maximum(np.abs(first), np.abs(second))
    return np.asarray(first - second > np.maximum(RELATIVE * largest, ABSOLUTE), dtype=np.bool_)


def _summed(group: Group, weights: Mapping[str, float]) -> list[tuple[float, Candidate]]:
    found = []
    for candidate in group.candidates:
        values = {name: candidate.value(name) for name in weights}
        known = [weights[name] * value for name, value in values.items() if value is not None]
        if len(known) == len(weights) and not candidate.failed:
            found.append((sum(known), candidate))
    return sorted(found, key=lambda entry: -entry[0])


def _within(candidate: Candidate, floors: Mapping[str, float], ceilings: Mapping[str, float]) -> bool:
    for limits, sign in ((floors, 1.0), (ceilings, -1.0)):
        for name, limit in limits.items():
            value = candidate.value(name)
            if value is None or exceeds(sign * limit, sign * value):
                return False
    return True
