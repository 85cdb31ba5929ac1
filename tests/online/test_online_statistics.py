"""Effects, levels, corrections and daily looks, each by hand or against a known law."""

import math
import sys

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from crops.errors import CropsError, MissingExtraError
from crops.online.analysis import crossing, looks, obrien_fleming
from crops.online.metrics import Metric
from crops.online.statistics import corrected, effect, level, paired_effect, sample_check, sensitivity

RATIO = Metric("ratio", "ratio", "n", "d", "")


def population(users, seed, shift=0.0):
    """Users who search more or less often and click more or less readily, before and during."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(4, 6, users)
    activity = rng.gamma(1.0, 4.0, users)
    draw = lambda chance: (d := rng.poisson(activity) + 1, rng.binomial(d, np.minimum(chance, 1.0)))  # noqa: E731
    (before_d, before_n), (d, n) = draw(chance), draw(chance + shift)
    sums = {"n": n.astype(float), "d": d.astype(float)}
    return sums, {"n": before_n.astype(float), "d": before_d.astype(float)}


def halves(users):
    side = np.arange(users) % 2 == 0
    return side, ~side


def rare(events_control, events_treatment, users=4000):
    """Users who search twice each; so many of each arm click once."""
    control, treatment = halves(users)
    n = np.zeros(users)
    n[np.flatnonzero(control)[:events_control]] = 1
    n[np.flatnonzero(treatment)[:events_treatment]] = 1
    return {"n": n, "d": np.full(users, 2.0)}, control, treatment


def test_a_ratio_by_hand():
    # Three kinds of user, ten each per arm. Control: n = 0, 1, 2 of d = 1, 2, 3; ratio 3/6.
    control, treatment = halves(60)
    n, d = np.tile(np.repeat([0.0, 1, 2], 2), 10), np.tile(np.repeat([1.0, 2, 3], 2), 10)
    n[treatment & (d == 1)] = 1.0  # treatment: 4/6
    found = effect(RATIO, {"n": n, "d": d}, control, treatment)
    assert found.control == pytest.approx(1 / 2)
    assert found.treatment == pytest.approx(2 / 3)
    assert found.absolute == pytest.approx(1 / 6)
    assert found.relative == pytest.approx(1 / 3)
    # Residuals n - R d: control -1/2, 0, 1/2: variance 10 (1/4 + 1/4) / 29; treatment 1/3, -1/3, 0:
    # 10 (1/9 + 1/9) / 29. Both over mean(d)^2 = 4 and 30 users.
    error = math.sqrt((5 / 29 + 20 / 9 / 29) / 4 / 30)
    assert found.standard_error == pytest.approx(error)
    assert found.mde == pytest.approx(2.8016 * error, rel=1e-4)


def test_a_mean_is_welch_and_with_cuped_on_the_adjusted_values():
    rng = np.random.default_rng(1)
    x = rng.gamma(2.0, 1.0, 500)
    y, ones = x + rng.normal(0, 0.5, 500), np.ones(500)
    control, treatment = halves(500)
    slope = np.cov(x, y)[0, 1] / np.var(x, ddof=1)
    for values, past in ((y, None), (y - slope * (x - x.mean()), {"n": x, "d": ones})):
        found = effect(RATIO, {"n": y, "d": ones}, control, treatment, past)
        oracle = stats.ttest_ind(values[treatment], values[control], equal_var=False)
        assert found.p == pytest.approx(oracle.pvalue)
        if past is None:
            interval = oracle.confidence_interval(0.95)
            assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.standard_error < 0.6 * effect(RATIO, {"n": y, "d": ones}, control, treatment).standard_error
    # a past without anything, or in one arm only, is no covariate
    sums, before = population(400, 13)
    sides = halves(400)
    for only in (np.zeros(400), sides[0]):
        past = {name: values * only for name, values in before.items()}
        assert effect(RATIO, sums, *sides, past) == effect(RATIO, sums, *sides)


@pytest.mark.parametrize("cuped", [False, True])
def test_equals_tea_tasting_on_raw_rows(cuped):
    import tea_tasting

    sums, before = population(800, 2)
    control, treatment = halves(800)
    table = pa.table({**sums, "bn": before["n"], "bd": before["d"], "variant": treatment.astype(int)})
    columns = ("n", "d", "bn", "bd") if cuped else ("n", "d")
    oracle = tea_tasting.Experiment(m=tea_tasting.RatioOfMeans(*columns)).analyze(table)["m"]
    found = effect(RATIO, sums, control, treatment, before if cuped else None)
    assert found.p == pytest.approx(oracle.pvalue)
    assert found.absolute == pytest.approx(oracle.effect_size)
    assert (found.relative_low, found.relative_high) == pytest.approx(
        (oracle.rel_effect_size_ci_lower, oracle.rel_effect_size_ci_upper)
    )


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_tested_is_said():
    users = 4000
    sums, _ = population(users, 4)
    control, treatment = halves(users)
    few, tenth, d = np.arange(users) < 7, np.arange(users) % 10 == 0, np.full(users, 3.0)
    once, often = rare(0, 1)[0], {"n": 2.0 - rare(1, 2)[0]["n"], "d": np.full(users, 2.0)}
    wholly = "follows wholly from the same on the days before"
    three = {"n": 3 * sums["n"], "d": sums["d"]}
    for message, given, *rest in (
        ("its denominator, d, is 0 for everybody in the treatment", {**sums, "d": sums["d"] * control}),
        ("7 users in the control carry no interval; 20 are the least", sums, few, treatment),
        ("says the same of every user", {"n": np.zeros(users), "d": d}),
        ("says the same of every user", {"n": np.full(users, 1 / 3), "d": d}),
        ("0 of every user of the control and 1 of every user of the treat", {"n": d * treatment, "d": d}),
        ("1 of 4,000 users have any n, too few for an interval; 10 are the least", once),
        # nearly everybody clicks at each search: as rare, the other way round
        ("3 of 4,000 users have any d without n", often),
        # an arm of a tenth needs ten times as many users for five of its own
        ("50 are the least", rare(20, 20)[0], ~tenth, tenth),
        (wholly, sums, control, treatment, sums),
        (wholly, sums, control, treatment, three),
    ):
        with pytest.raises(CropsError, match=message):
            effect(RATIO, given, *(rest or (control, treatment)))
    for message, given, size, before in (
        ("5 users per arm carry no interval", sums, 5, None),
        ("says the same of every user", {"n": np.zeros(users), "d": np.ones(users)}, 50, None),
        ("1 of 4,000 users have any n", once, 1000, None),
        (wholly, sums, 100, three),
    ):
        with pytest.raises(CropsError, match=message):
            sensitivity(RATIO, given, size, before=before)
    for ratio in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(CropsError, match="give more than 0"):
            sample_check(10, 10, ratio)
    for planned, alpha in ((0, 0.05), (7, 0.0), (7, 0.6)):
        with pytest.raises(CropsError, match="plan at least one look"):
            looks(planned, alpha)


def test_a_missing_extra_is_named(monkeypatch):
    sums, _ = population(100, 4)
    monkeypatch.setitem(sys.modules, "tea_tasting", None)
    for call in (
        lambda: sensitivity(RATIO, sums, 50),
        lambda: sample_check(1, 1),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'crops-retrieval\[online\]'"):
            call()


def test_holm_and_benjamini_hochberg_by_hand():
    holm, fdr = corrected([0.01, 0.04, 0.03, 0.5])
    # Sorted .01 .03 .04 .5: Holm 4 x .01, 3 x .03, max(.09, 2 x .04), .5.
    assert holm == pytest.approx([0.04, 0.09, 0.09, 0.5])
    # Benjamini-Hochberg: 4/1 x .01, min(4/2 x .03, 4/3 x .04), 4/3 x .04, .5; Hochberg's own has .08 twice.
    assert fdr == pytest.approx([0.04, 4 / 3 * 0.04, 4 / 3 * 0.04, 0.5])
    assert corrected([]) == ([], [])


@pytest.mark.parametrize(
    ("control", "treatment", "ratio", "holds"),
    [(1000, 1040, 1.0, True), (10_000, 10_600, 1.0, False), (1000, 500, 0.5, True), (1000, 500, 1.0, False)],
)
def test_sample_ratio(control, treatment, ratio, holds):
    found = sample_check(control, treatment, ratio)
    exact = stats.binomtest(treatment, control + treatment, ratio / (1 + ratio)).pvalue
    assert found.p == pytest.approx(exact, rel=0.05, abs=1e-6)
    assert found.holds is holds


def test_the_plan_finds_what_it_promises():
    sums, before = population(4000, 5)
    told = sensitivity(RATIO, sums, 1000, wanted=0.05, before=before)
    # An experiment of that size has the error that the plan knew.
    control, treatment = np.arange(4000) < 1000, (np.arange(4000) >= 1000) & (np.arange(4000) < 2000)
    assert told.mde == pytest.approx(effect(RATIO, sums, control, treatment, before).mde, rel=0.1)
    assert told.wanted == pytest.approx(0.05 * told.mean)
    # Users grow with the square of what is to be seen.
    assert told.suffices == pytest.approx(1000 * (told.mde / told.wanted) ** 2, rel=0.02)
    assert sensitivity(RATIO, sums, told.suffices, before=before).mde <= told.wanted * 1.001
    assert sensitivity(RATIO, sums, 1000, power=0.95, before=before).mde > told.mde


def test_the_power_is_kept():
    # 300 experiments with the effect that the plan says it finds 80 % of the time.
    base, _ = population(20_000, 6)
    told = sensitivity(RATIO, base, 400)
    hits = 0
    for seed in range(300):
        a, _ = population(400, 1000 + seed)
        b, _ = population(400, 5000 + seed, told.mde)
        both = {key: np.concatenate([a[key], b[key]]) for key in a}
        side = np.arange(800) < 400
        hits += effect(RATIO, both, side, ~side).p < 0.05
    assert 0.72 < hits / 300 < 0.88


def test_level_of_a_mean_is_its_interval():
    rng = np.random.default_rng(8)
    values = rng.normal(5, 2, 300)
    found = level(RATIO, {"n": values, "d": np.ones(300)})
    half = 1.959964 * stats.sem(values)
    assert (found.value, found.low, found.high) == pytest.approx(
        (values.mean(), values.mean() - half, values.mean() + half)
    )


def test_paired_effect_of_a_mean_is_the_paired_test():
    rng = np.random.default_rng(9)
    a = rng.normal(5, 2, 1000)
    b = a + rng.normal(0.02, 0.1, 1000)
    ones = np.ones(1000)
    found = paired_effect(RATIO, {"n": a, "d": ones}, {"n": b, "d": ones})
    oracle = stats.ttest_rel(b, a)
    assert found.absolute / found.standard_error == pytest.approx(oracle.statistic)
    assert found.p == pytest.approx(oracle.pvalue, rel=0.05)
    same = paired_effect(RATIO, {"n": a, "d": ones}, {"n": a, "d": ones})
    assert (same.absolute, same.p, same.mde) == (0.0, 1.0, 0.0)


def test_paired_sees_what_separate_arms_cannot():
    # The same users click once more in 2 % of the cases.
    rng = np.random.default_rng(10)
    a, _ = population(1000, 10)
    more = (rng.random(1000) < 0.02) & (a["n"] < a["d"])
    b = {"n": a["n"] + more, "d": a["d"]}
    paired = paired_effect(RATIO, a, b)
    both = {key: np.concatenate([a[key], b[key]]) for key in a}
    separate = effect(RATIO, both, np.arange(2000) < 1000, np.arange(2000) >= 1000)
    assert paired.absolute == pytest.approx(separate.absolute)
    assert paired.p < 0.001 < separate.p
    assert paired.low < paired.absolute < paired.high
    assert paired.relative == pytest.approx(b["n"].sum() / a["n"].sum() - 1)


@pytest.mark.filterwarnings("error")
def test_an_arm_without_any_event_has_an_absolute_effect_only():
    found = effect(RATIO, *rare(0, 40))
    assert found.absolute == pytest.approx(40 / 4000)
    # The other arm: 40 users of 2,000 with 1/2, the rest 0; variance of n/2 is 1/4 x .02 x .98.
    assert found.standard_error == pytest.approx(math.sqrt(0.25 * 0.02 * 0.98 / 2000), rel=1e-3)
    assert found.p < 1e-8
    assert all(map(math.isnan, (found.relative, found.relative_low, found.relative_high)))
    gone = effect(RATIO, *rare(40, 0))
    assert (gone.absolute, gone.p) == (-found.absolute, pytest.approx(found.p))
    assert math.isnan(gone.relative)
    # arms that are level keep their error
    found = effect(RATIO, *rare(30, 30))
    assert (found.absolute, found.p) == (0.0, 1.0)
    assert found.mde == pytest.approx(2.8016 * math.sqrt(2 * 0.25 * 0.015 * 0.985 / 2000), rel=1e-3)
    assert found.low == -found.high < 0


def test_the_constants_are_the_published_ones():
    # Jennison & Turnbull (2000), Table 2.3, two-sided alpha 0.05
    published = {1: 1.960, 2: 1.977, 3: 2.004, 4: 2.024, 5: 2.040, 6: 2.053, 7: 2.063, 10: 2.087}
    found = {planned: obrien_fleming(planned, 0.05) for planned in published}
    assert found == pytest.approx(published, abs=6e-4)


def daily_z(runs, seed, heterogeneity):
    """z of the mean of the days so far of 400 users, half of them treated with nothing, for 7 days.

    A user's days share a mean of their own: the cumulated data of returning users.
    """
    rng = np.random.default_rng(seed)
    z = np.empty((runs, 7))
    for run in range(runs):
        own = rng.normal(0, heterogeneity, 400)[:, None]
        so_far = np.cumsum(own + rng.normal(size=(400, 7)), axis=1)
        a, b = so_far[:200], so_far[200:]
        error = np.sqrt(a.var(axis=0, ddof=1) / 200 + b.var(axis=0, ddof=1) / 200)
        z[run] = (b.mean(axis=0) - a.mean(axis=0)) / error
    return np.abs(z)


@pytest.mark.parametrize("heterogeneity", [0.0, 0.5])
def test_seven_looks_keep_five_percent_and_peeking_does_not(heterogeneity):
    runs = 3000
    z = daily_z(runs, 0, heterogeneity)
    bound = np.array(looks(7))
    kept, naive = (z >= bound).any(axis=1).mean(), (z >= 1.96).any(axis=1).mean()
    noise = 3 * np.sqrt(0.05 * 0.95 / runs)
    # Users who come back bring less new information each day: then the boundary keeps more than it promises.
    assert kept < 0.05 + noise
    if not heterogeneity:
        assert kept > 0.05 - noise
        assert naive == pytest.approx(0.166, abs=3 * np.sqrt(0.166 * 0.834 / runs))


def test_looks_get_easier():
    seven = looks(7)
    assert seven[0] == pytest.approx(2.0633 * np.sqrt(7), abs=1e-3)
    assert all(a > b for a, b in zip(seven, seven[1:], strict=False))
    assert 2 * stats.norm.sf(seven[-1]) == pytest.approx(0.0391, abs=2e-4)
    assert crossing([1.959964]) == pytest.approx(0.05, abs=1e-6)
    assert crossing([1.959964] * 7) == pytest.approx(0.166, abs=1e-3)
