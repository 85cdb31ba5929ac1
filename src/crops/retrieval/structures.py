"""The faiss structures behind an index: graphs, clusters and codes; how they are built and searched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from crops.config import IndexConfig, Kind
from crops.errors import CropsError
from crops.outputs import progress
from crops.retrieval.catalogue import SCORE_DECIMALS

# faiss by default leaves BLAS aside for small batches (fewer than 128,000 numbers in the queries), which made
# 256 queries of 256 numbers over 50,000 vectors 2.7 times slower. The switch is global in faiss.
faiss.cvar.distance_compute_blas_threshold = 1

_faiss: Any = faiss  # the stubs of faiss lack the keyword arguments that its Python layer takes

LINKS = 32

"""Neighbours of a document in the graph, M of HNSW (Malkov & Yashunin 2016)."""

CARE = 100

"""efConstruction: candidates among which the neighbours are chosen."""

_CODE_RESCORED = 10

"""Candidates per result that 4-bit codes are trusted to hold, then scored again with the vectors."""

_INT8_RESCORED = 2

_SLACK = 32

"""Candidates beyond those, so that ties at the last rank go by id."""

_POINTS_PER_CLUSTER = 64

_ROUNDS = 10

"""Points and iterations of k-means: more cost minutes at a million vectors and gained no recall."""

_CODE_POINTS = 16 * 39

"""Points that faiss asks for to learn the 16 values of a 4-bit code; fewer vectors are repeated."""

_BLOCK = 65_536

"""Vectors added at a time: the source may be larger than the memory."""

_GATHER = 65_536

"""Vectors gathered at a time to score candidates again."""


class Structure(NamedTuple):
    """A searchable structure over the rows of a matrix of vectors."""

    searched: faiss.Index
    kind: Kind
    int8: bool
    effort: int
    """efSearch of a graph, nprobe of clusters."""


def recipe(config: IndexConfig, count: int, dim: int) -> str:
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


def build(config: IndexConfig, vectors: NDArray[np.float32]) -> Structure:
    """Build the structure that `config` names over `vectors` [n, d], which may be a memory map.

    The same vectors and seed give the same structure on one thread.
    """
    count, dim = vectors.shape
    index = _faiss.index_factory(dim, recipe(config, count, dim), faiss.METRIC_INNER_PRODUCT)
    if config.kind == "hnsw":
        index.hnsw.efConstruction = CARE
    sample = count
    if config.kind in ("ivf", "ivfpq"):
        lists = _faiss.extract_index_ivf(index)
        lists.cp.niter, lists.cp.seed = _ROUNDS, config.seed
        lists.cp.max_points_per_centroid, lists.cp.min_points_per_centroid = _POINTS_PER_CLUSTER, 1
        sample = _POINTS_PER_CLUSTER * lists.nlist
    elif not index.is_trained:
        sample = 100_000
    if not index.is_trained:
        rows = np.sort(np.random.default_rng(config.seed).permutation(count)[:sample])
        if config.kind == "ivfpq":
            rows = np.resize(rows, max(len(rows), _CODE_POINTS))
        index.train(np.ascontiguousarray(vectors[rows]))
    with progress() as display:
        task = display.add_task(f"build {config.kind}", total=count, visible=count > _BLOCK)
        for start in range(0, count, _BLOCK):
            index.add(np.ascontiguousarray(vectors[start : start + _BLOCK]))
            display.update(task, completed=start + _BLOCK)
    return Structure(index, config.kind, config.int8, 0)


def efforts(kind: Kind, clusters: int) -> list[int]:
    """Return the search efforts worth trying, ascending; [0] where there is no choice."""
    if kind == "exact":
        return [0]
    if kind == "hnsw":
        return [100, 150, 200, 300, 400, 600, 800, 1200]
    steps = sorted(factor << step for factor in (2, 3) for step in range(30))
    return [effort for effort in steps if effort < clusters] + [clusters]


def parameters(kind: Kind, effort: int, allowed: NDArray[np.bool_] | None) -> faiss.SearchParameters | None:
    """Return what faiss is told about one search: the effort, and which rows may be found."""
    options: dict[str, Any] = {}
    if allowed is not None:
        options["sel"] = _faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    found: faiss.SearchParameters
    if kind == "hnsw":
        found = _faiss.SearchParametersHNSW(efSearch=effort, **options)
    elif kind in ("ivf", "ivfpq"):
        found = _faiss.SearchParametersIVF(nprobe=effort, **options)
        if kind == "ivfpq":
            found = _faiss.SearchParametersPreTransform(index_params=found)
    elif options:
        found = _faiss.SearchParameters(**options)
    else:
        return None
    return found


def lone_query() -> faiss.SearchParameters:
    """Return what makes faiss search a single query without BLAS, which takes 0.5 to 0.6 of the time.

    Any selection keeps it from BLAS; this one lets all vectors through.
    """
    params: faiss.SearchParameters = _faiss.SearchParameters(sel=_faiss.IDSelectorAll())
    return params


def write(structure: Structure, file: Path) -> None:
    """Write what is searched to a file.

    Raises:
        OSError: the file cannot be written, e.g. as the disk is full; faiss by itself does not always see it.
    """
    faults: list[OSError] = []
    with file.open("wb") as stream:

        def put(part: bytes) -> int:
            try:
                return stream.write(part)
            except OSError as fault:
                faults.append(fault)
                raise

        try:
            faiss.write_index(structure.searched, faiss.PyCallbackIOWriter(put))  # type: ignore[attr-defined]
        except RuntimeError:
            if faults:
                raise faults[0] from None
            raise


def candidates(
    structure: Structure,
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    allowed: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return rows of `vectors` near to `queries` and their inner products, each [q, c >= min(k, n)].

    Where the structure holds codes, more candidates than k are taken and scored with the vectors themselves.

    Args:
        structure: built over `vectors`.
        vectors: [n, d]; may be a memory map.
        queries: [q, d].
        k: results wanted.
        allowed: which rows may be found, [n]; all when None. The effort grows as their share falls, as the
            best of fewer rows lie further away.

    Returns:
        Row numbers, -1 where fewer were found, in no particular order; and scores.
    """
    rescored = _CODE_RESCORED if structure.kind == "ivfpq" else _INT8_RESCORED if structure.int8 else 1
    fetch = min(k * rescored + _SLACK, len(vectors))
    effort = structure.effort if allowed is None else round(structure.effort / max(allowed.mean(), 1e-3))
    options = parameters(structure.kind, effort, allowed)
    scores, rows = structure.searched.search(np.ascontiguousarray(queries), fetch, params=options)
    if rescored > 1:
        for start in range(0, len(queries), max(1, _GATHER // fetch)):
            part = slice(start, start + max(1, _GATHER // fetch))
            scores[part] = np.einsum("qd,qcd->qc", queries[part], vectors[np.maximum(rows[part], 0)])
    return rows, scores


# ------------------------------------------------------------------------------
# How much of exact search an index finds.


DEPTH = 100

"""Results that are compared."""


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


def recalls(scores: NDArray[np.float32], last: NDArray[np.float32], depth: int) -> NDArray[np.float64]:
    """Return each query's share of the exact results that was found, by score: equal documents count alike.

    Args:
        scores: exact scores [q, depth] of what was found; -inf for nothing.
        last: from `last_scores`.
        depth: from `last_scores`.
    """
    good = np.round(scores[:, :depth], SCORE_DECIMALS) >= last[:, None] - 10.0**-SCORE_DECIMALS
    return np.asarray(good.mean(axis=1), dtype=np.float64)


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
        target: mean recall wanted.
    """
    reached = 0.0
    for effort in efforts:
        shares = recalls(found(effort), *truth)
        reached = float(shares.mean())
        if reached - 2 * shares.std() / np.sqrt(len(shares)) >= target:
            return effort, reached
    return efforts[-1], reached
