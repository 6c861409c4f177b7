"""Rewards of tasks with choices: the reference is the label, an index into the choices.

p is the target's probability of each choice, normalised over the choices only. Each class is constructed once and
called with the keyword lists of `rlprompt.types.Reward`; it abstains (None) where the target failed or gave no
probabilities, and where the example has no label.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from rlprompt.errors import ConfigError
from rlprompt.rewards.generation import TokenF1
from rlprompt.types import TargetOutput

_SMALLEST_LOG = -708.0
"""About log(1e-308): a right choice whose probability underflowed to 0 is a bad answer, not a failed sample."""


class _ChoiceReward(ABC):
    """Loops over the pairs and finds the label; subclasses score one."""

    needs: ClassVar[str] = "choices"

    def __call__(
        self,
        *,
        outputs: Sequence[TargetOutput],
        references: Sequence[Any] | None = None,
        choices: Sequence[Sequence[str]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Scores N pairs.

        Args:
            outputs: answers with `choice_logprobs`.
            references: the labels: an index, or the text of a choice.
            choices: the choices of each pair; only needed for labels or answers that are texts.
            **columns: not used.

        Raises:
            ValueError: a label that is none of the choices.
        """
        scores: list[float | None] = []
        for index, output in enumerate(outputs):
            reference = references[index] if references is not None else None
            names = tuple(choices[index]) if choices is not None else ()
            if output.failure is not None or reference is None:
                scores.append(None)
            else:
                scores.append(self._score(output, reference, names))
        return scores

    @abstractmethod
    def _score(self, output: TargetOutput, reference: Any, choices: tuple[str, ...]) -> float | None:
        """The reward of one pair with a reference and an answer."""


class Accuracy(_ChoiceReward):
    """1.0 when the label is strictly the most probable choice, else 0.0; a tie is not right.

    Where the target gave no probabilities but wrote an answer, 1.0 when that is the label's text.
    """

    reads_text: ClassVar[bool] = True

    def _score(self, output: TargetOutput, reference: Any, choices: tuple[str, ...]) -> float | None:
        if output.choice_logprobs is None:
            if output.text is None or not choices:
                return None
            label = _label(reference, choices, len(choices))
            return float(output.text.strip() == choices[label].strip())
        label = _label(reference, choices, len(output.choice_logprobs))
        return float(output.choice_logprobs[label] > max(_others(output.choice_logprobs, label)))


class ProbabilityGap(_ChoiceReward):
    """Gap = p[label] - max over the other choices, times a coefficient by its sign; in [-180, 200] by default.

    The coefficient is `correct` for Gap > 0 and `incorrect` otherwise. A tie has Gap 0 and is not correct: only
    the label itself is left out of the maximum, never another choice that happens to be as probable.

    Reference: Deng et al. 2022, arXiv:2205.12548, R = lambda1^(1 - C) * lambda2^C * Gap with lambda1 = 180 and
    lambda2 = 200.

    Args:
        correct: coefficient of a positive gap, above 0.
        incorrect: coefficient of a gap of 0 or less, above 0.
    """

    def __init__(self, correct: float = 200.0, incorrect: float = 180.0) -> None:
        for name, value in (("correct", correct), ("incorrect", incorrect)):
            if not 0 < value < math.inf:
                raise ConfigError(f"gap: {name} must be a number above 0, got {value}; the paper uses 200 and 180")
        self.correct = correct
        self.incorrect = incorrect

    def _score(self, output: TargetOutput, reference: Any, choices: tuple[str, ...]) -> float | None:
        if output.choice_logprobs is None:
            return None
        label = _label(reference, choices, len(output.choice_logprobs))
        probabilities = [math.exp(value) for value in output.choice_logprobs]
        gap = probabilities[label] - max(_others(probabilities, label))
        return gap * (self.correct if gap > 0 else self.incorrect)


class LogProbability(_ChoiceReward):
    """Log-probability of the right answer in nats, at most 0.

    With choices: log p[label]. Without: the log-likelihood of the whole reference, summed over its tokens.
    """

    needs: ClassVar[str] = "logprob"

    def _score(self, output: TargetOutput, reference: Any, choices: tuple[str, ...]) -> float | None:
        if output.choice_logprobs is None:
            return output.logprob
        label = _label(reference, choices, len(output.choice_logprobs))
        value = output.choice_logprobs[label]
        return value if math.isnan(value) else max(value, _SMALLEST_LOG)


class CrossEntropy(LogProbability):
    """Minus the cross-entropy of the right answer in nats per token, at most 0: negative so that higher is better.

    With choices the answer is one event, and this is log p[label]. Without, it is the log-likelihood of the
    reference divided by its number of tokens, so that long references do not weigh more than short ones.
    """

    def _score(self, output: TargetOutput, reference: Any, choices: tuple[str, ...]) -> float | None:
        value = super()._score(output, reference, choices)
        if value is None or output.choice_logprobs is not None:
            return value
        if output.completion_tokens < 1:
            raise ValueError("the target did not count the tokens of the reference; use log-probability instead")
        return value / output.completion_tokens


class LikelihoodF1(LogProbability):
    """Log-probability of the right choice in nats, plus `weight` times the F1 of the most probable choice's words.

    The reward that PRewrite (arXiv:2401.08189) reports as its best, log-likelihood and F1; its exact weighting is
    not published. The F1 is that of `token-f1` between the texts of the two choices; of a tie for the most probable
    one the F1 counts as 0.

    Args:
        weight: of the F1, above 0.
    """

    needs: ClassVar[str] = "choices"

    def __init__(self, weight: float = 1.0) -> None:
        if not 0 < weight < math.inf:
            raise ConfigError(f"log-likelihood-f1: weight must be a number above 0, got {weight}")
        self.weight = weight
        self._f1 = TokenF1()

    def _score(self, output: TargetOutput, reference: Any, choices: tuple[str, ...]) -> float | None:
        value = super()._score(output, reference, choices)
        if value is None or output.choice_logprobs is None:
            return None
        if len(choices) != len(output.choice_logprobs):
            raise ValueError(f"{len(output.choice_logprobs)} probabilities for {len(choices)} choices")
        best = max(output.choice_logprobs)
        chosen = [index for index, entry in enumerate(output.choice_logprobs) if entry == best]
        if len(chosen) != 1:
            return value
        gold = choices[_label(reference, choices, len(choices))]
        f1 = self._f1(outputs=[TargetOutput(text=choices[chosen[0]])], references=[gold])[0]
        return value + self.weight * float(f1 or 0.0)


def _label(reference: Any, choices: tuple[str, ...], count: int) -> int:
    if isinstance(reference, str) and reference in choices:
        return choices.index(reference)
    if isinstance(reference, str) or int(reference) != reference or not 0 <= int(reference) < count:
        raise ValueError(f"label {reference!r} is none of the {count} choices; use an index from 0 to {count - 1}")
    return int(reference)


def _others(values: Sequence[float], label: int) -> list[float]:
    others = [value for index, value in enumerate(values) if index != label]
    if not others:
        raise ValueError("a task needs at least two choices")
    # max() would pass over a NaN that does not come first; a NaN must stay one, so that the sample is excluded.
    return [math.nan] if any(math.isnan(value) for value in others) else others
