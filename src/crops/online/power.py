"""Can this experiment be trusted, and what can it see: sample ratio, A/A, power."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy  # its submodules load when they are used
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.online.assignment import BUCKETS, buckets
from crops.online.metrics import Metric
from crops.online.statistics import (
    ALPHA,
    EXPLAINED,
    MIN_USERS,
    POWER,
    check_events,
    check_sums,
    columns_of,
    explained,
    has_spread,
    moments,
    no_spread,
    require_tea_tasting,
)

if TYPE_CHECKING:
    from tea_tasting.aggr import Aggregates

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SRM_ALPHA = 0.001
"""A sample ratio with a smaller p-value refuses the verdict."""


@dataclass(frozen=True)
class SampleCheck:
    """Whether the arms have the users that the split promises."""

    control: int
    treatment: int
    expected: float
    """Promised users of the treatment per user of the control."""
    p: float

    @property
    def holds(self) -> bool:
        """Whether a verdict may be given."""
        return self.p >= SRM_ALPHA


@dataclass(frozen=True)
class Sensitivity:
    """What an experiment can see of a metric before it runs; effects are absolute."""

    users: int
    """Per arm."""
    mean: float
    mde: float
    """Found with the asked power."""
    wanted: float | None
    """Effect that was asked for."""
    suffices: int | None
    """Users per arm that find it."""


def sample_check(control: int, treatment: int, expected: float = 1.0) -> SampleCheck:
    """Return the sample-ratio check of the numbers of users in two arms.

    Raises:
        CropsError: the promise (`SampleCheck.expected`) is not above 0.
    """
    require_tea_tasting()
    from tea_tasting import SampleRatio
    from tea_tasting.aggr import Aggregates

    if not 0 < expected < math.inf:
        raise CropsError(
            f"the promised users of treatment per user of control are {expected}; give more than 0"
        )
    sides: dict[object, Aggregates] = {"c": Aggregates(count_=control), "t": Aggregates(count_=treatment)}
    found = SampleRatio(expected).analyze(sides, "c", "t")
    return SampleCheck(control, treatment, expected, float(found.pvalue))


def sensitivity(
    metric: Metric,
    sums: Mapping[str, Floats],
    users: int,
    *,
    wanted: float | None = None,
    before: Mapping[str, Floats] | None = None,
    power: float = POWER,
) -> Sensitivity:
    """Return what two arms of so many users each can see of a metric.

    Args:
        sums: statistics per user on days like those of the experiment, [users] each.
        wanted: relative effect that should be found.
        before: statistics on earlier days, where CUPED will be used.

    Raises:
        CropsError: fewer than `MIN_USERS` users, too few of whom have an event, or the metric's denominator
            is 0, or all users are equal, as they are or after CUPED.
    """
    require_tea_tasting()
    from tea_tasting import RatioOfMeans

    check_sums(metric, sums, "log")
    if users < MIN_USERS:
        raise CropsError(
            f"{metric.label}: {users} users per arm carry no interval; {MIN_USERS} are the least"
        )
    if not has_spread(metric, sums):
        raise no_spread(metric)
    check_events(metric, sums, min(1.0, users / len(sums[metric.denominator])))
    columns = columns_of(metric, sums, before)
    sample = moments(columns)
    if len(columns) > 2 and (spread := sample.ratio_var(*list(columns)[2:])) > 0:
        variance, covariance = sample.ratio_var(*list(columns)[:2]), sample.ratio_cov(*columns)
        if not variance - covariance**2 / spread > EXPLAINED * variance:
            raise explained(metric)
    seen = RatioOfMeans(*columns, alpha=ALPHA, power=power, n_obs=2 * users, use_t=False)
    mde = seen.solve_power_from_aggregates(sample, "effect_size")[0].effect_size
    mean = float(sums[metric.numerator].sum() / sums[metric.denominator].sum())
    if wanted is None:
        return Sensitivity(users, mean, float(mde), None, None)
    asked = RatioOfMeans(*columns, alpha=ALPHA, power=power, rel_effect_size=abs(wanted), use_t=False)
    both = asked.solve_power_from_aggregates(sample, "n_obs")[0].n_obs
    return Sensitivity(users, mean, float(mde), abs(wanted) * mean, math.ceil(both / 2))


# A/A: how often would arms that differ in nothing be called different? One log is split by many salts. The
# sums of an arm are linear in who is in it, so all salts cost one matrix product per metric. The arithmetic
# is that of `crops.online.statistics.effect`, for all salts at once.

_CHUNK = 20_000_000
"""Numbers of a membership matrix held at a time."""


@dataclass(frozen=True)
class Rerandomised:
    """What the test says of each salt, [salts]; NaN where a drawn arm leaves nothing to test."""

    z: Floats
    p: Floats


@dataclass(frozen=True)
class FalsePositives:
    """Salts at which arms that differ in nothing were called different, with a 95 % interval (Wilson)."""

    metric: str
    salts: int
    positives: int
    rate: float
    low: float
    high: float


def false_positives(metric: str, found: NDArray[np.bool_]) -> FalsePositives:
    """Return the rate of true values among `found` [salts]."""
    test = scipy.stats.binomtest(int(found.sum()), len(found))
    interval = test.proportion_ci(method="wilson")
    return FalsePositives(
        metric, len(found), int(found.sum()), float(found.mean()), float(interval.low), float(interval.high)
    )


def rerandomised(
    metric: Metric,
    sums: Mapping[str, Floats],
    users: Ints,
    salts: Sequence[str],
    *,
    before: Mapping[str, Floats] | None = None,
    share: float = 0.5,
) -> Rerandomised:
    """Return z and p of the difference of two arms drawn by each salt; nothing was done to either.

    Args:
        sums: statistics per user, [users] each.
        users: user_id, [users].
        before: statistics on earlier days, for CUPED.
        share: of the users in each arm, at most 0.5.

    Raises:
        CropsError: arms of this share would have fewer than `MIN_USERS` users, or the metric's denominator
            is 0, too few users have an event, or the metric says the same of everybody, as it is or after
            CUPED.
    """
    if not 0 < share <= 0.5 or len(users) * share < MIN_USERS:
        raise CropsError(
            f"A/A with a share of {share:g} of {len(users):,} users per arm: shares are at most 0.5, and at "
            f"least {MIN_USERS} users are needed in each arm"
        )
    if not sums[metric.denominator].any():
        raise CropsError(f"{metric.label}: its denominator, {metric.denominator}, is 0 for everybody")
    if not has_spread(metric, sums):
        raise no_spread(metric)
    check_events(metric, sums, share)
    columns = np.stack(list(columns_of(metric, sums, before).values()), axis=1)
    centre = columns.mean(axis=0)
    shifted = columns - centre
    i, j = np.triu_indices(columns.shape[1])
    powers = np.concatenate([np.ones((len(users), 1)), shifted, shifted[:, i] * shifted[:, j]], axis=1)
    z, freedom = [], []
    step = max(1, _CHUNK // len(users))
    for start in range(0, len(salts), step):
        arms = memberships(users, salts[start : start + step], share)
        sides = [_moments(arm.astype(np.float64) @ powers, centre) for arm in arms]
        # An arm without anything of the metric, or without anything left by CUPED, cannot be tested: NaN.
        with np.errstate(divide="ignore", invalid="ignore"):
            statistic, degrees = _test(*sides)
        z.append(statistic)
        freedom.append(degrees)
    every = np.concatenate(z)
    if not np.isfinite(every).any():
        raise explained(metric)
    return Rerandomised(every, 2 * scipy.stats.t.sf(np.abs(every), np.concatenate(freedom)))


def significant(found: Rerandomised) -> NDArray[np.bool_]:
    """Return which salts a single test calls different, of those that can be tested."""
    called: NDArray[np.bool_] = found.p[np.isfinite(found.p)] < ALPHA
    return called


def memberships(
    users: Ints, salts: Sequence[str], share: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return who is in the control and who in the treatment of each salt, [salts, users]."""
    bucket = np.stack([buckets(users, salt) for salt in salts])
    width = round(share * BUCKETS)
    return bucket < width, (bucket >= width) & (bucket < 2 * width)


