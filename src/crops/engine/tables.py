"""The tables that a job writes, in the columns and types of the contract."""

from __future__ import annotations

from pathlib import Path

from crops.engine.backend import SQL_TYPES, Backend
from crops.engine.merge import samples_sql
from crops.schema import ARROW_TYPES, EVIDENCE, ITEMS, QUERIES, SAMPLES, SYNTHETIC_ITEMS, Table

_EVIDENCE_ORDER = (
    "r.item_id, r.source, r.search_id nulls last, r.via_query_id nulls last, r.watched_at nulls last, r.day"
)
_EVENT_QUERIES = """
select s.search_id as query_id, q.query, 1 as searches, q.users
from searches s join queries q on q.query_id = s.query_id
"""


def emit_part(backend: Backend, folder: Path, by_event: bool) -> None:
    """Add the samples and the evidence of a part to what will be written to `folder`.

    Sorted by query; where groups are events by query, then event, and `query_id` is the event's search_id.
    """
    for table, rows, order in (
        (SAMPLES, samples_sql(), "r.item_id"),
        (EVIDENCE, "select * from evidence", _EVIDENCE_ORDER),
    ):
        columns = columns_sql(table, {"query_id": "group_id"})
        select, first = f"select {columns} from ({rows}) r", "r.group_id"
        if by_event:
            select, first = f"{select} join groups g on g.group_id = r.group_id", "g.query_id, r.group_id"
        backend.emit(select, f"{first}, {order}", folder / f"{table.name}.parquet")


def write_tables(backend: Backend, folder: Path, by_event: bool) -> None:
    """Write all tables, the samples and evidence as they were emitted."""
    queries = _EVENT_QUERIES if by_event else "select * from queries"
    for table, rows, key in (
        (QUERIES, queries, "query_id"),
        (ITEMS, "select * from log_items", "item_id"),
        (SYNTHETIC_ITEMS, "select * from synthetic_items", "item_id"),
    ):
        backend.emit(
            f"select {columns_sql(table, {})} from ({rows}) r", f"r.{key}", folder / f"{table.name}.parquet"
        )
    for table in (SAMPLES, QUERIES, EVIDENCE, ITEMS, SYNTHETIC_ITEMS):
        backend.write(folder / f"{table.name}.parquet")


def columns_sql(table: Table, renamed: dict[str, str]) -> str:
    """Return the columns of a table, cast to its types, read from the alias `r`, some under other names."""
    types = {column.name: SQL_TYPES[ARROW_TYPES[column.type]] for column in table.columns}
    return ", ".join(
        f"cast(r.{renamed.get(name, name)} as {type_}) as {name}" for name, type_ in types.items()
    )
