"""P3: documents that an LLM wrote for a query, as items with ids of their own (CroPS, world knowledge)."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from crops.config import KnowledgeConfig
from crops.engine.backend import SQL_TYPES, Backend
from crops.engine.merge import PRIME, random_order
from crops.errors import CropsError
from crops.schema import ARROW_TYPES, SYNTHETIC_ITEMS
from crops.text import DOCUMENT_FIELDS, content_id, has_text, query_id

_FIELDS = (*DOCUMENT_FIELDS, "click_query")
_SCHEMA = pa.schema(
    [("query_id", pa.int64()), ("item_id", pa.int64()), *((name, pa.string()) for name in _FIELDS)]
)


def load_generated(backend: Backend, generated: Path | None, config: KnowledgeConfig, seed: int) -> None:
    """Make `generated`, `p3(query_id, item_id)`, `generated_groups` and `synthetic_items`.

    Generations join the mined queries by normalised text; those of other queries are left out. Of more than
    `config.max_per_query` a seeded random choice is kept, and of more than `config.max_pairs` in all another,
    the first documents of all queries before any second. As in the paper, theta does not filter them.

    Args:
        backend: holds the queries.
        generated: JSON lines with `query` and the document fields; None when P3 is off.
        config: settings of P3.
        seed: of the choice.

    Raises:
        CropsError: the file is missing, or a line is not an object with texts, or has no document.
    """
    if generated is None:
        backend.load("generated", _SCHEMA, [])
    else:
        try:
            backend.load_lines("generated", generated, functools.partial(_parsed, path=generated), _SCHEMA)
        except OSError as error:
            raise CropsError(f"{generated}: cannot read the generated documents: {error}") from error
    chance = random_order("query_id", "item_id", seed)
    backend.table(
        "p3_placed",
        f"""
        select query_id, item_id, place, chance from (
            select query_id, item_id, {chance} as chance, row_number() over (
                partition by query_id order by {chance}, item_id
            ) as place
            from (
                select distinct g.query_id, g.item_id
                from generated g join queries q on q.query_id = g.query_id
            ) pairs
        ) placed
        where place <= {config.max_per_query}
        """,
    )
    backend.table("p3", _first_sql(backend, config.max_pairs))
    backend.drop_tables("p3_placed")
    backend.view(
        "generated_groups",
        "select g.group_id, p.query_id, p.item_id from p3 p join groups g on g.query_id = p.query_id",
    )
    backend.table("synthetic_items", _synthetic_sql())


def synthetic_id(document: tuple[str | None, ...]) -> int:
    """Return the id of a generated document: the content hash of its fields with the sign bit set.

    Args:
        document: the values of `DOCUMENT_FIELDS`, in order.
    """
    number = content_id("\x1f".join(text or "" for text in document))
    return number if number < 0 else number - 2**63


def _synthetic_sql() -> str:
    # click_query is no part of the id; min() picks one of two generations that differ in nothing else.
    columns = ", ".join(
        f"min(g.{column.name}) as {column.name}"
        if column.name in _FIELDS
        else f"cast(null as {SQL_TYPES[ARROW_TYPES[column.type]]}) as {column.name}"
        for column in SYNTHETIC_ITEMS.columns[1:]
    )
    return f"""
    select g.item_id, {columns}
    from generated g join (select distinct item_id from p3) k on k.item_id = g.item_id
    group by g.item_id
    """


_STRIPE = PRIME >> 12
"""Chances are counted in 4,096 stripes: one of 35 million pairs holds 10,000 and is sorted by one task."""


def _first_sql(backend: Backend, most: int) -> str:
    """Return the SELECT of the first `most` pairs of `p3_placed` by place, chance and ids.

    They are counted by place and stripe of chances, and only the stripe in which the last one lies is sorted:
    a cluster would sort all of them in one task.
    """
    for row in backend.rows(
        f"select place, floor(chance / {_STRIPE}) as stripe, count(*) as n from p3_placed "
        "group by place, stripe order by place, stripe"
    ):
        if row["n"] > most:
            low = int(row["stripe"]) * _STRIPE
            within = f"place = {row['place']} and chance >= {low}"
            return f"""
            select query_id, item_id from p3_placed
            where place < {row["place"]} or (place = {row["place"]} and chance < {low})
            union all select query_id, item_id from (
                select query_id, item_id from p3_placed where {within} and chance < {low + _STRIPE}
                order by chance, query_id, item_id limit {most}
            ) last
            """
        most -= row["n"]
    return "select query_id, item_id from p3_placed"


def _parsed(batches: Iterator[pa.RecordBatch], *, path: Path) -> Iterator[pa.RecordBatch]:
    number = 0
    for batch in batches:
        lines = batch.column("line").to_pylist()
        rows = [row for place, line in enumerate(lines, number + 1) if (row := _row(path, place, line))]
        number += len(lines)
        yield pa.RecordBatch.from_pylist(rows, schema=_SCHEMA)


def _row(path: Path, number: int, line: bytes) -> dict[str, int | str | None] | None:
    """Return the row of one line, None for an empty line and for a last line that a kill tore off."""
    if not line.strip():
        return None
    where = f"{path}, line {number}"
    try:
        record = json.loads(line)
    except ValueError as error:
        if not line.endswith(b"\n"):
            return None
        raise CropsError(f"{where}: not JSON ({error}); write one object per line") from error
    if not isinstance(record, dict) or not _is_text(record.get("query")):
        raise CropsError(f"{where}: no text under 'query'; name the query the document is for")
    texts = {name: record.get(name) for name in _FIELDS}
    for name, text in texts.items():
        if text is not None and not _is_text(text):
            raise CropsError(f"{where}: '{name}' is {text!r}; write one text, or leave it out")
    document = tuple(texts[name] for name in DOCUMENT_FIELDS)
    if not any(text and has_text(text) for text in document):
        raise CropsError(f"{where}: no text in any of {', '.join(DOCUMENT_FIELDS)}; drop the line")
    return {"query_id": query_id(record["query"]), "item_id": synthetic_id(document), **texts}


def _is_text(value: object) -> bool:
    # JSON can escape half a surrogate pair, which no UTF-8 column can hold.
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
