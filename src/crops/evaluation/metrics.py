"""Ranking metrics on id and grade matrices: one value per query first, NaN where a metric is undefined.

Ranks are 1-based, ids in a ranked row are distinct and -1 pads short rows. A query without anything to find
has no value (NaN): the caller leaves it out of the mean and counts it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Grades = NDArray[np.int64]
Values = NDArray[np.float64]


def grades_of(ranked: Ids, judged: Sequence[Ids], grades: Sequence[Grades]) -> Grades:
    """Look the grades of ranked ids up.

    Args:
        ranked: ids [q, k].
        judged: for each of q queries, the ids that have a grade.
        grades: their grades, alike in shape.

    Returns:
        Grades [q, k]; 0 where an id has no grade.
    """
    graded = np.zeros(ranked.shape, dtype=np.int64)
    for row, top, ids, own in zip(graded, ranked.tolist(), judged, grades, strict=True):
        known = dict(zip(ids.tolist(), own.tolist(), strict=True))
        row[:] = [known.get(item, 0) for item in top]
    return graded


def recall_at_k(ranked: Ids, relevant: Sequence[Ids], k: int, *, capped: bool = False) -> Values:
    """Share of the relevant documents that are among the first k: |top k & R| / |R|.

    Args:
        ranked: ids [q, >= k], best first.
        relevant: for each of q queries, the distinct ids to find.
        capped: divide by min(k, |R|), so that a query with more than k relevant documents can reach 1.

    Returns:
        Recall [q]; NaN for a query without relevant documents.
    """
    found = _hits(ranked[:, :k], relevant).sum(axis=1)
    size = np.array([len(ids) for ids in relevant], dtype=np.float64)
    if capped:
        size = np.minimum(size, k)
    values: Values = found / np.where(size > 0, size, np.nan)
    return values


def reciprocal_rank(ranked: Ids, relevant: Sequence[Ids]) -> Values:
    """One over the rank of the first relevant document; 0 if none is in the list.

    Args:
        ranked: ids [q, k], best first.
        relevant: for each of q queries, the ids to find.

    Returns:
        Reciprocal rank [q]; NaN for a query without relevant documents.
    """
    hits = _hits(ranked, relevant)
    values = np.where(hits.any(axis=1), 1.0 / (hits.argmax(axis=1) + 1), 0.0)
    size = np.array([len(ids) for ids in relevant])
    return np.where(size > 0, values, np.nan)


def ndcg_at_k(grades: Grades, k: int, *, ideal: Grades | None = None) -> Values:
    """Normalised discounted cumulative gain (Järvelin & Kekäläinen 2002; gain 2^g - 1: Burges et al. 2005).

    DCG@k = sum over ranks r <= k of (2^grade_r - 1) / log2(r + 1), divided by the DCG@k of the ideal order.

    Args:
        grades: grades [q, p] in the order of the ranking, at least 0.
        ideal: grades [q, m] of all documents that could have been ranked, in any order; `grades` when None.

    Returns:
        NDCG [q]; NaN for a query with no grade above 0.
    """
    best = -np.sort(-(grades if ideal is None else ideal), axis=1)
    reachable = _dcg(best[:, :k])
    return _dcg(grades[:, :k]) / np.where(reachable > 0, reachable, np.nan)


def pad(parts: Sequence[NDArray[np.int64]], fill: int) -> NDArray[np.int64]:
    """Return ragged rows as a matrix [q, longest row], filled up with `fill`."""
    matrix = np.full((len(parts), max((len(part) for part in parts), default=0)), fill, dtype=np.int64)
    for row, part in zip(matrix, parts, strict=True):
        row[: len(part)] = part
    return matrix


def _hits(ranked: Ids, relevant: Sequence[Ids]) -> NDArray[np.bool_]:
    return grades_of(ranked, relevant, [np.ones(len(ids), dtype=np.int64) for ids in relevant]) > 0


def _dcg(grades: Grades) -> Values:
    return (np.exp2(grades) - 1) @ (1 / np.log2(np.arange(grades.shape[1]) + 2))
