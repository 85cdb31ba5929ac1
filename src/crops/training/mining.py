"""Negatives from a catalogue that join each batch, chosen with the weights of that step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

from crops.config import TrainingConfig
from crops.errors import CropsError
from crops.negatives import (
    adore_negatives,
    ance_due,
    bm25_candidates,
    dpr_negatives,
    nce_noise,
    nearest_negatives,
    shared_noise,
    star_due,
    tri_negatives,
)
from crops.negatives.bm25 import DEPTH as BM25_DEPTH
from crops.negatives.lists import nearest_others
from crops.negatives.tri import DEPTH as TRI_DEPTH
from crops.retrieval import BM25Retriever, FlatIndex
from crops.retrieval.catalogue import NO_ITEM
from crops.training.distributed import processes
from crops.training.groups import Catalogue, GroupSource, MemoryGroups
from crops.training.texts import TextPool, embed

Ids = NDArray[np.int64]

Vectors = NDArray[np.float32]


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


class Corpus:
    """The catalogue and the training queries, and how the encoder sees them now."""

    def __init__(
        self,
        encoder: SentenceTransformer,
        pool: TextPool,
        catalogue: Catalogue,
        source: MemoryGroups,
        chunk: int | None,
    ) -> None:
        """Encode nothing yet; `chunk` is that of `crops.training.texts.embed`."""
        self.ids, self.texts = catalogue.ids, catalogue.texts
        self.text_rows = source.catalogue_text
        self.query_texts = [text for batch in source.query_texts() for text in batch]
        """Texts of the rows of the pool from 0 on."""
        self.refreshes = 0
        """How often the documents were encoded."""
        self._encoder, self._pool, self._chunk = encoder, pool, chunk

    def encode_documents(self) -> Vectors:
        """Return the embeddings of the catalogue, [D, d]."""
        self.refreshes += 1
        return self._encode(self.text_rows)

    def encode_queries(self, rows: Ids) -> Vectors:
        """Return the embeddings [n, d] of query texts, by their rows of the pool [n]."""
        return self._encode(rows)

    def _encode(self, rows: Ids) -> Vectors:
        distinct, place = np.unique(rows, return_inverse=True)
        training = self._encoder.training
        self._encoder.eval()
        with torch.no_grad():
            vectors = embed(self._encoder, self._pool, distinct, self._chunk)
        self._encoder.train(training)
        return np.asarray(vectors.float().cpu().numpy()[place])


@dataclass(frozen=True)
class Mining:
    """How the batches of a run are completed."""

    catalogue: Catalogue
    """Real documents, known when the training day ended."""
    documents: int
    """Documents of a step, the groups' own included: the budget that methods share. Random documents,
    negatives for all queries alike, make up what is missing, unless a query's negatives are its own only."""
    miner: Callable[[Corpus], Miner] | None = None
    """Chooses negatives of each query's own; none when None."""
    negatives: int | None = None
    """Most of them per query; what the budget leaves when None."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the manifest of the run is to say besides."""


