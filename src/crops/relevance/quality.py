"""What a calibrated theta is worth on judged pairs: precision and recall by alpha, reliability, log-loss.

Both classes weigh the same, whatever their numbers: the share of relevant pairs in a judged set says nothing
about that among candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crops.relevance.calibrate import balanced_weights


@dataclass(frozen=True)
class AlphaPoint:
    """What passes `probability > alpha`; precision is None where nothing does."""

    alpha: float
    kept: int
    precision: float | None
    recall: float


@dataclass(frozen=True)
class Bin:
    """Pairs of like probability: the mean of it, the weighted share that is relevant, how many."""

    predicted: float
    observed: float
    pairs: int


def by_alpha(
    probability: NDArray[np.float64], relevant: NDArray[np.bool_], alphas: Sequence[float]
) -> list[AlphaPoint]:
    """Return precision and recall above each threshold.

    Args:
        probability: P(relevant) by theta, [n].
        relevant: the judgements, [n].
        alphas: thresholds.

    Raises:
        CropsError: one of the two classes is empty.
    """
    weights = balanced_weights(relevant)
    points = []
    for alpha in alphas:
        kept = probability > alpha
        right, total = weights[kept & relevant].sum(), weights[kept].sum()
        points.append(
            AlphaPoint(
                alpha,
                int(kept.sum()),
                float(right / total) if total else None,
                float(right / weights[relevant].sum()),
            )
        )
    return points


def reliability(probability: NDArray[np.float64], relevant: NDArray[np.bool_], bins: int = 10) -> list[Bin]:
    """Return bins of equal width over [0, 1] that hold a pair, lowest first.

    Raises:
        CropsError: one of the two classes is empty.
    """
    weights = balanced_weights(relevant)
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)
    return [
        Bin(
            float(np.average(probability[own], weights=weights[own])),
            float(np.average(relevant[own], weights=weights[own])),
            int(own.sum()),
        )
        for own in (place == index for index in range(bins))
        if own.any()
    ]


def calibration_error(probability: NDArray[np.float64], relevant: NDArray[np.bool_], bins: int = 10) -> float:
    """Return the expected calibration error (Guo et al. 2017): the mean gap of the bins by their weight.

    Raises:
        CropsError: one of the two classes is empty.
    """
    weights = balanced_weights(relevant)
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(place, weights * (probability - relevant), minlength=bins)
    return float(np.abs(gaps).sum() / weights.sum())


def log_loss(probability: NDArray[np.float64], relevant: NDArray[np.bool_]) -> float:
    """Return the mean log-loss, in nats (0.693 = coin).

    Raises:
        CropsError: one of the two classes is empty.
    """
    p = np.clip(np.where(relevant, probability, 1 - probability), 1e-12, 1)
    return float(-np.average(np.log(p), weights=balanced_weights(relevant)))
