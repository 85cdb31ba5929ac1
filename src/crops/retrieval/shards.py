"""Encoding that a kill does not undo: shards of vectors on disk, and the Parquet made of them."""

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

from crops.errors import CropsError
from crops.outputs import console
from crops.retrieval.encoding import Model, encode_texts, narrowed, say_zero
from crops.retrieval.versions import written

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
