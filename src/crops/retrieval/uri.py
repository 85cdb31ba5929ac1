"""An index by its address: a folder, a file or a server behind one string, opened, built and updated."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.config import IndexConfig
from crops.errors import CropsError, nearest
from crops.ids import known_numbers
from crops.outputs import cache_folder
from crops.protocols import Retriever
from crops.relevance.encode import PACKAGED
from crops.retrieval.bm25 import BM25Retriever
from crops.retrieval.catalogue import load_item_rows, load_items, load_queries
from crops.retrieval.dense import DenseRetriever, FusedRetriever
from crops.retrieval.encoding import Model, encode_shards, encode_texts, narrowed, say_zero
from crops.retrieval.folder import (
    FolderIndex,
    current_name,
    open_snapshot,
    publish_catalogue,
    read_items,
    writing,
)
from crops.retrieval.index import SAMPLE, Catalogue, IndexManifest, VectorIndex, check_model, sampled
from crops.text import DOCUMENT_FIELDS, document_text


class Texts(NamedTuple):
    """What stands for a document in an index."""

    fields: tuple[str, ...] = DOCUMENT_FIELDS
    """Columns of items (`crops.config.DocumentConfig`)."""
    queries: pa.Table | None = None
    """See `crops.retrieval.load_items`."""


TEXT_SCHEMES = ("bm25", "hybrid")
SCHEMES = ("exact", "faiss", "milvus", *TEXT_SCHEMES)


class Location(NamedTuple):
    """A URI in its two parts."""

    scheme: str
    target: str

    @property
    def folder(self) -> Path:
        """The index folder of every scheme but milvus."""
        return Path(self.target)


def locate(uri: str) -> Location:
    """Split a URI; a path without a scheme is `faiss:`.

    Raises:
        CropsError: the scheme is unknown, or nothing follows it.
    """
    scheme, colon, target = uri.partition(":")
    if not colon or (scheme not in SCHEMES and Path(uri).exists()):
        scheme, target = "faiss", uri
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}:" for name in SCHEMES)
        raise CropsError(f"'{uri}' names no index: it begins with {known}.{nearest(scheme, SCHEMES)}")
    if not target:
        raise CropsError(f"'{uri}' says no place; write e.g. {scheme}:out/index")
    return Location(scheme, target)


def open_index(uri: str) -> VectorIndex:
    """Open the version in service of `exact:FOLDER`, `faiss:FOLDER`, `milvus:FILE.db`, `milvus:http://...`.

    Raises:
        CropsError: there is no such index, a file of it is damaged, or the extra is missing.
    """
    scheme, target = locate(uri)
    if scheme in TEXT_SCHEMES:
        raise CropsError(f"'{uri}' is searched by words; open it with open_retriever")
    if scheme == "milvus":
        from crops.retrieval.milvus import MilvusIndex

        return MilvusIndex(target)
    return FolderIndex(Path(target), exhaustive=scheme == "exact")


def current_version(uri: str) -> str:
    """Return the version of an index that is in service; cheap enough to ask every second.

    Raises:
        CropsError: there is no such index.
    """
    scheme, target = locate(uri)
    if scheme == "milvus":
        from crops.retrieval.milvus import served_version

        return served_version(target)
    return current_name(Path(target))


def open_retriever(uri: str, model: Model | None = None) -> Retriever:
    """Open an index for queries in words.

    Args:
        uri: any URI: `bm25:FOLDER` searches the words of the items in an index folder, `hybrid:FOLDER` fuses
            that with `faiss:FOLDER`.
        model: what encodes the queries; bm25 needs none.

    Raises:
        CropsError: as `open_index`; or the model is missing or not the one of the index.
    """
    location = locate(uri)
    if location.scheme == "bm25":
        return _bm25(location.folder)
    if model is None:
        raise CropsError(f"'{uri}' needs the model that its vectors were made with")
    index = open_index(f"faiss:{location.target}" if location.scheme == "hybrid" else uri)
    check_model(index.manifest, model)
    dense = DenseRetriever(model.encoder, index.search, render_query=model.rendering.query)
    return FusedRetriever([dense, _bm25(location.folder)]) if location.scheme == "hybrid" else dense


def _bm25(folder: Path) -> BM25Retriever:
    version = open_snapshot(folder)
    items = read_items(version.folder)
    texts = [document_text(row, version.manifest.fields) for row in items.to_pylist()]
    return BM25Retriever(items["item_id"].to_numpy(), texts, tokeniser=version.manifest.tokeniser)


def build_index(
    uri: str,
    model: Model,
    items: str | Path,
    config: IndexConfig,
    queries: str | Path | None = None,
    texts: Texts = Texts(),  # noqa: B008  (frozen)
) -> IndexManifest:
    """Encode a catalogue and put an index of it in service.

    Args:
        uri: `faiss:FOLDER` or `milvus:...`; the previous version keeps serving until the new one is complete.
        model: from `load_model`.
        items: see `crops.retrieval.load_items`.
        config: kind and width of the index.
        queries: table of queries that recall is measured with (see `load_queries`); a sample of the documents
            when None, which is a little kinder: each finds itself.
        texts: what stands for a document.

    Returns:
        The manifest of the new version, with its measured recall.

    Raises:
        CropsError: bad input, another writer, or a structure that the kind cannot have.
    """
    location = locate(uri)
    if location.scheme not in ("faiss", "milvus"):
        raise CropsError(
            f"'{uri}': an index is written to faiss:FOLDER or milvus:..., not {location.scheme}:"
        )
    _, documents = load_items(items, rendering=model.rendering.of(texts.fields), queries=texts.queries)
    rows = load_item_rows(items, texts.queries)
    # Shards are kept next to the index, or in the cache for one on a server.
    work = location.folder / "building"
    if location.scheme == "milvus":
        work = Path(f"{location.target.partition('#')[0]}.building")
        if "://" in location.target:
            key = hashlib.sha256(location.target.encode()).hexdigest()[:16]
            work = cache_folder() / "building" / key
    folder = location.scheme == "faiss"
    with writing(location.folder) if folder else contextlib.nullcontext():
        catalogue = _encoded(model, rows, documents, work, config, queries)._replace(fields=texts.fields)
        if folder:
            manifest = publish_catalogue(location.folder, catalogue, config).manifest
        else:
            from crops.retrieval.milvus import publish_milvus

            manifest = publish_milvus(location.target, catalogue, config)
        shutil.rmtree(work)
    return manifest


def update_index(
    uri: str,
    model: Model,
    items: str | Path | None,
    deleted: NDArray[np.int64] | Sequence[str],
    texts: Texts = Texts(),  # noqa: B008  (frozen)
) -> IndexManifest:
    """Put the items of a table into an index, in place of those with the same ids, and take others out.

    Args:
        items: see `crops.retrieval.load_items`; none are put in when None.
        deleted: what is taken out: numbers, or texts as the source writes ids.
        texts: what stands for a document, as in the index.

    Raises:
        CropsError: the model or the fields are not those of the index, or as `VectorIndex.update`.
    """
    with contextlib.closing(open_index(uri)) as index:
        check_model(index.manifest, model)
        if not isinstance(deleted, np.ndarray):
            given, deleted = deleted, known_numbers(deleted, index.known)
            for text, there in zip(given, index.known(deleted), strict=True):
                if not there:
                    raise CropsError(f"'{text}' is not in {uri}; name items that are")
        if items is None:
            rows = index.items(np.empty(0, dtype=np.int64))
            vectors = np.empty((0, index.manifest.dim), dtype=np.float32)
        else:
            if (known := index.manifest.fields) != texts.fields:
                raise CropsError(
                    f"{uri} was built from {', '.join(known)}, not from {', '.join(texts.fields)}; give the "
                    "same --fields and --expanded, or build a new index"
                )
            rows = load_item_rows(items, texts.queries)
            _, documents = load_items(items, None, model.rendering.of(texts.fields), texts.queries)
            vectors = narrowed(encode_texts(model.encoder, documents), index.manifest.dim)
            say_zero([vectors], "documents")
        index.update(rows, vectors, deleted)
    with contextlib.closing(open_index(uri)) as index:
        return index.manifest


def _encoded(
    model: Model,
    rows: pa.Table,
    texts: Sequence[str],
    work: Path,
    config: IndexConfig,
    queries: str | Path | None,
) -> Catalogue:
    blocks = encode_shards(model, texts, work)
    if queries is None:
        asked, source = sampled(blocks, config.seed), "documents of the index"
    else:
        known = load_queries(queries)[1]
        chosen = np.random.default_rng(config.seed).permutation(len(known))[:SAMPLE]
        rendered = [model.rendering.query(known[row]) for row in chosen]
        asked, source = encode_texts(model.encoder, rendered, role="query"), str(queries)
    name = model.name
    if name not in PACKAGED and Path(name).is_dir():  # a folder is found from anywhere by its absolute path
        name = str(Path(name).absolute())
    return Catalogue(rows, blocks, name, model.hash, blocks[0].shape[1], asked, source)
