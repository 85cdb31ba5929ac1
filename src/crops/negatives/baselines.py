r"""The published baselines: each one's sampler and settings, what is kept of its paper, and what differs.

In all of them the similarity is the cosine over a learned temperature, search is exact, and an index is
renewed inline and not by another machine: its weights are those of the step. All but NCE take the loss that
all methods here share, a softmax over positives and negatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from crops.labels import Source
from crops.negatives.base import (
    CLICKS,
    MINED,
    Corpus,
    Ids,
    Method,
    Miner,
    Moment,
    Point,
    Schedule,
    Vectors,
    grid,
    mine_nearest,
    nearest_others,
    noise,
    take_first,
    take_random,
    viewer,
    without,
)
from crops.retrieval import BM25Retriever, FlatIndex
from crops.retrieval.catalogue import NO_ITEM


def mine_noise(corpus: Corpus, schedule: Schedule) -> Miner:
    """Return NCE's miner: random negatives, each query's own.

    Gutmann & Hyvärinen, "Noise-contrastive estimation: A new estimation principle for unnormalized
    statistical models", AISTATS 2010: each data point is contrasted with k noise samples by logistic
    regression.

    Kept: k samples of noise of its own for each query, independent of it, and of the model. Differs: the
    noise is uniform over the catalogue (the paper leaves its distribution open), without replacement, and
    without the query's known positives. The loss is `crops.losses.nce` without in-batch negatives.
    """
    return lambda now: noise(now.random, corpus.ids, now.positives, now.negatives)


BM25_DEPTH = 100
"""Results of BM25 that DPR's negatives are looked for in: its authors took them from the top 100 as well."""


def mine_bm25(corpus: Corpus, schedule: Schedule) -> Miner:
    """Return DPR's miner: the lexical look-alike that is no answer.

    Karpukhin et al., "Dense Passage Retrieval for Open-Domain Question Answering", EMNLP 2020, section 3.2:
    the best DPR model trains on the gold passages of the same batch (in-batch) and one BM25 negative per
    question, a top passage of BM25 that does not contain the answer; hard negatives of other questions are
    negatives as well.

    Kept: both kinds of negatives, and the negatives of others. Differs: there is no answer string, so a
    negative is what BM25 ranks highest among the documents that nobody who searched the query clicked.
    """
    retriever = BM25Retriever(corpus.ids, corpus.texts)
    found = np.full((len(corpus.query_texts), BM25_DEPTH), NO_ITEM, dtype=np.int64)
    searched = np.zeros(len(found), dtype=bool)

    def mine(now: Moment) -> Ids:
        new = np.unique(now.queries[~searched[now.queries]])  # each query is searched once
        found[new] = retriever.search([corpus.query_texts[row] for row in new], BM25_DEPTH)[0]
        searched[new] = True
        return take_first(without(found[now.queries], now.positives), now.negatives)

    return mine


def mine_ance(corpus: Corpus, schedule: Schedule) -> Miner:
    """Return ANCE's miner: negatives that the model itself takes for answers.

    Xiong et al., "Approximate Nearest Neighbor Negative Contrastive Learning for Dense Text Retrieval", ICLR
    2021 (arXiv 2007.00808): negatives are drawn from the top of an index of the whole catalogue that is
    rebuilt from a recent checkpoint every m batches; a warm-up begins with other negatives (theirs: BM25).

    Kept: uniform draws from the top 200 that hold no known positive, queries and documents encoded by the
    same checkpoint, refresh every m steps, a warm-up. Differs: the warm-up has random negatives. The paper's
    loss knows the drawn negatives only; whether in-batch ones join them is tuned.
    """
    return mine_nearest(corpus, partial(due, warm_up=schedule.warm_up, every=schedule.refresh))


def due(step: int, warm_up: int, every: int) -> bool:
    """Return whether the index is built before a step (from 0): at the end of the warm-up, then every m."""
    return step >= warm_up and (step - warm_up) % every == 0


def mine_star(corpus: Corpus, schedule: Schedule) -> Miner:
    """Return STAR's miner: hard negatives that never change, held steady by random ones.

    Zhan et al., "Optimizing Dense Retrieval Model Training with Hard Negatives", SIGIR 2021 (arXiv
    2104.08051), STAR: static hard negatives are the top results of a warmed-up model, retrieved once; random
    negatives of the same batch are added with a weight, at no cost, since the static ones alone make the
    training unstable.

    Kept: one retrieval with the warmed-up model, a uniform draw from its top 200 for each step, random
    negatives from the batch and from the hard negatives of other queries. Differs: one softmax over both
    kinds in place of a weighted sum of pairwise losses (RankNet); the warm-up is part of the step budget.
    """
    return mine_nearest(corpus, lambda step: step == schedule.warm_up)


