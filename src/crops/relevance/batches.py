"""The batches of the pair scorer contract: text columns checked, scores appended."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.errors import CropsError

_DECIMALS = 6


def text_column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Return a text column of pairs to score.

    Raises:
        CropsError: it is missing, not text or null somewhere, or the batch has scores already.
    """
    if "score" in batch.schema.names:
        raise CropsError("pairs to score have a column 'score' already; drop or rename it")
    if name not in batch.schema.names:
        raise CropsError(f"pairs to score need the text columns 'left' and 'right'; got {batch.schema.names}")
    column = batch.column(name)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise CropsError(f"pairs to score: column '{name}' is {column.type}, not text; cast it to VARCHAR")
    if column.null_count:
        first = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise CropsError(
            f"pairs to score: column '{name}' has {column.null_count} nulls (first in row {first}); "
            "drop the pairs without text"
        )
    return column


def append_scores(batch: pa.RecordBatch, probability: NDArray[np.float64]) -> pa.RecordBatch:
    """Return the batch with the column `score`, rounded as the contract says."""
    return batch.append_column("score", pa.array(np.round(probability, _DECIMALS), pa.float64()))
