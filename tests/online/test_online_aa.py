"""A/A by re-randomising: the same arithmetic as one test, and the promised rate of false positives."""

import numpy as np
import pytest

from crops.errors import CropsError
from crops.online.metrics import Metric
from crops.online.statistics import effect, false_positives, memberships, rerandomised, significant

RATIO = Metric("ratio", "ratio", "n", "d", "")
SALTS = [f"salt-{i}" for i in range(1000)]


def heavy_users(users, seed):
    """A few users search very often, and everybody has a share of their own: what fools a pooled test."""
    rng = np.random.default_rng(seed)
    activity, chance = rng.gamma(0.5, 30.0, users), rng.beta(2, 3, users)
    d = rng.poisson(activity) + 1
    before = rng.poisson(activity)
    sums = {"n": rng.binomial(d, chance).astype(float), "d": d.astype(float)}
    return sums, {"n": rng.binomial(before, chance).astype(float), "d": before.astype(float)}


@pytest.mark.parametrize(("cuped", "share"), [(False, 0.5), (True, 0.5), (True, 0.1)])
def test_equals_the_test_of_one_experiment(cuped, share):
    sums, earlier = heavy_users(900, 0)
    users, before = np.arange(900), earlier if cuped else None
    found = rerandomised(RATIO, sums, users, SALTS[:4], before=before, share=share)
    controls, treatments = memberships(users, SALTS[:4], share)
    for salt in range(4):
        inside = controls[salt] | treatments[salt]
        only = {key: values[inside] for key, values in sums.items()}
        past = {key: values[inside] for key, values in earlier.items()} if cuped else None
        one = effect(RATIO, only, controls[salt][inside], treatments[salt][inside], past)
        assert found.p[salt] == pytest.approx(one.p)
        assert found.z[salt] == pytest.approx(one.absolute / one.standard_error)


@pytest.mark.parametrize("cuped", [False, True])
def test_the_promised_rate_is_kept_where_a_pooled_test_breaks_it(cuped):
    sums, before = heavy_users(2000, 2)
    users = np.arange(1, 2001)
    found = false_positives(
        "ratio", significant(rerandomised(RATIO, sums, users, SALTS, before=before if cuped else None))
    )
    assert found.low < 0.05 < found.high
    assert found.positives == round(found.rate * 1000)
    controls, treatments = memberships(users, SALTS, 0.5)
    n, d = ([side @ sums[key] for side in (controls, treatments)] for key in ("n", "d"))
    pool = (n[0] + n[1]) / (d[0] + d[1])
    z = (n[1] / d[1] - n[0] / d[0]) / np.sqrt(pool * (1 - pool) * (1 / d[0] + 1 / d[1]))
    assert (np.abs(z) > 1.96).mean() > 0.2


def test_arms_of_a_share_do_not_overlap():
    control, treatment = memberships(np.arange(5000), SALTS[:3], 0.1)
    assert not (control & treatment).any()
    assert control.mean() == pytest.approx(0.1, abs=0.01)
    assert treatment.mean() == pytest.approx(0.1, abs=0.01)
    assert (control[0] != control[1]).any()


def test_too_few_users_and_empty_metrics_are_refused():
    sums, _ = heavy_users(100, 3)
    with pytest.raises(CropsError, match="at least 20 users are needed in each arm"):
        rerandomised(RATIO, sums, np.arange(100), SALTS[:2], share=0.1)
    with pytest.raises(CropsError, match="shares are at most 0.5"):
        rerandomised(RATIO, sums, np.arange(100), SALTS[:2], share=0.6)
    with pytest.raises(CropsError, match="denominator, d, is 0"):
        rerandomised(RATIO, {**sums, "d": np.zeros(100)}, np.arange(100), SALTS[:2])
    with pytest.raises(CropsError, match="says the same of every user"):
        rerandomised(RATIO, {"n": np.full(100, 2.0), "d": np.full(100, 3.0)}, np.arange(100), SALTS[:2])
