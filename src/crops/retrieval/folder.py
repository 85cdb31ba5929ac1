"""An index in a folder, opened: implements `VectorIndex`."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.config import IndexConfig
from crops.errors import CropsError
from crops.retrieval import structures
from crops.retrieval.catalogue import (
    SCAN_BELOW,
    Filter,
    best_results,
    check_k,
    item_rows,
    no_results,
    positions_of,
    search_known,
)
from crops.retrieval.dense import Results
from crops.retrieval.encoding import narrowed
from crops.retrieval.exact import FlatIndex
from crops.retrieval.index import check_update, query_vectors
from crops.retrieval.structures import DEPTH, Structure, last_scores, least_effort, recalls
from crops.retrieval.versions import (
    IDS,
    STRUCTURE,
    VECTORS,
    IndexManifest,
    Parts,
    Recall,
    Snapshot,
    open_snapshot,
    publish_version,
    read_items,
    read_parts,
    write_base,
    write_delta,
    write_items,
    writing,
)


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


# ------------------------------------------------------------------------------
# Making versions of an index folder: from a catalogue, and from the version before.


REBUILD_ABOVE = 0.1

"""Share of the base that updates may change before it is built anew."""

SAMPLE = 500

"""Queries that recall is measured with."""

_BLOCK = 65_536

"""Vectors that are in memory at a time when all are looked at."""


class Catalogue(NamedTuple):
    """Everything that a version is made of."""

    items: pa.Table
    """Columns of `ITEM_SCHEMA`, ascending by id [n]."""
    blocks: Sequence[NDArray[np.float32]]
    """Their vectors in the same order, [n_i, width of the model] each."""
    model: str
    model_hash: str
    model_dim: int
    queries: NDArray[np.float32]
    """Vectors [q, width of the model] that recall is measured with."""
    source: str
    """Where these come from."""


def sampled(blocks: Sequence[NDArray[np.float32]], seed: int) -> NDArray[np.float32]:
    """Return up to `SAMPLE` of the vectors, to serve as queries where there are none."""
    rows = np.random.default_rng(seed).permutation(sum(map(len, blocks)))[:SAMPLE]
    return gather(blocks, np.sort(rows))


def gather(blocks: Sequence[NDArray[np.float32]], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the vectors of `rows` (any shape), counted through all blocks."""
    ends = np.cumsum([len(block) for block in blocks])
    found = np.empty((*rows.shape, blocks[0].shape[1]), dtype=np.float32)
    for block, end in zip(blocks, ends, strict=True):
        here = (rows >= end - len(block)) & (rows < end)
        found[here] = block[rows[here] - (end - len(block))]
    return found


def publish_catalogue(
    root: Path, catalogue: Catalogue, config: IndexConfig, former: Snapshot | None = None
) -> Snapshot:
    """Build a version from a catalogue and put it in service; call it inside `writing`.

    `former` is the version that an update goes on from: its model lies where that says.
    """
    ids = catalogue.items["item_id"].to_numpy()
    dim = config.dims or catalogue.model_dim

    def fill(folder: Path) -> IndexManifest:
        parts = write_base(folder, ids, catalogue.blocks, dim)
        write_items(folder, catalogue.items)
        return _finish(folder, parts, catalogue, config)

    return publish_version(root, fill, former)


