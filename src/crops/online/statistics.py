"""Effects of an experiment, by tea-tasting: the unit is the user, whatever the ratio counts.

Ratio metrics take the delta method over users (Deng, Knoblich & Lu, KDD 2018) and, where days before the
experiment are known, CUPED with the same metric on those days (Deng et al., WSDM 2013). A pooled z-test over
searches takes the searches of a user for independent and promises far too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from crops.errors import CropsError, MissingExtraError
from crops.online.metrics import Metric

if TYPE_CHECKING:
    from tea_tasting.aggr import Aggregates
    from tea_tasting.metrics.mean import MeanResult

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

ALPHA, POWER = 0.05, 0.8
DETECTABLE = float(norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER))
"""Standard errors that an effect must have to be found with chance `POWER` at level `ALPHA`: 2.80."""
MIN_USERS = 20
"""Fewer users in an arm carry no interval: the delta method is an approximation for many."""
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
        metric: the metric.
        sums: statistics per user, [users] each.
        control: who is in the control, [users].
        treatment: who is in the treatment, [users].
        before: the same statistics on days before the experiment; ignored where they say nothing.

    Raises:
        CropsError: an arm has fewer than `MIN_USERS` users, the metric's denominator is 0 in an arm, or the
            metric says the same of everybody.
        MissingExtraError: tea-tasting is not installed.
    """
    require_tea_tasting()
    from tea_tasting import RatioOfMeans

    for name, arm in (("control", control), ("treatment", treatment)):
        check_sums(metric, {key: values[arm] for key, values in sums.items()}, name)
    columns = columns_of(metric, sums, before)
    sides = [moments({name: values[arm] for name, values in columns.items()}) for arm in (control, treatment)]
    test = RatioOfMeans(*columns, confidence_level=1 - ALPHA, equal_var=False, use_t=True)
    with np.errstate(divide="ignore", invalid="ignore"):  # what does not vary is refused below
        result = test.analyze_aggregates(*sides)
    if not math.isfinite(result.statistic):
        raise no_spread(metric)
    return as_effect(result)


def attempt(test: Callable[[], Effect]) -> tuple[Effect | None, str | None]:
    """Return the effect that a test finds, or why there is none.

    Raises:
        MissingExtraError: tea-tasting is not installed.
    """
    try:
        return test(), None
    except MissingExtraError:
        raise
    except CropsError as error:
        return None, str(error)


def as_effect(result: MeanResult) -> Effect:
    """Return a result of tea-tasting as an effect."""
    return Effect(
        control=float(result.control),
        treatment=float(result.treatment),
        absolute=float(result.effect_size),
        low=float(result.effect_size_ci_lower),
        high=float(result.effect_size_ci_upper),
        relative=float(result.rel_effect_size),
        relative_low=float(result.rel_effect_size_ci_lower),
        relative_high=float(result.rel_effect_size_ci_upper),
        p=float(result.pvalue),
        standard_error=float(result.effect_size / result.statistic) if result.statistic else 0.0,
    )


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

    Raises:
        MissingExtraError: tea-tasting is not installed.
    """
    require_tea_tasting()
    from tea_tasting import adjust_fdr, adjust_fwer
    from tea_tasting.experiment import ExperimentResult

    if not p:
        return [], []
    tests = ExperimentResult({str(place): {"pvalue": value} for place, value in enumerate(p)})
    both = (
        adjust_fwer(tests, alpha=ALPHA, arbitrary_dependence=True, method="bonferroni"),
        adjust_fdr(tests, alpha=ALPHA),
    )
    holm, hochberg = ([float(row["pvalue_adj"]) for row in result.to_dicts()] for result in both)
    return holm, hochberg


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


def no_spread(metric: Metric) -> CropsError:
    """Return the error of a metric that is the same for everybody."""
    return CropsError(f"{metric.label} says the same of every user, so there is nothing to test")


def require_tea_tasting() -> None:
    """Say which extra is missing.

    Raises:
        MissingExtraError: tea-tasting is not installed.
    """
    try:
        import tea_tasting  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("tea-tasting", "online") from error
