"""Numbers for the ids of a source: users always, items and searches where theirs are no fit numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from crops.logs.tables import literal, quoted
from crops.schema import Table

KEPT = "kept"
NUMBERED = "numbered"
_FIT = {"item_id": "[1-9][0-9]*", "search_id": "0|-?[1-9][0-9]*"}
"""What an id must look like to be kept; a user's never is."""
_FILES = {"user_id": "users", "item_id": "items", "search_id": "searches"}


def number_ids(connection: duckdb.DuckDBPyConnection, tables: Sequence[Table]) -> dict[str, str]:
    """Make `ids_<column>(original, number)` for the ids that are replaced.

    Numbers run from 1 in the order of the originals, whole numbers first: equal sources get equal numbers.

    Args:
        connection: holds `mapped_<table>` of each table.
        tables: the tables with ids.

    Returns:
        `kept` or `numbered`, by column.
    """
    kinds = {}
    for column in _FILES:
        parts = [
            f"select {column} as original from mapped_{table.name} where len(_reasons) = 0"
            for table in tables
            if column in table.names()
        ]
        originals = f"select distinct original from ({' union all '.join(parts)})"
        kinds[column] = KEPT if _fit(connection, column, originals) else NUMBERED
        if kinds[column] == NUMBERED:
            order = "try_cast(original as HUGEINT) nulls last, original"
            connection.execute(
                f"create table ids_{column} as"
                f" select original, row_number() over (order by {order}) as number from ({originals})"
            )
    return kinds


def id_sql(kinds: Mapping[str, str], column: str, table: str) -> tuple[str, str]:
    """Return the SQL of a column of `mapped_<table>` with its ids replaced, and the join that it needs."""
    original = f"mapped_{table}.{quoted(column)}"
    if kinds.get(column) != NUMBERED:
        return original, ""
    return f"ids_{column}.number", f" join ids_{column} on ids_{column}.original = {original}"


def write_maps(connection: duckdb.DuckDBPyConnection, kinds: Mapping[str, str], folder: Path) -> None:
    """Write `<ids>.parquet(original, number)` for the ids that were replaced."""
    folder.mkdir()
    for column, kind in kinds.items():
        if kind == NUMBERED:
            target = literal(str(folder / f"{_FILES[column]}.parquet"))
            select = f"select original, number from ids_{column} order by number"
            connection.execute(f"copy ({select}) to {target} (format parquet)")


def _fit(connection: duckdb.DuckDBPyConnection, column: str, originals: str) -> bool:
    if column not in _FIT:
        return False
    fits = f"regexp_full_match(original, '{_FIT[column]}') and try_cast(original as BIGINT) is not null"
    ((fit,),) = connection.execute(f"select bool_and({fits}) from ({originals})").fetchall()
    return bool(fit)