def _finish(folder: Path, parts: Parts, catalogue: Catalogue, config: IndexConfig) -> IndexManifest:
    """Build, tune and write the structure over a base, and describe the version."""
    plain = config.kind == "exact" and not config.int8
    if plain and parts.vectors.shape[1] == catalogue.model_dim:
        return described(config, catalogue, 0, 1.0, np.empty((0, DEPTH), dtype=np.int64))
    queries = narrowed(catalogue.queries, parts.vectors.shape[1])
    structure = structures.build(config, parts.vectors)
    truth = last_scores(queries, _in_blocks(parts.vectors))

    def found(effort: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        tried = structure._replace(effort=effort)
        return best_results(*structures.candidates(tried, parts.vectors, queries, DEPTH), DEPTH)

    effort, at_100 = least_effort(
        lambda effort: found(effort)[1],
        structures.efforts(config.kind, structures.clusters(len(parts.ids))),
        truth,
        config.target_recall,
    )
    if not plain:
        structures.write(structure, folder / STRUCTURE)
    return described(config, catalogue, effort, at_100, found(effort)[0])


def described(
    config: IndexConfig, catalogue: Catalogue, effort: int, at_100: float, rows: NDArray[np.int64]
) -> IndexManifest:
    """Return the manifest of a new version; `rows` [q, 100] is what it found for the queries."""
    dim = config.dims or catalogue.model_dim
    full = at_100 if dim == catalogue.model_dim else _full_width(catalogue, rows)
    return IndexManifest(
        kind=config.kind,
        int8=config.int8,
        count=catalogue.items.num_rows,
        dim=dim,
        model=catalogue.model,
        model_hash=catalogue.model_hash,
        model_dim=catalogue.model_dim,
        effort=effort,
        recall=Recall(
            at_100=round(at_100, 4),
            full_width=None if full is None else round(full, 4),
            target=config.target_recall,
            queries=len(catalogue.queries),
            source=catalogue.source,
        ),
        created_at=now(),
    )


def _full_width(catalogue: Catalogue, rows: NDArray[np.int64]) -> float | None:
    """Return the recall of the documents `rows` [q, 100] against search in vectors of the full width."""
    if catalogue.blocks[0].shape[1] < catalogue.model_dim:
        return None
    truth = last_scores(catalogue.queries, catalogue.blocks)
    return float(recalls(scored(catalogue.blocks, rows, catalogue.queries), *truth).mean())


def scored(
    blocks: Sequence[NDArray[np.float32]], rows: NDArray[np.int64], queries: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the inner products [q, c] of `queries` [q, d] with the vectors `rows` [q, c], cut to d numbers.

    -inf where a row is -1.
    """
    dim = queries.shape[1]
    vectors = narrowed(gather(blocks, np.maximum(rows, 0)).reshape(-1, blocks[0].shape[1]), dim)
    scores = np.einsum("qd,qcd->qc", queries, vectors.reshape(*rows.shape, dim))
    return np.where(rows < 0, -np.inf, scores).astype(np.float32)


def update_folder(
    root: Path, items: pa.Table, vectors: NDArray[np.float32], deleted: NDArray[np.int64]
) -> Snapshot:
    """Publish a version with items put in and taken out; call it inside `writing`.

    The base and its structure are linked, not copied, until updates have changed `REBUILD_ABOVE` of it; then
    both are built anew, with the recall measured again.

    Raises:
        CropsError: as `VectorIndex.update`.
    """
    former = open_snapshot(root)
    ids = items["item_id"].to_numpy()
    check_update(ids, vectors, deleted, former.manifest.dim)
    items_before = read_items(former.folder)
    ids_before = items_before["item_id"].to_numpy()
    positions_of(ids_before, deleted, str(root))
    stays = ~np.isin(ids_before, np.concatenate([ids, deleted]))
    rows = pa.concat_tables([items_before.filter(pa.array(stays)), item_rows(items)])
    rows = rows.sort_by("item_id").combine_chunks()
    if rows.num_rows == 0:
        raise CropsError("the update deletes every item; an index cannot be empty")
    parts = read_parts(former.folder).updated(ids, vectors, deleted)
    if len(parts.delta_ids) + len(parts.deleted) > REBUILD_ABOVE * len(parts.ids):
        return publish_catalogue(root, *_again(former.manifest, rows, parts), former)

    def fill(folder: Path) -> IndexManifest:
        for name in (IDS, VECTORS, STRUCTURE):
            if (former.folder / name).exists():
                _link(former.folder / name, folder / name)
        write_delta(folder, parts)
        write_items(folder, rows)
        return former.manifest.model_copy(update={"count": rows.num_rows, "created_at": now()})

    return publish_version(root, fill, former)


def _again(manifest: IndexManifest, rows: pa.Table, parts: Parts) -> tuple[Catalogue, IndexConfig]:
    """Return what the next base is built from, and how."""
    config = IndexConfig(
        kind=manifest.kind, int8=manifest.int8, dims=manifest.dim, target_recall=manifest.recall.target
    )
    blocks = [parts.merged()[1]]
    catalogue = Catalogue(
        rows,
        blocks,
        manifest.model,
        manifest.model_hash,
        manifest.model_dim,
        sampled(blocks, config.seed),
        "documents of the index",
    )
    return catalogue, config


def _in_blocks(vectors: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [vectors[start : start + _BLOCK] for start in range(0, len(vectors), _BLOCK)]


def _link(source: Path, target: Path) -> None:
    """Link a file where the file system can, and copy it where not."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def now() -> str:
    """Return the time for a manifest, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
