"""Writes what a split found: the accepted rows as a logs folder, the rejected ones with their reasons."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import duckdb

from crops.logs.files import TableFiles, inspect
from crops.logs.report import RowFault
from crops.logs.split import count, merged_columns, rows_sql
from crops.logs.tables import day_bounds, literal, quoted, select_sql, table_days
from crops.schema import Rule
from crops.text import CONTROL

_ADDED = ("reasons", "file", "row")
"""Columns that the rejects add; an own column of such a name, or of one that differs from another's in case
only, gets a `_` behind it."""
_EXAMPLE_CHARS = 100


def keep_accepted(
    connection: duckdb.DuckDBPyConnection, files: TableFiles, folder: Path | None
) -> dict[str, int]:
    """Create the view `accepted_<name>` over the rows that were not rejected.

    Control characters in what people wrote become spaces.

    Args:
        connection: where the table was split.
        files: the table.
        folder: a logs folder to write the rows to; without one the view reads the source again.

    Returns:
        the rows whose text was changed, by column.
    """
    changed = _controlled(connection, files)
    if folder is None:
        select = _accepted(connection, files, changed)
    else:
        _write_accepted(connection, files, folder, changed)
        select = select_sql(inspect(folder, files.table)[0])
    connection.execute(f"create temp view accepted_{files.table.name} as {select}")
    return changed


def _controlled(connection: duckdb.DuckDBPyConnection, files: TableFiles) -> dict[str, int]:
    """Return in how many accepted rows each column of prose has control characters, where it has."""
    prose = [column.name for column in files.table.columns if column.prose and column.name in files.found]
    if not prose:
        return {}
    counts = ", ".join(f"count(*) filter (where regexp_matches({name}, '{CONTROL}'))" for name in prose)
    rows = f"{_with_merged(connection, files, None)} rows{_without_rejected(connection, files)}"
    (found,) = connection.execute(f"select {counts} from {rows}").fetchall()
    return {name: rows for name, rows in zip(prose, found, strict=True) if rows}


def count_accepted(connection: duckdb.DuckDBPyConnection, files: TableFiles) -> int:
    """Return the number of rows in `accepted_<name>`, counted on its own."""
    return count(connection, f"accepted_{files.table.name}")


def write_rejects(connection: duckdb.DuckDBPyConnection, files: TableFiles, logs: Path, folder: Path) -> None:
    """Write the rejected rows in the order of the files, with `reasons`, `file` (below `logs`) and `row`."""
    folder.mkdir(parents=True)
    columns = [quoted(column) for column in files.table.names() if column in files.found]
    columns += [f"extra_{number} as {quoted(name)}" for number, name in enumerate(_extra_names(files))]
    columns += ["_reasons as reasons", f"{_relative(logs)} as file", "_row as row"]
    select = f"select {', '.join(columns)} from rejected_{files.table.name} order by _file, _row"
    target = literal(str(folder / "rejects.parquet"))
    connection.execute(f"copy ({select}) to {target} (format parquet)")


def _extra_names(files: TableFiles) -> list[str]:
    """Return the names that the other columns get in the rejects: no two differ in case only."""
    taken = {*_ADDED, *files.found}
    names = []
    for name in files.extra:
        while not name or name.lower() in taken:
            name += "_"
        taken.add(name.lower())
        names.append(name)
    return names


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


def _write_accepted(
    connection: duckdb.DuckDBPyConnection, files: TableFiles, folder: Path, changed: Collection[str]
) -> None:
    """Write one file per day: partitioned writes of DuckDB hold every day open and cost twice the CPU."""
    table = files.table
    # The rows keep the order of the files: one thread, and no join whose sides are swapped.
    connection.execute("set threads=1")
    connection.execute("set disabled_optimizers='build_side_probe_side'")
    for day in table_days(files) if table.partitioned else (None,):
        target = folder / (f"{table.name}/day={day}/part-0.parquet" if day else f"{table.name}.parquet")
        target.parent.mkdir(parents=True, exist_ok=True)
        part = files.on(day and [day])
        clean = not changed and not any(
            count(connection, f"{kind}_{table.name}{_on(day)}") for kind in ("rejected", "merged")
        )
        if clean and part.exact and len(part.files) == 1 and (files.partitioned or not day):
            shutil.copyfile(part.files[0], target)
        else:
            rows = _accepted(connection, files, changed, day)
            query = f"copy ({rows}) to {literal(str(target))} (format parquet)"
            if connection.execute(query).fetchall() == [(0,)]:
                target.unlink()
    connection.execute("reset disabled_optimizers")
    connection.execute("reset threads")


def _accepted(
    connection: duckdb.DuckDBPyConnection, files: TableFiles, changed: Collection[str], day: str | None = None
) -> str:
    """Return the SELECT of the accepted rows: of one day, or of all days with the column `day`."""
    columns = []
    for column in files.table.columns:
        if column.name in files.found:
            # The rules left whole numbers only, but DuckDB may cast rows that the join has yet to drop.
            cast = "try_cast" if files.found[column.name] == "float" else "cast"
            value = quoted(column.name)
            if column.name in changed:
                value = f"regexp_replace({value}, '{CONTROL}', ' ', 'g')"
            columns.append(f"{cast}({value} as {column.type}) as {quoted(column.name)}")
    if files.table.partitioned and day is None:
        columns.append("_day as day")
    select = f"select {', '.join(columns)} from {_with_merged(connection, files, day)}"
    select += _without_rejected(connection, files, day)
    if day and not files.partitioned:
        first, last = day_bounds(day)
        select += f" where {files.table.time} between {first} and {last}"
    return select


def _without_rejected(
    connection: duckdb.DuckDBPyConnection, files: TableFiles, day: str | None = None
) -> str:
    """Return the join that leaves the rejected rows out, if there are any."""
    rejected = f"rejected_{files.table.name}{_on(day)}"
    if not count(connection, rejected):
        return ""
    return f" anti join (select _file, _row from {rejected}) using (_file, _row)"


def _with_merged(connection: duckdb.DuckDBPyConnection, files: TableFiles, day: str | None) -> str:
    """Return the relation of all rows of a day, or of all days, those of several with one key merged."""
    rows, merged = rows_sql(files.on(day and [day])), f"merged_{files.table.name}"
    if not count(connection, f"{merged}{_on(day)}"):
        return rows
    values = ", ".join(
        f"case when m._row is null then r.{name} else m.{name} end as {name}"
        for name in merged_columns(files)
    )
    return (
        f"(select r.* replace ({values}) from {rows} r"
        f" left join (select * from {merged}{_on(day)}) m on m._file = r._file and m._row = r._row)"
    )


def _on(day: str | None) -> str:
    return f" where _day = {literal(day)}" if day else ""


def _cut(value: object) -> object:
    """Return an example's value, long texts cut."""
    return f"{value[:_EXAMPLE_CHARS]}..." if isinstance(value, str) and len(value) > _EXAMPLE_CHARS else value


def _relative(logs: Path) -> str:
    return f"substr(_file, {len(str(logs)) + 2})"
