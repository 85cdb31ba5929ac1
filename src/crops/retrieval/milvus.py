"""Milvus as an index: Lite in a file, or a server; one adapter, the same calls.

A build fills a new collection and then moves an alias to it; updates go into the collection that is served.
Ask many queries in one search: in a hundred, one costs Lite a third of what it costs alone (20,000 items).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.config import IndexConfig, Kind
from crops.errors import CropsError, MissingExtraError, UnknownItemError
from crops.ids import shown_id
from crops.outputs import progress
from crops.retrieval.catalogue import (
    ITEM_SCHEMA,
    SCAN_BELOW,
    Filter,
    Results,
    best_results,
    check_k,
    item_rows,
    no_results,
    search_known,
)
from crops.retrieval.dense import FlatIndex
from crops.retrieval.encoding import narrowed
from crops.retrieval.index import (
    CARE,
    DEPTH,
    LINKS,
    Catalogue,
    IndexManifest,
    check_update,
    clusters,
    query_vectors,
    tuned,
)

_Client = Any  # pymilvus is an extra, imported when it is needed
_ALIAS = "crops"
_MOST = 16_384
"""Rows of one answer, by Milvus' rules."""
_BATCH = 5_000
"""Rows of one request: below the 64 MB of a message at 1,024 dimensions."""
_QUERIES = 1_000
_SLACK = 64
"""Results fetched beyond k, so that ties at rank k go by id."""
_MANIFEST = "crops.manifest"
"""Collection property that holds the manifest."""


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
        address, _ = _split(target)
        if "://" not in address and not Path(address).exists():
            raise CropsError(f"there is no index {address}; make one with `crops index`")
        self._client = _connect(address)
        try:
            self._collection, self.manifest = _the_served(self._client, target)
            with _answers(target):
                self._client.load_collection(self._collection)
        except CropsError:
            self._client.close()
            raise

    def search(self, vectors: NDArray[np.float32], k: int, where: Filter | None = None) -> Results:
        """Return ids and scores, each [q, k]; see `VectorIndex.search`.

        Scores come from the structure: with 8-bit or 4-bit codes they are approximate.
        """
        check_k(k)
        if k > _MOST:
            raise CropsError(f"k = {k}: Milvus returns at most {_MOST:,} results")
        queries = query_vectors(vectors, self.manifest)
        expression = "" if where is None else where.expression()
        with _answers(self._target):
            return search_known(queries, k, lambda known: self._search(known, k, expression))

    def _search(self, queries: NDArray[np.float32], k: int, expression: str) -> Results:
        share = 1.0
        if expression:
            matching = self._count(expression)
            if matching == 0:
                return no_results(len(queries), k)
            share = matching / self._count("")
            if share < SCAN_BELOW and matching <= _MOST:
                return self._scan(queries, k, expression)
        effort = min(round(self.manifest.effort / share), _MOST)
        return _search_collection(
            self._client, self._collection, self.manifest.kind, effort, queries, k, expression
        )

    def _count(self, expression: str) -> int:
        answer = self._client.query(self._collection, filter=expression, output_fields=["count(*)"])
        return int(answer[0]["count(*)"])

    def _scan(self, queries: NDArray[np.float32], k: int, expression: str) -> Results:
        rows = self._client.query(
            self._collection, filter=expression, output_fields=["item_id", "vector"], limit=_MOST
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

    def shown(self, ids: NDArray[np.int64]) -> list[str]:
        """Return ids as people read them; see `VectorIndex.shown`."""
        return [shown_id(row) for row in self._rows(ids, ["item_id", "source_id"])]

    def _rows(self, ids: NDArray[np.int64], fields: list[str]) -> list[dict[str, Any]]:
        rows = self._found(ids, fields)
        if unknown := [one for one in ids.tolist() if one not in rows]:
            raise UnknownItemError(unknown[0], self._target, len(unknown))
        return [rows[one] for one in ids.tolist()]

    def _found(self, ids: NDArray[np.int64], fields: list[str]) -> dict[int, dict[str, Any]]:
        rows: dict[int, dict[str, Any]] = {}
        for start in range(0, len(ids), _BATCH):
            some = ids[start : start + _BATCH].tolist()
            with _answers(self._target):
                found = self._client.get(self._collection, some, output_fields=fields)
            rows.update((row["item_id"], dict(row)) for row in found)
        return rows

    def update(self, items: pa.Table, vectors: NDArray[np.float32], deleted: NDArray[np.int64]) -> str:
        """Put items in and take others out, in the collection that is served; see `VectorIndex.update`.

        Searches see the rows as they arrive, not all at once.
        """
        check_update(items["item_id"].to_numpy(), vectors, deleted, self.manifest.dim)
        self._rows(deleted, ["item_id"])
        with _answers(self._target):
            return self._update(items, vectors, deleted)

    def _update(self, items: pa.Table, vectors: NDArray[np.float32], deleted: NDArray[np.int64]) -> str:
        ids = items["item_id"].to_numpy()
        if not len(ids) and len(deleted) == self._count(""):
            raise CropsError("the update deletes every item; an index cannot be empty")
        _insert(
            self._client, self._collection, item_rows(items), [vectors[np.argsort(ids)]], self.manifest.dim
        )
        if len(deleted):
            self._client.delete(self._collection, ids=deleted.tolist())
        self._client.flush(self._collection)
        collection, _, updates = self.manifest.version.partition("+")
        changed = {"version": f"{collection}+{int(updates or 0) + 1}", "count": self._count("")}
        self.manifest = self.manifest.model_copy(update=changed)
        _describe(self._client, self._collection, self.manifest)
        return self.manifest.version

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def served_version(target: str) -> str:
    """Return the version behind the alias.

    Raises:
        CropsError: as `MilvusIndex`.
    """
    with contextlib.closing(_connect(_split(target)[0])) as client:
        return _the_served(client, target)[1].version


def publish_milvus(target: str, catalogue: Catalogue, config: IndexConfig) -> IndexManifest:
    """Fill a new collection and move the alias to it; the collection before the last one is dropped.

    Raises:
        CropsError: Milvus has no such structure, or does not answer.
    """
    address, alias = _split(target)
    with contextlib.closing(_connect(address)) as client:
        former = _served(client, alias)
        number = 1 + max((_number_of(name, alias) for name in client.list_collections()), default=0)
        name = f"{alias}_{number:06d}"
        with _answers(address):
            _create(client, name, config, catalogue)
            ids = catalogue.items["item_id"].to_numpy()

            def found(queries: NDArray[np.float32], effort: int) -> NDArray[np.int64]:
                results, _ = _search_collection(client, name, config.kind, effort, queries, DEPTH)
                return np.where(results < 0, -1, np.searchsorted(ids, results))

            manifest = tuned(catalogue, config, found).model_copy(update={"version": name})
            _describe(client, name, manifest)
            (client.create_alias if former is None else client.alter_alias)(name, alias)
            for other in client.list_collections():
                if _number_of(other, alias) and other not in (name, former):
                    client.drop_collection(other)
    return manifest


def _create(client: _Client, name: str, config: IndexConfig, catalogue: Catalogue) -> None:
    from pymilvus import DataType, MilvusClient

    dim = config.dims or catalogue.model_dim
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("item_id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    client.create_collection(name, schema=schema)
    _insert(client, name, catalogue.items, catalogue.blocks, dim)
    client.flush(name)
    index = client.prepare_index_params()
    kind, options = _structure(config, catalogue.items.num_rows, dim)
    index.add_index("vector", index_type=kind, metric_type="IP", params=options)
    client.create_index(name, index)
    client.load_collection(name)


def _structure(config: IndexConfig, count: int, dim: int) -> tuple[str, dict[str, Any]]:
    """Return Milvus' name of an index type and its parameters."""
    graph = {"M": LINKS, "efConstruction": CARE}
    lists = {"nlist": clusters(count)}
    types: dict[tuple[str, bool], tuple[str, dict[str, Any]]] = {
        ("exact", False): ("FLAT", {}),
        ("hnsw", False): ("HNSW", graph),
        ("hnsw", True): ("HNSW_SQ", {**graph, "sq_type": "SQ8"}),
        ("ivf", False): ("IVF_FLAT", lists),
        ("ivf", True): ("IVF_SQ8", lists),
        ("ivfpq", False): ("IVF_PQ", {**lists, "m": dim // 2, "nbits": 8}),
    }
    if (config.kind, config.int8) not in types:
        raise CropsError(f"Milvus has no index of kind {config.kind} with int8; leave int8 out")
    return types[config.kind, config.int8]


def _search_collection(
    client: _Client,
    collection: str,
    kind: Kind,
    effort: int,
    queries: NDArray[np.float32],
    k: int,
    expression: str = "",
) -> Results:
    """Return the nearest items of `queries` [q, d] as Milvus finds them, best first, ties by id."""
    fetch = min(k + _SLACK, _MOST)
    params = {"hnsw": {"ef": max(effort, fetch)}, "ivf": {"nprobe": effort}, "ivfpq": {"nprobe": effort}}
    ids, scores = no_results(len(queries), fetch)
    for start in range(0, len(queries), _QUERIES):
        answers = client.search(
            collection,
            data=list(queries[start : start + _QUERIES]),
            limit=fetch,
            filter=expression,
            output_fields=["item_id"],
            search_params={"metric_type": "IP", "params": params.get(kind, {})},
        )
        for row, hits in enumerate(answers, start):
            ids[row, : len(hits)] = [hit["item_id"] for hit in hits]
            scores[row, : len(hits)] = [hit["distance"] for hit in hits]
    return best_results(ids, scores, k)


def _insert(
    client: _Client,
    collection: str,
    items: pa.Table,
    blocks: Sequence[NDArray[np.float32]],
    dim: int,
) -> None:
    """Upsert rows with their vectors, both in the same order."""
    start = 0
    with progress() as display:
        task = display.add_task("insert", total=items.num_rows, visible=items.num_rows > _BATCH)
        for block in blocks:
            for at in range(0, len(block), _BATCH):
                vectors = narrowed(block[at : at + _BATCH], dim)
                rows = items.slice(start, len(vectors)).to_pylist()
                present = [{key: value for key, value in row.items() if value is not None} for row in rows]
                client.upsert(
                    collection, [{**row, "vector": one} for row, one in zip(present, vectors, strict=True)]
                )
                start += len(vectors)
                display.update(task, completed=start)


def _split(target: str) -> tuple[str, str]:
    """Return the address and the alias that a target names."""
    address, _, alias = target.partition("#")
    return address, alias or _ALIAS


def _connect(address: str) -> _Client:
    """Return a client.

    Raises:
        MissingExtraError: pymilvus is not installed.
        CropsError: nothing answers there, or another process has the file open.
    """
    try:
        import pymilvus
    except ImportError as error:
        raise MissingExtraError("pymilvus", "milvus") from error
    for name in ("pymilvus", "milvus_lite"):  # they would log what was asked for, filters included
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return pymilvus.MilvusClient(uri=address, token=os.environ.get("MILVUS_TOKEN", ""))
    except (_fault(), OSError) as error:
        raise CropsError(
            f"{address} cannot be opened: {error}. A Lite file serves one process at a time."
        ) from error


@contextlib.contextmanager
def _answers(address: str) -> Iterator[None]:
    """Turn the errors of Milvus, e.g. a server that is gone, into a `CropsError` that names the address."""
    try:
        yield
    except _fault() as error:
        raise CropsError(f"{address}: Milvus says: {error.message}") from error


def _fault() -> Any:  # noqa: ANN401  (the exception type)
    """Return the class of errors that Milvus raises."""
    from pymilvus.exceptions import MilvusException

    return MilvusException


def _served(client: _Client, alias: str) -> str | None:
    """Return the collection behind an alias, None where there is none."""
    if alias not in client.list_aliases()["aliases"]:
        return None
    return str(client.describe_alias(alias)["collection_name"])


def _the_served(client: _Client, target: str) -> tuple[str, IndexManifest]:
    """Return the collection that a target names, and its manifest.

    Raises:
        CropsError: there is none, or it is not ours.
    """
    address, alias = _split(target)
    collection = _served(client, alias)
    if collection is None:
        raise CropsError(f"{address} holds no index {alias}; make one with `crops index`")
    text = client.describe_collection(collection)["properties"].get(_MANIFEST)
    if text is None:
        raise CropsError(f"the collection {collection} was not made by `crops index`")
    return collection, IndexManifest.model_validate_json(text)


def _number_of(collection: str, alias: str) -> int:
    """Return the number of one of our collections, 0 for another's."""
    prefix, _, number = collection.rpartition("_")
    return int(number) if prefix == alias and number.isdigit() else 0


def _describe(client: _Client, collection: str, manifest: IndexManifest) -> None:
    """Write the manifest of a collection."""
    client.alter_collection_properties(collection, {_MANIFEST: manifest.model_dump_json()})
