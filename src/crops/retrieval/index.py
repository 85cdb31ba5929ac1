"""What every vector index is and can do, how its recall is measured, and the faiss structures behind it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from crops.config import IndexConfig, Kind
from crops.errors import CropsError
from crops.outputs import progress
from crops.retrieval.bm25 import Tokeniser, tokeniser_for
from crops.retrieval.catalogue import SCORE_DECIMALS, Filter, Results
from crops.retrieval.dense import selector
from crops.retrieval.encoding import Model, narrowed
from crops.text import DOCUMENT_FIELDS

SAMPLE = 500
"""Queries that recall is measured with."""
DEPTH = 100
"""Results of each that are compared."""


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

    def shown(self, ids: NDArray[np.int64]) -> list[str]:
        """Return ids as people read them, in their order: the source's own where there are such.

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


class FileEntry(BaseModel):
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
    """Against exact search in vectors of the model's full width: what `dims` costs, too. None after an
    update, as only the kept numbers were there to build from."""
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
    tokeniser: Tokeniser = "english"
    """What a word is to `bm25:` and `hybrid:` searches."""
    created_at: str
    made_in: str = ""
    """The folder in which the index was made; "" for one on a server."""
    fields: tuple[str, ...] = DOCUMENT_FIELDS
    """Columns of items whose texts stand for a document."""
    files: dict[str, FileEntry] = {}


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
    made_in: str = ""
    """The folder from which `model` is seen, where an earlier version named it."""
    fields: tuple[str, ...] = DOCUMENT_FIELDS


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


def tuned(
    catalogue: Catalogue,
    config: IndexConfig,
    search: Callable[[NDArray[np.float32], int], NDArray[np.int64]],
) -> IndexManifest:
    """Return the manifest of a new version, with the least effort that reaches the recall wanted.

    Args:
        search: from queries [q, dim] and an effort to the rows [q, 100] of the catalogue that are found; -1
            for none.
    """
    dim = config.dims or catalogue.model_dim
    queries = narrowed(catalogue.queries, dim)
    truth = last_scores(queries, (narrowed(block, dim) for block in catalogue.blocks))
    effort, at_100 = least_effort(
        lambda effort: scored(catalogue.blocks, search(queries, effort), queries),
        efforts(config.kind, clusters(catalogue.items.num_rows)),
        truth,
        config.target_recall,
    )
    full: float | None = at_100
    if dim < catalogue.model_dim:
        full = None
        if catalogue.blocks[0].shape[1] == catalogue.model_dim:
            scores = scored(catalogue.blocks, search(queries, effort), catalogue.queries)
            full = float(recalls(scores, *last_scores(catalogue.queries, catalogue.blocks)).mean())
    return described(catalogue, config, effort, at_100, full)


def described(
    catalogue: Catalogue, config: IndexConfig, effort: int, at_100: float, full_width: float | None
) -> IndexManifest:
    """Return the manifest of a new version with the recall that was measured."""
    return IndexManifest(
        kind=config.kind,
        int8=config.int8,
        count=catalogue.items.num_rows,
        dim=config.dims or catalogue.model_dim,
        model=catalogue.model,
        model_hash=catalogue.model_hash,
        model_dim=catalogue.model_dim,
        effort=effort,
        recall=Recall(
            at_100=round(at_100, 4),
            full_width=None if full_width is None else round(full_width, 4),
            target=config.target_recall,
            queries=len(catalogue.queries),
            source=catalogue.source,
        ),
        tokeniser=tokeniser_for([catalogue.items[name] for name in catalogue.fields]),
        created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        made_in=catalogue.made_in,
        fields=catalogue.fields,
    )


def least_effort(
    found: Callable[[int], NDArray[np.float32]],
    efforts: Sequence[int],
    truth: tuple[NDArray[np.float32], int],
    target: float,
) -> tuple[int, float]:
    """Return the least effort that reaches a recall, and the mean recall there; the largest if none does.

    Other queries than the sample must reach it too: the mean has to exceed the target by two standard errors.

    Args:
        found: from an effort to the scores [q, 100] of what it finds.
        efforts: ascending, at least one.
        truth: from `last_scores`.
    """
    reached = 0.0
    for effort in efforts:
        shares = recalls(found(effort), *truth)
        reached = float(shares.mean())
        if reached - 2 * shares.std() / np.sqrt(len(shares)) >= target:
            return effort, reached
    return efforts[-1], reached


