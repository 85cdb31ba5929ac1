"""Effects of an experiment, what it could see, and A/A: the unit is the user, whatever the ratio counts.

Ratio metrics take the delta method over users (Deng, Knoblich & Lu, KDD 2018) and, where days before the
experiment are known, CUPED with the same metric on those days (Deng et al., WSDM 2013). A pooled z-test over
searches takes the searches of a user for independent and promises far too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import scipy  # its other submodules load when they are used
from numpy.typing import NDArray
from scipy.special import ndtri

from crops.errors import CropsError, MissingExtraError
from crops.evaluation.significance import holm
from crops.online.experiment import BUCKETS, buckets
from crops.online.metrics import Metric

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
T = TypeVar("T")
ALPHA, POWER = 0.05, 0.8
DETECTABLE = float(ndtri(1 - ALPHA / 2) + ndtri(POWER))
"""Standard errors that an effect must have to be found with chance `POWER` at level `ALPHA`: 2.80."""
MIN_USERS = 20
"""Fewer users in an arm carry no interval: the delta method is an approximation for many."""
FEWEST_EXPECTED = 5
"""Users with an event, and without one, that each arm must be expected to have."""
EXPLAINED = 1e-10
"""Share of the variance below which nothing is left of a metric after CUPED: what rounding leaves."""
_PARTS = ("numerator", "denominator", "numerator before", "denominator before")


@dataclass(frozen=True)
class Effect:
    """What a treatment does to a metric, against the control; shares are in [0, 1], intervals at 95 %."""

    control: float
    treatment: float
    absolute: float
    low: float
    high: float
    relative: float
    """NaN, as its interval, where an arm is at 0 or nearer to it than its standard error."""
    relative_low: float
    relative_high: float
    p: float
    standard_error: float
    """Of the absolute effect."""

    @property
    def mde(self) -> float:
        """Minimal detectable effect: the absolute one that users like these show with a chance of 80 %."""
        return DETECTABLE * self.standard_error


def effect(
    metric: Metric,
    sums: Mapping[str, Floats],
    control: Flags,
    treatment: Flags,
    before: Mapping[str, Floats] | None = None,
) -> Effect:
    """Return the effect on a ratio metric with user-level delta method, and CUPED where `before` is given.

    Args:
        sums: statistics per user, [users] each.
        control: who is in the control, [users].
        treatment: who is in the treatment, [users].
        before: the same statistics on days before the experiment; ignored where they say nothing.

    Raises:
        CropsError: an arm has fewer than `MIN_USERS` users, the metric's denominator is 0 in an arm, too few
            users have an event, or the metric says the same of everybody, as it is or after CUPED.
    """
    for name, arm in (("control", control), ("treatment", treatment)):
        check_sums(metric, {key: values[arm] for key, values in sums.items()}, name)
    _check_spread(metric, sums, control, treatment)
    either = control | treatment
    smaller = min(int(control.sum()), int(treatment.sum())) / int(either.sum())
    check_events(metric, {key: values[either] for key, values in sums.items()}, smaller)
    past = before.get(metric.denominator) if before else None
    if past is not None and not all(past[arm].any() for arm in (control, treatment)):
        before = None
    columns = np.stack(list(columns_of(metric, sums, before).values()), axis=1)
    arms = [_moments_of(columns[arm]) for arm in (control, treatment)]
    values, errors, plain = (found[:, 0] for found in _adjusted(*arms))
    if errors.sum() <= EXPLAINED * plain.sum():
        raise explained(metric)
    return _welch(values.tolist(), errors.tolist(), [int(arm.n[0]) for arm in arms])


def _welch(values: Sequence[float], errors: Sequence[float], users: Sequence[int]) -> Effect:
    """Return the effect by Welch's test; the relative one by the same on the scale of logarithms.

    Args:
        values: the metric in control and treatment.
        errors: their squared standard errors.
        users: of both.
    """

    def interval(a: float, b: float) -> tuple[float, float, float]:
        """Return standard error, half the 95 % interval and degrees of freedom for two squared errors."""
        freedom = (a + b) ** 2 / (a**2 / (users[0] - 1) + b**2 / (users[1] - 1))
        return math.sqrt(a + b), float(scipy.stats.t.ppf(1 - ALPHA / 2, freedom)) * math.sqrt(a + b), freedom

    error, reach, freedom = interval(*errors)
    stretch = None
    if all(value > 0 and own < value**2 for value, own in zip(values, errors, strict=True)):
        stretch = math.exp(interval(*(own / value**2 for value, own in zip(values, errors, strict=True)))[1])
    p = float(2 * scipy.stats.t.sf(abs(values[1] - values[0]) / error, freedom))
    return _effect(values[0], values[1], error, reach, stretch, p)


def _effect(
    control: float, treatment: float, error: float, reach: float, stretch: float | None, p: float
) -> Effect:
    """Put an effect together: `reach` is half its interval, `stretch` the factor of the relative one's."""
    relative = treatment / control - 1 if stretch is not None else math.nan
    stretch = math.nan if stretch is None else stretch
    return Effect(
        control=control,
        treatment=treatment,
        absolute=treatment - control,
        low=treatment - control - reach,
        high=treatment - control + reach,
        relative=relative,
        relative_low=(1 + relative) / stretch - 1,
        relative_high=(1 + relative) * stretch - 1,
        p=p,
        standard_error=error,
    )


