import numpy as np
import pytest

from crops.errors import CropsError
from crops.evaluation import paired_bootstrap
from crops.evaluation.significance import holm, nested_bootstrap


def columns(*systems):
    return np.column_stack([np.array(one, dtype=float) for one in systems])


def test_worlds_count_alike_whatever_their_number_of_queries():
    """World 1 has means 2 and 1, world 2 means 5 and 8: means of worlds 3.5 and 4.5, not of queries."""
    worlds = [columns([1, 2, 3], [1, 1, 1]), columns([5, 5], [7, 9])]
    found = nested_bootstrap(worlds, 200, seed=0)
    assert found.means == pytest.approx([3.5, 4.5])
    assert found.n == 5
    assert found.interval(np.array([1.0, 0.0])).mean == pytest.approx(3.5)
    assert found.contrast(np.array([1.0, -1.0])).mean == pytest.approx(-1.0)


def test_a_constant_difference_has_no_width_and_the_smallest_p():
    """Both vary by query, their difference never: all 999 resamples give 0.5, p = 2 (0 + 1) / 1000."""
    rng = np.random.default_rng(1)
    worlds = [columns(values + 0.5, values) for values in (rng.random(30), rng.random(50))]
    found = nested_bootstrap(worlds, 999, seed=0).contrast(np.array([1.0, -1.0]))
    assert (found.ci_low, found.ci_high) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found.p == pytest.approx(0.002)


def test_worlds_that_disagree_are_no_evidence():
    """+1 in one world and -1 in the other: a quarter of the resamples are +1, a quarter -1, half 0."""
    worlds = [columns(np.ones(100), np.zeros(100)), columns(np.zeros(100), np.ones(100))]
    found = nested_bootstrap(worlds, 2000, seed=0)
    assert found.contrast(np.array([1.0, -1.0])).p == 1.0
    assert (found.draws @ [1.0, -1.0] == 1).mean() == pytest.approx(0.25, abs=0.04)
    interval = found.interval(np.array([1.0, -1.0]))
    assert (interval.ci_low, interval.ci_high) == (-1, 1)


def test_one_world_is_the_paired_bootstrap_over_queries():
    rng = np.random.default_rng(3)
    a, b = rng.random(400), rng.random(400)
    nested = nested_bootstrap([columns(a, b)], 4000, seed=0).contrast(np.array([1.0, -1.0]))
    plain = paired_bootstrap(a, b, 4000, seed=7)
    assert nested.mean == pytest.approx(plain.mean)
    assert nested.ci_low == pytest.approx(plain.ci_low, abs=0.003)
    assert nested.ci_high == pytest.approx(plain.ci_high, abs=0.003)


def test_chunks_do_not_change_the_spread(monkeypatch):
    """The standard error of a mean of n uniform values is sqrt(1 / 12 / n)."""
    monkeypatch.setattr("crops.evaluation.significance._CHUNK", 1000)
    values = np.random.default_rng(0).random((300, 1))
    draws = nested_bootstrap([values], 3000, seed=0).draws[:, 0]
    assert draws.std() == pytest.approx(np.sqrt(1 / 12 / 300), rel=0.08)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.002)


def test_fewer_than_ten_queries_in_all_worlds_have_no_interval():
    world = columns([1.0, 0.5, 0.0], [0.0, 0.5, 0.0])
    found = nested_bootstrap([world] * 3, 100, seed=0).contrast(np.array([1.0, -1.0]))
    assert found.mean == pytest.approx(1 / 3)
    assert np.isnan([found.ci_low, found.ci_high, found.p]).all()
    assert np.isfinite(nested_bootstrap([world] * 4, 100, seed=0).contrast(np.array([1.0, -1.0])).p)


@pytest.mark.parametrize("worlds", [[], [np.empty((0, 2))], [columns([1, np.nan], [1, 1])]])
def test_what_cannot_be_resampled_is_refused(worlds):
    with pytest.raises(CropsError, match="at least one world|finite"):
        nested_bootstrap(worlds, 100, seed=0)


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        # sorted .01, .03, .04 times 3, 2, 1 = .03, .06, .04; none below the one before: .03, .06, .06
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([float("nan"), 0.02], [float("nan"), 0.02]),
        ([], []),
    ],
)
def test_holm_by_hand(given, corrected):
    assert holm(given) == pytest.approx(corrected, nan_ok=True)
