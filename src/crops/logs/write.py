"""Writes what a split found: the accepted rows as a logs folder, the rejected ones with their reasons."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import duckdb

from crops.logs.files import TableFiles, inspect
from crops.logs.report import RowFault
from crops.logs.split import count, rows_sql
from crops.logs.tables import day_bounds, literal, quoted, select_sql, table_days
from crops.schema import Rule

_ADDED = ("reasons", "file", "row")
"""Columns that the rejects add; an own column of such a name gets a `_` behind it."""
_EXAMPLE_CHARS = 100


def keep_accepted(connection: duckdb.DuckDBPyConnection, files: TableFiles, folder: Path | None) -> None:
    """Create the view `accepted_<name>` over the rows that were not rejected.

    Args:
        connection: where the table was split.
        files: the table.
        folder: a logs folder to write the rows to; without one the view reads the source again.
    """
    if folder is None:
        select = _accepted(connection, files)
    else:
        _write_accepted(connection, files, folder)
        select = select_sql(inspect(folder, files.table)[0])
    connection.execute(f"create temp view accepted_{files.table.name} as {select}")


def count_accepted(connection: duckdb.DuckDBPyConnection, files: TableFiles) -> int:
    """Return the number of rows in `accepted_<name>`, counted on its own."""
    return count(connection, f"accepted_{files.table.name}")


def write_rejects(connection: duckdb.DuckDBPyConnection, files: TableFiles, logs: Path, folder: Path) -> None:
    """Write the rejected rows in the order of the files, with `reasons`, `file` (below `logs`) and `row`."""
    folder.mkdir(parents=True)
    columns = [quoted(column) for column in files.table.names() if column in files.found]
    columns += [f"{quoted(name)} as {quoted(name + '_' * (name in _ADDED))}" for name in files.extra]
    columns += ["_reasons as reasons", f"{_relative(logs)} as file", "_row as row"]
    select = f"select {', '.join(columns)} from rejected_{files.table.name} order by _file, _row"
    target = literal(str(folder / "rejects.parquet"))
    connection.execute(f"copy ({select}) to {target} (format parquet)")


def row_faults(
    connection: duckdb.DuckDBPyConnection, files: TableFiles, logs: Path, rules: list[Rule]
) -> list[RowFault]:
    """Return the count of each reason with its first row by file and row number as the example."""
    name = files.table.name
    values = ", ".join(f"{column} := {column}" for column in files.table.names())
    first = "row(_file, _row)"
    query = f"""
        select reason, count(*), count(distinct _file), min_by({_relative(logs)}, {first}),
               min_by(_row, {first}), min_by(struct_pack({values}), {first})
        from (select unnest(_reasons) as reason, * from rejected_{name})
        group by reason"""
    found: dict[str, tuple[Any, ...]] = {row[0]: row[1:] for row in connection.execute(query).fetchall()}
    faults = []
    for rule in rules:
        if rule.reason in found:
            rows, n_files, file, row, example = found[rule.reason]
            kept = {column: _cut(value) for column, value in example.items() if value is not None}
            place = (rows, n_files, file, row, kept)
            faults.append(RowFault(name, rule.reason, rule.column, *place, rule.remedy))
    return faults


def _write_accepted(connection: duckdb.DuckDBPyConnection, files: TableFiles, folder: Path) -> None:
    """Write one file per day: partitioned writes of DuckDB hold every day open and cost twice the CPU."""
    table = files.table
    # The rows keep the order of the files: one thread, and no join whose sides are swapped.
    connection.execute("set threads=1")
    connection.execute("set disabled_optimizers='build_side_probe_side'")
    for day in table_days(files) if table.partitioned else (None,):
        target = folder / (f"{table.name}/day={day}/part-0.parquet" if day else f"{table.name}.parquet")
        target.parent.mkdir(parents=True, exist_ok=True)
        part = files.on(day and [day])
        clean = not count(connection, f"rejected_{table.name}{_on(day)}")
        if clean and part.exact and len(part.files) == 1 and (files.partitioned or not day):
            shutil.copyfile(part.files[0], target)
        else:
            query = f"copy ({_accepted(connection, files, day)}) to {literal(str(target))} (format parquet)"
            if connection.execute(query).fetchall() == [(0,)]:
                target.unlink()
    connection.execute("reset disabled_optimizers")
    connection.execute("reset threads")


def _accepted(connection: duckdb.DuckDBPyConnection, files: TableFiles, day: str | None = None) -> str:
    """Return the SELECT of the accepted rows: of one day, or of all days with the column `day`."""
    columns = []
    for column in files.table.columns:
        if column.name in files.found:
            # The rules left whole numbers only, but DuckDB may cast rows that the join has yet to drop.
            cast = "try_cast" if files.found[column.name] == "float" else "cast"
            columns.append(f"{cast}({quoted(column.name)} as {column.type}) as {quoted(column.name)}")
    if files.table.partitioned and day is None:
        columns.append("_day as day")
    select = f"select {', '.join(columns)} from {rows_sql(files.on(day and [day]))}"
    rejected = f"rejected_{files.table.name}{_on(day)}"
    if count(connection, rejected):
        select += f" anti join (select _file, _row from {rejected}) using (_file, _row)"
    if day and not files.partitioned:
        first, last = day_bounds(day)
        select += f" where {files.table.time} between {first} and {last}"
    return select


def _on(day: str | None) -> str:
    return f" where _day = {literal(day)}" if day else ""


def _cut(value: object) -> object:
    """Return an example's value, long texts cut."""
    return f"{value[:_EXAMPLE_CHARS]}..." if isinstance(value, str) and len(value) > _EXAMPLE_CHARS else value


def _relative(logs: Path) -> str:
    return f"substr(_file, {len(str(logs)) + 2})"
