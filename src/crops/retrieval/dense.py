"""Dense retrieval: a query becomes a vector, exact search finds the nearest documents, lists can be fused.

Exact search by inner product is the ground truth of every recall figure and of approximate indexes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.protocols import Retriever
from crops.retrieval.catalogue import (
    NO_ITEM,
    SCORE_DECIMALS,
    Results,
    best_positions,
    check_k,
    no_results,
    padded_positions_of,
    positions_of,
    search_known,
    sorted_catalogue,
)
from crops.retrieval.encoding import Encoder, encode_texts, say_zero

# faiss by default leaves BLAS aside for small batches (fewer than 128,000 numbers in the queries), which made
# 256 queries of 256 numbers over 50,000 vectors 2.7 times slower. The switch is global in faiss.
faiss.cvar.distance_compute_blas_threshold = 1
_faiss: Any = faiss  # the stubs of faiss lack the keyword arguments that its Python layer takes
_SLACK = 64
"""Documents fetched beyond k, to see whether the score at rank k is shared by documents further down."""
_RRF_K = 60
"""k of reciprocal rank fusion (Cormack, Clarke & Büttcher 2009): how little first ranks stand out."""
_FUSED_DEPTH = 100
"""Results of each retriever that are fused at least."""


class FlatIndex:
    """Vectors under ids, searched exhaustively by inner product."""

    def __init__(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Index `vectors` [n, d] under distinct `ids` [n].

        Raises:
            CropsError: there are no vectors, or a vector holds NaN or infinity.
        """
        if len(ids) == 0:
            raise CropsError("the index is empty: there is nothing to search")
        if not np.isfinite(vectors).all():
            raise CropsError("a vector of the index holds NaN or infinity")
        order = np.argsort(ids)
        self.ids: NDArray[np.int64] = np.asarray(ids, dtype=np.int64)[order]
        self.faiss: faiss.Index = faiss.IndexFlatIP(vectors.shape[1])
        self.faiss.add(np.ascontiguousarray(vectors[order], dtype=np.float32))

    @classmethod
    def mapped(cls, ids: NDArray[np.int64], file: Path) -> Self:
        """Search the vectors of a file of `write_flat`, which stay there, under their ascending `ids` [n]."""
        index = cls.__new__(cls)
        index.ids = ids
        index.faiss = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
        return index

    def nearest(
        self, vectors: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> Results:
        """Return the ids and rounded inner products [q, k] nearest to `vectors` [q, d].

        Best first, ties by id; -1 and -inf where the index holds fewer than k. `allowed` [n] says which of
        `ids` may be found; all when None.

        Raises:
            CropsError: k < 1, or a vector holds NaN or infinity.
        """
        check_k(k)
        if not np.isfinite(vectors).all():
            raise CropsError("a query vector holds NaN or infinity")
        available = len(self.ids) if allowed is None else int(allowed.sum())
        found = min(k, available)
        ids, scores = no_results(len(vectors), k)
        if len(vectors) and found:
            positions, scores[:, :found] = self._search(vectors, found, found + _SLACK, available, allowed)
            ids[:, :found] = self.ids[positions]
        return ids, scores

    def _search(
        self,
        vectors: NDArray[np.float32],
        k: int,
        fetch: int,
        available: int,
        allowed: NDArray[np.bool_] | None,
    ) -> Results:
        """Return positions and scores, ties by position.

        More is fetched where the k-th score runs on to the last one fetched.
        """
        fetch = min(fetch, available)
        options: Any = None
        if allowed is not None:
            options = _faiss.SearchParameters(sel=selector(allowed))
        elif len(vectors) == 1:
            # A selection keeps faiss from BLAS, without which a lone query takes 0.5 to 0.6 of the time.
            options = _faiss.SearchParameters(sel=_faiss.IDSelectorAll())
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        scores, positions = self.faiss.search(queries, fetch, params=options)
        scores = np.round(scores, SCORE_DECIMALS)
        order = np.lexsort((positions, -scores))[:, :k]
        best = np.take_along_axis(positions, order, axis=1)
        best_scores = np.take_along_axis(scores, order, axis=1)
        undecided = best_scores[:, -1] == scores[:, -1]
        if fetch < available and undecided.any():
            best[undecided], best_scores[undecided] = self._search(
                vectors[undecided], k, 4 * fetch, available, allowed
            )
        return best, best_scores

    def inner_products(
        self, vectors: NDArray[np.float32], candidates: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the rounded inner products [q, c] of `vectors` [q, d] with each one's `candidates` [q, c].

        -inf where a candidate is -1.

        Raises:
            CropsError: a candidate is not in the index.
        """
        positions = padded_positions_of(self.ids, candidates, "the index")
        scores = np.full(candidates.shape, -np.inf, dtype=np.float32)
        for row, (vector, own) in enumerate(zip(vectors, positions, strict=True)):
            present = own != NO_ITEM
            scores[row, present] = self.faiss.reconstruct_batch(own[present]) @ vector
        return np.round(scores, SCORE_DECIMALS)

    def vectors(self, ids: NDArray[np.int64], where: str = "the index") -> NDArray[np.float32]:
        """Return the vectors [n, d] of items.

        Raises:
            UnknownItemError: an id is not in the index, which is called `where`.
        """
        positions = positions_of(self.ids, ids, where)
        found: NDArray[np.float32] = self.faiss.reconstruct_batch(positions)
        return found


def selector(allowed: NDArray[np.bool_]) -> faiss.IDSelector:
    """Return what tells faiss which of its rows [n] may be found."""
    selected: faiss.IDSelector = _faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    return selected


def write_flat(file: Path, blocks: Iterable[NDArray[np.float32]], count: int, dim: int) -> None:
    """Write vectors as faiss writes an `IndexFlatIP`, block by block: all of them may exceed the memory.

    `count` is the sum of the n_i of the blocks [n_i, dim].
    """
    header = bytearray(faiss.serialize_index(faiss.IndexFlatIP(dim)))  # of no vectors
    struct.pack_into("<q", header, 8, count)
    struct.pack_into("<Q", header, len(header) - 8, count * dim)
    with file.open("wb") as stream:
        stream.write(header)
        for block in blocks:
            stream.write(np.ascontiguousarray(block, dtype="<f4").data)


class DenseRetriever:
    """An encoder over any vector search: implements `crops.protocols.Retriever`."""

    def __init__(
        self,
        encoder: Encoder,
        nearest: Callable[[NDArray[np.float32], int], Results],
        *,
        render_query: Callable[[str], str] = str,
    ) -> None:
        """Put the two together.

        Args:
            encoder: a SentenceTransformer, or anything with its `encode`.
            nearest: from query vectors [q, d] and k to the results, e.g. `VectorIndex.search`.
            render_query: from a query to what the encoder reads (`crops.text.Rendering`).
        """
        self._encoder = encoder
        self._nearest = nearest
        self._render_query = render_query

    def search(self, queries: Sequence[str], k: int) -> Results:
        """Return item ids and cosines, each [q, k], best first, ties by id; -1 and -inf pad short lists.

        A query of which the encoder knows no token finds nothing.

        Raises:
            CropsError: k < 1, or the encoder gives NaN for a query.
        """
        check_k(k)
        if not queries:
            return no_results(0, k)
        return search_known(self.encode(queries), k, lambda known: self._nearest(known, k))

    def encode(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Return the unit vectors [q, d] of at least one query."""
        rendered = [self._render_query(query) for query in queries]
        return encode_texts(self._encoder, rendered, role="query")


class ExactRetriever(DenseRetriever):
    """Dense retrieval by exhaustive search over a catalogue in memory."""

    def __init__(
        self,
        encoder: Encoder,
        item_ids: NDArray[np.int64] | Sequence[int],
        texts: Sequence[str],
        *,
        render_query: Callable[[str], str] = str,
    ) -> None:
        """Encode and index a catalogue: n distinct ids of real items and their document texts.

        Raises:
            CropsError: the catalogue is empty or holds repeated or negative ids; an embedding is not finite.
        """
        self.item_ids, ordered = sorted_catalogue(item_ids, texts)
        vectors = encode_texts(encoder, ordered)
        say_zero([vectors], "documents")
        self._index = FlatIndex(self.item_ids, vectors)
        self.nearest = self._index.nearest  # with ready-made query vectors
        super().__init__(encoder, self.nearest, render_query=render_query)

    def scores(self, queries: Sequence[str], candidates: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the cosines [q, c] of the queries with their `candidates` [q, c]; -inf for a candidate -1.

        Raises:
            CropsError: a candidate is not in the catalogue.
        """
        if not queries:
            return np.empty(candidates.shape, dtype=np.float32)
        return self._index.inner_products(self.encode(queries), candidates)


class FusedRetriever:
    """Several retrievers as one: implements `crops.protocols.Retriever`."""

    def __init__(self, retrievers: Sequence[Retriever]) -> None:
        """Fuse `retrievers`, at least one."""
        self._retrievers = retrievers

    def search(self, queries: Sequence[str], k: int) -> Results:
        """Return ids and fused scores, each [q, k]; see `fuse`."""
        depth = max(k, _FUSED_DEPTH)
        return fuse([retriever.search(queries, depth)[0] for retriever in self._retrievers], k)


def fuse(lists: Sequence[NDArray[np.int64]], k: int) -> Results:
    """Fuse result lists by reciprocal rank: score(item) = sum over lists of 1 / (60 + rank).

    The lists are ids [q, c_i], best first, padded with -1; returned are ids and scores, each [q, k], ties by
    id, padded with -1 and -inf.

    Raises:
        CropsError: k < 1, or the lists are of different numbers of queries, or there is none.
    """
    check_k(k)
    if len({len(ids) for ids in lists}) != 1:
        raise CropsError("fusion needs result lists of the same queries, one retriever at least")
    ids, scores = no_results(len(lists[0]), k)
    shares = np.concatenate([1.0 / (_RRF_K + 1 + np.arange(found.shape[1])) for found in lists])
    for row, candidates in enumerate(np.hstack(lists)):
        present = candidates != NO_ITEM
        known, which = np.unique(candidates[present], return_inverse=True)
        sums = np.bincount(which, weights=shares[present], minlength=len(known)).astype(np.float32)
        best = best_positions(sums, k)
        ids[row, : len(best)] = known[best]
        scores[row, : len(best)] = sums[best]
    return ids, scores
