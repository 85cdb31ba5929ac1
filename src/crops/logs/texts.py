"""Queries as typed and as they are compared, for SQL that reads logs."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from crops.text import normalised_texts

_SCHEMA = pa.schema([("raw", pa.string()), ("query", pa.string())])


def add_texts(db: duckdb.DuckDBPyConnection, typed: str) -> None:
    """Register `texts(raw, query)`: each distinct text that a SELECT gives, and its normalised form.

    Join it with what was typed, so that SQL means by "the same query" what the engine does. A text with
    nothing to read is no query and is not in it.

    Args:
        db: the connection.
        typed: SELECT of one column of texts.
    """
    raw = db.sql(f"select distinct * from ({typed})").to_arrow_table().column(0).drop_null().to_pylist()
    texts = normalised_texts(raw)
    db.register("texts", pa.table([list(texts), list(texts.values())], schema=_SCHEMA))
