"""Agreement beyond chance, by hand and against scikit-learn's own use of it."""

import numpy as np
import pytest

from crops.evaluation.raters import agreements, common_counts, fleiss_kappa, middle_grades


def test_cohens_kappa_by_hand():
    # 4 pairs: the same grade on 3. First gives 0, 0, 1, 2; second 0, 0, 1, 1.
    # Chance: 0: .5 * .5, 1: .25 * .5, 2: .25 * 0 = .375; kappa = (.75 - .375) / .625 = .6.
    # Quadratic: observed disagreement 1/4 of 1; expected: sum p_i q_j (i - j)^2
    #   = .5*.5*1 + .25*.5*1 + .25*(.5*4 + .5*1) = .25 + .125 + .625 = 1; kappa = 1 - .25 / 1 = .75.
    first = {"a": 0, "b": 0, "c": 1, "d": 2, "only first": 1}
    second = {"a": 0, "b": 0, "c": 1, "d": 1}
    (one,) = agreements({"x": first, "y": second})
    assert (one.first, one.second, one.pairs, one.same) == ("x", "y", 4, 0.75)
    assert one.kappa == pytest.approx(0.6)
    assert one.weighted_kappa == pytest.approx(0.75)


def test_no_kappa_where_chance_alone_would_agree():
    (one,) = agreements({"x": {"a": 2, "b": 2}, "y": {"a": 2, "b": 2}})
    assert (one.same, one.kappa, one.weighted_kappa) == (1.0, None, None)


def test_raters_without_a_common_pair_have_no_agreement():
    assert agreements({"x": {"a": 1}, "y": {"b": 1}}) == []


def test_fleiss_kappa_of_his_own_example():
    # Fleiss 1971: 10 subjects, 14 raters, 5 categories; kappa .210 as recomputed in the literature.
    counts = np.array(
        [
            [0, 0, 0, 0, 14],
            [0, 2, 6, 4, 2],
            [0, 0, 3, 5, 6],
            [0, 3, 9, 2, 0],
            [2, 2, 8, 1, 1],
            [7, 7, 0, 0, 0],
            [3, 2, 6, 3, 0],
            [2, 5, 3, 2, 2],
            [6, 5, 2, 1, 0],
            [0, 2, 2, 3, 7],
        ]
    )
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)


def test_fleiss_kappa_needs_two_grades():
    assert fleiss_kappa(np.array([[0, 0, 3], [0, 0, 3]])) is None


def test_common_counts_cover_the_pairs_that_all_graded():
    raters = {"x": {"a": 0, "b": 2}, "y": {"a": 0, "b": 1, "c": 1}, "z": {"a": 2, "b": 1}}
    np.testing.assert_array_equal(common_counts(raters, 3), [[2, 0, 1], [0, 2, 1]])


def test_middle_grade_is_the_lower_of_two():
    raters = [{"a": 0, "b": 2, "c": 1}, {"a": 2, "b": 1}, {"a": 2}]
    assert middle_grades(raters) == {"a": 2, "b": 1, "c": 1}
