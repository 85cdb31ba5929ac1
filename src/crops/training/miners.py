"""The samplers of `crops.negatives` with what they need of a training: the index, and its renewal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from crops.negatives import (
    adore_negatives,
    ance_due,
    bm25_candidates,
    dpr_negatives,
    nce_noise,
    nearest_negatives,
    star_due,
    tri_negatives,
)
from crops.negatives.bm25 import DEPTH as BM25_DEPTH
from crops.negatives.lists import nearest_others
from crops.negatives.tri import DEPTH as TRI_DEPTH
from crops.retrieval import BM25Retriever, FlatIndex
from crops.retrieval.catalogue import NO_ITEM
from crops.training.mining import Corpus, Ids, Miner, Moment, Vectors


@dataclass(frozen=True)
class Schedule:
    """When the miners that search with the model begin, and how often they renew their index."""

    warm_up: int
    """Steps before the first index."""
    refresh: int
    """Steps between two indexes."""
    temperature: float
    """The start temperature: what makes scores of cosines."""


class _View(NamedTuple):
    """Catalogue and training queries as one state of the encoder saw them."""

    items: FlatIndex
    documents: Vectors
    """[D, d] in the order of the corpus."""
    queries: Vectors
    """[all queries, d] by row of the pool."""


def mine_noise(corpus: Corpus, schedule: Schedule) -> Miner:
    """Return NCE's miner: noise of each query's own."""
    return lambda now: _random(now, corpus)


def mine_bm25(corpus: Corpus, schedule: Schedule) -> Miner:
    """Return DPR's miner; each query is searched once, when it is first drawn."""
    retriever = BM25Retriever(corpus.ids, corpus.texts)
    found = np.full((len(corpus.query_texts), BM25_DEPTH), NO_ITEM, dtype=np.int64)
    searched = np.zeros(len(found), dtype=bool)

    def mine(now: Moment) -> Ids:
        new = np.unique(now.queries[~searched[now.queries]])
        found[new] = bm25_candidates(retriever, [corpus.query_texts[row] for row in new])
        searched[new] = True
        return dpr_negatives(found[now.queries], now.positives, now.negatives)

    return mine


def mine_ance(corpus: Corpus, schedule: Schedule) -> Miner:
    """Return ANCE's miner: an index that is renewed every `refresh` steps."""
    return _mine_nearest(corpus, partial(ance_due, warm_up=schedule.warm_up, every=schedule.refresh))


def mine_star(corpus: Corpus, schedule: Schedule) -> Miner:
    """Return STAR's miner: one index, built at the end of the warm-up."""
    return _mine_nearest(corpus, partial(star_due, warm_up=schedule.warm_up))


def mine_adore(corpus: Corpus) -> Miner:
    """Return ADORE's miner: one index of documents that do not change, searched with today's queries."""
    index = FlatIndex(corpus.ids, corpus.encode_documents())

    def mine(now: Moment) -> Ids:
        return adore_negatives(index, corpus.encode_queries(now.queries), now.positives, now.negatives)

    return mine


def mine_tri(corpus: Corpus, schedule: Schedule) -> Miner:
    """Return TriSampler's miner, with ANCE's index."""
    view = _viewer(corpus, partial(ance_due, warm_up=schedule.warm_up, every=schedule.refresh))

    def mine(now: Moment) -> Ids:
        seen = view(now.step)
        if seen is None:
            return _random(now, corpus)
        vectors = seen.queries[now.queries]
        place = _one_positive(now, corpus.ids)
        positive = seen.documents[place]
        near = np.where(place < 0, np.nan, np.sum(vectors * positive, axis=1)).astype(np.float64)
        candidates = nearest_others(seen.items, vectors, now.positives, TRI_DEPTH)
        cosines = [seen.items.inner_products(side, candidates) for side in (vectors, positive)]
        return tri_negatives(
            now.random,
            candidates,
            near,
            cosines[0].astype(np.float64),
            cosines[1].astype(np.float64),
            now.negatives,
            schedule.temperature,
        )

    return mine


def _mine_nearest(corpus: Corpus, due: Callable[[int], bool]) -> Miner:
    view = _viewer(corpus, due)

    def mine(now: Moment) -> Ids:
        seen = view(now.step)
        if seen is None:
            return _random(now, corpus)
        vectors = seen.queries[now.queries]
        return nearest_negatives(now.random, seen.items, vectors, now.positives, now.negatives)

    return mine


def _viewer(corpus: Corpus, due: Callable[[int], bool]) -> Callable[[int], _View | None]:
    """Return a function from a step to the newest view, renewed when due; None before the first."""
    kept: list[_View] = []

    def view(step: int) -> _View | None:
        if due(step):
            documents = corpus.encode_documents()
            queries = corpus.encode_queries(np.arange(len(corpus.query_texts)))
            kept[:] = [_View(FlatIndex(corpus.ids, documents), documents, queries)]
        return kept[0] if kept else None

    return view


def _one_positive(now: Moment, ids: Ids) -> Ids:
    """Return where in the catalogue one drawn positive of each query is, at random, [Q]; -1 = nowhere."""
    places = np.full(len(now.drawn), -1)
    for row, own in enumerate(now.drawn):
        present = own[np.isin(own, ids)]
        if len(present):
            places[row] = np.searchsorted(ids, now.random.choice(present))
    return places


def _random(now: Moment, corpus: Corpus) -> Ids:
    """Return noise: all that NCE knows, and what the others begin with."""
    return nce_noise(now.random, corpus.ids, now.positives, now.negatives)
