"""ADORE: the query tower alone, against what it finds at this moment.

Zhan et al., "Optimizing Dense Retrieval Model Training with Hard Negatives", SIGIR 2021 (arXiv
2104.08051), ADORE: documents are encoded and indexed once, here by STAR; then only the query encoder learns,
and its negatives are the top results of each training query, retrieved again in every step with the encoder
as it is.

Kept: fixed document vectors, live retrieval in each step, all top results as negatives. Differs: the softmax
over them that all methods here share, in place of LambdaLoss weights; exact search; the number of results is
what the budget of documents per step leaves, where the authors take 200.
"""

from __future__ import annotations

from collections.abc import Sequence

from crops.labels import Source
from crops.negatives import star
from crops.negatives.base import (
    CLICKS,
    Corpus,
    Ids,
    Method,
    Miner,
    Moment,
    Vectors,
    grid,
    nearest_others,
    take_first,
)
from crops.retrieval import FlatIndex


def mine(corpus: Corpus) -> Miner:
    """Return a miner of one index of documents that do not change, searched with today's queries."""
    index = FlatIndex(corpus.ids, corpus.encode_documents())

    def mine(now: Moment) -> Ids:
        return adore_negatives(index, corpus.encode_queries(now.queries), now.positives, now.negatives)

    return mine


def adore_negatives(index: FlatIndex, vectors: Vectors, positives: Sequence[Ids], n: int) -> Ids:
    """Return the n documents nearest to each query that are no known positives, [Q, n]; blanks pad.

    Args:
        vectors: the queries as the encoder sees them now, [Q, d].
        positives: for each of Q queries the ids of its known positives.
    """
    depth = n + max(map(len, positives), default=0)
    return take_first(nearest_others(index, vectors, positives, depth), n)


METHOD = Method(
    "ADORE+STAR",
    "Zhan et al., SIGIR 2021 (arXiv 2104.08051), STAR and ADORE",
    CLICKS,
    Source.CLICKED,
    "infonce_binary",
    grid({"query_share": 0.125}, {"query_share": 0.25}, {"query_share": 0.5}),
    miner=star.mine,
    defaults={"negatives": 4},
    query_miner=mine,
)