# The arithmetic of ratios over users, for one assignment of users to arms or for s of them at once.


class _Moments(NamedTuple):
    """Of c columns over the users of one arm: users [s], means [s, c], covariances [s, c, c]."""

    n: Floats
    mean: Floats
    covariance: Floats


def _moments_of(columns: Floats) -> _Moments:
    """Return the moments of columns [users, c], of one assignment."""
    mean, covariance = columns.mean(axis=0), np.cov(columns, rowvar=False)
    return _Moments(np.array([float(len(columns))]), mean[None], covariance[None])


def _together(one: _Moments, other: _Moments) -> _Moments:
    """Return the moments of both arms together."""
    n, gap = one.n + other.n, other.mean - one.mean
    inside = one.covariance * (one.n - 1)[:, None, None] + other.covariance * (other.n - 1)[:, None, None]
    between = gap[:, :, None] * gap[:, None, :] * (one.n * other.n / n)[:, None, None]
    return _Moments(n, one.mean + gap * (other.n / n)[:, None], (inside + between) / (n - 1)[:, None, None])


def _adjusted(control: _Moments, treatment: _Moments) -> tuple[Floats, Floats, Floats]:
    """Return the ratios of both arms, their squared standard errors, and these without CUPED, [2, s] each.

    With four columns a ratio is adjusted (CUPED) by what the one before explains of it over both arms.
    """
    total = _together(control, treatment)
    before, slope = np.zeros(len(total.n)), np.zeros(len(total.n))
    if cuped := total.mean.shape[1] > 2:
        before = total.mean[:, 2] / total.mean[:, 3]
        _, covariance, spread = _ratio_moments(total)
        slope = np.divide(covariance, spread, out=slope, where=spread > 0)
    values, errors, plain = [], [], []
    for side in (control, treatment):
        variance, covariance, spread = _ratio_moments(side)
        gap = side.mean[:, 2] / side.mean[:, 3] - before if cuped else before
        values.append(side.mean[:, 0] / side.mean[:, 1] - slope * gap)
        errors.append((variance + slope**2 * spread - 2 * slope * covariance) / side.n)
        plain.append(variance / side.n)
    return np.array(values), np.array(errors), np.array(plain)


def _ratio_moments(side: _Moments) -> tuple[Floats, Floats, Floats]:
    """Return variance of the ratio, covariance with the ratio before, and variance of that, [s]."""
    weights = np.zeros((len(side.n), 2, side.mean.shape[1]))
    for row, start in enumerate(range(0, side.mean.shape[1], 2)):
        weights[:, row, start] = 1 / side.mean[:, start + 1]
        weights[:, row, start + 1] = -side.mean[:, start] / side.mean[:, start + 1] ** 2
    both = weights @ side.covariance @ weights.transpose(0, 2, 1)
    return both[:, 0, 0], both[:, 0, 1], both[:, 1, 1]


def attempt(test: Callable[[], T]) -> tuple[T | None, str | None]:
    """Return what a test finds, or why there is nothing."""
    try:
        return test(), None
    except CropsError as error:
        return None, str(error)


def columns_of(
    metric: Metric, sums: Mapping[str, Floats], before: Mapping[str, Floats] | None
) -> dict[str, Floats]:
    """Return numerator and denominator of a metric per user and, where they say anything, those of before."""
    columns = [sums[metric.numerator], sums[metric.denominator]]
    parts = (metric.numerator, metric.denominator)
    if before is not None and all(part in before and before[part].any() for part in parts):
        columns += [before[part] for part in parts]
    return dict(zip(_PARTS, columns, strict=False))


