"""Rewards that compare the target's text with reference texts by n-grams: ROUGE, BLEU, chrF. All in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlprompt.errors import ConfigError
from rlprompt.rewards.generation import ReferenceReward

_ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_AGGREGATES = {"f": "fmeasure", "p": "precision", "r": "recall"}
_TOKENISERS = ("13a", "intl", "char", "zh", "none")


class Rouge(ReferenceReward):
    """ROUGE of the target's text against the reference, in [0, 1]; 0 for a text without words.

    The library lower-cases and keeps only the letters a to z and digits: texts in other scripts score 0.
    Reference: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries". "mean" is the reward of
    arXiv:2302.11520 (the mean of ROUGE-1, ROUGE-2 and ROUGE-L).

    Args:
        variant: "rouge1", "rouge2", "rougeL" (longest common subsequence), "rougeLsum" (the same by sentence, which
            are the lines of the text), or "mean".
        aggregate: "f" (F1), "p" (precision) or "r" (recall).
        stem: whether words are compared by their Porter stems.
    """

    def __init__(self, variant: str = "rougeL", aggregate: str = "f", *, stem: bool = True) -> None:
        if variant not in (*_ROUGE, "mean"):
            raise ConfigError(f"rouge: variant must be one of {', '.join(_ROUGE)}, mean; got {variant!r}")
        if aggregate not in _AGGREGATES:
            raise ConfigError(f"rouge: aggregate must be f, p or r, got {aggregate!r}")
        from rouge_score.rouge_scorer import RougeScorer

        self.variant = variant
        self.aggregate = aggregate
        self._kinds = ["rouge1", "rouge2", "rougeL"] if variant == "mean" else [variant]
        self._scorer: Any = RougeScorer(self._kinds, use_stemmer=stem)

    def _compare(self, text: str, gold: str) -> float:
        scores = self._scorer.score(gold, text)
        values = [float(getattr(scores[kind], _AGGREGATES[self.aggregate])) for kind in self._kinds]
        return sum(values) / len(values)


class Bleu(ReferenceReward):
    """sacreBLEU's sentence BLEU over 100, in [0, 1]; a text is compared with all of its references at once.

    Only n-gram orders that the text is long enough for count (effective order), and counts of 0 are smoothed
    exponentially, as sacreBLEU does for sentences. Reference: Post 2018, arXiv:1804.08771.

    Args:
        tokenize: sacreBLEU's tokeniser: "13a", "intl", "char", "zh" or "none".
        lowercase: whether case is ignored.
    """

    def __init__(self, tokenize: str = "13a", *, lowercase: bool = False) -> None:
        if tokenize not in _TOKENISERS:
            raise ConfigError(f"bleu: tokenize must be one of {', '.join(_TOKENISERS)}; got {tokenize!r}")
        from sacrebleu.metrics import BLEU

        self._bleu: Any = BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=True)

    def _best(self, text: str, golds: Sequence[str]) -> float:
        return _share(self._bleu, text, golds)

    def _compare(self, text: str, gold: str) -> float:
        return _share(self._bleu, text, [gold])


class Chrf(ReferenceReward):
    """sacreBLEU's sentence chrF over 100, in [0, 1], against the best of the references.

    Reference: Popovic 2015, "chrF: character n-gram F-score for automatic MT evaluation".

    Args:
        word_order: longest word n-grams beside the characters; 0 is chrF, 2 is chrF++.
        char_order: longest character n-grams.
        beta: weight of recall against precision.
        lowercase: whether case is ignored.
    """

    def __init__(self, word_order: int = 0, char_order: int = 6, beta: int = 2, *, lowercase: bool = False) -> None:
        for name, value, least in (("word_order", word_order, 0), ("char_order", char_order, 1), ("beta", beta, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"chrf: {name} must be an integer of at least {least}, got {value!r}")
        from sacrebleu.metrics import CHRF

        self._chrf: Any = CHRF(char_order=char_order, word_order=word_order, beta=beta, lowercase=lowercase)

    def _best(self, text: str, golds: Sequence[str]) -> float:
        return _share(self._chrf, text, golds)

    def _compare(self, text: str, gold: str) -> float:
        return _share(self._chrf, text, [gold])


class LengthDifference(ReferenceReward):
    """Minus the difference between the lengths of the target's text and of the reference, at most 0.

    One of the rewards of arXiv:2401.08189 (PRewrite), whose exact form is not published; this is ours.

    Args:
        unit: "words" (separated by white space) or "characters".
    """

    def __init__(self, unit: str = "words") -> None:
        if unit not in ("words", "characters"):
            raise ConfigError(f"length-difference: unit must be words or characters, got {unit!r}")
        self.unit = unit

    def _compare(self, text: str, gold: str) -> float:
        if self.unit == "characters":
            return -float(abs(len(text) - len(gold)))
        return -float(abs(len(text.split()) - len(gold.split())))


def _share(metric: Any, text: str, golds: Sequence[str]) -> float:
    # Of equal texts sacreBLEU's logarithms come to 100.00000000000004.
    return min(float(metric.sentence_score(text, list(golds)).score) / 100, 1.0)
