"""How far raters agree on the same pairs, beyond chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

Ratings = Mapping[str, int]
"""Grades by the name of the pair."""


@dataclass(frozen=True)
class Agreement:
    """Two raters on the pairs that both graded; kappas are None where chance alone would agree."""

    first: str
    second: str
    pairs: int
    same: float
    """Share of equal grades."""
    kappa: float | None
    """Cohen 1960."""
    weighted_kappa: float | None
    """With quadratic weights (Cohen 1968): a step of two counts four times a step of one."""


def agreements(raters: Mapping[str, Ratings]) -> list[Agreement]:
    """Return the agreement of every two raters that share a pair, in their order."""
    found = []
    for (first, ours), (second, theirs) in combinations(raters.items(), 2):
        shared = sorted(ours.keys() & theirs.keys())
        if shared:
            a, b = [ours[name] for name in shared], [theirs[name] for name in shared]
            same = float(np.mean(np.equal(a, b)))
            found.append(
                Agreement(first, second, len(shared), same, _kappa(a, b, None), _kappa(a, b, "quadratic"))
            )
    return found


def _kappa(a: Sequence[int], b: Sequence[int], weights: str | None) -> float | None:
    if len({*a, *b}) == 1:
        return None
    return float(cohen_kappa_score(a, b, weights=weights))


def fleiss_kappa(counts: NDArray[np.int64]) -> float | None:
    """Return the agreement of many raters (Fleiss 1971); None where all grades are equal.

    Args:
        counts: how many raters gave each pair each grade, [pairs, grades]; at least two, equally many for
            each pair.
    """
    raters = counts[0].sum()
    shares = counts.sum(axis=0) / counts.sum()
    chance = float((shares**2).sum())
    if chance == 1.0:
        return None
    observed = float(((counts**2).sum(axis=1) - raters).mean() / (raters * (raters - 1)))
    return (observed - chance) / (1 - chance)


def common_counts(raters: Mapping[str, Ratings], grades: int) -> NDArray[np.int64]:
    """Return the counts for `fleiss_kappa` over the pairs that every rater graded, [pairs, grades]."""
    shared = sorted(set.intersection(*(set(ratings) for ratings in raters.values())))
    table = np.zeros((len(shared), grades), np.int64)
    for row, name in enumerate(shared):
        for ratings in raters.values():
            table[row, ratings[name]] += 1
    return table


def middle_grades(raters: Sequence[Ratings]) -> dict[str, int]:
    """Return the median grade of each pair, the lower one of two middle ones."""
    names = sorted(set().union(*raters))
    return {
        name: sorted(ratings[name] for ratings in raters if name in ratings)[
            (sum(name in ratings for ratings in raters) - 1) // 2
        ]
        for name in names
    }
