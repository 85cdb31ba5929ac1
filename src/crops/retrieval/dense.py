"""Dense retrieval: a query becomes a vector, and an index finds the nearest documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.protocols import Retriever
from crops.retrieval.catalogue import NO_ITEM, best_positions, check_k, no_results, search_known
from crops.retrieval.encoding import Encoder, encode_texts

Results = tuple[NDArray[np.int64], NDArray[np.float32]]

"""Ids and scores, each [queries, k]: best first, ties by id, padded with -1 and -inf."""


class DenseRetriever:
    """An encoder over any vector search: implements `crops.protocols.Retriever`."""

    def __init__(
        self,
        encoder: Encoder,
        nearest: Callable[[NDArray[np.float32], int], Results],
        *,
        batch_size: int = 64,
        render_query: Callable[[str], str] = str,
    ) -> None:
        """Put the two together.

        Args:
            encoder: a SentenceTransformer, or anything with its `encode`.
            nearest: from query vectors [q, d] and k to the results, e.g. `VectorIndex.search`.
            batch_size: queries per forward pass.
            render_query: from a query to what the encoder reads (`crops.text.Rendering`).
        """
        self._encoder = encoder
        self._nearest = nearest
        self._batch_size = batch_size
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
        return encode_texts(self._encoder, rendered, role="query", batch_size=self._batch_size)


# ------------------------------------------------------------------------------
# Hybrid retrieval: result lists of several retrievers become one (Cormack, Clarke & Büttcher 2009).


CONSTANT = 60

"""The paper's k: how little the first ranks stand out."""

DEPTH = 100

"""Results of each retriever that are fused at least."""


def fuse(lists: Sequence[NDArray[np.int64]], k: int) -> Results:
    """Fuse result lists by reciprocal rank: score(item) = sum over lists of 1 / (60 + rank).

    Args:
        lists: ids [q, c_i] of each retriever, best first; -1 pads.
        k: length of the fused lists.

    Returns:
        Ids and scores, each [q, k], best first, ties by id; padded with -1 and -inf.

    Raises:
        CropsError: k < 1, or the lists are of different numbers of queries, or there is none.
    """
    check_k(k)
    if len({len(ids) for ids in lists}) != 1:
        raise CropsError("fusion needs result lists of the same queries, one retriever at least")
    ids, scores = no_results(len(lists[0]), k)
    shares = np.concatenate([1.0 / (CONSTANT + 1 + np.arange(found.shape[1])) for found in lists])
    for row, candidates in enumerate(np.hstack(lists)):
        present = candidates != NO_ITEM
        known, which = np.unique(candidates[present], return_inverse=True)
        sums = np.bincount(which, weights=shares[present], minlength=len(known)).astype(np.float32)
        best = best_positions(sums, k)
        ids[row, : len(best)] = known[best]
        scores[row, : len(best)] = sums[best]
    return ids, scores


class FusedRetriever:
    """Several retrievers as one: implements `crops.protocols.Retriever`."""

    def __init__(self, retrievers: Sequence[Retriever]) -> None:
        """Fuse `retrievers`, at least one."""
        self._retrievers = retrievers

    def search(self, queries: Sequence[str], k: int) -> Results:
        """Return ids and fused scores, each [q, k]; see `fuse`."""
        depth = max(k, DEPTH)
        return fuse([retriever.search(queries, depth)[0] for retriever in self._retrievers], k)
