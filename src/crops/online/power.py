"""Can this experiment be trusted, and what can it see: sample ratio, power, minimal detectable effect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError
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
class Plan:
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
    """Return the sample-ratio check of two arms.

    Args:
        control: users of the control.
        treatment: users of the treatment.
        expected: promised users of the treatment per user of the control.

    Raises:
        CropsError: the promise is not above 0.
        MissingExtraError: tea-tasting is not installed.
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


def plan(
    metric: Metric,
    sums: Mapping[str, Floats],
    users: int,
    *,
    wanted: float | None = None,
    before: Mapping[str, Floats] | None = None,
    power: float = POWER,
) -> Plan:
    """Return what two arms of so many users each can see of a metric.

    Args:
        metric: the metric.
        sums: statistics per user on days like those of the experiment, [users] each.
        users: users per arm.
        wanted: relative effect that should be found.
        before: statistics on earlier days, where CUPED will be used.
        power: chance to find it.

    Raises:
        CropsError: fewer than `MIN_USERS` users, too few of whom have an event, or the metric's denominator
            is 0, or all users are equal, as they are or after CUPED.
        MissingExtraError: tea-tasting is not installed.
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
    if not _left(sample, cuped=len(columns) > 2):
        raise explained(metric)
    seen = RatioOfMeans(*columns, alpha=ALPHA, power=power, n_obs=2 * users, use_t=False)
    mde = seen.solve_power_from_aggregates(sample, "effect_size")[0].effect_size
    mean = float(sums[metric.numerator].sum() / sums[metric.denominator].sum())
    if wanted is None:
        return Plan(users, mean, float(mde), None, None)
    asked = RatioOfMeans(*columns, alpha=ALPHA, power=power, rel_effect_size=abs(wanted), use_t=False)
    both = asked.solve_power_from_aggregates(sample, "n_obs")[0].n_obs
    return Plan(users, mean, float(mde), abs(wanted) * mean, math.ceil(both / 2))


def _left(sample: Aggregates, *, cuped: bool) -> bool:
    """Return whether CUPED leaves anything of a metric to test."""
    now, past = ("numerator", "denominator"), ("numerator before", "denominator before")
    if not cuped or not (spread := sample.ratio_var(*past)) > 0:
        return True
    variance, covariance = sample.ratio_var(*now), sample.ratio_cov(*now, *past)
    return bool(variance - covariance**2 / spread > EXPLAINED * variance)
