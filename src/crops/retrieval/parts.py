"""The files of a version: a base of vectors, and what updates added to it and took from it since."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.retrieval.encoding import narrowed

IDS, VECTORS, STRUCTURE = "ids.npy", "vectors.npy", "structure.faiss"
DELTA_IDS, DELTA_VECTORS, DELETED = "delta_ids.npy", "delta_vectors.npy", "deleted.npy"
ITEMS = "items.arrow"


class Parts(NamedTuple):
    """The vectors of a version."""

    ids: NDArray[np.int64]
    """Of the base, ascending [n]."""
    vectors: NDArray[np.float32]
    """Of the base [n, d]: a memory map."""
    delta_ids: NDArray[np.int64]
    """Items that updates brought, ascending [m]."""
    delta_vectors: NDArray[np.float32]
    deleted: NDArray[np.int64]
    """Ids of the base that are gone or replaced, ascending."""

    def kept(self) -> NDArray[np.bool_]:
        """Return which rows of the base still count, [n]."""
        return np.isin(self.ids, self.deleted, assume_unique=True, invert=True)

    def merged(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the ids, ascending, and the vectors of all items."""
        if not len(self.delta_ids) and not len(self.deleted):
            return self.ids, self.vectors
        kept = self.kept()
        ids = np.concatenate([self.ids[kept], self.delta_ids])
        order = np.argsort(ids)
        return ids[order], np.concatenate([self.vectors[kept], self.delta_vectors])[order]

    def updated(
        self, ids: NDArray[np.int64], vectors: NDArray[np.float32], deleted: NDArray[np.int64]
    ) -> Parts:
        """Return the parts after an update, the base unchanged.

        Args:
            ids: items to put in, distinct [u].
            vectors: their vectors [u, d].
            deleted: items to take out.
        """
        touched = np.concatenate([ids, deleted])
        stays = ~np.isin(self.delta_ids, touched)
        delta_ids = np.concatenate([self.delta_ids[stays], ids])
        order = np.argsort(delta_ids)
        return self._replace(
            delta_ids=delta_ids[order],
            delta_vectors=np.concatenate([self.delta_vectors[stays], vectors])[order],
            deleted=np.union1d(self.deleted, np.intersect1d(touched, self.ids)),
        )


def read_parts(folder: Path) -> Parts:
    """Return the vectors of a version."""
    names = (IDS, VECTORS, DELTA_IDS, DELTA_VECTORS, DELETED)
    return Parts(*(np.load(folder / name, mmap_mode="r" if name == VECTORS else None) for name in names))


def write_base(
    folder: Path, ids: NDArray[np.int64], blocks: Iterable[NDArray[np.float32]], dim: int
) -> Parts:
    """Write a base without updates.

    Args:
        folder: the version under way.
        ids: ascending [n].
        blocks: the vectors in the order of `ids`, [n_i, at least dim] each; only their first `dim` numbers
            are kept, made unit length.
        dim: numbers kept.
    """
    np.save(folder / IDS, ids)
    # Not through a memory map: there a full disk would be the end of the process.
    facts = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
    with (folder / VECTORS).open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {**facts, "shape": (len(ids), dim)})
        for block in blocks:
            stream.write(narrowed(block, dim).data)
    none, nothing = np.empty(0, dtype=np.int64), np.empty((0, dim), dtype=np.float32)
    write_delta(folder, Parts(ids, nothing, none, nothing, none))
    return read_parts(folder)


def write_delta(folder: Path, parts: Parts) -> None:
    """Write what updates added and took."""
    np.save(folder / DELTA_IDS, parts.delta_ids)
    np.save(folder / DELTA_VECTORS, parts.delta_vectors)
    np.save(folder / DELETED, parts.deleted)


def read_items(folder: Path) -> pa.Table:
    """Return the items of a version, ascending by id; their columns stay on disk until they are read."""
    return pa.ipc.open_file(pa.memory_map(str(folder / ITEMS))).read_all()


def write_items(folder: Path, items: pa.Table) -> None:
    """Write the items of a version: the columns of `ITEM_SCHEMA`, ascending by id."""
    with pa.ipc.new_file(folder / ITEMS, items.schema) as writer:
        writer.write_table(items)
