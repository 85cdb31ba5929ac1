"""What a step sees and minimises: the loss that the settings name, its inputs, and what joins them."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.utils.data import Dataset

from crops.config import TrainingConfig
from crops.encoders import over_dims
from crops.errors import CropsError
from crops.losses import find_loss, hidden_pairs
from crops.losses.functions import MAX_LABEL
from crops.negatives.base import Corpus, Ids, Miner, Moment, Vectors
from crops.outputs import MANIFEST
from crops.retrieval.catalogue import NO_ITEM
from crops.training.buckets import LaneSampler
from crops.training.groups import Batch, GroupSampler, GroupStore
from crops.training.pool import TextPool, embed
from crops.training.runs import exchanged, gather, processes
from crops.training.samples import Catalogue

Array = NDArray[Any]


class GroupLoss(nn.Module):
    """Encodes a batch of groups and returns its loss; tau is learned as its logarithm."""

    def __init__(self, encoder: SentenceTransformer, pool: TextPool, config: TrainingConfig) -> None:
        """Start at `start_temperature`."""
        super().__init__()
        self.encoder = encoder
        self.log_temperature = nn.Parameter(torch.tensor(math.log(start_temperature(config))))
        self._pool = pool
        self._chunk = config.encode_chunk
        self._loss = objective(config).loss

    @property
    def temperature(self) -> float:
        """The current tau."""
        return self.log_temperature.detach().exp().item()

    def forward(
        self,
        texts: Array,
        encoded_here: Array,
        query_text: Array,
        doc_text: Array,
        query_index: Array,
        grades: Array,
        query_id: Array,
        doc_id: Array,
        known_index: Array,
        known_id: Array,
        scale: Array,
    ) -> Tensor:
        """Return the sum of the losses of this process's anchors, times `scale`.

        The arguments are NumPy arrays, which stay on the host: neither the Trainer nor its
        DistributedDataParallel sends them to a GPU one by one, waiting for each.

        Args:
            texts: [U] rows of the pool, distinct.
            encoded_here: [U] which of them this process encodes; the others come from their processes.
            query_text: [Q] places in `texts`.
            doc_text: [N] places in `texts`.
            query_index: see `crops.losses.h_infonce`, as for the labels (grades), ids and known positives.
            scale: processes / terms of the mean over all processes: the mean of the results over the
                processes is then that mean.
        """
        embeddings = gather(embed(self.encoder, self._pool, texts[encoded_here], self._chunk), encoded_here)
        queries, docs = (
            torch.from_numpy(place).to(embeddings.device, non_blocking=True)
            for place in (query_text, doc_text)
        )
        loss = self._loss(
            embeddings[queries],
            embeddings[docs],
            torch.from_numpy(query_index),
            torch.from_numpy(grades),
            temperature=self.log_temperature.exp(),
            query_id=torch.from_numpy(query_id),
            doc_id=torch.from_numpy(doc_id),
            known=(torch.from_numpy(known_index), torch.from_numpy(known_id)),
            reduction="sum",
        )
        return loss * float(scale)


def start_temperature(config: TrainingConfig) -> float:
    """Return the temperature to begin with: that of the settings, else that which `init` has learned."""
    if config.init is not None and "temperature" not in config.model_fields_set:
        manifest = Path(config.init) / MANIFEST
        if manifest.exists():
            return float(json.loads(manifest.read_text()).get("temperature", config.temperature))
    return config.temperature


@dataclass(frozen=True)
class Objective:
    """Which loss a run minimises, which documents are its anchors, and what its mean is over.

    `crops.losses.h_infonce` documents the arguments of the loss.
    """

    loss: Callable[..., Tensor]
    lowest_anchor: int
    """Lowest label of an anchor; a group without one teaches nothing."""
    by_query: bool = False
    """Whether the mean is over queries and not over anchors."""
    by_gain: bool = False
    """Whether an anchor counts 2^label - 1, and not 1."""

    def terms(self, labels: NDArray[np.int64], query_index: NDArray[np.int64]) -> int:
        """Return what the mean of a batch divides by, given labels and query rows [N] of its documents."""
        anchors = labels >= self.lowest_anchor
        if self.by_gain:
            return int((2 ** labels[anchors] - 1).sum())
        return len(np.unique(query_index[anchors])) if self.by_query else int(anchors.sum())


def objective(config: TrainingConfig) -> Objective:
    """Return the loss that the settings name.

    Raises:
        CropsError: there is none of that name, or it takes no weights.
    """
    row = find_loss(config.loss)
    lowest: int = getattr(config, row.anchors)
    loss = functools.partial(row.load(), **{row.bound: lowest}, **row.options)
    by_gain = config.label_weights == "gain"
    if by_gain and not row.weighted:
        raise CropsError(f"training.label_weights = 'gain' is not for the loss {config.loss}; leave it out")
    if by_gain:
        lowest = max(1, lowest)  # label 0 gains nothing
        loss = functools.partial(
            loss, label_weights={label: 2.0**label - 1 for label in range(MAX_LABEL + 1)}
        )
    if not config.in_batch:
        loss = functools.partial(_among_own, loss)
    return Objective(over_dims(loss, config.matryoshka_dims), max(row.lowest, lowest), row.by_query, by_gain)


def _among_own(loss: Callable[..., Tensor], *args: Tensor, query_id: Tensor, **options: Any) -> Tensor:  # noqa: ANN401
    """Return the loss without the documents of other queries: rows of one query id are not contrasted."""
    return loss(*args, query_id=torch.zeros_like(query_id), **options)


@dataclass(frozen=True)
class Share:
    """Which part of a step's work a process does."""

    rank: int = 0
    world: int = 1

    def of_texts(self, rows: NDArray[np.int64], pool: TextPool) -> NDArray[np.bool_]:
        """Return which distinct texts [U] this process encodes: every world-th in the order of length."""
        place = np.empty(len(rows), dtype=np.int64)
        place[np.argsort(pool.lengths(rows), kind="stable")] = np.arange(len(rows))
        return np.asarray(place % self.world == self.rank)

    def of_queries(self, query_id: NDArray[np.int64], query_index: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whose rows [Q] this process contrasts: about equal documents, equal query ids together.

        Raises:
            CropsError: there are fewer distinct queries than processes.
        """
        ids, owner = np.unique(query_id, return_inverse=True)
        if len(ids) < self.world:
            raise CropsError(f"a batch of {len(ids)} queries for {self.world} processes; raise batch_queries")
        sizes = np.bincount(owner[query_index], minlength=len(ids))
        place = np.empty(len(ids), dtype=np.int64)
        place[np.argsort(-sizes, kind="stable")] = np.arange(len(ids))
        return np.asarray(place % self.world == self.rank)[owner]


def step_inputs(batch: Batch, pool: TextPool, objective: Objective, share: Share) -> dict[str, Array]:
    """Return what `GroupLoss.forward` takes: each distinct text of the batch named once.

    Every process draws the same batch. It encodes its share of the texts and contrasts its share of the
    queries with all documents; documents of the other queries get the query index -1.
    """
    texts, place = np.unique(np.concatenate([batch.query_text, batch.doc_text]), return_inverse=True)
    query_text, doc_text = np.split(place, [len(batch.query_id)])
    mine = share.of_queries(batch.query_id, batch.query_index)
    local = np.where(mine, np.cumsum(mine) - 1, -1)
    known = mine[batch.known_index]
    return {
        "texts": texts,
        "encoded_here": share.of_texts(texts, pool),
        "query_text": query_text[mine],
        "doc_text": doc_text,
        "query_index": local[batch.query_index],
        "grades": batch.label,
        "query_id": batch.query_id[mine],
        "doc_id": batch.doc_id,
        "known_index": local[batch.known_index][known],
        "known_id": batch.known_id[known],
        "scale": np.array(share.world / objective.terms(batch.label, batch.query_index)),
    }


def among_all(own: dict[str, Array]) -> dict[str, Array]:
    """Return the inputs of a step whose queries each process has drawn by itself, given its own inputs.

    Documents are those of all processes, by rank; each process encodes its own. Queries of an id lie in one
    bucket and so on one process: all masks hold.
    """
    names = ("doc_text", "doc_id")
    parts = exchanged((len(own["texts"]), *(own[name] for name in names), 1 / float(own["scale"])))
    rank, world = processes()
    texts = np.cumsum([0, *(part[0] for part in parts)])
    docs = np.cumsum([0, *(len(part[1]) for part in parts)])
    here, mine = slice(texts[rank], texts[rank + 1]), slice(docs[rank], docs[rank + 1])
    found = dict(own)
    for name, size, place, empty in (
        ("texts", texts[-1], here, -1),
        ("encoded_here", texts[-1], here, 0),
        ("query_index", docs[-1], mine, -1),
        ("grades", docs[-1], mine, 0),
    ):
        found[name] = np.full(size, empty, dtype=own[name].dtype)
        found[name][place] = own[name]
    found["query_text"] = own["query_text"] + texts[rank]
    found["doc_text"] = np.concatenate(
        [part[1] + start for part, start in zip(parts, texts[:-1], strict=True)]
    )
    found["doc_id"] = np.concatenate([part[2] for part in parts])
    found["scale"] = np.array(world / sum(part[3] for part in parts))
    return found


class Steps(Dataset[dict[str, Array]]):
    """The inputs of each step, by its number from 0."""

    def __init__(
        self,
        sampler: GroupSampler | LaneSampler,
        pool: TextPool,
        steps: int,
        objective: Objective,
        share: Share = Share(),  # noqa: B008  (frozen)
    ) -> None:
        """Draw from `sampler`, name texts in `pool`.

        What a `LaneSampler` draws is this process's share already: `share` is then to be the whole.
        """
        self._sampler, self._pool, self._share = sampler, pool, share
        self._steps, self._objective = steps, objective

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, Array]:
        if step >= self._steps:
            raise IndexError(step)
        inputs = step_inputs(self._sampler.draw(step), self._pool, self._objective, self._share)
        return among_all(inputs) if isinstance(self._sampler, LaneSampler) else inputs


def contrast_of(inputs: dict[str, Array], in_batch: bool = True) -> dict[str, float]:
    """Return how many documents a query of this batch is contrasted with, and how many are duplicates.

    `queries`, `documents`: in the batch. `contrasted`: mean over queries of the other queries' documents in
    their denominators (0 unless these are negatives, `in_batch`). `duplicates`: share of drawn documents
    whose id was drawn before. `texts`: distinct texts to encode.
    """
    queries, documents = len(inputs["query_text"]), len(inputs["doc_text"])
    own = int((inputs["query_index"] >= 0).sum())
    names = ("query_index", "query_id", "doc_id", "known_index", "known_id")
    index, query_id, doc_id, *known = (torch.from_numpy(inputs[name]) for name in names)
    row, doc = hidden_pairs(index, query_id, doc_id, (known[0], known[1]))
    hidden = len(torch.unique(row * documents + doc))
    return {
        "queries": queries,
        "documents": documents,
        "contrasted": (queries * documents - own - hidden) / queries if in_batch else 0.0,
        "duplicates": 1 - len(np.unique(inputs["doc_id"])) / documents,
        "texts": len(inputs["texts"]),
    }


# Negatives from a catalogue that join each batch, chosen with the weights of that step. Which ones is the
# business of a miner (`crops.negatives`); here they become part of the inputs of a step.


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
