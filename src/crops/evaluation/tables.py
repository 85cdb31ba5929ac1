"""Arrow tables of test sets: samples of their queries, and their ids group by group."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def sample_queries(table: pa.Table, limit: int, seed: int) -> pa.Table:
    """Keep the rows of at most `limit` queries, each as likely as any other; the order of rows stays."""
    ids = np.unique(table["query_id"].to_numpy())
    if len(ids) <= limit:
        return table
    drawn = np.random.default_rng(seed).choice(ids, size=limit, replace=False)
    return table.filter(pc.is_in(table["query_id"], pa.array(drawn)))


def grouped(
    keys: NDArray[np.int64], *columns: NDArray[np.int64]
) -> tuple[NDArray[np.int64], tuple[list[NDArray[np.int64]], ...]]:
    """Split columns [n] by key.

    Returns:
        The distinct keys [g], ascending, and each column as g arrays, rows in the order they came.
    """
    order = np.argsort(keys, kind="stable")
    distinct, starts = np.unique(keys[order], return_index=True)
    # Splitting an empty column would still give one (empty) group.
    split = (np.split(column[order], starts[1:]) if len(distinct) else [] for column in columns)
    return distinct, tuple(split)
