"""The faiss structures behind an index: graphs, clusters and codes; how they are built and searched."""

from __future__ import annotations

from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from crops.config import IndexConfig, Kind
from crops.errors import CropsError
from crops.outputs import progress
from crops.retrieval.catalogue import Results
from crops.retrieval.dense import selector

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


def search(
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


def build(config: IndexConfig, flat: faiss.Index) -> Structure:
    """Build the structure that `config` names over the vectors of `flat`, which may stay on disk.

    The same vectors and seed give the same structure on one thread.
    """
    count, dim = flat.ntotal, flat.d
    index = _faiss.index_factory(dim, recipe(config, count, dim), faiss.METRIC_INNER_PRODUCT)
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


def efforts(kind: Kind, clusters: int) -> list[int]:
    """Return the search efforts worth trying, ascending; [0] where there is no choice."""
    if kind == "exact":
        return [0]
    if kind == "hnsw":
        return [100, 150, 200, 300, 400, 600, 800, 1200]
    steps = sorted(factor << step for factor in (2, 3) for step in range(30))
    return [effort for effort in steps if effort < clusters] + [clusters]
