"""How sure a mean over queries is: the percentile bootstrap (Efron & Tibshirani 1993, ch. 13)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError

Values = NDArray[np.float64]

MIN_QUERIES = 10
"""Fewer queries carry no interval and no test: resamples of a handful show too little spread."""
_CHUNK = 2_000_000
"""Numbers drawn at a time: bounds the memory at 16 MB whatever the number of queries."""


@dataclass(frozen=True)
class Interval:
    """A mean over n queries (NaN for none), and its interval (NaN for fewer than `MIN_QUERIES`)."""

    mean: float
    ci_low: float
    ci_high: float
    n: int

    def ends(self, form: str = ".1f") -> str:
        """Write the interval in %, or say why there is none."""
        if self.n < MIN_QUERIES:
            return f"no interval: n = {self.n}"
        return f"[{100 * self.ci_low:{form}}, {100 * self.ci_high:{form}}]"


@dataclass(frozen=True)
class Difference(Interval):
    """Mean of the per-query differences a - b, its interval and the two-sided p-value of no difference.

    p is NaN for fewer than `MIN_QUERIES`.
    """

    p: float


def bootstrap_interval(
    values: Values, resamples: int, seed: int, *, confidence: float = 0.95, weights: Values | None = None
) -> Interval:
    """Return the mean over queries and its percentile bootstrap interval.

    Args:
        values: one value per query [n], finite.
        resamples: how often n queries are drawn with replacement.
        seed: seed of the draws.
        confidence: coverage of the interval.
        weights: weight of each query [n], e.g. its number of events: the mean is then sum(w v) / sum(w), and
            queries are drawn with all their events, which are not independent. Equal when None.

    Raises:
        CropsError: a value is not finite, or values and weights differ in length.
    """
    mean, means = _resampled_means(values, resamples, seed, weights)
    low, high = _percentiles(means, confidence)
    return Interval(mean, low, high, len(values))


def paired_bootstrap(
    a: Values,
    b: Values,
    resamples: int,
    seed: int,
    *,
    confidence: float = 0.95,
    weights: Values | None = None,
) -> Difference:
    """Compare two systems on the same queries: mean difference a - b, interval, two-sided p-value.

    The p-value is twice the smaller share of resampled differences on either side of 0, counting the observed
    sample as one of them: never 0, at least 2 / (resamples + 1).

    Args:
        a: one value per query [n] of the first system.
        b: values [n] of the second system, in the same order of queries.
        resamples: how often n queries are drawn with replacement.
        seed: seed of the draws.
        confidence: coverage of the interval.
        weights: weight of each query, as in `bootstrap_interval`.

    Raises:
        CropsError: the lengths differ or a value is not finite.
    """
    if len(a) != len(b):
        raise CropsError(f"a paired comparison needs the same queries: {len(a)} values against {len(b)}")
    mean, means = _resampled_means(a - b, resamples, seed, weights)
    low, high = _percentiles(means, confidence)
    below, above = int((means <= 0).sum()), int((means >= 0).sum())
    p = min(1.0, 2 * (min(below, above) + 1) / (len(means) + 1)) if len(means) else float("nan")
    return Difference(mean, low, high, len(a), p)


def _resampled_means(
    values: Values, resamples: int, seed: int, weights: Values | None
) -> tuple[float, Values]:
    """Return the mean and the means of the resamples (none for fewer than `MIN_QUERIES` values)."""
    if not np.isfinite(values).all():
        raise CropsError("a bootstrap needs finite values: leave queries without a value out and count them")
    weights = np.ones(len(values)) if weights is None else weights
    if len(weights) != len(values):
        raise CropsError(f"{len(values)} values came with {len(weights)} weights")
    weighted = values * weights
    n = len(values)
    if n < MIN_QUERIES:
        return float(weighted.sum() / weights.sum()) if n else float("nan"), np.empty(0)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // n)
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        drawn = rng.integers(n, size=(min(rows, resamples - start), n))
        means[start : start + rows] = weighted[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
    return float(weighted.sum() / weights.sum()), means


def _percentiles(means: Values, confidence: float) -> tuple[float, float]:
    if not len(means):
        return float("nan"), float("nan")
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