class Joined:
    """Adds a step's negatives to its inputs."""

    def __init__(
        self,
        mining: Mining,
        encoder: SentenceTransformer,
        pool: TextPool,
        source: GroupSource,
        config: TrainingConfig,
        seed: int,
    ) -> None:
        """Prepare the miner.

        Raises:
            CropsError: the groups are streamed from disk, or there are several processes.
        """
        if not isinstance(source, MemoryGroups):
            raise CropsError("mined negatives need the samples in memory: give crops.training.load_samples()")
        if processes()[1] > 1:
            raise CropsError("mined negatives are for one process; start without torchrun")
        self._corpus = Corpus(encoder, pool, mining.catalogue, source, config.encode_chunk)
        self._miner = None if mining.miner is None else mining.miner(self._corpus)
        self._mining, self._config, self._seed = mining, config, seed
        self._steps = self._queries = self._documents = 0

    def __call__(self, step: int, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs with the negatives of a step (from 0)."""
        random = np.random.default_rng([self._seed, step, 3])
        size, room = len(inputs["query_text"]), self._mining.documents - len(inputs["doc_text"])
        index, ids = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        if self._miner is not None:
            own = self._miner(self._moment(step, random, inputs, self._wanted(room // size)))
            index, column = np.nonzero(own != NO_ITEM)
            ids = own[index, column]
        if self._config.in_batch:
            # Without in-batch negatives nobody's document would be all queries' negative.
            noise = shared_noise(random, self._corpus.ids, max(0, room - len(ids)))
            index, ids = np.concatenate([index, np.full(len(noise), -1)]), np.concatenate([ids, noise])
        joined = with_documents(inputs, index, ids, self._corpus)
        self._steps += 1
        self._queries += size
        self._documents += len(joined["doc_text"])
        return joined

    def facts(self) -> dict[str, Any]:
        """Return what the run has seen: queries and documents, repeats counted, and the index refreshes."""
        return {
            **self._mining.notes,
            "budget": self._mining.documents,
            "steps": self._steps,
            "queries_seen": self._queries,
            "documents_seen": self._documents,
            "documents_per_step": self._documents / max(1, self._steps),
            "refreshes": self._corpus.refreshes,
        }

    def _wanted(self, room: int) -> int:
        most = self._mining.negatives
        return max(0, room if most is None else min(most, room))

    def _moment(
        self, step: int, random: np.random.Generator, inputs: dict[str, Tensor], negatives: int
    ) -> Moment:
        size = len(inputs["query_text"])
        row, ids = inputs["query_index"].numpy(), inputs["doc_id"].numpy()
        drawn = inputs["grades"].numpy() >= self._config.positive_label
        row, ids = row[drawn], ids[drawn]
        known_row = np.concatenate([row, inputs["known_index"].numpy()])
        known_ids = np.concatenate([ids, inputs["known_id"].numpy()])
        return Moment(
            step=step,
            random=random,
            queries=inputs["texts"].numpy()[inputs["query_text"].numpy()],
            positives=_by_row(known_row, known_ids, size),
            drawn=_by_row(row, ids, size),
            negatives=negatives,
        )


def with_documents(
    inputs: dict[str, Tensor], query_index: Ids, ids: Ids, corpus: Corpus
) -> dict[str, Tensor]:
    """Return a step's inputs with documents of the catalogue as negatives (label 0).

    Args:
        inputs: of `crops.training.model.GroupLoss.forward`, of one process.
        query_index: [M] row of the query whose own negative each is; -1 = of no query, for all.
        ids: [M] their ids.
        corpus: where their texts are.
    """
    rows = corpus.text_rows[np.searchsorted(corpus.ids, ids)]
    known = len(inputs["texts"])
    texts, place = np.unique(np.concatenate([inputs["texts"].numpy(), rows]), return_inverse=True)
    moved = torch.from_numpy(place[:known])
    return {
        **inputs,
        "texts": torch.from_numpy(texts),
        "encoded_here": torch.ones(len(texts), dtype=torch.bool),
        "query_text": moved[inputs["query_text"]],
        "doc_text": torch.cat([moved[inputs["doc_text"]], torch.from_numpy(place[known:])]),
        "query_index": torch.cat([inputs["query_index"], torch.from_numpy(query_index)]),
        "grades": torch.cat([inputs["grades"], torch.zeros(len(ids), dtype=torch.int64)]),
        "doc_id": torch.cat([inputs["doc_id"], torch.from_numpy(ids)]),
    }


def _by_row(row: Ids, ids: Ids, size: int) -> list[Ids]:
    """Return the ids of each of `size` rows."""
    order = np.argsort(row, kind="stable")
    return np.split(ids[order], np.searchsorted(row[order], np.arange(1, size)))


# ------------------------------------------------------------------------------
# The samplers of `crops.negatives` with what they need of a training: the index, and its renewal.


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
