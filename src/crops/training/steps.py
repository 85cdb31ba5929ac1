"""The inputs of each step: what a process encodes and contrasts of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from crops.errors import CropsError
from crops.training.objective import Objective
from crops.training.pool import TextPool
from crops.training.sample import Batch, GroupSampler


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
