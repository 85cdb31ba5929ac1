"""Versions of an index on disk: each appears whole, is never changed, and is checked when it is opened.

`current` names the version that is served. It is replaced atomically, after the version it names is on disk:
a writer that is killed at any moment leaves the former version in service.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from crops.config import Kind
from crops.errors import CropsError
from crops.outputs import MANIFEST
from crops.retrieval.encoding import narrowed

CURRENT = "current"

VERSIONS = "versions"

_LOCK = "lock"


class FileFact(BaseModel):
    """What a file of a version must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    bytes: int
    sha256: str


class Recall(BaseModel):
    """How much of exact search an index finds, by the first 100 results of a sample of queries."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    at_100: float
    """Against exact search in the same vectors: what the structure and the codes cost."""
    full_width: float | None
    """Against exact search in vectors of the model's full width: what `dims` costs, too. None after updates
    have made a new base, as only the kept numbers were there to build it from."""
    target: float
    queries: int
    source: str
    """Where the queries come from."""


class IndexManifest(BaseModel):
    """What an index is: written with each version."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: str = ""
    kind: Kind
    int8: bool
    count: int
    dim: int
    """Numbers of a vector that are kept."""
    model: str
    """A preset, a name, or the absolute path of a folder."""
    model_hash: str
    model_dim: int
    """Numbers of a vector that the model gives."""
    effort: int
    """efSearch of a graph, nprobe of clusters; 0 where all is searched."""
    recall: Recall
    created_at: str
    made_in: str = ""
    """The folder in which the index was made; "" for one on a server."""
    files: dict[str, FileFact] = {}


class Snapshot(NamedTuple):
    """A version that is complete on disk."""

    folder: Path
    manifest: IndexManifest


def current_name(root: Path) -> str:
    """Return the name of the version in service.

    Raises:
        CropsError: the folder is no index, or the file that names its version is damaged.
    """
    try:
        name = (root / CURRENT).read_bytes().strip()
    except OSError as error:
        raise CropsError(f"{root} is no index (no file {CURRENT}); make one with `crops index`") from error
    if not name.isdigit():
        raise CropsError(
            f"{root / CURRENT} is damaged: it holds {name[:20]!r} and no version; {_mend(root, '')}"
        )
    return name.decode()


def open_snapshot(root: Path) -> Snapshot:
    """Return the version in service after checking each of its files.

    Raises:
        CropsError: the folder is no index, or a file is missing, truncated or changed.
    """
    while True:
        name = current_name(root)
        try:
            return _checked(root / VERSIONS / name)
        except FileNotFoundError as error:
            if current_name(root) == name:  # otherwise it was replaced meanwhile: open its successor
                raise CropsError(
                    f"{error.filename} is missing: version {name} cannot be served; {_mend(root, name)}"
                ) from error


def _checked(folder: Path) -> Snapshot:
    mend = _mend(folder.parent.parent, folder.name)
    text = (folder / MANIFEST).read_bytes()
    try:
        manifest = IndexManifest.model_validate_json(text)
    except ValidationError as error:
        raise CropsError(f"{folder / MANIFEST} is damaged or of another release; {mend}") from error
    for name, fact in manifest.files.items():
        size = (folder / name).stat().st_size
        if size != fact.bytes:
            raise CropsError(f"{folder / name} has {size} bytes instead of {fact.bytes}; {mend}")
        if _sha256(folder / name) != fact.sha256:
            raise CropsError(f"{folder / name} was changed or damaged (its checksum differs); {mend}")
    return Snapshot(folder, manifest)


def _mend(root: Path, name: str) -> str:
    """Return what can be done about a version that cannot be served."""
    others = sorted(path.name for path in (root / VERSIONS).glob("[0-9]*") if path.name != name)
    back = f", or serve version {others[-1]} by writing that name into {root / CURRENT}" if others else ""
    return f"run `crops index` again{back}"


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


def publish_version(
    root: Path, fill: Callable[[Path], IndexManifest], former: Snapshot | None = None
) -> Snapshot:
    """Make a new version and put it in service; call it inside `writing`.

    Args:
        root: the index.
        fill: writes the files into an empty folder and returns the manifest, without `version` and `files`.
        former: the version of which `fill` may have linked files; their checksums are known.
    """
    versions = root / VERSIONS
    versions.mkdir(exist_ok=True)
    names = [path.name for path in versions.iterdir() if path.name.isdigit()]
    name = f"{max(map(int, names), default=0) + 1:06d}"
    for stale in versions.glob(".*.tmp"):
        shutil.rmtree(stale)
    staging = versions / f".{name}.tmp"
    try:
        with written(root):
            return _published(root, staging, fill, former, names)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _published(
    root: Path,
    staging: Path,
    fill: Callable[[Path], IndexManifest],
    former: Snapshot | None,
    names: Sequence[str],
) -> Snapshot:
    versions, name = root / VERSIONS, staging.name.removeprefix(".").removesuffix(".tmp")
    staging.mkdir()
    manifest = fill(staging)
    facts = {file.name: _fact(file, former) for file in sorted(staging.iterdir())}
    # A successor names the model as it was named in the version before.
    made_in = former.manifest.made_in if former else str(root.absolute().parent)
    manifest = manifest.model_copy(update={"version": name, "made_in": made_in, "files": facts})
    write_synced(staging / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    _sync(staging)
    staging.rename(versions / name)
    _sync(versions)
    replaced = _replaced(root, names)
    write_synced(root / f".{CURRENT}.tmp", f"{name}\n")
    (root / f".{CURRENT}.tmp").replace(root / CURRENT)
    _sync(root)
    for old in names:
        if old != replaced:
            shutil.rmtree(versions / old)
    return Snapshot(versions / name, manifest)


def _replaced(root: Path, names: Sequence[str]) -> str | None:
    """Return the version before, which readers may hold; where that is not to be read, the newest."""
    try:
        return current_name(root)
    except CropsError:
        return max(names, key=int, default=None)


@contextlib.contextmanager
def written(target: Path) -> Iterator[None]:
    """Turn a disk that is full or cannot be written into a `CropsError`."""
    try:
        yield
    except OSError as error:
        raise CropsError(
            f"{target} cannot be written: {error}; free disk space, or name a folder on another disk. "
            "What was there before is as it was"
        ) from error


def write_synced(path: Path, text: str) -> None:
    """Write a small file and wait until the disk has it."""
    path.write_text(text)
    _sync(path)


def _fact(file: Path, former: Snapshot | None) -> FileFact:
    if former is not None and file.name in former.manifest.files:
        if file.samefile(former.folder / file.name):
            return former.manifest.files[file.name]
    _sync(file)
    return FileFact(bytes=file.stat().st_size, sha256=_sha256(file))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------
# The files of a version: a base of vectors, and what updates added to it and took from it since.


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
