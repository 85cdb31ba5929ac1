"""From texts to unit vectors: by which model, what it reads, and encoding that resumes if interrupted."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tokenizers import Tokenizer

from crops.config import TrainingConfig
from crops.errors import CropsError
from crops.outputs import cache_folder, console, progress, whole_file, writable
from crops.text import Rendering, has_text

_PROBE = "?"
"""Encoded where no text has anything to read, to learn how wide a vector is."""
_CHUNK = 4096
"""Texts encoded between two steps of the progress display; the encoder batches by length inside a chunk."""
SHARD = 16_384
"""Texts between two points from which a killed run resumes."""


class Encoder(Protocol):
    """What turns texts into vectors; every SentenceTransformer does."""

    def encode(
        self, texts: list[str], /, *, batch_size: int, normalize_embeddings: bool, show_progress_bar: bool
    ) -> Any:  # noqa: ANN401  (an array or a tensor, [len(texts), d])
        """Return one vector for each text."""
        ...


class Model(NamedTuple):
    """An encoder and what an index must know of it."""

    name: str
    encoder: Encoder
    rendering: Rendering
    """What the encoder reads in place of queries and documents."""
    hash: str
    """`crops.relevance.encode.model_hash` of its folder."""


def load_model(name: str) -> Model:
    """Load the encoder of an index: an encoder preset, a model folder or a SentenceTransformer name.

    Raises:
        CropsError: there is no such model.
    """
    from crops.encoders import encoder_folder, load_encoder, rendering_of  # torch takes seconds to import
    from crops.relevance.encode import model_hash

    config = TrainingConfig(encoder=name)
    identity = model_hash(encoder_folder(config, cache_folder()))
    encoder = load_encoder(config, cache_folder())
    return Model(name, encoder, rendering_of(encoder), identity)


def encode_texts(encoder: Encoder, texts: Sequence[str], *, role: str = "document") -> NDArray[np.float32]:
    """Encode n texts to unit vectors [n, d], with a progress display if there are many.

    The encoder's `encode_query` or `encode_document` is used if it has one (SentenceTransformer: prompts). A
    vector is zero for a text with nothing to read or of which the encoder knows no part, and for a query
    without a token of its vocabulary: all of these would have one vector and find the same.

    Raises:
        CropsError: a vector holds NaN or infinity.
    """
    encode = getattr(encoder, f"encode_{role}", encoder.encode)
    legible = np.array([has_text(text) for text in texts], dtype=np.bool_)
    read = [text for text, has in zip(texts, legible, strict=True) if has] or [_PROBE]
    chunks: list[NDArray[np.float32]] = []
    with progress() as display:
        task = display.add_task(f"encode {role} texts", total=len(read), visible=len(read) > _CHUNK)
        for start in range(0, len(read), _CHUNK):
            chunk = read[start : start + _CHUNK]
            made = encode(chunk, batch_size=64, normalize_embeddings=True, show_progress_bar=False)
            chunks.append(np.asarray(made, dtype=np.float32))
            display.advance(task, len(chunk))
    found = np.concatenate(chunks)
    broken = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if broken.size:
        raise CropsError(
            f"the encoder gave NaN or infinity for {broken.size} of {len(read)} texts, the first is "
            f"{read[broken[0]][:80]!r}; the model did not train well or its files are damaged"
        )
    if role == "query":
        found[~_known(encoder, read)] = 0
    if legible.all():
        return found
    vectors = np.zeros((len(texts), found.shape[1]), dtype=np.float32)
    vectors[legible] = found[: legible.sum()]
    return vectors


def _known(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.bool_]:
    """Return which texts hold a token of the vocabulary; all where there is no token for unknown ones."""
    tokenizer = getattr(encoder, "tokenizer", None)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)  # transformers wrap the one of `tokenizers`
    unknown = getattr(tokenizer, "unk_token_id", None)
    if isinstance(tokenizer, Tokenizer) and (name := getattr(tokenizer.model, "unk_token", None)):
        unknown = tokenizer.token_to_id(name)
    if unknown is None or not isinstance(backend, Tokenizer):
        return np.ones(len(texts), dtype=np.bool_)
    found = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return np.array([any(token != unknown for token in one.ids) for one in found], dtype=np.bool_)


def say_zero(blocks: Sequence[NDArray[np.float32]], what: str) -> None:
    """Say how many vectors [n_i, d] of `what` ("documents") are zero: the encoder has no token for them."""
    zero = sum(int((~block.any(axis=1)).sum()) for block in blocks)
    if zero:
        total = sum(map(len, blocks))
        console.print(
            f"[yellow]{zero:,} of {total:,} {what} have no token for this model:[/yellow] "
            "their vectors are zero"
        )


def narrowed(vectors: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Return the first `dim` numbers of unit vectors [n, d >= dim], made unit length (Matryoshka).

    Raises:
        CropsError: the vectors are narrower than `dim`.
    """
    width = vectors.shape[1]
    if width < dim:
        raise CropsError(f"vectors of {width} numbers cannot be searched in an index of {dim}")
    if width == dim:
        return np.ascontiguousarray(vectors, dtype=np.float32)
    cut = vectors[:, :dim].astype(np.float32)
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    np.divide(cut, norms, out=cut, where=norms > 0)
    return cut


