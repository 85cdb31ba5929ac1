"""What is encoded: the rows and texts of items, and queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.logs.files import kind, refuse_lake_tables
from crops.retrieval.catalogue import item_files, read_item_columns
from crops.retrieval.filters import ITEM_SCHEMA, item_rows
from crops.text import normalise_query, query_id

_QUERY_TABLES = ("queries.parquet", "search_impressions")
"""Where a folder has queries: mined samples, logs."""


def load_item_rows(path: str | Path) -> pa.Table:
    """Return the rows of `items` with the columns that an index keeps, ascending by id.

    Args:
        path: as `crops.retrieval.load_items`, which checks the ids.
    """
    path = Path(path)
    tables = [item_rows(read_item_columns(file, ITEM_SCHEMA.names)) for file in item_files(path)]
    return pa.concat_tables(tables).sort_by("item_id").combine_chunks()


def load_queries(path: str | Path) -> tuple[NDArray[np.int64], list[str]]:
    """Return the distinct normalised queries of a table.

    Args:
        path: Parquet with a column `query`, or a folder of mined samples or of logs.

    Returns:
        The ids [n], ascending (`crops.text.query_id`), and the n texts.

    Raises:
        CropsError: there is no such table, or no query in it.
    """
    path = Path(path)
    table = _query_table(path)
    if table is None:
        raise CropsError(f"{path}: no Parquet table with a column query")
    type_ = table.schema.field("query").type
    if kind(type_) != "text":
        raise CropsError(f"{path}: column query is {type_}; write the texts of the queries")
    column = table.to_table(columns=["query"])["query"]
    texts = {normalise_query(text) for text in column.unique().to_pylist() if text}
    by_id = sorted((query_id(text), text) for text in texts if text)
    if not by_id:
        raise CropsError(f"{path}: not one query in it")
    return np.array([one for one, _ in by_id], dtype=np.int64), [text for _, text in by_id]


def _query_table(path: Path) -> ds.Dataset | None:
    tables = [path] if path.is_file() else [path / name for name in _QUERY_TABLES if (path / name).exists()]
    refuse_lake_tables(tables)
    try:
        found = (ds.dataset(table, format="parquet") for table in tables)
        return next((table for table in found if "query" in table.schema.names), None)
    except (pa.ArrowException, OSError) as error:
        raise CropsError(f"{path} is not readable as Parquet ({error}); write it again") from error
