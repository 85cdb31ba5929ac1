r"""TriSampler: negatives inside a region that query and positive span.

Yang et al., "TriSampler: A Better Negative Sampling Principle for Dense Retrieval", AAAI 2024 (arXiv
2402.11855), the quasi-triangular principle: an informative negative $d^-$ is about as far from the query as
the positive is, and nearer to the positive than to the query. Two distributions: candidates of the top K by
$p \propto e^{-(s(q, d^-) - s(q, d^+))^2 / 4}$, and of these the negatives by
$p \propto \mathrm{ReLU}(s(d^+, d^-) - s(q, d^-))$; the region is bounded by
$|\angle(q, d^+) - \angle(q, d^-)| \le 60°$.

Kept: both distributions and the bound. Differs: the formulas are known to us from a summary of the paper, so
the sizes are ours: K = 200, and `POOL` candidates per negative wanted; in the first one s is the cosine over
the start temperature, as its exponent is made for unbounded scores; the index is refreshed as for ANCE; one
positive per query and step, at random; a query whose region is empty gets no negative of its own. The authors
add the sampler to several retrievers; here it stands alone, with in-batch negatives.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from crops.labels import Source
from crops.negatives import ance
from crops.negatives.base import (
    CLICKS,
    MINED,
    Corpus,
    Ids,
    Method,
    Miner,
    Moment,
    Schedule,
    nearest_others,
    noise,
    take_random,
    viewer,
)
from crops.retrieval.catalogue import NO_ITEM

DEPTH = 200
"""Length of the result lists that candidates are drawn from."""
POOL = 4
"""Candidates that the first distribution draws for each negative wanted."""
WIDEST_ANGLE = 60.0
"""Most degrees between the angles query-positive and query-negative."""
Scores = NDArray[np.float64]


def mine(corpus: Corpus, schedule: Schedule) -> Miner:
    """Return a miner of each query's region, in an index that is renewed as ANCE's."""
    view = viewer(corpus, partial(ance.due, warm_up=schedule.warm_up, every=schedule.refresh))

    def mine(now: Moment) -> Ids:
        seen = view(now.step)
        if seen is None:
            return noise(now.random, corpus.ids, now.positives, now.negatives)
        vectors = seen.queries[now.queries]
        place = _one_positive(now, corpus.ids)
        positive = seen.documents[place]
        near = np.where(place < 0, np.nan, np.sum(vectors * positive, axis=1)).astype(np.float64)
        candidates = nearest_others(seen.items, vectors, now.positives, DEPTH)
        negative, between = (
            seen.items.inner_products(side, candidates).astype(np.float64) for side in (vectors, positive)
        )
        return tri_negatives(
            now.random, candidates, near, negative, between, now.negatives, schedule.temperature
        )

    return mine


def _one_positive(now: Moment, ids: Ids) -> Ids:
    """Return where in the catalogue one drawn positive of each query is, at random, [Q]; -1 = nowhere."""
    places = np.full(len(now.drawn), -1)
    for row, own in enumerate(now.drawn):
        present = own[np.isin(own, ids)]
        if len(present):
            places[row] = np.searchsorted(ids, now.random.choice(present))
    return places


def tri_negatives(
    random: np.random.Generator,
    candidates: Ids,
    positive: Scores,
    negative: Scores,
    between: Scores,
    n: int,
    temperature: float,
) -> Ids:
    """Return n documents of each query from its region, [Q, n]; blanks pad.

    Args:
        candidates: the query's nearest documents without its known positives, [Q, k].
        positive: cosine of each query with its positive, [Q]; NaN where it has none: no negative is drawn.
        negative: cosines of each query with its candidates, [Q, k]; any value at a blank.
        between: cosines of each query's positive with its candidates, [Q, k]; any value at a blank.
        temperature: what makes scores of cosines.
    """
    known = (candidates != NO_ITEM) & np.isfinite(positive)[:, None]
    score = np.where(known, negative, 0.0)
    near = np.where(np.isfinite(positive), positive, 0.0)
    gap = (score - near[:, None]) / temperature
    odds = np.where(known & in_region(near, score), np.exp(-(gap**2) / 4), 0.0)
    pool = take_random(random, np.broadcast_to(np.arange(candidates.shape[1]), odds.shape), POOL * n, odds)
    drawn = pool != NO_ITEM
    pull = np.take_along_axis(np.where(known, between, 0.0) - score, np.where(drawn, pool, 0), axis=1)
    chosen = take_random(random, pool, n, np.where(drawn, np.maximum(pull, 0.0), 0.0))
    ids = np.take_along_axis(candidates, np.where(chosen == NO_ITEM, 0, chosen), axis=1)
    return np.where(chosen == NO_ITEM, NO_ITEM, ids)


def in_region(positive: Scores, negative: Scores) -> NDArray[np.bool_]:
    """Return whether documents lie within the angular bound, [Q, k].

    Args:
        positive: cosine of each query with its positive, [Q].
        negative: cosines of each query with its candidates, [Q, k].
    """
    angles = [np.degrees(np.arccos(np.clip(cosine, -1, 1))) for cosine in (positive[:, None], negative)]
    return np.asarray(np.abs(angles[0] - angles[1]) <= WIDEST_ANGLE)


METHOD = Method(
    "TriSampler",
    "Yang et al., AAAI 2024 (arXiv 2402.11855)",
    CLICKS,
    Source.CLICKED,
    "infonce_binary",
    MINED,
    miner=mine,
    defaults={"negatives": 4},
)
