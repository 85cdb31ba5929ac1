"""Dense retrieval: a query becomes a vector, and an index finds the nearest documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from crops.retrieval.catalogue import check_k, no_results, search_known
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
