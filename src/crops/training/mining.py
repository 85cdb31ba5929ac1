"""Negatives from a catalogue that join each batch, chosen with the weights of that step.

Which ones is the business of a miner (`crops.negatives`); here they become part of a step's inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from crops.config import TrainingConfig
from crops.errors import CropsError
from crops.negatives.base import Corpus, Ids, Miner, Moment, Vectors
from crops.retrieval.catalogue import NO_ITEM
from crops.training.groups import GroupStore
from crops.training.model import Array
from crops.training.pool import TextPool, embed
from crops.training.runs import processes
from crops.training.samples import Catalogue


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
        source: GroupStore,
        config: TrainingConfig,
        seed: int,
    ) -> None:
        """Prepare the miner.

        Raises:
            CropsError: there are several processes.
        """
        if processes()[1] > 1:
            raise CropsError("mined negatives are for one process; start without torchrun")
        self._corpus = EncodedCorpus(encoder, pool, mining.catalogue, source, config.encode_chunk)
        self._miner = None if mining.miner is None else mining.miner(self._corpus)
        self._mining, self._config, self._seed = mining, config, seed
        self._steps = self._queries = self._documents = 0

    def __call__(self, step: int, inputs: dict[str, Array]) -> dict[str, Array]:
        """Return the inputs with the negatives of a step (from 0)."""
        random = np.random.default_rng([self._seed, step, 3])
        size, room = len(inputs["query_text"]), self._mining.documents - len(inputs["doc_text"])
        index, ids = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        if self._miner is not None:
            most, spare = self._mining.negatives, room // size
            drawn = inputs["grades"] >= self._config.positive_label
            row, positive = inputs["query_index"][drawn], inputs["doc_id"][drawn]
            known = (
                np.concatenate([row, inputs["known_index"]]),
                np.concatenate([positive, inputs["known_id"]]),
            )
            own = self._miner(
                Moment(
                    step=step,
                    random=random,
                    queries=inputs["texts"][inputs["query_text"]],
                    positives=_by_row(*known, size),
                    drawn=_by_row(row, positive, size),
                    negatives=max(0, spare if most is None else min(most, spare)),
                )
            )
            index, column = np.nonzero(own != NO_ITEM)
            ids = own[index, column]
        if self._config.in_batch:
            # Without in-batch negatives nobody's document would be all queries' negative.
            catalogue = self._corpus.ids
            missing = min(max(0, room - len(ids)), len(catalogue))
            noise = catalogue[random.choice(len(catalogue), missing, replace=False)]
            index, ids = np.concatenate([index, np.full(len(noise), -1)]), np.concatenate([ids, noise])
        joined = with_documents(inputs, index, ids, self._corpus)
        self._steps += 1
        self._queries += size
        self._documents += len(joined["doc_text"])
        return joined

    def summary(self) -> dict[str, Any]:
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


def with_documents(
    inputs: dict[str, Array], query_index: Ids, ids: Ids, corpus: EncodedCorpus
) -> dict[str, Array]:
    """Return a step's inputs with documents `ids` [M] of the catalogue as negatives (label 0).

    `query_index` [M] is the row of the query whose own negative each is; -1 = of no query, for all.
    """
    rows = corpus.text_rows[np.searchsorted(corpus.ids, ids)]
    known = len(inputs["texts"])
    texts, place = np.unique(np.concatenate([inputs["texts"], rows]), return_inverse=True)
    moved = place[:known]
    return {
        **inputs,
        "texts": texts,
        "encoded_here": np.ones(len(texts), dtype=np.bool_),
        "query_text": moved[inputs["query_text"]],
        "doc_text": np.concatenate([moved[inputs["doc_text"]], place[known:]]),
        "query_index": np.concatenate([inputs["query_index"], query_index]),
        "grades": np.concatenate([inputs["grades"], np.zeros(len(ids), dtype=np.int64)]),
        "doc_id": np.concatenate([inputs["doc_id"], ids]),
    }


def _by_row(row: Ids, ids: Ids, size: int) -> list[Ids]:
    """Return the ids of each of `size` rows."""
    order = np.argsort(row, kind="stable")
    return np.split(ids[order], np.searchsorted(row[order], np.arange(1, size)))


class EncodedCorpus:
    """The catalogue and the training queries as the encoder sees them now; a `negatives.base.Corpus`."""

    def __init__(
        self,
        encoder: SentenceTransformer,
        pool: TextPool,
        catalogue: Catalogue,
        source: GroupStore,
        chunk: int | None,
    ) -> None:
        """Encode nothing yet; `chunk` is that of `crops.training.pool.embed`."""
        self.ids, self.texts = catalogue.ids, catalogue.texts
        self.text_rows = source.catalogue_text()
        self.query_texts = [text for batch in source.query_texts() for text in batch]
        """Texts of the rows of the pool from 0 on."""
        self.refreshes = 0
        """How often the documents were encoded."""
        self._encoder, self._pool, self._chunk = encoder, pool, chunk

    def encode_documents(self) -> Vectors:
        """Return the embeddings of the catalogue, [D, d]."""
        self.refreshes += 1
        return self.encode_queries(self.text_rows)

    def encode_queries(self, rows: Ids) -> Vectors:
        """Return the embeddings [n, d] of texts, by their rows of the pool [n]."""
        distinct, place = np.unique(rows, return_inverse=True)
        training = self._encoder.training
        self._encoder.eval()
        with torch.no_grad():
            vectors = embed(self._encoder, self._pool, distinct, self._chunk)
        self._encoder.train(training)
        return np.asarray(vectors.float().cpu().numpy()[place])
