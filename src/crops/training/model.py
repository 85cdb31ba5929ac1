"""What a step sees and minimises: its inputs, the loss that the settings name, and the trained object."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
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
from crops.outputs import MANIFEST
from crops.training.pool import TextPool, embed
from crops.training.runs import gather
from crops.training.sampler import Batch, GroupSampler


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
        texts: Tensor,
        encoded_here: Tensor,
        query_text: Tensor,
        doc_text: Tensor,
        query_index: Tensor,
        grades: Tensor,
        query_id: Tensor,
        doc_id: Tensor,
        known_index: Tensor,
        known_id: Tensor,
        scale: Tensor,
    ) -> Tensor:
        """Return the sum of the losses of this process's anchors, times `scale`.

        Args:
            texts: [U] rows of the pool, distinct.
            encoded_here: [U] which of them this process encodes; the others come from their processes.
            query_text: [Q] places in `texts`.
            doc_text: [N] places in `texts`.
            query_index: see `crops.losses.h_infonce`, as for the labels (grades), ids and known positives.
            scale: processes / terms of the mean over all processes: the mean of the results over the
                processes is then that mean.
        """
        rows = texts[encoded_here].cpu().numpy()
        embeddings = gather(embed(self.encoder, self._pool, rows, self._chunk), encoded_here)
        loss = self._loss(
            embeddings[query_text],
            embeddings[doc_text],
            query_index,
            grades,
            temperature=self.log_temperature.exp(),
            query_id=query_id,
            doc_id=doc_id,
            known=(known_index, known_id),
            reduction="sum",
        )
        return loss * scale.to(loss.dtype)


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


def step_inputs(batch: Batch, pool: TextPool, objective: Objective, share: Share) -> dict[str, Tensor]:
    """Return what `GroupLoss.forward` takes: each distinct text of the batch named once.

    Every process draws the same batch. It encodes its share of the texts and contrasts its share of the
    queries with all documents; documents of the other queries get the query index -1.
    """
    groups = batch.groups
    texts, place = np.unique(
        np.concatenate([groups.query_text[batch.group], groups.doc_text[batch.pair]]), return_inverse=True
    )
    labels, query_id = groups.label[batch.pair], groups.query_id[batch.group]
    mine = share.of_queries(query_id, batch.query_index)
    local = np.where(mine, np.cumsum(mine) - 1, -1)
    known = mine[batch.known_index]
    terms = objective.terms(labels, batch.query_index)
    arrays = {
        "texts": texts,
        "encoded_here": share.of_texts(texts, pool),
        "query_text": place[: len(batch.group)][mine],
        "doc_text": place[len(batch.group) :],
        "query_index": local[batch.query_index],
        "grades": labels,
        "query_id": query_id[mine],
        "doc_id": groups.doc_id[batch.pair],
        "known_index": local[batch.known_index][known],
        "known_id": groups.doc_id[batch.known_pair][known],
        "scale": np.float64(share.world / terms),
    }
    return {name: torch.as_tensor(array) for name, array in arrays.items()}


class Steps(Dataset[dict[str, Tensor]]):
    """The inputs of each step, by its number from 0."""

    def __init__(
        self,
        sampler: GroupSampler,
        pool: TextPool,
        steps: int,
        objective: Objective,
        share: Share = Share(),  # noqa: B008  (frozen)
    ) -> None:
        """Draw from `sampler`, name texts in `pool`."""
        self._sampler, self._pool, self._share = sampler, pool, share
        self._steps, self._objective = steps, objective

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        if step >= self._steps:
            raise IndexError(step)
        return step_inputs(self._sampler.draw(step), self._pool, self._objective, self._share)


def contrast_of(inputs: dict[str, Tensor], in_batch: bool = True) -> dict[str, float]:
    """Return how many documents a query of this batch is contrasted with, and how many are duplicates.

    `queries`, `documents`: in the batch. `contrasted`: mean over queries of the other queries' documents in
    their denominators (0 unless these are negatives, `in_batch`). `duplicates`: share of drawn documents
    whose id was drawn before. `texts`: distinct texts to encode.
    """
    queries, documents = len(inputs["query_text"]), len(inputs["doc_text"])
    known = inputs["known_index"], inputs["known_id"]
    row, doc = hidden_pairs(inputs["query_index"], inputs["query_id"], inputs["doc_id"], known)
    hidden = len(torch.unique(row * documents + doc))
    return {
        "queries": queries,
        "documents": documents,
        "contrasted": ((queries - 1) * documents - hidden) / queries if in_batch else 0.0,
        "duplicates": 1 - len(torch.unique(inputs["doc_id"])) / documents,
        "texts": len(inputs["texts"]),
    }
