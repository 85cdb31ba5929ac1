"""Training samples as the paper's records or JSON lines; as Parquet they lie in the mining itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from crops.engine.backend import DuckDBBackend
from crops.engine.evidence import told_queries_sql
from crops.engine.mined import Mined, read_mined
from crops.errors import CropsError, nearest
from crops.ids import shown_id
from crops.labels import Source
from crops.outputs import console, publish, write_manifest
from crops.text import document_text_sql

CPSQA = "cpsqa"


def export(out: Path, target: Path, format: str, logs: Path | None = None, *, owner: bool = False) -> int:
    """Write the samples of a mining in another form; return the number of records.

    Without `owner` only queries of at least k people (`engine.k` of the mining) are written.

    - `cpsqa`: the paper's record, one per query event: {user_id, query, photo_list: [{photo_id,
      photo_content, hierarchical_label}]}, highest labels first. Users are running numbers. Needs a mining
      with `engine.group_by = "event"` and its logs, and `owner`: a record is what one person did.
    - `jsonl`: one line per group: {query_id, query, documents: [{item_id, label, sources, weight, text}]}.

    Ids are strings, those of items as their source writes them: many readers of JSON round numbers above
    2^53.

    Args:
        out: folder of a mining, or of a daily build.
        target: the folder to write.
        format: one of `FORMATS`.
        logs: the accepted logs, where they are not where the mining found them (cpsqa).
        owner: whether the reader owns the logs: all queries are written, whoever searched them.

    Raises:
        CropsError: the format is not known or does not suit the mining or the reader, `out` is no mining or
            has no query of k people, or the disk is full.
    """
    if format not in FORMATS:
        hint = nearest(format, FORMATS)
        raise CropsError(
            f"unknown format '{format}'; known: {', '.join(FORMATS)}; as Parquet they lie in {out}.{hint}"
        )
    mined = read_mined(out)
    if format == CPSQA and not mined.by_event:
        raise CropsError(
            f"{mined.folder}: a {CPSQA} record is one query event; mine with engine.group_by = 'event'"
            " in the TOML of --config"
        )
    if format == CPSQA and not owner:
        raise CropsError(
            f"{mined.folder}: a {CPSQA} record is what one person did, so --owner: "
            "for the owner of the logs only"
        )
    k = 1 if owner else mined.config.k
    with DuckDBBackend(mined.config.memory) as backend:
        mined.open(backend)
        backend.view("told", told_queries_sql(k))
        _count_left_out(backend, mined, k)
        if format == CPSQA:
            _number_users(backend, mined, logs)
        return _write_lines(backend, mined, target, format)


def _count_left_out(backend: DuckDBBackend, mined: Mined, k: int) -> None:
    """Say how many queries are not exported; raise where none is."""
    told = backend.count("told")
    left = backend.count("queries") - told
    if left and not told:
        raise CropsError(
            f"{mined.folder}: no query of at least k = {k} users; --owner, for the owner of the logs only, "
            "writes all"
        )
    if left:
        what = "events of queries" if mined.by_event else "queries"
        console.print(
            f"[yellow]{left:,} {what} of fewer than {k} users are left out[/yellow]; --owner, for the "
            "owner of the logs only, writes all"
        )


def _number_users(backend: DuckDBBackend, mined: Mined, logs: Path | None) -> None:
    """Make `users(query_id, user_id)`: who made each event, as a running number."""
    for number, (source, days) in enumerate(mined.open_logs(logs)):
        backend.read_logs(f"log_{number}", source, "search_impressions", days)
        backend.append(
            "who",
            f"select distinct l.search_id, l.user_id from log_{number} l "
            "join told q on q.query_id = l.search_id",
        )
    backend.view(
        "users", "select search_id as query_id, dense_rank() over (order by user_id) as user_id from who"
    )


def _write_lines(backend: DuckDBBackend, mined: Mined, target: Path, format: str) -> int:
    name, rows, record = FORMATS[format]
    records = 0
    with publish(target, "export") as folder:
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as lines:
            ordered = f"{rows} order by query_id, label desc, item_id"
            pairs = (row for batch in backend.stream(ordered) for row in batch.to_pylist())
            for _, group in groupby(pairs, key=itemgetter("query_id")):
                lines.write(json.dumps(record(list(group)), ensure_ascii=False) + "\n")
                records += 1
        write_manifest(
            folder,
            "export",
            config={"engine": mined.config.model_dump(mode="json", exclude_none=True)},
            seconds={},
            samples=str(mined.folder.absolute()),
            format=format,
            records=records,
        )
    return records


def _paper_record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    photos = [
        {"photo_id": shown_id(row), "photo_content": row["text"], "hierarchical_label": row["label"]}
        for row in rows
    ]
    return {"user_id": rows[0]["user_id"], "query": rows[0]["query"], "photo_list": photos}


def _group_record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    documents = [
        {
            "item_id": shown_id(row),
            **{name: row[name] for name in ("label", "weight", "text")},
            "sources": [str(source.name).lower() for source in Source if row["sources"] & source],
        }
        for row in rows
    ]
    return {"query_id": str(rows[0]["query_id"]), "query": rows[0]["query"], "documents": documents}


_PAIRS = f"""
select s.query_id, q.query, s.item_id, t.source_id, s.label, s.sources, s.weight, t.text{{columns}}
from samples s join told q on q.query_id = s.query_id left join (
    select item_id, source_id, {document_text_sql()} as text from items
    union all select item_id, source_id, {document_text_sql()} as text from synthetic_items
) t on t.item_id = s.item_id{{joins}}
"""
FORMATS: dict[str, tuple[str, str, Callable[[list[dict[str, Any]]], dict[str, Any]]]] = {
    CPSQA: (
        CPSQA,
        _PAIRS.format(columns=", u.user_id", joins=" join users u on u.query_id = s.query_id"),
        _paper_record,
    ),
    "jsonl": ("samples", _PAIRS.format(columns="", joins=""), _group_record),
}
"""By name: the file's stem, the SELECT of its pairs, and what makes a record of the pairs of a group."""
