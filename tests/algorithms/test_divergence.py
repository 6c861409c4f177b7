"""The rule that says when a proxy reward and a gold reward part."""

import numpy as np
import pytest

from rlprompt.algorithms.divergence import divergence, trend


def test_a_trend_is_the_correlation_with_time_and_the_change_of_the_fitted_line() -> None:
    assert trend([1.0, 2.0, 3.0, 4.0]) == (1.0, 3.0)
    # t = -1.5 -0.5 0.5 1.5 and x = -1.5 0.5 -0.5 1.5: 4 / sqrt(5 * 5); slope 4 / 5 over 3 steps
    correlation, change = trend([1.0, 3.0, 2.0, 4.0])
    assert (correlation, change) == (pytest.approx(0.8), pytest.approx(2.4))


@pytest.mark.parametrize("series", [[0.3, 0.3, 0.3], [0.1 + 0.2, 0.3, 0.3], [1.0], []])
def test_a_constant_series_has_no_trend(series: list[float]) -> None:
    assert trend(series) == (0.0, 0.0)


UP, DOWN = [1.0, 3.0, 2.0, 4.0], [4.0, 2.0, 3.0, 1.0]  # trends 0.8 and -0.8


@pytest.mark.parametrize(
    ("proxy", "gold", "diverged"),
    [(UP, DOWN, True), (UP, UP, False), (DOWN, DOWN, False), (DOWN, UP, False), (UP, [1.0] * 4, False)],
    ids=["apart", "both up", "both down", "the other way", "gold stays"],
)
def test_they_diverge_where_the_proxy_rises_and_the_gold_falls(
    proxy: list[float], gold: list[float], diverged: bool
) -> None:
    assert divergence(proxy, gold).diverged is diverged


def test_both_trends_must_be_clear_and_the_fall_large_enough() -> None:
    assert divergence(UP, DOWN, threshold=0.79).diverged
    assert not divergence(UP, DOWN, threshold=0.81).diverged
    assert divergence([1, 2, 3], [3, 2, 1], threshold=1.0).diverged
    assert divergence(UP, DOWN, min_fall=2.39).diverged
    assert not divergence(UP, DOWN, min_fall=2.41).diverged


def test_noise_alone_sets_it_off_as_rarely_as_the_page_says() -> None:
    rng = np.random.Generator(np.random.Philox(0))
    noise = rng.standard_normal((20_000, 2, 10))
    clear = np.array([trend(series)[0] >= 0.7 for series in noise[:, 0]])
    assert clear.mean() == pytest.approx(0.012, abs=0.003)
    # 20,000 * 1.5e-4 = 3 are expected
    assert sum(divergence(proxy, gold).diverged for proxy, gold in noise) <= 10


def test_series_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="two series of equal length"):
        divergence([1, 2], [1, 2, 3])
