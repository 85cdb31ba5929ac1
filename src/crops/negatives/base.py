"""What the baselines share: what a method is, what a miner may look at, and candidate lists.

A candidate list is a matrix of ids [Q, k], a query's candidates in a row; places without one are NO_ITEM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError, nearest
from crops.evaluation import grades_of
from crops.labels import Source
from crops.retrieval import FlatIndex
from crops.retrieval.catalogue import NO_ITEM

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]
NEAREST_DEPTH = 200
"""Length of the result lists that ANCE and STAR draw from, as their authors take."""
Value = bool | int | float
Point = Mapping[str, Value]
"""Settings of a method; see `SETTINGS`."""

SETTINGS: dict[str, Value] = {
    "learning_rate_scale": 1.0,
    "temperature": 0.05,
    "docs_per_source": 4,
    "min_anchor_label": 1,
    "negatives": 0,
    "in_batch": True,
    "warm_up": 0.2,
    "refresh": 50,
    "query_share": 0.25,
}
"""What a point may set, with its default: a factor of the run's learning rate; the start temperature; most
documents per (label, source); the lowest label that is contrasted with what is below it; most own negatives
per query (0: what the budget of documents leaves); whether other queries' documents are negatives; the share
of the steps before the first index; steps between two indexes; the share of the steps that train the query
tower alone (ADORE)."""


@dataclass(frozen=True)
class Moment:
    """What a miner may look at in a step."""

    step: int
    """From 0."""
    random: np.random.Generator
    """Of this step."""
    queries: Ids
    """[Q] rows of the pool."""
    positives: list[Ids]
    """For each query the ids of all its known positives, drawn or not."""
    drawn: list[Ids]
    """For each query the ids of those that this step has drawn."""
    negatives: int
    """How many it is asked for per query."""


Miner = Callable[[Moment], Ids]
"""From a moment to negatives of each query's own, ids [Q, n], NO_ITEM where there are fewer."""


class Corpus(Protocol):
    """The catalogue and the training queries, and how the encoder sees them now."""

    ids: Ids
    """[D] of the documents, ascending."""
    texts: list[str]
    """[D]"""
    query_texts: list[str]
    """Texts of the rows of the pool from 0 on."""

    def encode_documents(self) -> Vectors:
        """Return the embeddings of the catalogue, [D, d]."""
        ...

    def encode_queries(self, rows: Ids) -> Vectors:
        """Return the embeddings [n, d] of query texts, by their rows of the pool [n]."""
        ...


@dataclass(frozen=True)
class Schedule:
    """When the miners that search with the model begin, and how often they renew their index."""

    warm_up: int
    """Steps before the first index."""
    refresh: int
    """Steps between two indexes."""
    temperature: float
    """The start temperature: what makes scores of cosines."""


@dataclass(frozen=True)
class Method:
    """A row of the paper's tables."""

    title: str
    paper: str
    """Where it comes from."""
    trains_on: str
    """What it knows of the logs."""
    keep: Source
    """The sources of its groups."""
    loss: str
    """See `crops.config.TrainingConfig.loss`."""
    grid: tuple[Point, ...]
    """What is tried on the validation part."""
    labels: Mapping[Source, int] | None = None
    """Label by source, the paper's (`crops.labels.DEFAULT_LABELS`) when None."""
    miner: Callable[[Corpus, Schedule], Miner] | None = None
    """Where its own negatives come from."""
    defaults: Point | None = None
    """Settings that differ from `SETTINGS`."""
    query_miner: Callable[[Corpus], Miner] | None = None
    """Negatives of a second stage, which trains the query tower against the documents of the first."""
    reads_texts: bool = False
    """Whether its miner reads words, which an encoder of ids has none of."""

    def settings(self, point: Point | None) -> dict[str, Value]:
        """Return all settings of the method at a point of its grid.

        Raises:
            CropsError: a setting is unknown.
        """
        for key in point or {}:
            if key not in SETTINGS:
                known = ", ".join(SETTINGS)
                raise CropsError(
                    f"unknown setting '{key}' of a method; known: {known}.{nearest(key, SETTINGS)}"
                )
        return {**SETTINGS, **(self.defaults or {}), **(point or {})}


def grid(*variants: Point) -> tuple[Point, ...]:
    """Return six points: each variant at once and twice the run's learning rate, of two at half as well."""
    scales = (1.0, 2.0) if len(variants) > 2 else (1.0, 2.0, 0.5)
    return tuple({"learning_rate_scale": scale, **variant} for scale in scales for variant in variants)


CLICKS = "clicked documents as positives, nothing else"
MINED = grid({"negatives": 1}, {"negatives": 4})


class View(NamedTuple):
    """Catalogue and training queries as one state of the encoder saw them."""

    items: FlatIndex
    documents: Vectors
    """[D, d] in the order of the corpus."""
    queries: Vectors
    """[all queries, d] by row of the pool."""


def viewer(corpus: Corpus, due: Callable[[int], bool]) -> Callable[[int], View | None]:
    """Return a function from a step to the newest view, renewed when due; None before the first."""
    kept: list[View] = []

    def view(step: int) -> View | None:
        if due(step):
            documents = corpus.encode_documents()
            queries = corpus.encode_queries(np.arange(len(corpus.query_texts)))
            kept[:] = [View(FlatIndex(corpus.ids, documents), documents, queries)]
        return kept[0] if kept else None

    return view


def mine_nearest(corpus: Corpus, due: Callable[[int], bool]) -> Miner:
    """Return a miner of the nearest documents in an index that is renewed when due; of noise before it."""
    view = viewer(corpus, due)

    def mine(now: Moment) -> Ids:
        seen = view(now.step)
        if seen is None:
            return noise(now.random, corpus.ids, now.positives, now.negatives)
        vectors = seen.queries[now.queries]
        return nearest_negatives(now.random, seen.items, vectors, now.positives, now.negatives)

    return mine


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
        index: the catalogue, encoded by a checkpoint.
        vectors: the queries as encoded by the same checkpoint, [Q, d].
        positives: for each of Q queries the ids of its known positives.
        depth: length of the list they are drawn from.
    """
    return take_random(random, nearest_others(index, vectors, positives, depth), n)


def noise(random: np.random.Generator, catalogue: Ids, positives: Sequence[Ids], n: int) -> Ids:
    """Return n random documents of the catalogue for each query, none of them a known positive, [Q, n].

    Args:
        catalogue: distinct ids [D]; where it holds fewer than n others, blanks (NO_ITEM) pad the row.
        positives: for each of Q queries the ids of its known positives.
    """
    drawn = np.full((len(positives), n + max(map(len, positives), default=0)), NO_ITEM, dtype=np.int64)
    for row, own in zip(drawn, positives, strict=True):
        # As many more as could turn out to be positives.
        size = min(len(catalogue), n + len(own))
        row[:size] = catalogue[random.choice(len(catalogue), size, replace=False)]
    return take_first(without(drawn, positives), n)


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
        candidates: ids [Q, k].
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