def recalls(scores: NDArray[np.float32], last: NDArray[np.float32], depth: int) -> NDArray[np.float64]:
    """Return each query's share of the exact results that was found, by score: equal documents count alike.

    Args:
        scores: exact scores [q, depth] of what was found; -inf for nothing.
        last: from `last_scores`.
        depth: from `last_scores`.
    """
    good = np.round(scores[:, :depth], SCORE_DECIMALS) >= last[:, None] - 10.0**-SCORE_DECIMALS
    return np.asarray(good.mean(axis=1), dtype=np.float64)


def last_scores(
    queries: NDArray[np.float32], blocks: Iterable[NDArray[np.float32]]
) -> tuple[NDArray[np.float32], int]:
    """Return the rounded score [q] of each query's hundredth nearest vector, and how many results that is.

    Args:
        queries: [q, d].
        blocks: the vectors, [n_i, d] each; they are looked at one after the other.

    Returns:
        The scores, and min(100, number of vectors).
    """
    best = np.empty((len(queries), 0), dtype=np.float32)
    for block in blocks:
        vectors = np.ascontiguousarray(block, dtype=np.float32)
        scores, _ = faiss.knn(queries, vectors, min(DEPTH, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
        best = -np.sort(-np.concatenate([best, scores], axis=1), axis=1)[:, :DEPTH]
    return np.round(best[:, -1], SCORE_DECIMALS), best.shape[1]


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


# Graphs, clusters and codes: how they are built and searched.


_faiss: Any = faiss  # the stubs of faiss lack the keyword arguments that its Python layer takes
LINKS = 32
"""Neighbours of a document in the graph, M of HNSW (Malkov & Yashunin 2016)."""
CARE = 100
"""efConstruction: candidates among which the neighbours are chosen."""
_REFINED = {"ivfpq": 10, "int8": 2}
"""Candidates per result that codes of 4 and 8 bits are trusted to hold, then scored with the vectors."""
_SLACK = 32
"""Candidates beyond those, so that ties at the last rank go by id."""
_POINTS_PER_CLUSTER = 64
_ROUNDS = 10
"""Points and iterations of k-means: more cost minutes at a million vectors and gained no recall."""
_CODE_POINTS = 16 * 39
"""Points that faiss asks for to learn the 16 values of a 4-bit code; fewer vectors are repeated."""
_BLOCK = 65_536
"""Vectors added at a time: the source may be larger than the memory."""


class Structure(NamedTuple):
    """What finds the rows of a matrix of vectors."""

    stored: faiss.Index
    """Graph, clusters or codes."""
    searched: faiss.Index
    """The same, or `IndexRefine` of it: codes find candidates, which the vectors score again."""
    kind: Kind
    refined: int
    """Candidates per result that are scored again; 1 without codes."""


def structure_over(stored: faiss.Index, flat: faiss.Index, kind: Kind, *, int8: bool) -> Structure:
    """Return the structure of codes or vectors `stored`; `flat` holds the vectors themselves."""
    refined = _REFINED["ivfpq"] if kind == "ivfpq" else _REFINED["int8"] if int8 else 1
    return Structure(stored, faiss.IndexRefine(stored, flat) if refined > 1 else stored, kind, refined)


def search_structure(
    structure: Structure,
    queries: NDArray[np.float32],
    k: int,
    effort: int,
    allowed: NDArray[np.bool_] | None = None,
) -> Results:
    """Return the rows near to `queries` and their inner products, each [q, c >= min(k, n)].

    Args:
        queries: [q, d].
        effort: efSearch of a graph, nprobe of clusters.
        allowed: which rows may be found, [n]; all when None. The effort grows as their share falls, as the
            best of fewer rows lie further away.

    Returns:
        Row numbers, -1 where fewer were found, and scores; ties in no particular order.
    """
    fetch = min(k + _SLACK, structure.searched.ntotal)
    if allowed is not None:
        effort = round(effort / max(allowed.mean(), 1e-3))
    options: dict[str, Any] = {} if allowed is None else {"sel": selector(allowed)}
    params = _faiss.SearchParameters(**options)
    if structure.kind == "hnsw":
        params = _faiss.SearchParametersHNSW(efSearch=effort, **options)
    elif structure.kind != "exact":
        params = _faiss.SearchParametersIVF(nprobe=effort, **options)
        if structure.kind == "ivfpq":
            params = _faiss.SearchParametersPreTransform(index_params=params)
    if structure.refined > 1:
        factor = max(1.0, (structure.refined * k + _SLACK) / fetch)
        params = _faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=params)
    scores, rows = structure.searched.search(np.ascontiguousarray(queries), fetch, params=params)
    return rows, scores


def build_structure(config: IndexConfig, flat: faiss.Index) -> Structure:
    """Build the structure that `config` names over the vectors of `flat`, which may stay on disk.

    The same vectors and seed give the same structure on one thread.
    """
    count, dim = flat.ntotal, flat.d
    index = _faiss.index_factory(dim, factory_recipe(config, count, dim), faiss.METRIC_INNER_PRODUCT)
    if config.kind == "hnsw":
        index.hnsw.efConstruction = CARE
    sample = 100_000
    if config.kind in ("ivf", "ivfpq"):
        lists = _faiss.extract_index_ivf(index)
        lists.cp.niter, lists.cp.seed = _ROUNDS, config.seed
        lists.cp.max_points_per_centroid, lists.cp.min_points_per_centroid = _POINTS_PER_CLUSTER, 1
        sample = _POINTS_PER_CLUSTER * lists.nlist
    if not index.is_trained:
        rows = np.sort(np.random.default_rng(config.seed).permutation(count)[:sample])
        if config.kind == "ivfpq":
            rows = np.resize(rows, max(len(rows), _CODE_POINTS))
        index.train(flat.reconstruct_batch(rows))
    with progress() as display:
        task = display.add_task(f"build {config.kind}", total=count, visible=count > _BLOCK)
        for start in range(0, count, _BLOCK):
            index.add(flat.reconstruct_n(start, min(_BLOCK, count - start)))
            display.update(task, completed=start + _BLOCK)
    return structure_over(index, flat, config.kind, int8=config.int8)


def factory_recipe(config: IndexConfig, count: int, dim: int) -> str:
    """Return the description that `faiss.index_factory` builds.

    4-bit codes get a random rotation (RR) first: it spreads the variance, which embeddings have in few axes,
    over all pairs of numbers that share a code.

    Raises:
        CropsError: 4-bit codes are asked for an odd number of dimensions, or together with 8-bit ones.
    """
    code = "SQ8" if config.int8 else "Flat"
    if config.kind == "exact":
        return code
    if config.kind == "hnsw":
        return f"HNSW{LINKS},{code}"
    if config.kind == "ivf":
        return f"IVF{clusters(count)},{code}"
    if config.int8 or dim % 2:
        reason = "has codes of its own; leave int8 out" if config.int8 else f"needs an even width, not {dim}"
        raise CropsError(f"index kind ivfpq {reason}")
    return f"RR{dim},IVF{clusters(count)},PQ{dim // 2}x4fs"


def clusters(count: int) -> int:
    """Return how many clusters `count` vectors get: the power of two nearest to sqrt(count).

    More cost more to build and, at 100,000 vectors and equal recall, no less to search.
    """
    return int(2 ** max(0, round(np.log2(np.sqrt(count)))))


def efforts(kind: Kind, clusters: int) -> list[int]:
    """Return the search efforts worth trying, ascending; [0] where there is no choice."""
    if kind == "exact":
        return [0]
    if kind == "hnsw":
        return [100, 150, 200, 300, 400, 600, 800, 1200]
    steps = sorted(factor << step for factor in (2, 3) for step in range(30))
    return [effort for effort in steps if effort < clusters] + [clusters]
