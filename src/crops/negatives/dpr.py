"""DPR: the lexical look-alike that is no answer.

Karpukhin et al., "Dense Passage Retrieval for Open-Domain Question Answering", EMNLP 2020, section 3.2: the
best DPR model trains on the gold passages of the same batch (in-batch) and one BM25 negative per question, a
top passage of BM25 that does not contain the answer; hard negatives of other questions are negatives as well.

Kept: both kinds of negatives, and the negatives of others. Differs: there is no answer string, so a negative
is what BM25 ranks highest among the documents that nobody who searched the query clicked; the similarity is
the cosine over a learned temperature, as for all methods here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crops.labels import Source
from crops.negatives.base import (
    CLICKS,
    MINED,
    Corpus,
    Ids,
    Method,
    Miner,
    Moment,
    Schedule,
    take_first,
    without,
)
from crops.retrieval import BM25Retriever
from crops.retrieval.catalogue import NO_ITEM

DEPTH = 100
"""Results of BM25 that negatives are looked for in: DPR took its from the top 100 as well."""


def mine(corpus: Corpus, schedule: Schedule) -> Miner:
    """Return a miner of BM25's results; each query is searched once, when it is first drawn."""
    retriever = BM25Retriever(corpus.ids, corpus.texts)
    found = np.full((len(corpus.query_texts), DEPTH), NO_ITEM, dtype=np.int64)
    searched = np.zeros(len(found), dtype=bool)

    def mine(now: Moment) -> Ids:
        new = np.unique(now.queries[~searched[now.queries]])
        found[new] = retriever.search([corpus.query_texts[row] for row in new], DEPTH)[0]
        searched[new] = True
        return dpr_negatives(found[now.queries], now.positives, now.negatives)

    return mine


def dpr_negatives(candidates: Ids, positives: Sequence[Ids], n: int) -> Ids:
    """Return the n best candidates of each query that are no known positives, [Q, n]; blanks pad.

    Args:
        candidates: ids [Q, k] in the order of BM25.
        positives: for each of Q queries the ids of its known positives.
        n: how many; DPR takes one.
    """
    return take_first(without(candidates, positives), n)


METHOD = Method(
    "DPR",
    "Karpukhin et al., EMNLP 2020",
    CLICKS,
    Source.CLICKED,
    "infonce_binary",
    MINED,
    miner=mine,
    defaults={"negatives": 1},
    reads_texts=True,
)
