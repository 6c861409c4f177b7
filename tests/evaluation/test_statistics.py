"""Intervals and comparisons against numbers computed by hand."""

import math

import numpy as np
import pytest

from rlprompt.errors import ConfigError
from rlprompt.evaluation import paired_bootstrap, seed_summary, wilson_interval
from rlprompt.seeding import generator


def test_wilson_interval_of_8_in_10() -> None:
    # z = 1.959964, z^2 = 3.841459; scale = 1 + 0.3841459 = 1.3841459
    # centre = (0.8 + 0.1920730) / 1.3841459 = 0.7167344
    # half = 1.959964 / 1.3841459 * sqrt(0.8 * 0.2 / 10 + 3.841459 / 400) = 1.4160097 * 0.1600114 = 0.2265777
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.7167344 - 0.2265777, abs=1e-5)
    assert high == pytest.approx(0.7167344 + 0.2265777, abs=1e-5)


def test_wilson_interval_stays_in_bounds_and_is_not_empty_at_the_ends() -> None:
    # 0 of 10: high = z^2 / (n + z^2) = 3.841459 / 13.841459
    assert wilson_interval(0, 10) == (0.0, pytest.approx(3.841459 / 13.841459, abs=1e-6))
    assert wilson_interval(10, 10) == (pytest.approx(10 / 13.841459, abs=1e-6), 1.0)


def test_wilson_interval_of_nothing_is_unknown() -> None:
    assert all(math.isnan(bound) for bound in wilson_interval(0, 0))


def test_wilson_interval_narrows_with_less_confidence() -> None:
    wide, narrow = wilson_interval(5, 10), wilson_interval(5, 10, confidence=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(("successes", "total"), [(-1, 3), (4, 3)])
def test_wilson_interval_refuses_impossible_counts(successes: int, total: int) -> None:
    with pytest.raises(ConfigError, match=f"successes must be between 0 and 3, got {successes}"):
        wilson_interval(successes, total)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(ConfigError, match=f"confidence must be between 0 and 1, got {confidence}"):
        wilson_interval(1, 2, confidence)


def test_wilson_interval_covers_the_truth_at_its_rate() -> None:
    # exact: the probability of all counts whose interval holds the true share; discreteness moves it a little
    coverages = []
    for truth in (0.1, 0.3, 0.5, 0.8, 0.95):
        inside = [right for right in range(61) if (w := wilson_interval(right, 60))[0] <= truth <= w[1]]
        coverages.append(sum(math.comb(60, k) * truth**k * (1 - truth) ** (60 - k) for k in inside))
    assert min(coverages) > 0.92
    assert np.mean(coverages) == pytest.approx(0.95, abs=0.015)


def test_paired_bootstrap_of_a_constant_difference_has_no_spread() -> None:
    result = paired_bootstrap([1.0] * 8, [0.5] * 8, resamples=999)
    assert (result.difference, result.low, result.high, result.num_examples) == (0.5, 0.5, 0.5, 8)
    assert result.p_value == pytest.approx(2 / 1000)  # no resample at or below 0: 2 * (0 + 1) / (999 + 1)


def test_paired_bootstrap_of_a_prompt_with_itself_finds_nothing() -> None:
    result = paired_bootstrap([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert (result.difference, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_paired_bootstrap_p_value_of_three_rows() -> None:
    # differences 1, 1, 0: a resample is not above 0 only if all three draws take the 0: (1/3)^3 = 1/27
    result = paired_bootstrap([1.0, 1.0, 1.0], [0.0, 0.0, 1.0], resamples=20_000)
    assert result.p_value == pytest.approx(2 / 27, abs=0.01)
    assert result.difference == pytest.approx(2 / 3)


def test_paired_bootstrap_leaves_out_rows_that_one_of_the_two_failed() -> None:
    result = paired_bootstrap([1.0, np.nan, 1.0, 0.0], [0.0, 0.0, np.nan, 0.0])
    assert result.num_examples == 2
    assert result.difference == 0.5


def test_paired_bootstrap_is_the_same_for_the_same_seed_and_whatever_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = [1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]
    whole = paired_bootstrap(first, second, resamples=50)
    monkeypatch.setattr("rlprompt.evaluation.statistics._BLOCK", 12)  # three resamples at once
    assert paired_bootstrap(first, second, resamples=50) == whole


def test_paired_bootstrap_refuses_what_is_not_paired() -> None:
    with pytest.raises(ConfigError, match=r"same rows twice, got shapes \(2,\) and \(3,\)"):
        paired_bootstrap([1.0, 0.0], [1.0, 0.0, 1.0])
    with pytest.raises(ConfigError, match="at least one row"):
        paired_bootstrap([np.nan], [1.0])
    with pytest.raises(ConfigError, match="resamples must be at least 1, got 0"):
        paired_bootstrap([1.0], [1.0], resamples=0)


def test_t14_noise_is_seldom_called_a_difference() -> None:
    # T14: two equal prompts; 5 % of the intervals may miss 0 (here with a margin for 200 draws)
    rng = generator(1, "noise")
    missed = 0
    for _ in range(200):
        result = paired_bootstrap(rng.integers(0, 2, 80), rng.integers(0, 2, 80), resamples=400)
        missed += not result.low <= 0 <= result.high
    assert missed <= 22


def test_seed_summary_of_three_seeds() -> None:
    # mean 2, sample variance ((-1)^2 + 0 + 1^2) / 2 = 1, t(0.975; 2) = 4.302653, half = 4.302653 / sqrt(3)
    result = seed_summary([1.0, 2.0, 3.0])
    assert (result.mean, result.std, result.num_seeds) == (2.0, 1.0, 3)
    assert result.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-5)
    assert result.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)


def test_seed_summary_of_one_seed_claims_no_spread() -> None:
    result = seed_summary([0.7])
    assert (result.mean, result.num_seeds) == (0.7, 1)
    assert all(math.isnan(value) for value in (result.std, result.low, result.high))


@pytest.mark.parametrize("values", [[], [0.5, float("nan")]])
def test_seed_summary_refuses_missing_seeds(values: list[float]) -> None:
    with pytest.raises(ConfigError, match="finite number from each seed"):
        seed_summary(values)
