"""An index in a folder: vectors, ids and the rows of items, with a faiss structure where there is one.

Versions appear whole, are never changed, and are checked when they are opened. `current` names the one that
is served. It is replaced atomically, after the version it names is on disk: a writer that is killed at any
moment leaves the former version in service.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from crops.config import IndexConfig
from crops.errors import CropsError, nearest_path
from crops.outputs import MANIFEST, writable
from crops.retrieval.catalogue import (
    SCAN_BELOW,
    Filter,
    Results,
    best_results,
    check_k,
    item_rows,
    no_results,
    positions_of,
    search_known,
)
from crops.retrieval.dense import FlatIndex, write_flat
from crops.retrieval.encoding import narrowed
from crops.retrieval.index import (
    DEPTH,
    Catalogue,
    FileEntry,
    IndexManifest,
    Structure,
    build_structure,
    check_update,
    described,
    query_vectors,
    sampled,
    search_structure,
    structure_over,
    tuned,
)

CURRENT = "current"
VERSIONS = "versions"
IDS, VECTORS, STRUCTURE, ITEMS = "ids.npy", "vectors.faiss", "structure.faiss", "items.arrow"
_LOCK = "lock"


class Snapshot(NamedTuple):
    """A version that is complete on disk."""

    folder: Path
    manifest: IndexManifest


class FolderIndex:
    """One version of an index folder, as it was when it was opened: implements `VectorIndex`."""

    def __init__(self, root: Path, *, exhaustive: bool = False) -> None:
        """Open the version in service; `exhaustive` searches all vectors, whatever the structure.

        Raises:
            CropsError: the folder is no index, or a file is missing or damaged.
        """
        self._root = root
        folder, self.manifest = open_snapshot(root)
        self._items = read_items(folder)
        self._ids: NDArray[np.int64] = np.load(folder / IDS)
        self._flat = FlatIndex.mapped(self._ids, folder / VECTORS)
        self._structure: Structure | None = None
        if STRUCTURE in self.manifest.files and not exhaustive:
            stored, manifest = faiss.read_index(str(folder / STRUCTURE)), self.manifest
            self._structure = structure_over(stored, self._flat.faiss, manifest.kind, int8=manifest.int8)

    def search(self, vectors: NDArray[np.float32], k: int, where: Filter | None = None) -> Results:
        """Return ids and scores, each [q, k]; see `VectorIndex.search`."""
        check_k(k)
        queries = query_vectors(vectors, self.manifest)
        allowed = None if where is None else where.mask(self._items)
        return search_known(queries, k, lambda known: self._search(known, k, allowed))

    def _search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None) -> Results:
        total = len(self._ids)
        matching = total if allowed is None else int(allowed.sum())
        if not len(queries) or not matching:
            return no_results(len(queries), k)
        if self._structure is None or matching < SCAN_BELOW * total or k > SCAN_BELOW * matching:
            return self._flat.nearest(queries, k, allowed)
        rows, scores = search_structure(self._structure, queries, k, self.manifest.effort, allowed)
        return best_results(np.where(rows < 0, -1, self._ids[np.maximum(rows, 0)]), scores, k)

    def vectors(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors [n, dim] of items; see `VectorIndex.vectors`."""
        return self._flat.vectors(ids, str(self._root))

    def known(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of `ids` [n] are in the index."""
        nearest = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        met: NDArray[np.bool_] = self._ids[nearest] == ids
        return met

    def items(self, ids: NDArray[np.int64]) -> pa.Table:
        """Return the rows of items, in the order of `ids`; see `VectorIndex.items`."""
        return self._items.take(pa.array(positions_of(self._ids, ids, str(self._root))))

    def shown(self, ids: NDArray[np.int64]) -> list[str]:
        """Return ids as people read them; see `VectorIndex.shown`."""
        rows = pa.array(positions_of(self._ids, ids, str(self._root)))
        if "source_id" not in self._items.column_names:  # of a former release
            return [str(one) for one in ids.tolist()]
        own = self._items["source_id"].take(rows).to_pylist()
        return [text or str(one) for one, text in zip(ids.tolist(), own, strict=True)]

    def update(self, items: pa.Table, vectors: NDArray[np.float32], deleted: NDArray[np.int64]) -> str:
        """Publish a version with items put in and taken out; see `VectorIndex.update`.

        The whole index is rebuilt from the vectors that are there and those that are put in, and its
        recall is measured again. This object stays with the version that it was opened at.
        """
        with writing(self._root):
            return publish_catalogue(
                self._root, *_updated(FolderIndex(self._root), items, vectors, deleted)
            ).manifest.version

    def close(self) -> None:
        """Give back the memory of the structure."""
        self._structure = None


def _updated(
    index: FolderIndex, items: pa.Table, vectors: NDArray[np.float32], deleted: NDArray[np.int64]
) -> tuple[Catalogue, IndexConfig]:
    """Return what the next version is built from, and how."""
    manifest = index.manifest
    ids = items["item_id"].to_numpy()
    check_update(ids, vectors, deleted, manifest.dim)
    index.items(deleted)  # none is unknown
    stays = ~np.isin(index._ids, np.concatenate([ids, deleted]))
    rows = pa.concat_tables([item_rows(index._items.filter(pa.array(stays))), item_rows(items)])
    if rows.num_rows == 0:
        raise CropsError("the update deletes every item; an index cannot be empty")
    new = vectors[np.argsort(ids)]  # as `item_rows` orders them
    order = np.argsort(rows["item_id"].to_numpy())
    blocks = [np.concatenate([index.vectors(index._ids[stays]), new])[order]]
    config = IndexConfig(
        kind=manifest.kind, int8=manifest.int8, dims=manifest.dim, target_recall=manifest.recall.target
    )
    return Catalogue(
        rows.take(pa.array(order)).combine_chunks(),
        blocks,
        manifest.model,
        manifest.model_hash,
        manifest.model_dim,
        sampled(blocks, config.seed),
        "documents of the index",
        manifest.made_in,
        manifest.fields,
    ), config


def current_name(root: Path) -> str:
    """Return the name of the version in service.

    Raises:
        CropsError: the folder is no index, or the file that names its version is damaged.
    """
    try:
        name = (root / CURRENT).read_bytes().strip()
    except OSError as error:
        fault = f"is no index (no file {CURRENT})" if root.exists() else "does not exist"
        raise CropsError(f"{root} {fault}; make an index with `crops index`{nearest_path(root)}") from error
    if not name.isdigit():
        raise CropsError(
            f"{root / CURRENT} is damaged: it holds {name[:20]!r} and no version; {_remedy(root, '')}"
        )
    return name.decode()


def open_snapshot(root: Path) -> Snapshot:
    """Return the version in service after checking each of its files.

    Raises:
        CropsError: the folder is no index, or a file is missing, truncated, changed or of a former release.
    """
    while True:
        name = current_name(root)
        try:
            return _checked(root / VERSIONS / name)
        except FileNotFoundError as error:
            if current_name(root) == name:  # otherwise it was replaced meanwhile: open its successor
                raise CropsError(
                    f"{error.filename} is missing: version {name} cannot be served; {_remedy(root, name)}"
                ) from error


def _checked(folder: Path) -> Snapshot:
    remedy = _remedy(folder.parent.parent, folder.name)
    text = (folder / MANIFEST).read_bytes()
    try:
        manifest = IndexManifest.model_validate_json(text)
    except ValidationError as error:
        raise CropsError(f"{folder / MANIFEST} is damaged or of another release; {remedy}") from error
    if VECTORS not in manifest.files:
        raise CropsError(
            f"{folder} was written by a former release, whose indexes are not read any more; "
            "run `crops index` again"
        )
    for name, entry in manifest.files.items():
        size = (folder / name).stat().st_size
        if size != entry.bytes:
            raise CropsError(f"{folder / name} has {size} bytes instead of {entry.bytes}; {remedy}")
        if _sha256(folder / name) != entry.sha256:
            raise CropsError(f"{folder / name} was changed or damaged (its checksum differs); {remedy}")
    return Snapshot(folder, manifest)


def _remedy(root: Path, name: str) -> str:
    """Return what can be done about a version that cannot be served."""
    others = sorted(path.name for path in (root / VERSIONS).glob("[0-9]*") if path.name != name)
    back = f", or serve version {others[-1]} by writing that name into {root / CURRENT}" if others else ""
    return f"run `crops index` again{back}"


def read_items(folder: Path) -> pa.Table:
    """Return the items of a version, ascending by id; their columns stay on disk until they are read."""
    return pa.ipc.open_file(pa.memory_map(str(folder / ITEMS))).read_all()


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """Be the only writer of an index while the block runs; the lock dies with its process.

    Raises:
        CropsError: another process writes to it, or the folder holds something else.
    """
    if root.exists() and not root.is_dir():
        raise CropsError(f"{root} is a file; name a folder for the index")
    if root.is_dir() and any(root.iterdir()) and not (root / _LOCK).exists():
        raise CropsError(f"{root} holds files that are no index; name another folder")
    root.mkdir(parents=True, exist_ok=True)
    with (root / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CropsError(f"another process writes to {root}; wait until it has ended") from error
        yield


def publish_catalogue(root: Path, catalogue: Catalogue, config: IndexConfig) -> Snapshot:
    """Build a version from a catalogue and put it in service; call it inside `writing`."""
    versions = root / VERSIONS
    versions.mkdir(exist_ok=True)
    names = [path.name for path in versions.iterdir() if path.name.isdigit()]
    name = f"{max(map(int, names), default=0) + 1:06d}"
    for stale in versions.glob(".*.tmp"):
        shutil.rmtree(stale)
    staging = versions / f".{name}.tmp"
    try:
        with writable(root):
            staging.mkdir()
            manifest = _fill(staging, catalogue, config)
            entries = {}
            for file in sorted(staging.iterdir()):
                _sync(file)
                entries[file.name] = FileEntry(bytes=file.stat().st_size, sha256=_sha256(file))
            made_in = manifest.made_in or str(root.absolute().parent)
            manifest = manifest.model_copy(update={"version": name, "made_in": made_in, "files": entries})
            (staging / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
            _sync(staging / MANIFEST)
            _sync(staging)
            staging.rename(versions / name)
            _sync(versions)
            try:
                replaced: str | None = current_name(root)  # which readers may hold
            except CropsError:  # it is not to be read: the newest
                replaced = max(names, key=int, default=None)
            pointer = root / f".{CURRENT}.tmp"
            pointer.write_text(f"{name}\n")
            _sync(pointer)
            pointer.replace(root / CURRENT)
            _sync(root)
            for old in set(names) - {replaced}:
                shutil.rmtree(versions / old)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Snapshot(versions / name, manifest)


def _fill(folder: Path, catalogue: Catalogue, config: IndexConfig) -> IndexManifest:
    """Write the files of a version; return its manifest, without `version` and `files`."""
    ids, dim = catalogue.items["item_id"].to_numpy(), config.dims or catalogue.model_dim
    np.save(folder / IDS, ids)
    write_flat(folder / VECTORS, (narrowed(block, dim) for block in catalogue.blocks), len(ids), dim)
    with pa.ipc.new_file(folder / ITEMS, catalogue.items.schema) as writer:
        writer.write_table(catalogue.items)
    plain = config.kind == "exact" and not config.int8
    if plain and dim == catalogue.model_dim:
        return described(catalogue, config, 0, 1.0, 1.0)
    structure = build_structure(config, FlatIndex.mapped(ids, folder / VECTORS).faiss)
    if not plain:
        # faiss by itself does not always see that a disk is full.
        (folder / STRUCTURE).write_bytes(faiss.serialize_index(structure.stored).data)

    def found(queries: NDArray[np.float32], effort: int) -> NDArray[np.int64]:
        return best_results(*search_structure(structure, queries, DEPTH, effort), DEPTH)[0]

    return tuned(catalogue, config, found)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
