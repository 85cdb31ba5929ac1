import numpy as np
import pytest
from scipy import stats

from crops.errors import CropsError
from crops.evaluation import bootstrap_interval, paired_bootstrap
from crops.evaluation.significance import holm, nested_bootstrap


def test_the_interval_agrees_with_scipy_and_with_normal_theory():
    values = np.random.default_rng(1).random(400)
    own = bootstrap_interval(values, 4000, seed=3)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(7)
    ).confidence_interval
    error = values.std(ddof=1) / np.sqrt(400)
    assert own.mean == pytest.approx(values.mean())
    assert own.n == 400
    assert (own.ci_low, own.ci_high) == pytest.approx((theirs.low, theirs.high), abs=0.1 * error)
    assert own.ci_low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert own.ci_high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    # 400 samples of 60 Bernoulli(0.3) values: 95 % +- 1.1 (one standard error), a little less as n is small.
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval((rng.random(60) < 0.3) * 1.0, 400, seed=i) for i in range(400)]
    covered = np.mean([interval.ci_low <= 0.3 <= interval.ci_high for interval in intervals])
    assert 0.91 <= covered <= 0.98


def test_the_seed_decides_and_chunks_do_not(monkeypatch):
    values = np.random.default_rng(0).random(30)
    whole = bootstrap_interval(values, 200, 5)
    assert whole != bootstrap_interval(values, 200, 6)
    monkeypatch.setattr("crops.evaluation.significance._CHUNK", 100)
    assert bootstrap_interval(values, 200, 5) == whole


def test_weights_make_the_mean_one_over_events_with_queries_drawn_whole():
    # One query has 81 events at 1, nine have one at 0: mean 9/10. It is drawn not at all in 35 % of the
    # resamples, three times or more in 7 %, four in 1.3 %: the interval ends at 3 * 81 / (3 * 81 + 7).
    weighted = bootstrap_interval(np.array([1.0, *[0.0] * 9]), 4000, 0, weights=np.array([81.0, *[1.0] * 9]))
    assert weighted.mean == pytest.approx(0.9)
    assert weighted.ci_low == 0
    assert weighted.ci_high == pytest.approx(243 / 250)


@pytest.mark.parametrize(("values", "mean"), [([], np.nan), ([0.25], 0.25), ([0.0, 1.0, 0.5] * 3, 0.5)])
def test_fewer_than_ten_queries_have_no_interval_and_no_test(values, mean):
    interval = bootstrap_interval(np.array(values), 100, 0)
    assert interval.ends() == f"no interval: n = {len(values)}"
    assert interval.mean == pytest.approx(mean, nan_ok=True)
    assert np.isnan([interval.ci_low, interval.ci_high]).all()
    assert np.isnan(paired_bootstrap(np.array(values), np.array(values), 100, 0).p)
    ten = np.arange(10) / 10
    interval = bootstrap_interval(ten, 100, 0)
    assert interval.ci_low < interval.mean < interval.ci_high
    assert interval.ends("+.0f") == f"[{100 * interval.ci_low:+.0f}, {100 * interval.ci_high:+.0f}]"
    assert paired_bootstrap(ten, ten[::-1].copy(), 100, 0).p <= 1


def test_a_paired_difference_is_surer_than_two_intervals():
    rng = np.random.default_rng(2)
    hardness = rng.random(300)
    a, b = hardness + 0.03 + rng.normal(0, 0.02, 300), hardness
    difference = paired_bootstrap(a, b, 1000, 0)
    assert difference.mean == pytest.approx((a - b).mean())
    assert 0.02 < difference.ci_low < difference.ci_high < 0.04
    assert difference.p == pytest.approx(2 / 1001)
    assert bootstrap_interval(a, 1000, 0).ci_low < bootstrap_interval(b, 1000, 0).ci_high
    forth, back = paired_bootstrap(a, b, 500, 0), paired_bootstrap(b, a, 500, 0)
    mirrored = (-forth.mean, -forth.ci_high, -forth.ci_low)
    assert (back.mean, back.ci_low, back.ci_high) == pytest.approx(mirrored)
    assert back.p == forth.p
    same = paired_bootstrap(a, a, 100, 0)
    assert (same.mean, same.ci_low, same.ci_high, same.p) == (0, 0, 0, 1)
    # one world is the paired bootstrap over queries
    nested = nested_bootstrap([columns(a, b)], 4000, seed=0).contrast(np.array([1.0, -1.0]))
    assert nested.mean == pytest.approx(difference.mean)
    assert (nested.ci_low, nested.ci_high) == pytest.approx(
        (difference.ci_low, difference.ci_high), abs=0.001
    )


def test_the_p_value_is_near_that_of_the_t_test():
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.05, 0.3, 200), np.zeros(200)
    assert paired_bootstrap(a, b, 20_000, 0).p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.02)


def test_bad_input_is_refused():
    with pytest.raises(CropsError, match="finite values"):
        bootstrap_interval(np.array([1.0, np.nan]), 100, 0)
    with pytest.raises(CropsError, match="2 values against 3"):
        paired_bootstrap(np.zeros(2), np.zeros(3), 100, 0)
    with pytest.raises(CropsError, match="2 values came with 1 weights"):
        bootstrap_interval(np.zeros(2), 100, 0, weights=np.ones(1))
    for worlds in ([], [np.empty((0, 2))], [columns([1, np.nan], [1, 1])]):
        with pytest.raises(CropsError, match="at least one world|finite"):
            nested_bootstrap(worlds, 100, seed=0)


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


def test_trainings_are_drawn_too():
    """Two trainings differ by 2 everywhere: half the resamples hold both, a quarter one of them twice.

    That is 1, 2 or 3, a variance of 1/2; sqrt(2) wider, .586, 2 or 3.414, it is that of a mean of two, 1.
    """
    world = np.stack([columns(np.full(50, 3.0), np.zeros(50)), columns(np.full(50, 1.0), np.zeros(50))])
    found = nested_bootstrap([world], 2000, seed=0)
    assert found.means == pytest.approx([2.0, 0.0])
    assert found.n == 50
    values = (2 - 2**0.5, 2, 2 + 2**0.5)
    shares = [np.isclose(found.draws[:, 0], value).mean() for value in values]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.04)
    assert found.draws[:, 0].var() == pytest.approx(1, abs=0.1)
    # Trainings that agree add nothing to the spread over queries.
    values = np.random.default_rng(0).random((60, 1))
    once, twice = (nested_bootstrap([made], 3000, seed=0) for made in (values, np.stack([values, values])))
    assert twice.draws.std() == pytest.approx(once.draws.std(), rel=0.05)


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
