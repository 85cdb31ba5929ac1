"""How much of exact search an index finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

from crops.retrieval.catalogue import SCORE_DECIMALS

DEPTH = 100
"""Results that are compared."""


def last_scores(
    queries: NDArray[np.float32], blocks: Iterable[NDArray[np.float32]]
) -> tuple[NDArray[np.float32], int]:
    """Return the rounded score [q] of each query's hundredth nearest vector, and how many results that is.

    Args:
        queries: [q, d].
        blocks: the vectors, [n_i, d] each; they are looked at one after the other.

    Returns:
        The scores, and min(100, number of vectors).
    """
    best = np.empty((len(queries), 0), dtype=np.float32)
    for block in blocks:
        vectors = np.ascontiguousarray(block, dtype=np.float32)
        scores, _ = faiss.knn(queries, vectors, min(DEPTH, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
        best = -np.sort(-np.concatenate([best, scores], axis=1), axis=1)[:, :DEPTH]
    return np.round(best[:, -1], SCORE_DECIMALS), best.shape[1]


def recalls(scores: NDArray[np.float32], last: NDArray[np.float32], depth: int) -> NDArray[np.float64]:
    """Return each query's share of the exact results that was found, by score: equal documents count alike.

    Args:
        scores: exact scores [q, depth] of what was found; -inf for nothing.
        last: from `last_scores`.
        depth: from `last_scores`.
    """
    good = np.round(scores[:, :depth], SCORE_DECIMALS) >= last[:, None] - 10.0**-SCORE_DECIMALS
    return np.asarray(good.mean(axis=1), dtype=np.float64)


def least_effort(
    found: Callable[[int], NDArray[np.float32]],
    efforts: Sequence[int],
    truth: tuple[NDArray[np.float32], int],
    target: float,
) -> tuple[int, float]:
    """Return the least effort that reaches a recall, and the mean recall there; the largest if none does.

    Other queries than the sample must reach it too: the mean has to exceed the target by two standard errors.

    Args:
        found: from an effort to the scores [q, 100] of what it finds.
        efforts: ascending, at least one.
        truth: from `last_scores`.
        target: mean recall wanted.
    """
    reached = 0.0
    for effort in efforts:
        shares = recalls(found(effort), *truth)
        reached = float(shares.mean())
        if reached - 2 * shares.std() / np.sqrt(len(shares)) >= target:
            return effort, reached
    return efforts[-1], reached
