"""Training samples in other forms: the paper's records, JSON lines, one flat Parquet file, Delta Lake."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crops.engine.backend import DuckDBBackend
from crops.engine.daily import explained
from crops.engine.evidence import told_queries_sql
from crops.engine.mined import Mined, read_mined
from crops.errors import CropsError, MissingExtraError, nearest
from crops.labels import Source
from crops.outputs import console, publish, write_manifest
from crops.text import document_text_sql

DELTA = "delta"
CPSQA = "cpsqa"


def export(out: Path, target: Path, format: str, logs: Path | None = None, *, owner: bool = False) -> int:
    """Write the samples of a mining in another form; return the number of records.

    Without `owner` only queries of at least k people (`engine.k` of the mining) are written.

    - `cpsqa`: the paper's record, one per query event: {user_id, query, photo_list: [{photo_id,
      photo_content, hierarchical_label}]}, highest labels first. Users are running numbers. Needs a mining
      with `engine.group_by = "event"` and its logs, and `owner`: a record is what one person did.
    - `jsonl`: one line per group: {query_id, query, documents: [{item_id, label, sources, weight, text}]}.
      Ids are strings: many readers of JSON round numbers above 2^53.
    - `parquet`: one row per pair: query_id, query, item_id, label, sources, weight, text.
    - `delta`: these rows with `day`, the last day mined, as a partition of a Delta table; the partition is
      replaced, the others stay.

    Args:
        out: folder of a mining, or of a daily build.
        target: the folder to write.
        format: one of `FORMATS`.
        logs: the accepted logs, where they are not where the mining found them (cpsqa).
        owner: whether the reader owns the logs: all queries are written, whoever searched them.

    Raises:
        CropsError: the format is not known or does not suit the mining or the reader, `out` is no mining or
            has no query of k people, the disk is full, or deltalake is not installed.
    """
    if format not in FORMATS:
        hint = nearest(format, FORMATS)
        raise CropsError(f"unknown format '{format}'; known: {', '.join(FORMATS)}.{hint}")
    mined = read_mined(out)
    if format == CPSQA and not mined.by_event:
        raise CropsError(
            f"{mined.folder}: a {CPSQA} record is one query event; mine with engine.group_by = 'event'"
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
        backend.view("texts", _TEXTS)
        backend.view("flat", _FLAT)
        if format == CPSQA:
            _number_users(backend, mined, logs)
        return FORMATS[format](backend, mined, target)


def _count_left_out(backend: DuckDBBackend, mined: Mined, k: int) -> None:
    """Say how many queries are not exported; raise where none is."""
    left = backend.count("queries") - backend.count("told")
    if left and not backend.count("told"):
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


_TEXTS = f"""
select item_id, {document_text_sql()} as text from items
union all select item_id, {document_text_sql()} as text from synthetic_items
"""

_FLAT = """
select s.query_id, q.query, s.item_id, s.label, s.sources, s.weight, t.text
from samples s join told q on q.query_id = s.query_id left join texts t on t.item_id = s.item_id
"""


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


def _cpsqa(backend: DuckDBBackend, mined: Mined, target: Path) -> int:
    rows = "select f.*, u.user_id from flat f join users u on u.query_id = f.query_id"
    return _write_lines(backend, mined, target, CPSQA, rows, _photos)


def _photos(rows: list[dict[str, Any]]) -> dict[str, Any]:
    photos = [
        {"photo_id": str(row["item_id"]), "photo_content": row["text"], "hierarchical_label": row["label"]}
        for row in rows
    ]
    return {"user_id": rows[0]["user_id"], "query": rows[0]["query"], "photo_list": photos}


def _jsonl(backend: DuckDBBackend, mined: Mined, target: Path) -> int:
    return _write_lines(backend, mined, target, "samples", "select * from flat", _documents)


def _documents(rows: list[dict[str, Any]]) -> dict[str, Any]:
    documents = [
        {
            "item_id": str(row["item_id"]),
            **{name: row[name] for name in ("label", "weight", "text")},
            "sources": [str(source.name).lower() for source in Source if row["sources"] & source],
        }
        for row in rows
    ]
    return {"query_id": str(rows[0]["query_id"]), "query": rows[0]["query"], "documents": documents}


def _write_lines(
    backend: DuckDBBackend,
    mined: Mined,
    target: Path,
    name: str,
    rows: str,
    record: Callable[[list[dict[str, Any]]], dict[str, Any]],
) -> int:
    with explained(target), publish(target, "export") as folder:
        records = 0
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as lines:
            batches = backend.stream(f"{rows} order by query_id, label desc, item_id")
            for _, group in groupby(_rows(batches), key=itemgetter("query_id")):
                lines.write(json.dumps(record(list(group)), ensure_ascii=False) + "\n")
                records += 1
        _note(folder, mined, name, records)
    return records


def _parquet(backend: DuckDBBackend, mined: Mined, target: Path) -> int:
    with explained(target), publish(target, "export") as folder:
        file = folder / "samples.parquet"
        backend.emit("select * from flat", "query_id, item_id", file)
        backend.write(file)
        records = int(pq.read_metadata(file).num_rows)
        _note(folder, mined, "parquet", records)
    return records


def _delta(backend: DuckDBBackend, mined: Mined, target: Path) -> int:
    if importlib.util.find_spec("deltalake") is None:
        raise MissingExtraError("deltalake", DELTA)
    from deltalake import write_deltalake

    day = mined.report["days"][-1]
    rows = f"select f.*, '{day}' as day from flat f order by query_id, item_id"
    batches = backend.stream(rows)
    with explained(target):
        write_deltalake(
            str(target), batches, mode="overwrite", predicate=f"day = '{day}'", partition_by=["day"]
        )
    return backend.count("flat")


FORMATS: dict[str, Callable[[DuckDBBackend, Mined, Path], int]] = {
    CPSQA: _cpsqa,
    "jsonl": _jsonl,
    "parquet": _parquet,
    DELTA: _delta,
}
"""By name."""


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from batch.to_pylist()


def _note(folder: Path, mined: Mined, format: str, records: int) -> None:
    settings = {"engine": mined.config.model_dump(mode="json", exclude_none=True)}
    write_manifest(
        folder,
        "export",
        config=settings,
        seconds={},
        samples=str(mined.folder.absolute()),
        format=format,
        records=records,
    )
