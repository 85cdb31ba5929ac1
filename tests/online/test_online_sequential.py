"""Daily looks keep their promise."""

import numpy as np
import pytest

from crops.errors import CropsError
from crops.online.statistics import crossing, looks, obrien_fleming

# Jennison & Turnbull (2000), Table 2.3, two-sided alpha 0.05.
PUBLISHED = {1: 1.960, 2: 1.977, 3: 2.004, 4: 2.024, 5: 2.040, 6: 2.053, 7: 2.063, 10: 2.087}


@pytest.mark.parametrize(("planned", "constant"), PUBLISHED.items())
def test_the_constants_are_the_published_ones(planned, constant):
    assert obrien_fleming(planned, 0.05) == pytest.approx(constant, abs=6e-4)


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
    runs = 6000
    z = daily_z(runs, 0, heterogeneity)
    bound = np.array([look.z for look in looks(7)])
    kept, naive = (z >= bound).any(axis=1).mean(), (z >= 1.96).any(axis=1).mean()
    noise = 3 * np.sqrt(0.05 * 0.95 / runs)
    # Users who come back bring less new information each day: then the boundary keeps more than it promises.
    assert kept < 0.05 + noise
    if not heterogeneity:
        assert kept > 0.05 - noise
        assert naive == pytest.approx(0.166, abs=3 * np.sqrt(0.166 * 0.834 / runs))


def test_crossing_of_naive_peeking():
    assert crossing([1.959964]) == pytest.approx(0.05, abs=1e-6)
    assert crossing([1.959964] * 7) == pytest.approx(0.166, abs=1e-3)


def test_looks_get_easier():
    seven = looks(7)
    assert [look.number for look in seven] == list(range(1, 8))
    assert seven[0].z == pytest.approx(2.0633 * np.sqrt(7), abs=1e-3)
    assert all(a.z > b.z and a.p < b.p for a, b in zip(seven, seven[1:], strict=False))
    assert seven[-1].p == pytest.approx(0.0391, abs=2e-4)


@pytest.mark.parametrize(("planned", "alpha"), [(0, 0.05), (7, 0.0), (7, 0.6)])
def test_impossible_looks_are_refused(planned, alpha):
    with pytest.raises(CropsError, match="plan at least one look"):
        looks(planned, alpha)
