"""From a model and a table of items to an index in service; killed, it goes on where it was."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.config import IndexConfig
from crops.errors import CropsError
from crops.outputs import cache_folder
from crops.relevance.models import PACKAGED
from crops.retrieval.catalogue import load_items
from crops.retrieval.encoding import Model, encode_texts, narrowed, say_zero
from crops.retrieval.index import check_model
from crops.retrieval.inputs import load_item_rows, load_queries
from crops.retrieval.publish import SAMPLE, Catalogue, publish_catalogue, sampled
from crops.retrieval.shards import encode_shards
from crops.retrieval.uri import Location, locate, open_index
from crops.retrieval.versions import IndexManifest, writing


def build_index(
    uri: str, model: Model, items: str | Path, config: IndexConfig, queries: str | Path | None = None
) -> IndexManifest:
    """Encode a catalogue and put an index of it in service.

    Args:
        uri: `faiss:FOLDER` or `milvus:...`; a former version goes on serving until the new one is complete.
        model: from `load_model`.
        items: see `crops.retrieval.load_items`.
        config: kind and width of the index.
        queries: table of queries that recall is measured with (see `load_queries`); a sample of the documents
            when None, which is a little kinder: each finds itself.

    Returns:
        The manifest of the new version, with its measured recall.

    Raises:
        CropsError: bad input, another writer, or a structure that the kind cannot have.
    """
    queries = None if queries is None else Path(queries)
    items = Path(items)
    location = locate(uri)
    work = _work_folder(location)
    _, texts = load_items(items, rendering=model.rendering)
    rows = load_item_rows(items)
    if location.scheme == "milvus":
        from crops.retrieval.milvus_build import publish_milvus

        manifest = publish_milvus(
            location.target, _catalogue(model, rows, texts, work, config, queries), config
        )
        shutil.rmtree(work)
        return manifest
    if location.scheme != "faiss":
        raise CropsError(
            f"'{uri}': an index is written to faiss:FOLDER or milvus:..., not {location.scheme}:"
        )
    with writing(location.folder):
        catalogue = _catalogue(model, rows, texts, work, config, queries)
        manifest = publish_catalogue(location.folder, catalogue, config).manifest
        shutil.rmtree(work)
    return manifest


def update_index(
    uri: str, model: Model, items: str | Path | None, deleted: NDArray[np.int64]
) -> IndexManifest:
    """Put the items of a table into an index, in place of those with the same ids, and take others out.

    Raises:
        CropsError: the model is not the one of the index, or as `VectorIndex.update`.
    """
    items = None if items is None else Path(items)
    index = open_index(uri)
    try:
        check_model(index.manifest, model)
        rows = load_item_rows(items) if items else index.items(np.empty(0, dtype=np.int64))
        vectors = np.empty((0, index.manifest.dim), dtype=np.float32)
        if items:
            _, texts = load_items(items, rendering=model.rendering)
            vectors = narrowed(encode_texts(model.encoder, texts), index.manifest.dim)
            say_zero([vectors], "documents")
        index.update(rows, vectors, deleted)
    finally:
        index.close()
    index = open_index(uri)
    index.close()
    return index.manifest


def _catalogue(
    model: Model, rows: pa.Table, texts: Sequence[str], work: Path, config: IndexConfig, queries: Path | None
) -> Catalogue:
    blocks = encode_shards(model, texts, work)
    if queries is None:
        asked, source = sampled(blocks, config.seed), "documents of the index"
    else:
        known = load_queries(queries)[1]
        chosen = np.random.default_rng(config.seed).permutation(len(known))[:SAMPLE]
        rendered = [model.rendering.query(known[row]) for row in chosen]
        asked, source = encode_texts(model.encoder, rendered, role="query"), str(queries)
    return Catalogue(rows, blocks, _recorded_name(model.name), model.hash, blocks[0].shape[1], asked, source)


def _recorded_name(name: str) -> str:
    """Return a model's name as it can be found from anywhere; that of a folder is its absolute path."""
    is_folder = name not in PACKAGED and Path(name).is_dir()
    return str(Path(name).absolute()) if is_folder else name


def _work_folder(location: Location) -> Path:
    """Return where the shards of a build are kept: beside the index, or in the cache for one on a server."""
    if location.scheme != "milvus":
        return location.folder / "building"
    if "://" in location.target:
        return cache_folder() / "building" / hashlib.sha256(location.target.encode()).hexdigest()[:16]
    return Path(f"{location.target.partition('#')[0]}.building")
