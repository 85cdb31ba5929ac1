"""Exact search by inner product: the ground truth of every recall figure and of approximate indexes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.retrieval.catalogue import (
    NO_ITEM,
    SCORE_DECIMALS,
    check_k,
    no_results,
    padded_positions_of,
    sorted_catalogue,
)
from crops.retrieval.dense import DenseRetriever
from crops.retrieval.encoding import Encoder, encode_texts, say_zero
from crops.retrieval.structures import lone_query, parameters

_SLACK = 64
"""Documents fetched beyond k, to see whether the score at rank k is shared by documents further down."""


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
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors[order], dtype=np.float32))

    def nearest(
        self, vectors: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the ids and rounded inner products [q, k] nearest to `vectors` [q, d].

        Best first, ties by id; -1 and -inf where the index holds fewer than k.

        Args:
            vectors: the queries.
            k: length of the result lists.
            allowed: which of `ids` may be found, [n]; all when None.

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
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Search, ties by position; fetch more where the k-th score runs on to the last one fetched."""
        fetch = min(fetch, available)
        scores, positions = self._fetch(vectors, fetch, allowed)
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

    def _fetch(
        self, vectors: NDArray[np.float32], fetch: int, allowed: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        params = lone_query() if len(vectors) == 1 and allowed is None else parameters("exact", 0, allowed)
        scores, positions = self._index.search(vectors, fetch, params=params)
        return scores, positions

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
            scores[row, present] = self._index.reconstruct_batch(own[present]) @ vector
        return np.round(scores, SCORE_DECIMALS)


class ExactRetriever(DenseRetriever):
    """Dense retrieval by exhaustive search over a catalogue in memory."""

    def __init__(
        self,
        encoder: Encoder,
        item_ids: NDArray[np.int64] | Sequence[int],
        texts: Sequence[str],
        *,
        batch_size: int = 64,
        render_query: Callable[[str], str] = str,
    ) -> None:
        """Encode and index a catalogue.

        Args:
            encoder: a SentenceTransformer, or anything with its `encode`.
            item_ids: n distinct ids of real items.
            texts: their document texts (`crops.text.document_text`).
            batch_size: texts per forward pass.
            render_query: from a query to what the encoder reads (`crops.text.Rendering`).

        Raises:
            CropsError: the catalogue is empty or holds repeated or negative ids; an embedding is not finite.
        """
        self.item_ids, ordered = sorted_catalogue(item_ids, texts)
        vectors = encode_texts(encoder, ordered, batch_size=batch_size)
        say_zero([vectors], "documents")
        self._index = FlatIndex(self.item_ids, vectors)
        super().__init__(encoder, self._index.nearest, batch_size=batch_size, render_query=render_query)

    def nearest(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Search with ready-made query vectors [q, d]; see `FlatIndex.nearest`."""
        return self._index.nearest(vectors, k)

    def scores(self, queries: Sequence[str], candidates: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the cosines [q, c] of the queries with their `candidates` [q, c]; -inf for a candidate -1.

        Raises:
            CropsError: a candidate is not in the catalogue.
        """
        if not queries:
            return np.empty(candidates.shape, dtype=np.float32)
        return self._index.inner_products(self.encode(queries), candidates)
