"""Building a Milvus index: a new collection is filled, measured, and then served under the alias."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crops.config import IndexConfig
from crops.errors import CropsError
from crops.retrieval import structures
from crops.retrieval.encoding import narrowed
from crops.retrieval.milvus_client import (
    answers,
    connect,
    describe,
    insert,
    number_of,
    search_collection,
    served,
    split,
)
from crops.retrieval.publish import Catalogue, described, scored
from crops.retrieval.recall import DEPTH, last_scores, least_effort
from crops.retrieval.versions import IndexManifest


def publish_milvus(target: str, catalogue: Catalogue, config: IndexConfig) -> IndexManifest:
    """Fill a new collection and move the alias to it; the collection before the last one is dropped.

    Raises:
        CropsError: Milvus has no such structure, or does not answer.
    """
    address, alias = split(target)
    client = connect(address)
    try:
        former = served(client, alias)
        number = 1 + max((number_of(name, alias) for name in client.list_collections()), default=0)
        name = f"{alias}_{number:06d}"
        with answers(address):
            _create(client, name, config, catalogue)
            manifest = _tuned(client, name, config, catalogue)
            describe(client, name, manifest)
            (client.create_alias if former is None else client.alter_alias)(name, alias)
            for other in client.list_collections():
                if number_of(other, alias) and other not in (name, former):
                    client.drop_collection(other)
    finally:
        client.close()
    return manifest


def _create(client: Any, name: str, config: IndexConfig, catalogue: Catalogue) -> None:  # noqa: ANN401
    from pymilvus import DataType, MilvusClient

    dim = config.dims or catalogue.model_dim
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("item_id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    client.create_collection(name, schema=schema)
    insert(client, name, catalogue.items, catalogue.blocks, dim)
    client.flush(name)
    index = client.prepare_index_params()
    kind, options = _structure(config, catalogue.items.num_rows, dim)
    index.add_index("vector", index_type=kind, metric_type="IP", params=options)
    client.create_index(name, index)
    client.load_collection(name)


def _structure(config: IndexConfig, count: int, dim: int) -> tuple[str, dict[str, Any]]:
    """Return Milvus' name of an index type and its parameters."""
    graph = {"M": structures.LINKS, "efConstruction": structures.CARE}
    clusters = {"nlist": structures.clusters(count)}
    types: dict[tuple[str, bool], tuple[str, dict[str, Any]]] = {
        ("exact", False): ("FLAT", {}),
        ("hnsw", False): ("HNSW", graph),
        ("hnsw", True): ("HNSW_SQ", {**graph, "sq_type": "SQ8"}),
        ("ivf", False): ("IVF_FLAT", clusters),
        ("ivf", True): ("IVF_SQ8", clusters),
        ("ivfpq", False): ("IVF_PQ", {**clusters, "m": dim // 2, "nbits": 8}),
    }
    if (config.kind, config.int8) not in types:
        raise CropsError(f"Milvus has no index of kind {config.kind} with int8; leave int8 out")
    return types[config.kind, config.int8]


def _tuned(client: Any, name: str, config: IndexConfig, catalogue: Catalogue) -> IndexManifest:  # noqa: ANN401
    """Measure the recall of a collection, with the least effort that reaches the target."""
    dim = config.dims or catalogue.model_dim
    queries = narrowed(catalogue.queries, dim)
    ids = catalogue.items["item_id"].to_numpy()
    truth = last_scores(queries, (narrowed(block, dim) for block in catalogue.blocks))

    def found(effort: int) -> NDArray[np.int64]:
        results, _ = search_collection(client, name, config.kind, effort, queries, DEPTH)
        return np.where(results < 0, -1, np.searchsorted(ids, results))

    def scores(effort: int) -> NDArray[np.float32]:
        return scored(catalogue.blocks, found(effort), queries)

    efforts = structures.efforts(config.kind, structures.clusters(len(ids)))
    effort, at_100 = least_effort(scores, efforts, truth, config.target_recall)
    manifest = described(config, catalogue, effort, at_100, found(effort))
    return manifest.model_copy(update={"version": name})
