"""Milvus as an index: Lite in a file, or a server; one adapter, the same calls.

A build fills a new collection and then moves an alias to it; updates go into the collection that is served.
Ask many queries in one search: in a hundred, one costs Lite a third of what it costs alone (20,000 items).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.errors import CropsError, UnknownItemError
from crops.retrieval.catalogue import check_k, no_results, search_known
from crops.retrieval.dense import Results
from crops.retrieval.exact import FlatIndex
from crops.retrieval.filters import ITEM_SCHEMA, SCAN_BELOW, Filter, item_rows
from crops.retrieval.index import check_update, query_vectors
from crops.retrieval.milvus_client import (
    BATCH,
    MOST,
    answers,
    connect,
    describe,
    insert,
    manifest_of,
    search_collection,
    split,
    the_served,
)


class MilvusIndex:
    """The collection behind an alias: implements `VectorIndex`."""

    def __init__(self, target: str) -> None:
        """Connect to an index.

        Args:
            target: path of a Milvus Lite file, or http(s)://host:port, with `#alias` for another alias than
                `crops`. A server's token is read from the environment (MILVUS_TOKEN).

        Raises:
            MissingExtraError: pymilvus is not installed.
            CropsError: nothing answers there, or it holds no such index.
        """
        self._target = target
        address, alias = split(target)
        if "://" not in address and not Path(address).exists():
            raise CropsError(f"there is no index {address}; make one with `crops index`")
        self._client = connect(address)
        try:
            self._collection = the_served(self._client, address, alias)
            self.manifest = manifest_of(self._client, self._collection)
            with answers(target):
                self._client.load_collection(self._collection)
        except CropsError:
            self._client.close()
            raise

    def search(self, vectors: NDArray[np.float32], k: int, where: Filter | None = None) -> Results:
        """Return ids and scores, each [q, k]; see `VectorIndex.search`.

        Scores come from the structure: with 8-bit or 4-bit codes they are approximate.
        """
        check_k(k)
        if k > MOST:
            raise CropsError(f"k = {k}: Milvus returns at most {MOST:,} results")
        queries = query_vectors(vectors, self.manifest)
        expression = "" if where is None else where.expression()
        with answers(self._target):
            return search_known(queries, k, lambda known: self._search(known, k, expression))

    def _search(self, queries: NDArray[np.float32], k: int, expression: str) -> Results:
        share = 1.0
        if expression:
            matching = self._count(expression)
            if matching == 0:
                return no_results(len(queries), k)
            share = matching / self._count("")
            if share < SCAN_BELOW and matching <= MOST:
                return self._scan(queries, k, expression)
        effort = min(round(self.manifest.effort / share), MOST)
        return search_collection(
            self._client, self._collection, self.manifest.kind, effort, queries, k, expression
        )

    def _count(self, expression: str) -> int:
        answer = self._client.query(self._collection, filter=expression, output_fields=["count(*)"])
        return int(answer[0]["count(*)"])

    def _scan(self, queries: NDArray[np.float32], k: int, expression: str) -> Results:
        rows = self._client.query(
            self._collection, filter=expression, output_fields=["item_id", "vector"], limit=MOST
        )
        ids = np.array([row["item_id"] for row in rows], dtype=np.int64)
        vectors = np.array([row["vector"] for row in rows], dtype=np.float32)
        return FlatIndex(ids, vectors).nearest(queries, k)

    def vectors(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors [n, dim] of items; see `VectorIndex.vectors`."""
        rows = self._rows(ids, ["item_id", "vector"])
        return np.array([row["vector"] for row in rows], dtype=np.float32).reshape(-1, self.manifest.dim)

    def known(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of `ids` [n] are in the index."""
        rows = self._found(ids, ["item_id"])
        return np.array([one in rows for one in ids.tolist()], dtype=np.bool_)

    def items(self, ids: NDArray[np.int64]) -> pa.Table:
        """Return the rows of items, in the order of `ids`; see `VectorIndex.items`."""
        rows = self._rows(ids, ITEM_SCHEMA.names)
        return pa.table(
            [pa.array([row.get(f.name) for row in rows], f.type) for f in ITEM_SCHEMA], schema=ITEM_SCHEMA
        )

    def _rows(self, ids: NDArray[np.int64], fields: list[str]) -> list[dict[str, Any]]:
        rows = self._found(ids, fields)
        if unknown := [one for one in ids.tolist() if one not in rows]:
            raise UnknownItemError(unknown[0], self._target, len(unknown))
        return [rows[one] for one in ids.tolist()]

    def _found(self, ids: NDArray[np.int64], fields: list[str]) -> dict[int, dict[str, Any]]:
        rows: dict[int, dict[str, Any]] = {}
        for start in range(0, len(ids), BATCH):
            some = ids[start : start + BATCH].tolist()
            with answers(self._target):
                found = self._client.get(self._collection, some, output_fields=fields)
            rows.update((row["item_id"], dict(row)) for row in found)
        return rows

    def update(self, items: pa.Table, vectors: NDArray[np.float32], deleted: NDArray[np.int64]) -> str:
        """Put items in and take others out, in the collection that is served; see `VectorIndex.update`.

        Searches see the rows as they arrive, not all at once.
        """
        check_update(items["item_id"].to_numpy(), vectors, deleted, self.manifest.dim)
        self._rows(deleted, ["item_id"])
        with answers(self._target):
            return self._update(items, vectors, deleted)

    def _update(self, items: pa.Table, vectors: NDArray[np.float32], deleted: NDArray[np.int64]) -> str:
        ids = items["item_id"].to_numpy()
        if not len(ids) and len(deleted) == self._count(""):
            raise CropsError("the update deletes every item; an index cannot be empty")
        insert(
            self._client, self._collection, item_rows(items), [vectors[np.argsort(ids)]], self.manifest.dim
        )
        if len(deleted):
            self._client.delete(self._collection, ids=deleted.tolist())
        self._client.flush(self._collection)
        collection, _, updates = self.manifest.version.partition("+")
        facts = {"version": f"{collection}+{int(updates or 0) + 1}", "count": self._count("")}
        self.manifest = self.manifest.model_copy(update=facts)
        describe(self._client, self._collection, self.manifest)
        return self.manifest.version

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def served_version(target: str) -> str:
    """Return the version behind the alias.

    Raises:
        CropsError: as `MilvusIndex`.
    """
    address, alias = split(target)
    client = connect(address)
    try:
        return manifest_of(client, the_served(client, address, alias)).version
    finally:
        client.close()
