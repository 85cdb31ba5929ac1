"""Candidate lists: id matrices [Q, k], a query's candidates in a row, places without one are NO_ITEM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crops.evaluation import grades_of
from crops.retrieval import FlatIndex
from crops.retrieval.catalogue import NO_ITEM

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]


def without(candidates: Ids, positives: Sequence[Ids]) -> Ids:
    """Return the candidates [Q, k] with each query's own positives blanked: a known positive is no negative.

    Args:
        candidates: ids [Q, k].
        positives: for each of Q queries the ids of its known positives, in any order; they may name documents
            that are no candidates of anything (removed from the catalogue, generated).
    """
    own = grades_of(candidates, positives, [np.ones(len(ids), dtype=np.int64) for ids in positives])
    return np.where(own > 0, NO_ITEM, candidates)


def nearest_others(index: FlatIndex, vectors: Vectors, positives: Sequence[Ids], depth: int) -> Ids:
    """Return what an index holds nearest to each query besides its positives, best first, [Q, <= depth].

    Args:
        index: the catalogue.
        vectors: of the queries, [Q, d].
        positives: as of `without`.
        depth: length of the result list that the positives are taken out of.
    """
    return without(index.nearest(vectors, min(depth, len(index.ids)))[0], positives)


def take_first(candidates: Ids, n: int) -> Ids:
    """Return the first n candidates of each row that are no blanks, [Q, n]; blanks pad at the end."""
    order = np.argsort(candidates == NO_ITEM, axis=1, kind="stable")[:, :n]
    return _padded(np.take_along_axis(candidates, order, axis=1), n)


def take_random(
    random: np.random.Generator, candidates: Ids, n: int, odds: NDArray[np.float64] | None = None
) -> Ids:
    """Return n candidates of each row, drawn without replacement, [Q, n]; blanks pad at the end.

    The draw takes the smallest of exponential times with the odds as rates (Efraimidis & Spirakis 2006).

    Args:
        random: the source of chance.
        candidates: ids [Q, k].
        n: how many.
        odds: [Q, k], at least 0; a candidate of odds 0 is not drawn. Even odds when None.
    """
    rate = np.ones(candidates.shape) if odds is None else odds
    possible = (candidates != NO_ITEM) & (rate > 0)
    times = random.exponential(size=candidates.shape) / np.where(possible, rate, 1.0)
    order = np.argsort(np.where(possible, times, np.inf), axis=1, kind="stable")[:, :n]
    drawn = np.where(possible, candidates, NO_ITEM)
    return _padded(np.take_along_axis(drawn, order, axis=1), n)


def _padded(ids: Ids, n: int) -> Ids:
    return np.pad(ids, ((0, 0), (0, n - ids.shape[1])), constant_values=NO_ITEM)
