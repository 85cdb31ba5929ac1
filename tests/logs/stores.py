"""Logs laid down as teams have them: in a store, as Delta Lake or Iceberg tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crops.logs.lake import open_store

TABLES = ("items", "search_impressions", "feed_events")


def read_days(folder: Path, table: str, key: str = "day", write: Callable[[str], object] = str) -> pa.Table:
    """Return the rows of a table of a logs folder, its day as a column."""
    parts = []
    for file in sorted((folder / table).glob("*/*.parquet")):
        rows = pq.read_table(file, partitioning=None)
        day = file.parent.name.partition("=")[2]
        parts.append(rows.append_column(key, pa.array([write(day)] * len(rows))))
    return pa.concat_tables(parts)


def times_as(rows: pa.Table, type_: pa.DataType, *names: str) -> pa.Table:
    """Return rows whose times of whole microseconds are timestamps."""
    for name in names:
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, name, rows[name].cast(pa.timestamp("us", "UTC")).cast(type_))
    return rows


def put(rows: pa.Table, uri: str) -> None:
    """Write a Parquet file into a store."""
    store, inside = open_store(uri)
    with store.open_output_stream(inside) as file:
        pq.write_table(rows, file)


def upload(folder: Path, uri: str) -> None:
    """Copy a logs folder into a store."""
    for file in sorted(folder.rglob("*.parquet")):
        store, inside = open_store(f"{uri}/{file.relative_to(folder)}")
        with store.open_output_stream(inside) as target:
            target.write(file.read_bytes())
