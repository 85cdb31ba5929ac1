"""An index in a folder, opened: implements `VectorIndex`."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.retrieval import structures
from crops.retrieval.catalogue import best_results, check_k, no_results, positions_of, search_known
from crops.retrieval.dense import Results
from crops.retrieval.exact import FlatIndex
from crops.retrieval.filters import SCAN_BELOW, Filter
from crops.retrieval.index import query_vectors
from crops.retrieval.parts import STRUCTURE, read_items, read_parts
from crops.retrieval.publish import update_folder
from crops.retrieval.structures import Structure
from crops.retrieval.versions import open_snapshot, writing


class FolderIndex:
    """One version of an index folder, as it was when it was opened: implements `VectorIndex`."""

    def __init__(self, root: Path, *, exhaustive: bool = False) -> None:
        """Open the version in service.

        Args:
            root: output of `crops index`.
            exhaustive: search all vectors, whatever the structure.

        Raises:
            CropsError: the folder is no index, or a file is missing or damaged.
        """
        self._root = root
        folder, self.manifest = open_snapshot(root)
        self._parts = read_parts(folder)
        self._items = read_items(folder)
        self._ids: NDArray[np.int64] = self._items["item_id"].to_numpy()
        self._kept = self._parts.kept() if len(self._parts.deleted) else None
        self._structure: Structure | None = None
        self._flat: FlatIndex | None = None
        if exhaustive or not (folder / STRUCTURE).exists():
            self._flat = FlatIndex(*self._parts.merged())
            return
        searched = faiss.read_index(str(folder / STRUCTURE))
        facts = self.manifest
        self._structure = Structure(searched, facts.kind, facts.int8, facts.effort)
        if len(self._parts.delta_ids):
            self._flat = FlatIndex(self._parts.delta_ids, self._parts.delta_vectors)

    def search(self, vectors: NDArray[np.float32], k: int, where: Filter | None = None) -> Results:
        """Return ids and scores, each [q, k]; see `VectorIndex.search`."""
        check_k(k)
        queries = query_vectors(vectors, self.manifest)
        allowed = None if where is None else where.mask(self._items)
        return search_known(queries, k, lambda known: self._search(known, k, allowed))

    def _search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None) -> Results:
        if not len(queries) or (allowed is not None and not allowed.any()):
            return no_results(len(queries), k)
        if self._structure is None:
            assert self._flat is not None
            return self._flat.nearest(queries, k, allowed)
        ids = self._ids if allowed is None else self._ids[allowed]
        if len(ids) < SCAN_BELOW * len(self._ids) or k > SCAN_BELOW * len(ids):
            return FlatIndex(ids, self.vectors(ids)).nearest(queries, k)
        return self._approximate(self._structure, queries, k, allowed)

    def _approximate(
        self, structure: Structure, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None
    ) -> Results:
        base = self._kept
        if allowed is not None:
            at = np.searchsorted(self._ids, self._parts.ids)
            base = allowed[np.minimum(at, len(allowed) - 1)] & (True if base is None else base)
        rows, scores = structures.candidates(structure, self._parts.vectors, queries, k, base)
        ids = np.where(rows < 0, -1, self._parts.ids[np.maximum(rows, 0)])
        if self._flat is None:
            return best_results(ids, scores, k)
        new = None if allowed is None else allowed[np.searchsorted(self._ids, self._flat.ids)]
        more_ids, more_scores = self._flat.nearest(queries, k, new)
        return best_results(np.hstack([ids, more_ids]), np.hstack([scores, more_scores]), k)

    def vectors(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors [n, dim] of items; see `VectorIndex.vectors`."""
        positions_of(self._ids, ids, str(self._root))
        parts = self._parts
        found = np.empty((len(ids), self.manifest.dim), dtype=np.float32)
        new = np.isin(ids, parts.delta_ids)
        found[~new] = parts.vectors[np.searchsorted(parts.ids, ids[~new])]
        found[new] = parts.delta_vectors[np.searchsorted(parts.delta_ids, ids[new])]
        return found

    def known(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of `ids` [n] are in the index."""
        nearest = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        met: NDArray[np.bool_] = self._ids[nearest] == ids
        return met

    def items(self, ids: NDArray[np.int64]) -> pa.Table:
        """Return the rows of items, in the order of `ids`; see `VectorIndex.items`."""
        return self._items.take(pa.array(positions_of(self._ids, ids, str(self._root))))

    def update(self, items: pa.Table, vectors: NDArray[np.float32], deleted: NDArray[np.int64]) -> str:
        """Publish a version with items put in and taken out; see `VectorIndex.update`.

        This object stays with the version that it was opened at.
        """
        with writing(self._root):
            return update_folder(self._root, items, vectors, deleted).manifest.version

    def close(self) -> None:
        """Give back the memory of the structure."""
        self._structure = self._flat = None