def mine_adore(corpus: Corpus) -> Miner:
    """Return ADORE's miner: the query tower alone, against what it finds at this moment.

    The same paper, ADORE: documents are encoded and indexed once, here by STAR; then only the query encoder
    learns, and its negatives are the top results of each training query, retrieved again in every step with
    the encoder as it is.

    Kept: fixed document vectors, live retrieval in each step, all top results as negatives. Differs: the
    softmax over them in place of LambdaLoss weights; the number of results is what the budget of documents
    per step leaves, where the authors take 200.
    """
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


TRI_DEPTH = 200
"""Length of the result lists that TriSampler's candidates are drawn from."""
POOL = 4
"""Candidates that the first distribution draws for each negative wanted."""
WIDEST_ANGLE = 60.0
"""Most degrees between the angles query-positive and query-negative."""
Scores = NDArray[np.float64]


def mine_region(corpus: Corpus, schedule: Schedule) -> Miner:
    r"""Return TriSampler's miner: negatives inside a region that query and positive span.

    Yang et al., "TriSampler: A Better Negative Sampling Principle for Dense Retrieval", AAAI 2024 (arXiv
    2402.11855), the quasi-triangular principle: an informative negative $d^-$ is about as far from the query
    as the positive is, and nearer to the positive than to the query. Two distributions: candidates of the top
    K by $p \propto e^{-(s(q, d^-) - s(q, d^+))^2 / 4}$, and of these the negatives by
    $p \propto \mathrm{ReLU}(s(d^+, d^-) - s(q, d^-))$; the region is bounded by
    $|\angle(q, d^+) - \angle(q, d^-)| \le 60°$.

    Kept: both distributions and the bound. Differs: the formulas are known to us from a summary of the paper,
    so the sizes are ours: K = 200, and `POOL` candidates per negative wanted; in the first one s is the
    cosine over the start temperature, as its exponent is made for unbounded scores; the index is refreshed as
    for ANCE; one positive per query and step, at random; a query whose region is empty gets no negative of
    its own. The authors add the sampler to several retrievers; here it stands alone, with in-batch negatives.
    """
    view = viewer(corpus, partial(due, warm_up=schedule.warm_up, every=schedule.refresh))

    def mine(now: Moment) -> Ids:
        seen = view(now.step)
        if seen is None:
            return noise(now.random, corpus.ids, now.positives, now.negatives)
        vectors = seen.queries[now.queries]
        place = _one_positive(now, corpus.ids)
        positive = seen.documents[place]
        near = np.where(place < 0, np.nan, np.sum(vectors * positive, axis=1)).astype(np.float64)
        candidates = nearest_others(seen.items, vectors, now.positives, TRI_DEPTH)
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


def _of_clicks(
    title: str,
    paper: str,
    points: tuple[Point, ...],
    miner: Callable[[Corpus, Schedule], Miner],
    defaults: Point,
    loss: str = "infonce_binary",
) -> Method:
    """Return a method that learns from clicked documents, nothing else."""
    return Method(title, paper, CLICKS, Source.CLICKED, loss, points, miner=miner, defaults=defaults)


_STAR = _of_clicks(
    "STAR", "Zhan et al., SIGIR 2021 (arXiv 2104.08051), STAR", MINED, mine_star, {"negatives": 4}
)
BASELINES: dict[str, Method] = {
    "adore": replace(
        _STAR,
        title="ADORE+STAR",
        paper=f"{_STAR.paper} and ADORE",
        grid=grid({"query_share": 0.125}, {"query_share": 0.25}, {"query_share": 0.5}),
        query_miner=mine_adore,
    ),
    "ance": _of_clicks(
        "ANCE",
        "Xiong et al., ICLR 2021",
        grid({"in_batch": False, "negatives": 0}, {"in_batch": True, "negatives": 4}),
        mine_ance,
        {"in_batch": False},
    ),
    "dpr": replace(
        _of_clicks("DPR", "Karpukhin et al., EMNLP 2020", MINED, mine_bm25, {"negatives": 1}),
        reads_texts=True,
    ),
    "nce": _of_clicks(
        "NCE",
        "Gutmann & Hyvärinen, AISTATS 2010",
        grid({"temperature": 0.05}, {"temperature": 0.1}, {"temperature": 0.2}),
        mine_noise,
        {"in_batch": False},
        loss="nce",
    ),
    "star": _STAR,
    "trisampler": _of_clicks(
        "TriSampler", "Yang et al., AAAI 2024 (arXiv 2402.11855)", MINED, mine_region, {"negatives": 4}
    ),
}
