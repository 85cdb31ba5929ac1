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

from crops.negatives.lists import Ids, take_first, without
from crops.protocols import Retriever

DEPTH = 100
"""Results of BM25 that negatives are looked for in: DPR took its from the top 100 as well."""


def bm25_candidates(retriever: Retriever, queries: Sequence[str], depth: int = DEPTH) -> Ids:
    """Return what BM25 finds for each query, best first, [Q, depth]; blanks where it finds less."""
    return retriever.search(queries, depth)[0]


def dpr_negatives(candidates: Ids, positives: Sequence[Ids], n: int) -> Ids:
    """Return the n best candidates of each query that are no known positives, [Q, n]; blanks pad.

    Args:
        candidates: ids [Q, k] in the order of BM25.
        positives: for each of Q queries the ids of its known positives.
        n: how many; DPR takes one.
    """
    return take_first(without(candidates, positives), n)
