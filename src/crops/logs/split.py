"""Splits one table into accepted and rejected rows, in DuckDB.

Only rejected rows and keys that occur twice are materialised, so memory follows the faults, not the logs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from crops.logs.files import TableFiles, inspect
from crops.logs.report import RowFault
from crops.logs.rules import duplicate_rule, row_rules
from crops.logs.tables import day_sql, literal, quoted, scan, select_sql, typed
from crops.schema import Rule

_ADDED = ("reasons", "file", "row")
"""Columns that the rejects add; an own column of such a name gets a `_` behind it."""


def split(connection: duckdb.DuckDBPyConnection, files: TableFiles) -> list[Rule]:
    """Create the table `rejected_<name>`: all columns of the rows, `_file`, `_row` and the list `_reasons`.

    Returns:
        the rules that were applied, in the order of the reasons.
    """
    name, rules = files.table.name, row_rules(files)
    reasons = ", ".join(f"case when {rule.bad} then {literal(rule.reason)} end" for rule in rules)
    any_bad = " or ".join(f"({rule.bad})" for rule in rules)
    repeated = _find_repeated_keys(connection, files)
    source = f"from {_rows(files)}"
    if repeated:
        source += f" left join repeated_{name} using ({', '.join(files.table.key)})"
        any_bad += " or _repeated"
    columns = f"*, list_filter([{reasons}], lambda reason: reason is not null) as _reasons"
    connection.execute(f"create temp table rejected_{name} as select {columns} {source} where {any_bad}")
    if repeated:
        rules.append(duplicate_rule(files))
        _reject_duplicates(connection, name, rules[-1])
    return rules


def count_rejected(connection: duckdb.DuckDBPyConnection, files: TableFiles) -> int:
    """Return the number of rejected rows of a table that was split."""
    return _scalar(connection, f"select count(*) from rejected_{files.table.name}")


def count_accepted(connection: duckdb.DuckDBPyConnection, files: TableFiles) -> int:
    """Return the number of rows in `accepted_<name>`, counted on its own."""
    return _scalar(connection, f"select count(*) from accepted_{files.table.name}")


def keep_accepted(connection: duckdb.DuckDBPyConnection, files: TableFiles, folder: Path | None) -> None:
    """Create the view `accepted_<name>` over the rows that were not rejected.

    Args:
        connection: where the table was split.
        files: the table.
        folder: a logs folder to write the rows to; without one the view reads the source again.
    """
    name = files.table.name
    select = _accepted(connection, files)
    if folder is not None:
        folder.mkdir(exist_ok=True)
        target = folder / (name if files.table.partitioned else f"{name}.parquet")
        options = ", partition_by (day)" if files.table.partitioned else ""
        # Several threads would write the rows of a day in another order on every run.
        connection.execute("set threads=1")
        connection.execute(f"copy ({select}) to {literal(str(target))} (format parquet{options})")
        connection.execute("reset threads")
        select = select_sql(inspect(folder, files.table)[0])
    connection.execute(f"create temp view accepted_{name} as {select}")


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
            count, n_files, file, row, example = found[rule.reason]
            kept = {column: value for column, value in example.items() if value is not None}
            faults.append(
                RowFault(name, rule.reason, rule.column, count, n_files, file, row, kept, rule.remedy)
            )
    return faults


def _rows(files: TableFiles) -> str:
    """Return the relation of all rows: the contract's columns as the files type them, absent ones as NULL."""
    columns = []
    for column in files.table.columns:
        present = column.name in files.found and column.type != "VARCHAR"
        columns.append(f"{quoted(column.name) if present else typed(files, column)} as {quoted(column.name)}")
    columns += [quoted(name) for name in files.extra]
    columns += ["_file", "file_row_number as _row"]
    if files.table.partitioned:
        columns.append(f"{day_sql(files)} as _day")
    return f"(select {', '.join(columns)} from {scan(files.files)})"


def _find_repeated_keys(connection: duckdb.DuckDBPyConnection, files: TableFiles) -> bool:
    """Create `repeated_<name>` with the keys that occur more than once; return whether there are any."""
    if not files.table.key:
        return False
    name, key = files.table.name, ", ".join(files.table.key)
    connection.execute(
        f"create temp table repeated_{name} as select {key}, true as _repeated"
        f" from {scan(files.files)} group by {key} having count(*) > 1"
    )
    return bool(_scalar(connection, f"select count(*) from repeated_{name}"))


def _reject_duplicates(connection: duckdb.DuckDBPyConnection, name: str, rule: Rule) -> None:
    """Add the reason of the key to `rejected_<name>` and drop the rows that turn out to have no fault."""
    marked = f"select *, coalesce({rule.bad}, false) as _duplicate from rejected_{name}"
    reasons = f"case when _duplicate then list_append(_reasons, {literal(rule.reason)}) else _reasons end"
    connection.execute(
        f"create or replace temp table rejected_{name} as"
        f" select * exclude (_repeated, _duplicate) replace ({reasons} as _reasons)"
        f" from ({marked}) where _duplicate or len(_reasons) > 0"
    )


def _accepted(connection: duckdb.DuckDBPyConnection, files: TableFiles) -> str:
    columns = []
    for column in files.table.columns:
        if column.name in files.found:
            # The rules left whole numbers only, but DuckDB may cast rows that the join has yet to drop.
            cast = "try_cast" if files.found[column.name] == "float" else "cast"
            columns.append(f"{typed(files, column, cast)} as {quoted(column.name)}")
    if files.table.partitioned:
        columns.append("_day as day")
    select = f"select {', '.join(columns)} from {_rows(files)}"
    if count_rejected(connection, files):
        select += f" anti join rejected_{files.table.name} using (_file, _row)"
    return select


def _relative(logs: Path) -> str:
    return f"substr(_file, {len(str(logs)) + 2})"


def _scalar(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])
