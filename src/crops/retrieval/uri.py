"""Where an index is: one string for a folder, a file or a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from crops.errors import CropsError, nearest
from crops.protocols import Retriever
from crops.retrieval.bm25 import BM25Retriever
from crops.retrieval.dense import DenseRetriever, FusedRetriever
from crops.retrieval.encoding import Model
from crops.retrieval.folder import FolderIndex
from crops.retrieval.index import VectorIndex, check_model
from crops.retrieval.versions import current_name, open_snapshot, read_items
from crops.text import document_text

if TYPE_CHECKING:
    from crops.retrieval.milvus import MilvusIndex

VECTOR_SCHEMES = ("exact", "faiss", "milvus")
TEXT_SCHEMES = ("bm25", "hybrid")
SCHEMES = (*VECTOR_SCHEMES, *TEXT_SCHEMES)


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
    """Open the version of an index that is in service.

    Args:
        uri: `exact:FOLDER`, `faiss:FOLDER`, `milvus:FILE.db` or `milvus:http://HOST:PORT`.

    Raises:
        CropsError: there is no such index, a file of it is damaged, or the extra is missing.
    """
    scheme, target = locate(uri)
    if scheme in TEXT_SCHEMES:
        raise CropsError(f"'{uri}' is searched by words; open it with open_retriever")
    if scheme == "milvus":
        return _milvus(target)
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
    items = read_items(open_snapshot(folder).folder)
    return BM25Retriever(items["item_id"].to_numpy(), [document_text(row) for row in items.to_pylist()])


def _milvus(target: str) -> MilvusIndex:
    from crops.retrieval.milvus import MilvusIndex

    return MilvusIndex(target)
