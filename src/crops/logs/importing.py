"""`crops import`: a foreign log becomes a logs folder of the contract, in SQL over the source's files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path

import duckdb

from crops.errors import CropsError
from crops.logs.database import import_database, interruptible
from crops.logs.datasets import Dataset, MappedTable
from crops.logs.files import OPTIONAL_TABLES
from crops.logs.ids import id_sql, number_ids, write_maps
from crops.logs.import_report import ImportCounts, ImportReport
from crops.logs.split import count
from crops.logs.tables import DAY_US, literal, quoted
from crops.outputs import publish, timed, write_manifest
from crops.schema import Table

COMMAND = "import"
_FIRST = ("searched_at", "watched_at", "search_id", "rank")
"""Rows are ordered by these and then by the other columns: equal sources give equal files."""


def import_dataset(name: str, source: Path, out: Path, dataset: Dataset, memory: str = "2GB") -> ImportReport:
    """Write a source as a logs folder.

    Rows that cannot be mapped go to `out/rejects/<table>.parquet` with their reasons and the columns that
    were read; lines that cannot be taken apart to `out/rejects/lines.parquet` with their place. User ids
    become running numbers; `out/id_maps/` holds the numbers of all ids that were replaced. Both folders hold
    the original ids: they are as sensitive as the source.

    Args:
        name: of the format, for the manifest.
        source: the folder that is read.
        out: where to write, whole or not at all.
        dataset: how its columns map.
        memory: memory limit of DuckDB; what does not fit spills to disk beside `out`.

    Returns:
        what was imported and what was not.

    Raises:
        CropsError: a file cannot be read, no row can be mapped, or `out` cannot be written.
    """
    if source.resolve().is_relative_to(out.resolve()):
        raise CropsError(f"{out} holds the source; name another folder for the output")
    seconds: dict[str, float] = {}
    with publish(out, COMMAND) as staging:
        with (
            tempfile.TemporaryDirectory(dir=staging) as spill,
            import_database(memory, Path(spill)) as connection,
        ):
            report = interruptible(connection, lambda: _import(connection, name, dataset, staging, seconds))
        rows = {table: vars(counts) for table, counts in report.tables.items()}
        write_manifest(
            staging,
            COMMAND,
            config={"format": name, "memory": memory},
            seconds=seconds,
            source=str(source),
            text=dataset.text,
            rows=rows,
            malformed_lines=report.malformed_lines,
            ids=report.ids,
            notes=list(dataset.notes),
        )
    return report


def _import(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    dataset: Dataset,
    staging: Path,
    seconds: dict[str, float],
) -> ImportReport:
    tables = {}
    for statement in dataset.setup:
        connection.execute(statement)
    for mapped in dataset.tables:
        with timed(seconds, f"read {mapped.table.name}"):
            _read(connection, mapped)
            tables[mapped.table.name] = _count(connection, mapped)
        _demand_rows(mapped.table, tables[mapped.table.name])
    with timed(seconds, "number the ids"):
        ids = number_ids(connection, [mapped.table for mapped in dataset.tables])
        write_maps(connection, ids, staging / "id_maps")
    for mapped in dataset.tables:
        with timed(seconds, f"write {mapped.table.name}"):
            _write(connection, mapped, ids, staging)
            _write_rejects(connection, mapped.table, tables[mapped.table.name], staging / "rejects")
    lines = _write_lines(connection, staging / "rejects")
    return ImportReport(name, tables, lines, ids, dataset.text, dataset.notes)


def _read(connection: duckdb.DuckDBPyConnection, mapped: MappedTable) -> None:
    """Make `mapped_<name>`: the columns of the contract, `_reasons`, `_lost`, `_source`, `_file`, `_row`.

    `_lost` names the optional columns that hold something unreadable; `_source` is what was read of a
    rejected row, as JSON.
    """
    required = {column.name for column in mapped.table.columns if not column.nullable}
    values = ", ".join(f"{quoted(name)} := {value.sql}" for name, value in mapped.columns.items())
    refused = [_case(bad, reason) for reason, bad in mapped.refused.items()]
    raw = {name: value.raw for name, value in mapped.columns.items() if value.raw and name not in required}
    given = [_case(f"nullif(trim({text}), '') is not null", name) for name, text in raw.items()]
    lacking = [
        _case(f"v.{quoted(name)} is null", f"unmapped_{name}") for name in mapped.columns if name in required
    ]
    lost = [
        _case(f"v.{quoted(name)} is null and list_contains(given, {literal(name)})", name) for name in raw
    ]
    columns = ", ".join(f"v.{quoted(name)} as {quoted(name)}" for name in mapped.columns)
    connection.execute(f"""
        create table mapped_{mapped.table.name} as
        select {columns}, _reasons, {_present(lost)} as _lost,
            case when len(_reasons) > 0 then to_json(_source_row) end as _source, _file, _row
        from (
            select *, list_concat(refused, {_present(lacking)}) as _reasons
            from (
                select struct_pack({values}) as v, {_present(refused)} as refused,
                    {_present(given)} as given, _source_row, _source_row._file, _source_row._row
                from ({mapped.rows}) _source_row
            )
        )""")


def _case(condition: str, word: str) -> str:
    return f"case when {condition} then {literal(word)} end"


def _present(words: list[str]) -> str:
    """Return the SQL list of those words that are not NULL."""
    return f"list_filter([{', '.join(words)}]::VARCHAR[], lambda word: word is not null)"


def _count(connection: duckdb.DuckDBPyConnection, mapped: MappedTable) -> ImportCounts:
    table = f"mapped_{mapped.table.name}"
    ((rows, imported),) = connection.execute(
        f"select count(*), count(*) filter (where len(_reasons) = 0) from {table}"
    ).fetchall()
    reasons = connection.execute(
        f"select unnest(_reasons) as word, count(*) from {table} group by word order by word"
    ).fetchall()
    lost = connection.execute(
        f"select unnest(_lost) as word, count(*) from {table} where len(_reasons) = 0"
        " group by word order by word"
    ).fetchall()
    return ImportCounts(rows, imported, rows - imported, dict(reasons), dict(lost))


def _demand_rows(table: Table, counts: ImportCounts) -> None:
    if counts.imported or table.name in OPTIONAL_TABLES:
        return
    why = ", ".join(f"{reason} ({rows:,} rows)" for reason, rows in counts.reasons.items()) or "no rows"
    raise CropsError(f"nothing of {table.name} can be imported: {why}; is this the right format?")


def _write(
    connection: duckdb.DuckDBPyConnection, mapped: MappedTable, ids: Mapping[str, str], staging: Path
) -> None:
    name, time = mapped.table.name, mapped.table.time
    columns, joins = [], ""
    for column in mapped.table.columns:
        if column.name in mapped.columns:
            value, join = id_sql(ids, column.name, name)
            columns.append(f"cast({value} as {column.type}) as {quoted(column.name)}")
            joins += join
    order = ", ".join(quoted(column) for column in sorted(mapped.columns, key=_place))
    rows = f"from mapped_{name}{joins} where len(_reasons) = 0"
    select = f"select {', '.join(columns)} {rows}"
    if time is None:
        _copy(connection, f"select * from ({select}) order by {order}", staging / f"{name}.parquet")
        return
    at = f"mapped_{name}.{time} // {DAY_US}"
    for (number,) in connection.execute(f"select distinct {at} {rows} order by all").fetchall():
        folder = staging / name / f"day={(date(1970, 1, 1) + timedelta(days=number)).isoformat()}"
        folder.mkdir(parents=True)
        query = f"select * from ({select} and {at} = {number}) order by {order}"
        _copy(connection, query, folder / "part-0.parquet")


def _place(column: str) -> int:
    return _FIRST.index(column) if column in _FIRST else len(_FIRST)


def _write_rejects(
    connection: duckdb.DuckDBPyConnection, table: Table, counts: ImportCounts, folder: Path
) -> None:
    if counts.rejected:
        folder.mkdir(exist_ok=True)
        select = "select _reasons as reasons, _file as file, _row as row, _source as source"
        where = f"from mapped_{table.name} where len(_reasons) > 0 order by all"
        _copy(connection, f"{select} {where}", folder / f"{table.name}.parquet")


def _write_lines(connection: duckdb.DuckDBPyConnection, folder: Path) -> int:
    """Write the places of the lines that DuckDB could not take apart, not their texts; return how many."""
    tables = "select count(*) from duckdb_tables() where table_name = 'reject_errors'"
    if connection.execute(tables).fetchall() == [(0,)]:
        return 0
    connection.execute("""
        create table malformed as
        select s.file_path as file, e.line, min(cast(e.error_type as VARCHAR)) as reason
        from reject_errors e join reject_scans s using (scan_id, file_id)
        group by s.file_path, e.line""")
    lines = count(connection, "malformed")
    if lines:
        folder.mkdir(exist_ok=True)
        _copy(connection, "select * from malformed order by file, line", folder / "lines.parquet")
    return lines


def _copy(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    connection.execute(f"copy ({query}) to {literal(str(path))} (format parquet)")