def encode_shards(
    model: Model, texts: Sequence[str], work: Path, role: str = "document"
) -> list[NDArray[np.float32]]:
    """Encode texts (as rendered for the model) shard by shard; return memory maps of these, [n_i, d] each.

    Each is kept in the folder `work` under a hash of its texts and the model, and not encoded again.
    """
    with writable(work):
        work.mkdir(parents=True, exist_ok=True)
    shards = [texts[start : start + SHARD] for start in range(0, len(texts), SHARD)]
    files = [work / f"{_digest(model, role, shard)}.npy" for shard in shards]
    there = sum(file.exists() for file in files)
    if there:
        console.print(f"{there} of {len(files)} shards were encoded before")
    for shard, file in zip(shards, files, strict=True):
        if not file.exists():
            vectors = encode_texts(model.encoder, shard, role=role)
            with writable(work), whole_file(file) as staging, staging.open("wb") as stream:
                np.save(stream, vectors)
                stream.flush()
                os.fsync(stream.fileno())
    blocks = [np.load(file, mmap_mode="r") for file in files]
    say_zero(blocks, "queries" if role == "query" else "documents")
    return blocks


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
    own: Mapping[int, str] | None = None,
) -> int:
    """Encode texts into a Parquet file, which appears whole or not at all.

    Its columns are `item_id` or `query_id` and `vector` (fixed-size list of float32, unit length), and with
    `own`, the source's own ids by number, `source_id`; its metadata name the model (`crops.model`,
    `crops.model_hash`). The texts are as rendered for the model; the first `dims` numbers of a vector are
    kept (all when None), made unit length again. Returns how many.

    Raises:
        CropsError: `out` is a folder, or `dims` exceeds what the model gives.
    """
    out = Path(out)
    if out.is_dir():
        raise CropsError(f"{out} is a folder; name a Parquet file for the vectors")
    work = Path(f"{out}.building")
    shards = encode_shards(model, texts, work, role)
    width = dims or shards[0].shape[1]
    vector = pa.list_(pa.float32(), width)
    column = "item_id" if role == "document" else "query_id"
    identity = {"crops.model": model.name, "crops.model_hash": model.hash}
    fields = [(column, pa.int64()), ("vector", vector), *([("source_id", pa.string())] if own else [])]
    schema = pa.schema(fields, metadata=identity)
    start = 0
    with writable(out), whole_file(out) as staging, pq.ParquetWriter(staging, schema) as writer:
        for shard in shards:
            flat = pa.array(narrowed(shard, width).ravel())
            some = ids[start : start + len(shard)]
            rows = [some, pa.FixedSizeListArray.from_arrays(flat, type=vector)]
            if own:
                rows.append([own.get(one, str(one)) for one in some.tolist()])
            writer.write_table(pa.table(rows, schema=schema))
            start += len(shard)
    shutil.rmtree(work)
    return width
