"""Calibration offsets, by hand."""

import numpy as np
import pytest

from rlprompt.calibration import apply_calibration, fit_calibration
from rlprompt.errors import ConfigError


def test_median_calibration_splits_the_train_examples_in_half() -> None:
    # log-odds of class 1: log(1/9), log(2/8), log(4/6), log(5/5); their median is (log(1/4) + log(2/3)) / 2
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.5, 0.5]])
    offsets = fit_calibration("median", np.log(probabilities))
    assert offsets[1] - offsets[0] == pytest.approx((np.log(1 / 4) + np.log(2 / 3)) / 2)
    calibrated = apply_calibration(np.log(probabilities), offsets)
    assert (calibrated.argmax(axis=1) == [0, 0, 1, 1]).all()
    assert np.exp(calibrated).sum(axis=1) == pytest.approx(np.ones(4))


def test_contextual_calibration_makes_content_free_inputs_even() -> None:
    free = np.log(np.array([[0.7, 0.3], [0.9, 0.1]]))  # mean 0.8 and 0.2
    calibrated = apply_calibration(np.log(np.array([0.8, 0.2])), fit_calibration("contextual", free))
    assert np.exp(calibrated) == pytest.approx([0.5, 0.5])


def test_none_changes_nothing() -> None:
    assert fit_calibration("none", np.log(np.array([[0.9, 0.1]]))).tolist() == [0.0, 0.0]


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match="calibration must be one of none, median, contextual, got 'mean'"):
        fit_calibration("mean", np.zeros((1, 2)))
