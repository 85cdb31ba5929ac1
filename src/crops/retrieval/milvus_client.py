"""What both sides of the Milvus adapter, reading and building, ask of pymilvus."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.config.index import Kind
from crops.errors import CropsError, MissingExtraError
from crops.outputs import progress
from crops.retrieval.catalogue import best_results, no_results
from crops.retrieval.dense import Results
from crops.retrieval.encoding import narrowed
from crops.retrieval.versions import IndexManifest

ALIAS = "crops"
MOST = 16_384
"""Rows of one answer, by Milvus' rules."""
BATCH = 5_000
"""Rows of one request: below the 64 MB of a message at 1,024 dimensions."""
_QUERIES = 1_000
_SLACK = 64
"""Results fetched beyond k, so that ties at rank k go by id."""
_MANIFEST = "crops.manifest"
"""Collection property that holds the manifest."""


def search_collection(
    client: Any,  # noqa: ANN401
    collection: str,
    kind: Kind,
    effort: int,
    queries: NDArray[np.float32],
    k: int,
    expression: str = "",
) -> Results:
    """Return the nearest items of `queries` [q, d] as Milvus finds them, best first, ties by id."""
    fetch = min(k + _SLACK, MOST)
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


def insert(
    client: Any,  # noqa: ANN401
    collection: str,
    items: pa.Table,
    blocks: Sequence[NDArray[np.float32]],
    dim: int,
) -> None:
    """Upsert rows with their vectors, both in the same order."""
    start = 0
    with progress() as display:
        task = display.add_task("insert", total=items.num_rows, visible=items.num_rows > BATCH)
        for block in blocks:
            for at in range(0, len(block), BATCH):
                vectors = narrowed(block[at : at + BATCH], dim)
                rows = items.slice(start, len(vectors)).to_pylist()
                present = [{key: value for key, value in row.items() if value is not None} for row in rows]
                client.upsert(
                    collection, [{**row, "vector": one} for row, one in zip(present, vectors, strict=True)]
                )
                start += len(vectors)
                display.update(task, completed=start)


def split(target: str) -> tuple[str, str]:
    """Return the address and the alias that a target names."""
    address, _, alias = target.partition("#")
    return address, alias or ALIAS


def connect(address: str) -> Any:  # noqa: ANN401  (MilvusClient)
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
    except (fault(), OSError) as error:
        raise CropsError(
            f"{address} cannot be opened: {error}. A Lite file serves one process at a time."
        ) from error


@contextlib.contextmanager
def answers(address: str) -> Iterator[None]:
    """Turn the errors of Milvus, e.g. a server that is gone, into a `CropsError` that names the address."""
    try:
        yield
    except fault() as error:
        raise CropsError(f"{address}: Milvus says: {error.message}") from error


def fault() -> Any:  # noqa: ANN401  (the exception type)
    """Return the class of errors that Milvus raises."""
    from pymilvus.exceptions import MilvusException

    return MilvusException


def served(client: Any, alias: str) -> str | None:  # noqa: ANN401
    """Return the collection behind an alias, None where there is none."""
    if alias not in client.list_aliases()["aliases"]:
        return None
    return str(client.describe_alias(alias)["collection_name"])


def the_served(client: Any, address: str, alias: str) -> str:  # noqa: ANN401
    """Return the collection behind an alias.

    Raises:
        CropsError: there is none.
    """
    collection = served(client, alias)
    if collection is None:
        raise CropsError(f"{address} holds no index {alias}; make one with `crops index`")
    return collection


def number_of(collection: str, alias: str) -> int:
    """Return the number of one of our collections, 0 for another's."""
    prefix, _, number = collection.rpartition("_")
    return int(number) if prefix == alias and number.isdigit() else 0


def manifest_of(client: Any, collection: str) -> IndexManifest:  # noqa: ANN401
    """Return the manifest of a collection.

    Raises:
        CropsError: it has none.
    """
    text = client.describe_collection(collection)["properties"].get(_MANIFEST)
    if text is None:
        raise CropsError(f"the collection {collection} was not made by `crops index`")
    return IndexManifest.model_validate_json(text)


def describe(client: Any, collection: str, manifest: IndexManifest) -> None:  # noqa: ANN401
    """Write the manifest of a collection."""
    client.alter_collection_properties(collection, {_MANIFEST: manifest.model_dump_json()})
