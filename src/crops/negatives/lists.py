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

NEAREST_DEPTH = 200
"""Length of the result lists that ANCE and STAR draw from, as their authors take."""


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


def nearest_negatives(
    random: np.random.Generator,
    index: FlatIndex,
    vectors: Vectors,
    positives: Sequence[Ids],
    n: int,
    depth: int = NEAREST_DEPTH,
) -> Ids:
    """Return n random documents of each query's nearest that are no known positives, [Q, n]; blanks pad.

    Args:
        random: the source of chance.
        index: the catalogue, encoded by a checkpoint.
        vectors: the queries as encoded by the same checkpoint, [Q, d].
        positives: for each of Q queries the ids of its known positives.
        n: how many.
        depth: length of the list they are drawn from.
    """
    return take_random(random, nearest_others(index, vectors, positives, depth), n)
