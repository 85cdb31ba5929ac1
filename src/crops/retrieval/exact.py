"""Exact search by inner product: the ground truth of every recall figure and of approximate indexes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.outputs import progress
from crops.retrieval.catalogue import NO_ITEM, SCORE_DECIMALS, check_k, positions_of, sorted_catalogue

# faiss by default leaves BLAS aside for small batches (fewer than 128,000 numbers in the queries), which made
# 256 queries of 256 numbers over 50,000 vectors 2.7 times slower. Only a lone query is quicker without BLAS.
# The switch is global in faiss.
faiss.cvar.distance_compute_blas_threshold = 1

_CHUNK = 4096
"""Texts encoded between two steps of the progress display; the encoder batches by length inside a chunk."""
_SLACK = 64
"""Documents fetched beyond k, to see whether the score at rank k is shared by documents further down."""


class Encoder(Protocol):
    """What turns texts into vectors; every SentenceTransformer does."""

    def encode(
        self, texts: list[str], /, *, batch_size: int, normalize_embeddings: bool, show_progress_bar: bool
    ) -> Any:  # noqa: ANN401  (an array or a tensor, [len(texts), d])
        """Return one vector for each text."""
        ...


def encode_texts(
    encoder: Encoder, texts: Sequence[str], *, role: str = "document", batch_size: int = 64
) -> NDArray[np.float32]:
    """Encode texts to unit vectors, with a progress display if there are many.

    Args:
        encoder: its `encode_query` or `encode_document` is used if it has one (SentenceTransformer: prompts).
        texts: n texts.
        role: `query` or `document`.
        batch_size: texts per forward pass.

    Returns:
        Unit vectors [n, d]; a text the encoder knows no part of may have the zero vector.

    Raises:
        CropsError: a vector holds NaN or infinity.
    """
    encode = getattr(encoder, f"encode_{role}", encoder.encode)
    parts: list[NDArray[np.float32]] = []
    with progress() as display:
        task = display.add_task(f"encode {role} texts", total=len(texts), visible=len(texts) > _CHUNK)
        for start in range(0, len(texts), _CHUNK):
            chunk = list(texts[start : start + _CHUNK])
            part = encode(chunk, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)
            parts.append(np.asarray(part, dtype=np.float32))
            display.advance(task, len(chunk))
    vectors = np.concatenate(parts)
    _refuse_not_finite(vectors, texts)
    return vectors


def _refuse_not_finite(vectors: NDArray[np.float32], texts: Sequence[str]) -> None:
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if broken.size:
        raise CropsError(
            f"the encoder gave NaN or infinity for {broken.size} of {len(texts)} texts, the first is "
            f"{texts[broken[0]][:80]!r}; the model did not train well or its files are damaged"
        )


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

    def nearest(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the ids and rounded inner products [q, k] nearest to `vectors` [q, d].

        Best first, ties by id; -1 and -inf where the index holds fewer than k.

        Raises:
            CropsError: k < 1, or a vector holds NaN or infinity.
        """
        check_k(k)
        if not np.isfinite(vectors).all():
            raise CropsError("a query vector holds NaN or infinity")
        found = min(k, len(self.ids))
        ids = np.full((len(vectors), k), NO_ITEM, dtype=np.int64)
        scores = np.full((len(vectors), k), -np.inf, dtype=np.float32)
        if len(vectors):
            positions, scores[:, :found] = self._search(vectors, found, found + _SLACK)
            ids[:, :found] = self.ids[positions]
        return ids, scores

    def _search(
        self, vectors: NDArray[np.float32], k: int, fetch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Search, ties by position; fetch more where the k-th score runs on to the last one fetched."""
        fetch = min(fetch, len(self.ids))
        scores, positions = self._index.search(np.ascontiguousarray(vectors, dtype=np.float32), fetch)
        scores = np.round(scores, SCORE_DECIMALS)
        order = np.lexsort((positions, -scores))[:, :k]
        best = np.take_along_axis(positions, order, axis=1)
        best_scores = np.take_along_axis(scores, order, axis=1)
        undecided = best_scores[:, -1] == scores[:, -1]
        if fetch < len(self.ids) and undecided.any():
            best[undecided], best_scores[undecided] = self._search(vectors[undecided], k, 4 * fetch)
        return best, best_scores

    def inner_products(
        self, vectors: NDArray[np.float32], candidates: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the rounded inner products [q, c] of `vectors` [q, d] with each one's `candidates` [q, c].

        -inf where a candidate is -1.

        Raises:
            CropsError: a candidate is not in the index.
        """
        positions = positions_of(self.ids, candidates, "the index")
        scores = np.full(candidates.shape, -np.inf, dtype=np.float32)
        for row, (vector, own) in enumerate(zip(vectors, positions, strict=True)):
            present = own != NO_ITEM
            scores[row, present] = self._index.reconstruct_batch(own[present]) @ vector
        return np.round(scores, SCORE_DECIMALS)


class ExactRetriever:
    """Dense retrieval by exhaustive search: implements `crops.protocols.Retriever`."""

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
        self._encoder = encoder
        self._batch_size = batch_size
        self._render_query = render_query
        self._index = FlatIndex(self.item_ids, encode_texts(encoder, ordered, batch_size=batch_size))

    def search(self, queries: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return item ids and cosines, each [q, k], best first, ties by id; -1 and -inf pad short lists.

        Raises:
            CropsError: k < 1, or the encoder gives NaN for a query.
        """
        check_k(k)
        if not queries:
            return np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32)
        return self.nearest(self._encode(queries), k)

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
        return self._index.inner_products(self._encode(queries), candidates)

    def _encode(self, queries: Sequence[str]) -> NDArray[np.float32]:
        rendered = [self._render_query(query) for query in queries]
        return encode_texts(self._encoder, rendered, role="query", batch_size=self._batch_size)