@dataclass(frozen=True)
class _Moments:
    """Of one arm for each of s salts: users [s], means [s, c], covariances [s, c, c]."""

    n: Floats
    mean: Floats
    covariance: Floats

    def __add__(self, other: _Moments) -> _Moments:
        """Return the moments of both arms together."""
        n = self.n + other.n
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.n / n)[:, None]
        inside = (
            self.covariance * (self.n - 1)[:, None, None] + other.covariance * (other.n - 1)[:, None, None]
        )
        between = gap[:, :, None] * gap[:, None, :] * (self.n * other.n / n)[:, None, None]
        return _Moments(n, mean, (inside + between) / (n - 1)[:, None, None])


def _moments(sums: Floats, centre: Floats) -> _Moments:
    n, width = sums[:, 0], len(centre)
    shift = sums[:, 1 : width + 1] / n[:, None]
    i, j = np.triu_indices(width)
    covariance = np.empty((len(n), width, width))
    covariance[:, i, j] = covariance[:, j, i] = (
        sums[:, width + 1 :] - n[:, None] * shift[:, i] * shift[:, j]
    ) / (n - 1)[:, None]
    return _Moments(n, centre + shift, covariance)


def _test(control: _Moments, treatment: _Moments) -> tuple[Floats, Floats]:
    """Return Welch's statistic of the (CUPED-adjusted) ratios and its degrees of freedom, [salts]."""
    total = control + treatment
    before, slope = np.zeros(len(total.n)), np.zeros(len(total.n))
    if total.mean.shape[1] > 2:
        before = total.mean[:, 2] / total.mean[:, 3]
        _, covariance, spread = _ratio_moments(total)
        slope = np.divide(covariance, spread, out=slope, where=spread > 0)
    values, errors, plain = [], [], np.zeros(len(total.n))
    for side in (control, treatment):
        variance, covariance, spread = _ratio_moments(side)
        value = side.mean[:, 0] / side.mean[:, 1]
        if total.mean.shape[1] > 2:
            value = value - slope * (side.mean[:, 2] / side.mean[:, 3] - before)
        values.append(value)
        plain += variance / side.n
        errors.append((variance + slope**2 * spread - 2 * slope * covariance) / side.n)
    error = errors[0] + errors[1]
    error[~(error > EXPLAINED * plain)] = np.nan
    freedom = error**2 / (errors[0] ** 2 / (control.n - 1) + errors[1] ** 2 / (treatment.n - 1))
    return (values[1] - values[0]) / np.sqrt(error), freedom


def _ratio_moments(side: _Moments) -> tuple[Floats, Floats, Floats]:
    """Return variance of the ratio, covariance with the ratio before, and variance of that, [salts]."""
    weights = np.zeros((len(side.n), 2, side.mean.shape[1]))
    for row, start in enumerate(range(0, side.mean.shape[1], 2)):
        weights[:, row, start] = 1 / side.mean[:, start + 1]
        weights[:, row, start + 1] = -side.mean[:, start] / side.mean[:, start + 1] ** 2
    both = weights @ side.covariance @ weights.transpose(0, 2, 1)
    return both[:, 0, 0], both[:, 0, 1], both[:, 1, 1]
