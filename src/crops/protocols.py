"""What the packages pass to each other as arguments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class PairScorer(Protocol):
    """Scores pairs of texts with a calibrated probability."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Append `score` (DOUBLE in [0, 1], 6 decimals) to batches with string columns `left` and `right`."""
        ...


class Retriever(Protocol):
    """Finds the best documents for query texts."""

    def search(self, queries: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return item ids and scores, each [queries, k], best first, ties by id; padded with -1 and -inf."""
        ...
