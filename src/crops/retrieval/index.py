"""What every vector index can do, whichever library is behind it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.retrieval.catalogue import Filter
from crops.retrieval.dense import Results
from crops.retrieval.encoding import Model, narrowed
from crops.retrieval.versions import IndexManifest


class VectorIndex(Protocol):
    """Items under their ids, searched by vectors; safe for searches from several threads."""

    manifest: IndexManifest

    def search(self, vectors: NDArray[np.float32], k: int, where: Filter | None = None) -> Results:
        """Return ids and scores, each [q, k], best first, ties by id; padded with -1 and -inf.

        Args:
            vectors: unit vectors [q, d] of queries, as wide as the model gives or as the index keeps them; a
                zero vector finds nothing.
            k: length of the result lists.
            where: which items may be found.

        Raises:
            CropsError: k < 1, or the vectors are too narrow or not finite.
        """
        ...

    def vectors(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors [n, dim] of items.

        Raises:
            UnknownItemError: an id is not in the index.
        """
        ...

    def known(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of `ids` [n] are in the index."""
        ...

    def items(self, ids: NDArray[np.int64]) -> pa.Table:
        """Return the rows of items, in the order of `ids`, with the columns of `ITEM_SCHEMA`.

        Raises:
            UnknownItemError: an id is not in the index.
        """
        ...

    def update(self, items: pa.Table, vectors: NDArray[np.float32], deleted: NDArray[np.int64]) -> str:
        """Put items with their vectors [n, dim] in, in place of those with the same ids, and take others out.

        Returns:
            The new version, in service and on disk.

        Raises:
            CropsError: an id to delete is not in the index, an id is negative or repeated, or none is left.
        """
        ...

    def close(self) -> None:
        """Give back memory and connections; a closed index cannot be used."""
        ...


def check_model(manifest: IndexManifest, model: Model) -> None:
    """Raise `CropsError` unless the index was built with this very model."""
    if manifest.model_hash != model.hash:
        raise CropsError(
            f"the index was built with the model {manifest.model} ({manifest.model_hash[:12]}), and "
            f"{model.name} is another one ({model.hash[:12]}): their vectors do not compare. Name the model "
            f"of the index, or build a new one with `crops index {model.name}`"
        )


def query_vectors(vectors: NDArray[np.float32], manifest: IndexManifest) -> NDArray[np.float32]:
    """Return vectors [q, d] of queries as an index takes them, cut to its width.

    Raises:
        CropsError: they are not finite, or not as wide as the model gives or the index keeps them.
    """
    width = vectors.shape[1]
    if width not in (manifest.dim, manifest.model_dim):
        raise CropsError(
            f"vectors of {width} numbers cannot be searched in an index of {manifest.dim}; "
            f"encode queries with its model, {manifest.model}"
        )
    if not np.isfinite(vectors).all():
        raise CropsError("a query vector holds NaN or infinity")
    return narrowed(vectors, manifest.dim)


def check_update(
    ids: NDArray[np.int64], vectors: NDArray[np.float32], deleted: NDArray[np.int64], dim: int
) -> None:
    """Raise `CropsError` unless an update of an index of `dim` numbers is sound in itself."""
    if vectors.shape != (len(ids), dim):
        raise CropsError(
            f"{len(ids)} items came with vectors of shape {vectors.shape}; the index keeps {dim}"
        )
    if not np.isfinite(vectors).all():
        raise CropsError("a vector holds NaN or infinity")
    if (ids < 0).any():
        raise CropsError(
            f"item_id {ids.min()} is negative: generated documents train the model and are never indexed"
        )
    named = np.sort(np.concatenate([ids, deleted]))
    if (repeated := named[1:][named[1:] == named[:-1]]).size:
        raise CropsError(f"item_id {repeated[0]} is named more than once in one update")
