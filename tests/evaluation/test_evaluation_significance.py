import numpy as np
import pytest
from scipy import stats

from crops.errors import CropsError
from crops.evaluation import bootstrap_interval, paired_bootstrap


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


def test_a_wider_confidence_gives_a_wider_interval():
    values = np.arange(50.0)
    narrow = bootstrap_interval(values, 500, 0, confidence=0.5)
    wide = bootstrap_interval(values, 500, 0, confidence=0.99)
    assert wide.ci_low < narrow.ci_low < narrow.ci_high < wide.ci_high


def test_the_seed_decides():
    values = np.random.default_rng(0).random(30)
    assert bootstrap_interval(values, 200, 5) == bootstrap_interval(values, 200, 5)
    assert bootstrap_interval(values, 200, 5) != bootstrap_interval(values, 200, 6)


def test_chunks_of_resamples_do_not_change_the_result(monkeypatch):
    values = np.random.default_rng(0).random(30)
    whole = bootstrap_interval(values, 200, 5)
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


def test_ten_queries_have_an_interval():
    values = np.arange(10) / 10
    interval = bootstrap_interval(values, 100, 0)
    assert interval.ci_low < interval.mean < interval.ci_high
    assert interval.ends("+.0f") == f"[{100 * interval.ci_low:+.0f}, {100 * interval.ci_high:+.0f}]"
    assert paired_bootstrap(values, values[::-1].copy(), 100, 0).p <= 1


def test_a_paired_difference_is_surer_than_two_intervals():
    rng = np.random.default_rng(2)
    hardness = rng.random(300)
    a, b = hardness + 0.03 + rng.normal(0, 0.02, 300), hardness
    difference = paired_bootstrap(a, b, 1000, 0)
    assert difference.mean == pytest.approx((a - b).mean())
    assert 0.02 < difference.ci_low < difference.ci_high < 0.04
    assert difference.p == pytest.approx(2 / 1001)
    assert bootstrap_interval(a, 1000, 0).ci_low < bootstrap_interval(b, 1000, 0).ci_high


def test_the_difference_of_a_system_with_itself_is_nothing():
    values = np.random.default_rng(0).random(20)
    difference = paired_bootstrap(values, values, 100, 0)
    assert (difference.mean, difference.ci_low, difference.ci_high, difference.p) == (0, 0, 0, 1)


def test_swapping_the_systems_mirrors_the_difference():
    rng = np.random.default_rng(4)
    a, b = rng.random(80), rng.random(80)
    forth, back = paired_bootstrap(a, b, 500, 0), paired_bootstrap(b, a, 500, 0)
    assert (back.mean, back.ci_low, back.ci_high) == pytest.approx(
        (-forth.mean, -forth.ci_high, -forth.ci_low)
    )
    assert back.p == forth.p


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
