"""Precision, recall and reliability of a calibrated theta, by hand."""

import numpy as np
import pytest

from crops.errors import CropsError
from crops.relevance.calibrate import AlphaPoint, Bin, by_alpha, calibration_error, log_loss, reliability

P = np.array([0.9, 0.7, 0.3, 0.8, 0.2, 0.1])
RELEVANT = np.array([True, True, False, False, False, False])
# Weights: 6 / (2 * 2) = 1.5 for each of 2 relevant, 6 / (2 * 4) = .75 for each of 4 irrelevant pairs.


def test_precision_and_recall_by_hand():
    # Above .75: .9 (1.5, right) and .8 (.75, wrong): 1.5 / 2.25; recall 1.5 / 3.
    assert by_alpha(P, RELEVANT, [0.75, 0.25]) == [
        AlphaPoint(0.75, 2, pytest.approx(2 / 3), pytest.approx(0.5)),
        AlphaPoint(0.25, 4, pytest.approx(3 / 4.5), pytest.approx(1.0)),
    ]


def test_the_comparison_is_strict_and_nothing_kept_has_no_precision():
    assert by_alpha(P, RELEVANT, [0.9]) == [AlphaPoint(0.9, 0, None, 0.0)]


def test_reliability_by_hand():
    # Two bins: below .5 (.3, .2, .1: none relevant) and from .5 (.9, .7 of weight 1.5, .8 of .75).
    low, high = reliability(P, RELEVANT, bins=2)
    assert low == Bin(pytest.approx(0.2), 0.0, 3)
    assert high == Bin(pytest.approx((0.9 * 1.5 + 0.7 * 1.5 + 0.8 * 0.75) / 3.75), pytest.approx(0.8), 3)


def test_empty_bins_are_left_out_and_one_is_in_the_last():
    bins = reliability(np.array([0.0, 1.0]), np.array([False, True]))
    assert [(one.predicted, one.observed) for one in bins] == [(0.0, 0.0), (1.0, 1.0)]


def test_calibration_error_by_hand():
    # Low bin: .75 * (.3 + .2 + .1) = .45; high: 1.5 * (-.1 - .3) + .75 * .8 = 0. (.45 + 0) / 6 = .075.
    assert calibration_error(P, RELEVANT, bins=2) == pytest.approx(0.075)


def test_log_loss_by_hand():
    # (1.5 (ln .9 + ln .7) + .75 (ln .7 + ln .2 + ln .8 + ln .9)) / -6
    expected = -(1.5 * np.log(0.63) + 0.75 * np.log(0.7 * 0.2 * 0.8 * 0.9)) / 6
    assert log_loss(P, RELEVANT) == pytest.approx(expected)


def test_one_class_alone_is_refused():
    with pytest.raises(CropsError, match="relevant and irrelevant"):
        by_alpha(P, np.ones(6, np.bool_), [0.5])