def corrected(p: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the p-values of one family of tests after Holm and after Benjamini-Hochberg.

    Holm bounds the chance of any false claim whatever the tests' dependence, Benjamini-Hochberg the share of
    false claims among all.
    """
    return holm(p), scipy.stats.false_discovery_control(p, method="bh").tolist() if p else []


def check_sums(metric: Metric, sums: Mapping[str, Floats], arm: str) -> None:
    """Refuse sums [users] that say nothing of a metric.

    Raises:
        CropsError: fewer than `MIN_USERS` users, or the metric's denominator is 0.
    """
    denominator = sums[metric.denominator]
    if len(denominator) < MIN_USERS:
        raise CropsError(
            f"{metric.label}: {len(denominator)} users in the {arm} carry no interval; "
            f"{MIN_USERS} are the least, `crops power` says how many an effect needs"
        )
    if not denominator.any():
        raise CropsError(
            f"{metric.label}: its denominator, {metric.denominator}, is 0 for everybody in the {arm}; "
            "log the columns that it is counted from, or leave the metric out"
        )


def check_events(metric: Metric, sums: Mapping[str, Floats], share: float) -> None:
    """Refuse a metric that too few users have anything of, or too few of whom lack anything.

    The normal approximation needs `FEWEST_EXPECTED` such users in each arm; `share` of the users are in the
    smallest one.

    Raises:
        CropsError: there are fewer.
    """
    n, d = sums[metric.numerator], sums[metric.denominator]
    counted = {f"any {metric.numerator}": int((n != 0).sum())}
    if metric.share:
        counted[f"any {metric.denominator} without {metric.numerator}"] = int((n < d).sum())
    least = math.ceil(FEWEST_EXPECTED / share)
    for what, users in counted.items():
        if users < least:
            raise CropsError(
                f"{metric.label}: {users:,} of {len(n):,} users have {what}, too few for an interval; "
                f"{least:,} are the least"
            )


def has_spread(metric: Metric, sums: Mapping[str, Floats]) -> bool:
    """Return whether the metric differs between users [users], beyond the rounding of shares."""
    n, d = sums[metric.numerator], sums[metric.denominator]
    scale = float(np.abs(n).max(initial=0.0)) * d.sum()
    return bool(np.ptp(n * d.sum() - n.sum() * d) > 1e-9 * scale)


def _check_spread(metric: Metric, sums: Mapping[str, Floats], control: Flags, treatment: Flags) -> None:
    arms = [{key: values[arm] for key, values in sums.items()} for arm in (control, treatment)]
    if any(has_spread(metric, arm) for arm in arms):
        return
    first, second = (arm[metric.numerator].sum() / arm[metric.denominator].sum() for arm in arms)
    if math.isclose(first, second, rel_tol=1e-9):
        raise no_spread(metric)
    raise CropsError(
        f"{metric.label} says {first:g} of every user of the control and {second:g} of every user of the "
        "treatment: without spread within the arms there is no error to hold the difference against"
    )


def no_spread(metric: Metric) -> CropsError:
    """Return the error of a metric that is the same for everybody."""
    return CropsError(f"{metric.label} says the same of every user, so there is nothing to test")


def explained(metric: Metric) -> CropsError:
    """Return the error of a metric of which CUPED leaves nothing."""
    return CropsError(
        f"{metric.label} follows wholly from the same on the days before, so CUPED leaves nothing to test; "
        "are they days of the experiment? Give other days before, or none"
    )


def require_tea_tasting() -> None:
    """Say which extra is missing."""
    try:
        import tea_tasting  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("tea-tasting", "online") from error


# A ratio metric of one group of users, and the effect that only a simulator can see: the paired one.

REACH = float(ndtri(1 - ALPHA / 2))
"""Standard errors on either side of an interval."""


@dataclass(frozen=True)
class Level:
    """A metric of one arm and its 95 % interval (user-level delta method)."""

    value: float
    low: float
    high: float


def level(metric: Metric, sums: Mapping[str, Floats]) -> Level:
    """Return a metric over users, from their statistics [users] each.

    Raises:
        CropsError: fewer than `MIN_USERS` users, or the metric's denominator is 0.
    """
    value, parts = _linear(metric, sums, "arm")
    half = REACH * _standard_error(parts)
    return Level(value, value - half, value + half)


def paired_effect(metric: Metric, control: Mapping[str, Floats], treatment: Mapping[str, Floats]) -> Effect:
    """Return the effect between two copies of one world: same users, same random numbers, one arm each.

    With R the ratio of an arm, a user adds (n - R d) / mean(d) to it (delta method). A user's two
    contributions are subtracted before their spread is measured: what the user would have done anyway leaves.
    The interval is about other users of the same two worlds: users share a world, and what one of them
    teaches the platform reaches the others.

    Args:
        control: statistics per user in the control's world, [users] each.
        treatment: the same users, in the same order, in the treatment's.

    Raises:
        CropsError: fewer than `MIN_USERS` users, or the metric's denominator is 0.
    """
    before, from_control = _linear(metric, control, "control")
    after, from_treatment = _linear(metric, treatment, "treatment")
    error, stretch = _standard_error(from_treatment - from_control), None
    if before and after:
        stretch = math.exp(REACH * _standard_error(from_treatment / after - from_control / before))
    gap = after - before
    p = float(2 * scipy.stats.norm.sf(abs(gap) / error)) if error else float(gap == 0)
    return _effect(before, after, error, REACH * error, stretch, p)


def _linear(metric: Metric, sums: Mapping[str, Floats], arm: str) -> tuple[float, Floats]:
    """Return the ratio and the users' contributions to its error, [users]."""
    check_sums(metric, sums, arm)
    numerator, denominator = sums[metric.numerator], sums[metric.denominator]
    ratio = float(numerator.sum() / denominator.sum())
    return ratio, (numerator - ratio * denominator) / denominator.mean()


def _standard_error(values: Floats) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


# Can an experiment be trusted, and what can it see: sample ratio and power.

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
    from tea_tasting.aggr import Aggregates

    check_sums(metric, sums, "log")
    if users < MIN_USERS:
        raise CropsError(
            f"{metric.label}: {users} users per arm carry no interval; {MIN_USERS} are the least"
        )
    if not has_spread(metric, sums):
        raise no_spread(metric)
    check_events(metric, sums, min(1.0, users / len(sums[metric.denominator])))
    columns = columns_of(metric, sums, before)
    names, found = list(columns), _moments_of(np.stack(list(columns.values()), axis=1))
    variance, covariance, spread = (float(one[0]) for one in _ratio_moments(found))
    if spread > 0 and not variance - covariance**2 / spread > EXPLAINED * variance:
        raise explained(metric)
    table = found.covariance[0].tolist()
    sample = Aggregates(
        count_=len(sums[metric.denominator]),
        mean_=dict(zip(names, found.mean[0].tolist(), strict=True)),
        var_={name: table[i][i] for i, name in enumerate(names)},
        cov_={(names[i], names[j]): table[i][j] for j in range(len(names)) for i in range(j)},
    )
    seen = RatioOfMeans(*columns, alpha=ALPHA, power=power, n_obs=2 * users, use_t=False)
    mde = seen.solve_power_from_aggregates(sample, "effect_size")[0].effect_size
    mean = float(sums[metric.numerator].sum() / sums[metric.denominator].sum())
    if wanted is None:
        return Sensitivity(users, mean, float(mde), None, None)
    asked = RatioOfMeans(*columns, alpha=ALPHA, power=power, rel_effect_size=abs(wanted), use_t=False)
    both = asked.solve_power_from_aggregates(sample, "n_obs")[0].n_obs
    return Sensitivity(users, mean, float(mde), abs(wanted) * mean, math.ceil(both / 2))


# A/A: how often would arms that differ in nothing be called different? One log is split by many salts. The
# sums of an arm are linear in who is in it, so all salts cost one matrix product per metric.

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
        CropsError: arms of this share would have fewer than `MIN_USERS` users, or as `sensitivity`.
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
        sides = [_moments_by_salt(arm.astype(np.float64) @ powers, centre) for arm in arms]
        # An arm without anything of the metric, or without anything left by CUPED, cannot be tested: NaN.
        with np.errstate(divide="ignore", invalid="ignore"):
            values, errors, plain = _adjusted(*sides)
            error = errors.sum(axis=0)
            error[~(error > EXPLAINED * plain.sum(axis=0))] = np.nan
            z.append((values[1] - values[0]) / np.sqrt(error))
            first, second = (own**2 / (side.n - 1) for own, side in zip(errors, sides, strict=True))
            freedom.append(error**2 / (first + second))
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


def _moments_by_salt(sums: Floats, centre: Floats) -> _Moments:
    """Return the moments from sums of powers around a centre, [salts, 1 + c + c (c + 1) / 2]."""
    n, width = sums[:, 0], len(centre)
    shift = sums[:, 1 : width + 1] / n[:, None]
    i, j = np.triu_indices(width)
    products = sums[:, width + 1 :] - n[:, None] * shift[:, i] * shift[:, j]
    covariance = np.empty((len(n), width, width))
    covariance[:, i, j] = covariance[:, j, i] = products / (n - 1)[:, None]
    return _Moments(n, centre + shift, covariance)
