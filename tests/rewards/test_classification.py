import math

import pytest

from rlprompt.errors import ConfigError
from rlprompt.rewards.classification import Accuracy, CrossEntropy, LikelihoodF1, LogProbability, ProbabilityGap
from rlprompt.types import Failure, TargetOutput


def answer(*probabilities: float) -> TargetOutput:
    return TargetOutput(choice_logprobs=tuple(math.log(p) if p else -math.inf for p in probabilities))


FAILED = TargetOutput(failure=Failure("target", "timeout", "too slow"))


def test_a_positive_gap_is_multiplied_by_200_and_another_by_180() -> None:
    outputs = [answer(0.7, 0.2, 0.1), answer(0.7, 0.2, 0.1), answer(0.7, 0.2, 0.1)]
    # 200 * (0.7 - 0.2) = 100; 180 * (0.2 - 0.7) = -90; 180 * (0.1 - 0.7) = -108
    assert ProbabilityGap()(outputs=outputs, references=[0, 1, 2]) == pytest.approx([100.0, -90.0, -108.0])


def test_a_tie_has_gap_zero_and_is_not_masked_as_if_it_were_the_label() -> None:
    tied = answer(0.4, 0.4, 0.2)
    # Masking every choice as probable as the label would compare with 0.2 and give 200 * 0.2 = 40.
    assert ProbabilityGap()(outputs=[tied, tied], references=[0, 1]) == [0.0, 0.0]
    assert Accuracy()(outputs=[tied, tied, tied], references=[0, 1, 2]) == [0.0, 0.0, 0.0]


def test_the_gap_has_its_extremes_at_200_and_minus_180() -> None:
    assert ProbabilityGap()(outputs=[answer(1.0, 0.0)] * 2, references=[0, 1]) == [200.0, -180.0]


def test_the_coefficients_can_be_set() -> None:
    gap = ProbabilityGap(correct=1.0, incorrect=2.0)
    assert gap(outputs=[answer(0.75, 0.25)] * 2, references=[0, 1]) == pytest.approx([0.5, -1.0])


@pytest.mark.parametrize("kwargs", [{"correct": 0.0}, {"incorrect": -1.0}, {"correct": math.nan}])
def test_a_coefficient_must_be_above_zero(kwargs: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be a number above 0"):
        ProbabilityGap(**kwargs)


def test_accuracy_counts_the_strictly_most_probable_choice() -> None:
    assert Accuracy()(outputs=[answer(0.51, 0.49)] * 2, references=[0, 1]) == [1.0, 0.0]


def test_accuracy_reads_an_answer_without_probabilities() -> None:
    outputs = [TargetOutput(text="great\n"), TargetOutput(text="terrible"), TargetOutput(text="so so")]
    choices = [(" terrible", " great")] * 3
    assert Accuracy()(outputs=outputs, references=[1, 1, 1], choices=choices) == [1.0, 0.0, 0.0]


def test_log_probability_is_the_logarithm_of_the_label() -> None:
    # log 0.25 = -1.386294; a reference without choices: the sum over its tokens as the target gave it
    outputs = [answer(0.75, 0.25), TargetOutput(logprob=-6.0, completion_tokens=3)]
    assert LogProbability()(outputs=outputs, references=[1, "gold"]) == pytest.approx([-1.386294, -6.0])


def test_cross_entropy_is_negative_and_per_token() -> None:
    # -6 nats over 3 tokens are -2 a token; a choice is one event
    outputs = [answer(0.75, 0.25), TargetOutput(logprob=-6.0, completion_tokens=3)]
    assert CrossEntropy()(outputs=outputs, references=[1, "gold"]) == pytest.approx([-1.386294, -2.0])


def test_cross_entropy_needs_the_number_of_tokens() -> None:
    with pytest.raises(ValueError, match="did not count the tokens"):
        CrossEntropy()(outputs=[TargetOutput(logprob=-6.0)], references=["gold"])


@pytest.mark.parametrize("reward", [LogProbability(), CrossEntropy()])
def test_a_right_choice_that_underflowed_is_bad_and_not_a_failed_sample(reward: LogProbability) -> None:
    assert reward(outputs=[answer(1.0, 0.0)], references=[1]) == [-708.0]


@pytest.mark.parametrize("reward", [Accuracy(), ProbabilityGap(), LogProbability(), CrossEntropy()])
def test_a_failed_call_and_an_example_without_a_label_are_left_out(reward: Accuracy) -> None:
    assert reward(outputs=[FAILED, answer(0.9, 0.1)], references=[0, None]) == [None, None]
    assert reward(outputs=[answer(0.9, 0.1)]) == [None]


def test_a_label_may_be_the_text_of_a_choice() -> None:
    choices = [(" bad", " good")] * 2
    assert Accuracy()(outputs=[answer(0.1, 0.9)] * 2, references=[" good", " bad"], choices=choices) == [1.0, 0.0]


@pytest.mark.parametrize("label", [2, -1, "bad", 0.5])
def test_a_label_that_is_no_choice_is_named(label: object) -> None:
    with pytest.raises(ValueError, match="is none of the 2 choices"):
        ProbabilityGap()(outputs=[answer(0.5, 0.5)], references=[label])


@pytest.mark.parametrize("logprobs", [(-0.1, math.nan, -3.0), (math.nan, -0.1, -3.0), (-0.1, -3.0, math.nan)])
def test_a_nan_among_the_choices_stays_nan(logprobs: tuple[float, ...]) -> None:
    (value,) = ProbabilityGap()(outputs=[TargetOutput(choice_logprobs=logprobs)], references=[0])
    assert value is not None
    assert math.isnan(value)


def test_log_likelihood_and_f1_add_up_with_a_weight() -> None:
    # label 0 with p 0.6 is the most probable: log 0.6 + F1 1; label 1 with p 0.4: the words of the choices differ
    outputs = [TargetOutput(choice_logprobs=(math.log(0.6), math.log(0.4)))] * 2
    choices = [(" bad", " good")] * 2
    values = LikelihoodF1(weight=2.0)(outputs=outputs, references=[0, 1], choices=choices)
    assert values == pytest.approx([math.log(0.6) + 2.0, math.log(0.4)])
    # "very good" chosen for "good": 1 word in common of 2 and 1: F1 = 2 / 3
    near = LikelihoodF1()(outputs=outputs[:1], references=[1], choices=[(" very good", " good")])
    assert near == pytest.approx([math.log(0.4) + 2 / 3])


def test_log_likelihood_and_f1_counts_no_f1_of_a_tie_and_abstains_without_probabilities() -> None:
    tie = TargetOutput(choice_logprobs=(math.log(0.5), math.log(0.5)))
    choices = [(" bad", " good")]
    assert LikelihoodF1()(outputs=[tie], references=[0], choices=choices) == pytest.approx([math.log(0.5)])
    assert LikelihoodF1()(outputs=[TargetOutput(text="good")], references=[0], choices=choices) == [None]
    assert LikelihoodF1()(outputs=[tie], references=[None], choices=choices) == [None]
    for weight in (0, -1.0, math.inf):
        with pytest.raises(ConfigError, match="weight must be a number above 0"):
            LikelihoodF1(weight=weight)
