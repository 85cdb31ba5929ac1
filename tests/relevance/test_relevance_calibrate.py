"""The logistic and its storage."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from crops.errors import CropsError
from crops.relevance import (
    Calibration,
    StoredCalibration,
    balanced_weights,
    fit,
    load_calibration,
    store_calibration,
)

ENTRY = StoredCalibration(8.0, -2.5, "abc", "by hand", 10, 0.6, 0.9, 0.8, "2026-01-01")


def test_probability_by_hand():
    # a x + b = 0 gives 1/2; = ln 3 gives 3/4.
    probabilities = Calibration(a=4.0, b=-2.0).probability(np.array([0.5, (math.log(3) + 2) / 4]))
    assert probabilities == pytest.approx([0.5, 0.75])


def test_fit_of_two_cosines_is_saturated():
    # Two distinct cosines, two parameters: the fit gives each cosine its share of relevant pairs,
    # 1 of 4 at cosine 0 and 3 of 4 at cosine 1: b = ln(1/3), a + b = ln 3.
    cosines = np.array([0.0] * 4 + [1.0] * 4)
    relevant = np.array([True, False, False, False, True, True, True, False])
    fitted = fit(cosines, relevant)
    assert fitted.b == pytest.approx(-math.log(3), abs=1e-7)
    assert fitted.a == pytest.approx(2 * math.log(3), abs=1e-7)


def test_balanced_weights_halve_the_total():
    # 1 relevant of 4: it weighs 4/2 = 2, the three others 4/6 each.
    weights = balanced_weights(np.array([False, True, False, False]))
    assert weights == pytest.approx([2 / 3, 2, 2 / 3, 2 / 3])


@pytest.mark.parametrize("balanced", [True, False])
def test_fit_equals_sklearn(balanced: bool):
    rng = np.random.default_rng(0)
    relevant = rng.random(500) < 0.2
    cosines = np.clip(rng.normal(np.where(relevant, 0.5, 0.3), 0.15), -1, 1)
    fitted = fit(cosines, relevant, None if balanced else np.ones(500))
    oracle = LogisticRegression(C=np.inf, class_weight="balanced" if balanced else None, tol=1e-10)
    oracle.fit(cosines[:, None], relevant)
    assert (fitted.a, fitted.b) == pytest.approx((oracle.coef_[0, 0], oracle.intercept_[0]), rel=1e-4)


@pytest.mark.parametrize(
    ("cosines", "relevant", "message"),
    [
        ([0.1, 0.9], [True, True], "one of the two is missing"),
        ([0.1, 0.2, 0.8, 0.9], [False, False, True, True], "separates"),
        ([0.1, 0.2, 0.8, 0.9], [True, True, False, False], "separates"),
        ([0.1, 0.5, 0.4, 0.9], [True, True, False, False], "does not rise"),
    ],
)
def test_pairs_that_cannot_be_calibrated(cosines: list[float], relevant: list[bool], message: str):
    with pytest.raises(CropsError, match=message):
        fit(np.array(cosines), np.array(relevant))


def test_store_and_load(tmp_path):
    path = tmp_path / "calibrations.json"
    store_calibration(path, "relevance", "mine", ENTRY)
    store_calibration(path, "similarity", "mine", ENTRY)
    assert load_calibration("relevance", "mine", "abc", path) == Calibration(8.0, -2.5)
    assert set(json.loads(path.read_text())) == {"relevance", "similarity"}


def test_other_weights_are_refused(tmp_path):
    path = tmp_path / "calibrations.json"
    store_calibration(path, "relevance", "mine", ENTRY)
    with pytest.raises(CropsError, match="fitted for weights abc, but the model found has xyz"):
        load_calibration("relevance", "mine", "xyz", path)


def test_unknown_model_says_what_to_do():
    with pytest.raises(CropsError, match=r"no similarity calibration for model 'minilmm'.*'minilm'.*Fit one"):
        load_calibration("similarity", "minilmm", "abc")


@pytest.mark.parametrize("content", ["not json", '{"relevance": {"mine": {"a": 1.0}}}'])
def test_damaged_calibrations(tmp_path, content: str):
    path = tmp_path / "calibrations.json"
    path.write_text(content)
    with pytest.raises(CropsError, match="calibrations.json"):
        load_calibration("relevance", "mine", "abc", path)
