"""From a model and a table of items to an index in service; killed, it goes on where it was."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.config import IndexConfig
from crops.errors import CropsError
from crops.outputs import cache_folder, console
from crops.relevance.encode import PACKAGED
from crops.retrieval.catalogue import load_item_rows, load_items, load_queries
from crops.retrieval.encoding import Model, encode_texts, narrowed, say_zero
from crops.retrieval.folder import SAMPLE, Catalogue, publish_catalogue, sampled
from crops.retrieval.index import check_model
from crops.retrieval.uri import Location, locate, open_index
from crops.retrieval.versions import IndexManifest, writing, written


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
        from crops.retrieval.milvus import publish_milvus

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


# ------------------------------------------------------------------------------
# Encoding that a kill does not undo: shards of vectors on disk, and the Parquet made of them.


SHARD = 16_384

"""Texts between two points from which a killed run goes on."""


def encode_shards(
    model: Model, texts: Sequence[str], work: Path, role: str = "document"
) -> list[NDArray[np.float32]]:
    """Encode texts shard by shard, each kept on disk under a hash of its texts and the model.

    Args:
        model: what encodes.
        texts: as the model's rendering gives them.
        work: folder of the shards; those found there are not encoded again.
        role: `document` or `query`.

    Returns:
        Memory maps of the shards, [n_i, d] each.
    """
    with written(work):
        work.mkdir(parents=True, exist_ok=True)
    shards = [texts[start : start + SHARD] for start in range(0, len(texts), SHARD)]
    files = [work / f"{_digest(model, role, shard)}.npy" for shard in shards]
    there = sum(file.exists() for file in files)
    if there:
        console.print(f"{there} of {len(files)} shards were encoded before")
    for shard, file in zip(shards, files, strict=True):
        if not file.exists():
            vectors = encode_texts(model.encoder, shard, role=role)
            with written(work):
                _save(file, vectors)
    blocks = [np.load(file, mmap_mode="r") for file in files]
    say_zero(blocks, "queries" if role == "query" else "documents")
    return blocks


def _save(file: Path, vectors: NDArray[np.float32]) -> None:
    staging = file.with_suffix(".tmp")
    try:
        with staging.open("wb") as stream:
            np.save(stream, vectors)
            stream.flush()
            os.fsync(stream.fileno())
        staging.replace(file)
    finally:
        staging.unlink(missing_ok=True)


def _digest(model: Model, role: str, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{model.hash} {role}".encode())
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()[:32]


def write_vectors(
    model: Model,
    ids: NDArray[np.int64],
    texts: Sequence[str],
    out: str | Path,
    *,
    role: str = "document",
    dims: int | None = None,
) -> int:
    """Encode texts into a Parquet file, which appears whole or not at all.

    Its columns are `item_id` or `query_id` and `vector` (fixed-size list of float32, unit length); its
    metadata name the model (`crops.model`, `crops.model_hash`).

    Args:
        model: what encodes.
        ids: of the texts [n].
        texts: as the model's rendering gives them.
        out: the file.
        role: `document` or `query`.
        dims: numbers of a vector that are kept, made unit length again; all when None.

    Returns:
        The numbers of a vector.

    Raises:
        CropsError: `out` is a folder, or `dims` exceeds what the model gives.
    """
    out = Path(out)
    if out.is_dir():
        raise CropsError(f"{out} is a folder; name a Parquet file for the vectors")
    with written(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    work, staging = Path(f"{out}.building"), Path(f"{out}.tmp")
    shards = encode_shards(model, texts, work, role)
    width = dims or shards[0].shape[1]
    vector = pa.list_(pa.float32(), width)
    facts = {"crops.model": model.name, "crops.model_hash": model.hash}
    column = "item_id" if role == "document" else "query_id"
    schema = pa.schema([(column, pa.int64()), ("vector", vector)], metadata=facts)
    start = 0
    with written(out), pq.ParquetWriter(staging, schema) as writer:
        for shard in shards:
            flat = pa.array(narrowed(shard, width).ravel())
            rows = [ids[start : start + len(shard)], pa.FixedSizeListArray.from_arrays(flat, type=vector)]
            writer.write_table(pa.table(rows, schema=schema))
            start += len(shard)
    staging.replace(out)
    shutil.rmtree(work)
    return width
