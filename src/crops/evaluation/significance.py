"""How sure a mean over queries is: the percentile bootstrap (Efron & Tibshirani 1993, ch. 13).

Means over worlds and queries of several systems at once take the nested one: worlds (seeds) are drawn with
replacement, then queries within each drawn world (Davison & Hinkley 1997, section 3.8, with replacement at
both levels). All systems see the same draws, so any difference or contrast of systems is paired by query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError

Values = NDArray[np.float64]
CONFIDENCE = 0.95
"""Coverage of all intervals."""
MIN_QUERIES = 10
"""Fewer queries carry no interval and no test: resamples of a handful show too little spread."""
_CHUNK, _NESTED_CHUNK = 2_000_000, 4_000_000
"""Numbers drawn at a time: bounds the memory at 16 and 32 MB whatever the number of queries."""


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
    values: Values, resamples: int, seed: int, *, weights: Values | None = None
) -> Interval:
    """Return the mean over queries and its percentile bootstrap interval.

    Args:
        values: one value per query [n], finite.
        resamples: how often n queries are drawn with replacement.
        weights: weight of each query [n], e.g. its number of events: the mean is then sum(w v) / sum(w), and
            queries are drawn with all their events, which are not independent. Equal when None.

    Raises:
        CropsError: a value is not finite, or values and weights differ in length.
    """
    mean, means = _resampled_means(values, resamples, seed, weights)
    return Interval(mean, *_percentiles(means), len(values))


def paired_bootstrap(
    a: Values, b: Values, resamples: int, seed: int, *, weights: Values | None = None
) -> Difference:
    """Compare two systems on the same queries: mean difference a - b, interval, two-sided p-value.

    The p-value is twice the smaller share of resampled differences on either side of 0, counting the observed
    sample as one of them: never 0, at least 2 / (resamples + 1).

    Args:
        a: one value per query [n] of the first system.
        b: values [n] of the second system, in the same order of queries.
        weights: weight of each query, as in `bootstrap_interval`.

    Raises:
        CropsError: the lengths differ or a value is not finite.
    """
    if len(a) != len(b):
        raise CropsError(f"a paired comparison needs the same queries: {len(a)} values against {len(b)}")
    mean, means = _resampled_means(a - b, resamples, seed, weights)
    return Difference(mean, *_percentiles(means), len(a), _two_sided(means))


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


def _percentiles(means: Values) -> tuple[float, float]:
    if not len(means):
        return float("nan"), float("nan")
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _two_sided(means: Values) -> float:
    """Return twice the smaller share of resamples on either side of 0, the observed sample counted as one."""
    below, above = int((means <= 0).sum()), int((means >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(means) + 1)) if len(means) else float("nan")


def smallest_difference(queries: float, spread: float) -> float | None:
    """Return the mean difference that a paired two-sided test at 0.05 finds with a chance of 0.8.

    (z(0.975) + z(0.8)) spread / sqrt(queries), the normal approximation; None for fewer than `MIN_QUERIES`.

    Args:
        queries: how many have a value.
        spread: standard deviation over queries of the difference between the two systems.
    """
    if queries < MIN_QUERIES:
        return None
    normal = NormalDist()
    return float((normal.inv_cdf(0.975) + normal.inv_cdf(0.8)) * spread / queries**0.5)


@dataclass(frozen=True)
class Resampled:
    """The means of A systems, and those of R resamples."""

    means: Values
    """[A] mean over worlds of the mean over queries."""
    draws: Values
    """[R, A]; empty where all worlds together have fewer than `MIN_QUERIES` queries."""
    n: int
    """Queries in all worlds."""

    def interval(self, weights: Values) -> Interval:
        """Return the mean and percentile interval of a weighted sum [A] of the systems."""
        return Interval(float(self.means @ weights), *_percentiles(self.draws @ weights), self.n)

    def contrast(self, weights: Values) -> Difference:
        """Return the interval and two-sided p-value of a weighted sum [A] of the systems against 0.

        p is as of `paired_bootstrap`: never 0, at least 2 / (R + 1).
        """
        sums = self.draws @ weights
        return Difference(float(self.means @ weights), *_percentiles(sums), self.n, _two_sided(sums))


def nested_bootstrap(worlds: Sequence[Values], resamples: int, seed: int) -> Resampled:
    """Resample worlds, then the trainings and the queries of each.

    Args:
        worlds: for each of W worlds, the values [queries, A] of A systems on the same queries, finite; or
            [trainings, queries, A], whose mean over the trainings counts. What is drawn of T trainings is
            spread by sqrt(T / (T - 1)), so that few trainings do not look surer than they are.
        resamples: R.

    Raises:
        CropsError: there is no world, a world has no query, or a value is not finite.
    """
    worlds = [values[np.newaxis] if values.ndim == 2 else values for values in worlds]
    if not worlds or any(not values.shape[1] for values in worlds):
        raise CropsError("a mean over worlds needs at least one world, and a query in each")
    if not all(np.isfinite(values).all() for values in worlds):
        raise CropsError("a bootstrap needs finite values: leave queries without a value out and count them")
    means = np.mean([values.mean(axis=(0, 1)) for values in worlds], axis=0)
    total = sum(values.shape[1] for values in worlds)
    if total < MIN_QUERIES:
        return Resampled(means, np.empty((0, len(means))), total)
    rng = np.random.default_rng(seed)
    # Row r: which world each of the W places of resample r is given.
    drawn = rng.integers(len(worlds), size=(resamples, len(worlds)))
    sums = np.zeros((resamples, len(means)))
    for number, values in enumerate(worlds):
        rows = np.nonzero(drawn == number)[0]
        np.add.at(sums, rows, _query_means(values, len(rows), rng))
    return Resampled(means, sums / len(worlds), total)


def _query_means(values: Values, count: int, rng: np.random.Generator) -> Values:
    """Return `count` means [count, A] of as many trainings and queries as there are, drawn at random."""
    trainings, n, systems = values.shape
    found = np.empty((count, systems))
    rows = max(1, _NESTED_CHUNK // n)
    for start in range(0, count, rows):
        size = min(rows, count - start)
        places = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        times = np.bincount(places.ravel(), minlength=size * n).reshape(size, n)
        shares = np.ones((size, 1))
        if trainings > 1:  # a resample of T has (T - 1) / T of their variance
            drawn = rng.multinomial(trainings, np.full(trainings, 1 / trainings), size) / trainings
            shares = 1 / trainings + (drawn - 1 / trainings) * np.sqrt(trainings / (trainings - 1))
        found[start : start + size] = sum(
            share[:, None] * (times @ own) / n for share, own in zip(shares.T, values, strict=True)
        )
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979), in their order; NaN stays, uncounted."""
    known = [place for place, p in enumerate(p_values) if not np.isnan(p)]
    corrected = list(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(known, key=lambda one: p_values[one])):
        highest = max(highest, min(1.0, (len(known) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
