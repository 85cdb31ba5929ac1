"""`crops check`: splits logs into the rows that keep the contract and the rows that do not, with reasons."""

from __future__ import annotations

import tempfile
from datetime import date, timedelta
from pathlib import Path

import duckdb

from crops.errors import CropsError
from crops.labels import DEFAULT_LABELS, Source
from crops.logs.database import database, interruptible
from crops.logs.files import TableFiles
from crops.logs.report import CheckReport, Facts, RowFault, TableCounts, explain
from crops.logs.rules import KNOWN_ITEMS
from crops.logs.split import count, count_rejected, split
from crops.logs.tables import Logs, open_logs, text_kind
from crops.logs.write import count_accepted, keep_accepted, row_faults, write_rejects
from crops.outputs import Scratch, publish, timed, write_manifest
from crops.schema import STAGES

_STAGE_LABELS = {
    "unexposed": DEFAULT_LABELS[Source.UNEXPOSED],
    "filtered": DEFAULT_LABELS[Source.FILTERED],
}


def check(logs: str | Path, out: str | Path | None = None, memory: str = "2GB") -> CheckReport:
    """Check every row of a logs folder against the contracts of `crops.schema`.

    Accepted rows become the logs folder `out/accepted`; rejected rows keep all their columns in
    `out/rejects/<table>/`, with `reasons`, `file` and `row` (from 0). Of rows with the same key one is kept,
    with the signals of all that have no other fault (see `Column.merge`): what is accepted does not depend on
    the order of rows and files. A search without any click is valid. Control characters in queries and in
    texts of items become spaces, counted.

    Args:
        logs: the logs folder.
        out: where to write, whole or not at all; None only reports.
        memory: memory limit of DuckDB, e.g. "2GB"; what does not fit spills to disk.

    Returns:
        the counts, the faults and the facts of the accepted rows.

    Raises:
        CropsError: a file or column is missing, unreadable or of a wrong type, no usable items or impressions
            are left, or `out` cannot be written.
    """
    out = None if out is None else Path(out)
    logs = Path(logs)
    source = open_logs(logs)
    seconds: dict[str, float] = {}
    if out is None:
        with Scratch("crops-check-") as spill, database(source, memory, spill) as connection:
            return interruptible(connection, lambda: _check(connection, source, None, seconds))
    if source.path.resolve().is_relative_to(Path(out).resolve()):
        raise CropsError(f"{out} holds the logs that are checked; name another folder for the output")
    with publish(Path(out), "check") as staging:
        with (
            tempfile.TemporaryDirectory(dir=staging) as spill,
            database(source, memory, spill) as connection,
        ):
            report = interruptible(connection, lambda: _check(connection, source, staging, seconds))
        (staging / "report.json").write_text(report.to_json())
        rows = {name: vars(counts) for name, counts in report.tables.items()}
        write_manifest(
            staging,
            "check",
            config={"memory": memory},
            seconds=seconds,
            logs=str(source.path),
            rows=rows,
            text=text_kind(source.path),
        )
    return report


def _check(
    connection: duckdb.DuckDBPyConnection, source: Logs, staging: Path | None, seconds: dict[str, float]
) -> CheckReport:
    tables: dict[str, TableCounts] = {}
    merged: dict[str, int] = {}
    faults: list[RowFault] = []
    control_characters: dict[str, dict[str, int]] = {}
    for name, files in source.tables.items():
        if not files.files:
            continue
        with timed(seconds, f"check {name}"):
            tables[name], found, spaced = _check_table(connection, source, files, staging)
        faults += found
        if spaced:
            control_characters[name] = spaced
        if rows := count(connection, f"merged_{name}"):
            merged[name] = rows
        if name != "feed_events" and not tables[name].accepted:
            raise _nothing_left(source, name, tables[name], found)
        if name == "items":
            connection.execute(f"create temp table {KNOWN_ITEMS} as select item_id from accepted_items")
    with timed(seconds, "count searches"):
        facts = _facts(connection, source, tables)
    return CheckReport(str(source.path), tables, tuple(faults), facts, merged, seconds, control_characters)


def _check_table(
    connection: duckdb.DuckDBPyConnection, source: Logs, files: TableFiles, staging: Path | None
) -> tuple[TableCounts, list[RowFault], dict[str, int]]:
    rules = split(connection, files)
    rejected = count_rejected(connection, files)
    spaced = keep_accepted(connection, files, staging and staging / "accepted")
    counts = TableCounts(files.rows, count_accepted(connection, files), rejected)
    if counts.rows != counts.accepted + counts.rejected:
        raise CropsError(
            f"{source.path}: of {counts.rows} rows of {files.table.name} {counts.accepted} were accepted"
            f" and {counts.rejected} rejected; did the files change meanwhile? check again"
        )
    if not rejected:
        return counts, [], spaced
    if staging:
        write_rejects(connection, files, source.path, staging / "rejects" / files.table.name)
    return counts, row_faults(connection, files, source.path, rules), spaced


def _nothing_left(source: Logs, name: str, counts: TableCounts, faults: list[RowFault]) -> CropsError:
    lines = [
        f"{source.path}: nothing usable is left: {counts.rejected} of {counts.rows} rows of {name} rejected"
    ]
    return CropsError("\n  ".join(lines + [explain(fault) for fault in faults]))


def _facts(connection: duckdb.DuckDBPyConnection, source: Logs, tables: dict[str, TableCounts]) -> Facts:
    (row,) = connection.execute("""
        select count(*), count(*) filter (where not clicked), count(distinct user_id)
        from (select search_id, min(user_id) as user_id, bool_or(clicked) as clicked
              from accepted_search_impressions group by search_id)""").fetchall()
    seen = connection.execute("select distinct stage, day from accepted_search_impressions").fetchall()
    stages = {stage for stage, _ in seen}
    feed = "feed_events" in tables and tables["feed_events"].accepted > 0
    found = connection.execute("select distinct day from accepted_feed_events").fetchall() if feed else []
    days = {
        "search_impressions": tuple(sorted({day for _, day in seen})),
        "feed_events": tuple(sorted(day for (day,) in found)),
    }
    return Facts(
        searches=row[0],
        searches_without_click=row[1],
        users=row[2],
        stages=tuple(stage for stage in STAGES if stage in stages),
        absent_labels=tuple(label for stage, label in _STAGE_LABELS.items() if stage not in stages),
        p2=feed,
        search_days=days["search_impressions"],
        feed_days=days["feed_events"],
        missing_days=_missing_days(days),
        absent_columns=source.absent(),
        other_case=_other_case(source),
    )


def _other_case(source: Logs) -> dict[str, tuple[str, ...]]:
    found = {}
    for table, absent in source.absent().items():
        named = tuple(name for name in source.tables[table].extra if name.lower() in absent)
        if named:
            found[table] = named
    return found


def _missing_days(days: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the days within the logs on which a table that has rows has none."""
    present = [day for table in days.values() for day in table]
    first, last = (date.fromisoformat(day) for day in (min(present), max(present)))
    within = [(first + timedelta(days=i)).isoformat() for i in range((last - first).days + 1)]
    missing = {
        name: tuple(day for day in within if day not in table) for name, table in days.items() if table
    }
    return {name: table for name, table in missing.items() if table}
