"""Effects of an experiment, on the moments of tea-tasting: the unit is the user, whatever the ratio counts.

Ratio metrics take the delta method over users (Deng, Knoblich & Lu, KDD 2018) and, where days before the
experiment are known, CUPED with the same metric on those days (Deng et al., WSDM 2013). A pooled z-test over
searches takes the searches of a user for independent and promises far too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import scipy  # its other submodules load when they are used
from numpy.typing import NDArray
from scipy.special import ndtri

from crops.errors import CropsError, MissingExtraError
from crops.evaluation.significance import holm
from crops.online.metrics import Metric

if TYPE_CHECKING:
    from tea_tasting.aggr import Aggregates

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
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
    require_tea_tasting()
    for name, arm in (("control", control), ("treatment", treatment)):
        check_sums(metric, {key: values[arm] for key, values in sums.items()}, name)
    _check_spread(metric, sums, control, treatment)
    either = control | treatment
    smaller = min(int(control.sum()), int(treatment.sum())) / int(either.sum())
    check_events(metric, {key: values[either] for key, values in sums.items()}, smaller)
    past = before.get(metric.denominator) if before else None
    if past is not None and not all(past[arm].any() for arm in (control, treatment)):
        before = None
    columns = columns_of(metric, sums, before)
    a, b = (moments({name: values[arm] for name, values in columns.items()}) for arm in (control, treatment))
    arms = [_adjusted(arm, a + b, cuped=len(columns) > 2) for arm in (a, b)]
    if sum(arm.error for arm in arms) <= EXPLAINED * sum(arm.plain_error for arm in arms):
        raise explained(metric)
    return _welch(*arms)


@dataclass(frozen=True)
class _Arm:
    """A metric of one arm, adjusted by CUPED where it is used."""

    users: int
    value: float
    error: float
    """Squared standard error of the value."""
    plain_error: float
    """The same without CUPED."""


def _adjusted(arm: Aggregates, both: Aggregates, *, cuped: bool) -> _Arm:
    """Return the ratio of an arm, minus what the ratio before explains of it over both arms."""
    n, parts, past = arm.count(), _PARTS[:2], _PARTS[2:]
    value, variance = arm.mean(parts[0]) / arm.mean(parts[1]), arm.ratio_var(*parts)
    plain = variance
    if cuped and (spread := both.ratio_var(*past)) > 0:
        slope = both.ratio_cov(*parts, *past) / spread
        gap = arm.mean(past[0]) / arm.mean(past[1]) - both.mean(past[0]) / both.mean(past[1])
        value -= slope * gap
        variance += slope * (slope * arm.ratio_var(*past) - 2 * arm.ratio_cov(*parts, *past))
    return _Arm(n, value, variance / n, plain / n)


def _welch(control: _Arm, treatment: _Arm) -> Effect:
    """Return the effect by Welch's test; the relative one by the same on the scale of logarithms."""

    def interval(a: float, b: float) -> tuple[float, float, float]:
        """Return standard error, half the 95 % interval and degrees of freedom for two squared errors."""
        freedom = (a + b) ** 2 / (a**2 / (control.users - 1) + b**2 / (treatment.users - 1))
        return math.sqrt(a + b), float(scipy.stats.t.ppf(1 - ALPHA / 2, freedom)) * math.sqrt(a + b), freedom

    error, reach, freedom = interval(control.error, treatment.error)
    stretch = None
    if all(arm.value > 0 and arm.error < arm.value**2 for arm in (control, treatment)):
        stretch = math.exp(interval(*(arm.error / arm.value**2 for arm in (control, treatment)))[1])
    p = float(2 * scipy.stats.t.sf(abs(treatment.value - control.value) / error, freedom))
    return _effect(control.value, treatment.value, error, reach, stretch, p)


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


def attempt(test: Callable[[], Effect]) -> tuple[Effect | None, str | None]:
    """Return the effect that a test finds, or why there is none."""
    try:
        return test(), None
    except MissingExtraError:
        raise
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


def moments(columns: Mapping[str, Floats]) -> Aggregates:
    """Return count, means, variances and covariances of columns [users], as tea-tasting takes them."""
    from tea_tasting.aggr import Aggregates

    names, values = list(columns), np.stack(list(columns.values()))
    covariance = np.cov(values)
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    return Aggregates(
        count_=values.shape[1],
        mean_={name: float(mean) for name, mean in zip(names, values.mean(axis=1), strict=True)},
        var_={name: float(covariance[i, i]) for i, name in enumerate(names)},
        cov_={(names[i], names[j]): float(covariance[i, j]) for i, j in pairs},
    )


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

    The normal approximation needs `FEWEST_EXPECTED` such users in each arm.

    Args:
        sums: statistics per user of all arms, [users] each.
        share: of these users in the smallest arm.

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


# Looking at an experiment every day without fooling oneself: the O'Brien-Fleming boundary. O'Brien & Fleming
# (Biometrics 1979): with K looks planned, look k claims an effect when |Z_k| >= c sqrt(K / k). The constant c
# keeps the chance of any false claim at alpha (Jennison & Turnbull, Group Sequential Methods, 2000, Table
# 2.3). Early looks ask for very much and the last one for little more than a single test would.


_STEPS = 201
"""Points of the numerical integration; the constant is right to 4 digits up to a year of daily looks."""


def looks(planned: int, alpha: float = 0.05) -> list[float]:
    """Return the O'Brien-Fleming boundary: the |z| from which on each equally spaced look claims an effect.

    It holds for cumulated data whose looks bring equal information. Users who come back bring less with each
    day; then the looks are more alike than assumed and the boundary promises less than it keeps.

    Args:
        planned: how many looks there will be; fixed before the first.
        alpha: chance of any false claim.

    Raises:
        CropsError: no look, or alpha is not within (0, 0.5].
    """
    if planned < 1 or not 0 < alpha <= 0.5:
        raise CropsError(f"{planned} looks at alpha {alpha}: plan at least one look, alpha within (0, 0.5]")
    constant = obrien_fleming(planned, alpha)
    return [float(constant * np.sqrt(planned / k)) for k in range(1, planned + 1)]


@cache
def obrien_fleming(planned: int, alpha: float) -> float:
    """Return c: the boundary of the last of `planned` equally spaced looks."""
    scale = np.sqrt(planned / np.arange(1, planned + 1))
    least, most = ndtri(1 - alpha / 2) - 1e-6, ndtri(1 - alpha / (2 * planned)) + 1e-6
    return float(scipy.optimize.brentq(lambda constant: crossing(constant * scale) - alpha, least, most))


def crossing(bounds: Sequence[float] | Floats) -> float:
    """Return the chance that |Z_k| reaches its bound at any of the equally spaced looks, without an effect.

    The sum S_k = sqrt(k) Z_k is a random walk with normal steps; its density among those who went on is
    carried from look to look (Armitage, McPherson & Rowe, JRSS A 1969) by Gauss-Legendre quadrature.
    """
    points, weights = np.polynomial.legendre.leggauss(_STEPS)
    reach = float(bounds[0])
    place, weight = reach * points, reach * weights
    density = scipy.stats.norm.pdf(place)
    for k, bound in enumerate(bounds[1:], start=2):
        reach = float(bound) * np.sqrt(k)
        onward = reach * points
        density = scipy.stats.norm.pdf(onward[:, None] - place[None, :]) @ (weight * density)
        place, weight = onward, reach * weights
    return float(1 - (weight * density).sum())


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
        CropsError: fewer than `crops.online.statistics.MIN_USERS` users, or the metric's denominator is 0.
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
