"""Where the rules of the logs run: DuckDB in this process; `crops.engine.spark_rows` has the same methods.

The SQL of the rules keeps to what DuckDB and Spark both know; whatever differs is behind these methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from crops.database import Connection, interruptible, parquet, quoted, write_parquet
from crops.logs.files import TableFiles
from crops.logs.sql import day_sql, select_sql, table_rows, typed
from crops.logs.tables import Logs
from crops.schema import Column

_ROWS_PER_PASS = 500_000
_MAX_PASSES = 16


class RowEngine(Protocol):
    """Named relations of one check, made by SQL."""

    hash: str
    """The function that hashes its arguments, nulls too, to 64 bits."""
    made_by: str
    """Its name, and what decides its results besides the code of crops and the packages that it needs."""

    def prepare(self, logs: Logs, folder: Path | None, out: Path | None, last: str) -> None:
        """Raise where a machine that will work lacks the logs, or `folder`, which becomes `out`.

        `last` changes with what can be taken over from the last check.
        """

    def passes(self, rows: int) -> int:
        """Return in how many passes the keys of so many rows are searched for repeats: bounded memory."""

    def relation(self, files: TableFiles) -> str:
        """Return the relation of all rows: the contract's columns as the files type them, or NULL.

        Besides the columns that the contract does not know, as `extra_0` and so on in the order of
        `files.extra`, it has `_file`, `_row` and, by the table, `_day`.
        """

    def read(self, name: str, files: TableFiles) -> None:
        """Name the rows of files that keep the contract, in its types, partitioned ones with `day`."""

    def function(self, name: str, function: Callable[[str], str]) -> None:
        """Name a function of one text, null where that is."""

    def view(self, name: str, query: str) -> None:
        """Name a query; it runs each time it is read."""

    def table(self, name: str, query: str) -> None:
        """Run a query once and keep its rows."""

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Return the few rows of a query as dicts."""

    def count(self, table: str) -> int:
        """Return the number of rows of a table or view."""

    def keep(self, query: str, folder: Path) -> None:
        """Write the rows of a query into a new folder, for `kept`."""

    def kept(self, name: str, folder: Path) -> None:
        """Name the rows that `keep` wrote, in their types."""

    def write_accepted(self, query: str, target: Path) -> None:
        """Write the rows of a query over `relation`: a file, or several beside it in the folder of a day.

        Without a row there is no file.
        """

    def write_rejects(self, columns: Mapping[str, str], relation: str, target: Path) -> None:
        """Write one file of a relation's rows in the order of the source: SQL by name of the column."""


class DuckDBRows:
    """Runs in a database that is open, which spills beyond its memory limit."""

    hash = "hash"
    made_by = "DuckDB"

    def __init__(self, connection: Connection) -> None:
        """Work in a database."""
        self._connection = connection

    def prepare(self, logs: Logs, folder: Path | None, out: Path | None, last: str) -> None:
        """Raise never: this process has opened the logs, and made the folder."""

    def passes(self, rows: int) -> int:
        """Return one pass for each half a million rows, up to 16."""
        return min(_MAX_PASSES, 1 + rows // _ROWS_PER_PASS)

    def relation(self, files: TableFiles) -> str:
        """Return the relation of all rows as a subquery."""
        read = {name: name for name in files.found}
        read |= {f"extra_{number}": name for number, name in enumerate(files.extra)}
        columns = [f"{_as_found(files, column)} as {column.name}" for column in files.table.columns]
        columns += [f"extra_{number}" for number in range(len(files.extra))]
        columns += ["_file", "_row"]
        if files.table.partitioned:
            columns.append(f"{day_sql(files)} as _day")
        return f"(select {', '.join(columns)} from {table_rows(files, read)})"

    def read(self, name: str, files: TableFiles) -> None:
        """Name the rows of files that keep the contract."""
        self.view(name, select_sql(files))

    def function(self, name: str, function: Callable[[str], str]) -> None:
        """Name a function of one text."""
        self._connection.create_function(name, function, ["VARCHAR"], "VARCHAR")

    def view(self, name: str, query: str) -> None:
        """Name a query."""
        self._execute(f"create temp view {name} as {query}")

    def table(self, name: str, query: str) -> None:
        """Run a query once and keep its rows."""
        self._execute(f"create temp table {name} as {query}")

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Return the few rows of a query as dicts."""
        db = self._connection
        rows: list[dict[str, Any]] = interruptible(db, lambda: db.sql(query).to_arrow_table().to_pylist())
        return rows

    def count(self, table: str) -> int:
        """Return the number of rows of a table or view."""
        return int(self.rows(f"select count(*) as n from {table}")[0]["n"])

    def keep(self, query: str, folder: Path) -> None:
        """Write one file."""
        self._write(query, folder / "part-0.parquet")

    def kept(self, name: str, folder: Path) -> None:
        """Name the rows that `keep` wrote."""
        self.view(name, f"select * from {parquet(*sorted(folder.glob('*.parquet')))}")

    def write_accepted(self, query: str, target: Path) -> None:
        """Write one file, in the order of the source."""
        # The rows keep the order of the files: one thread, and no join whose sides are swapped.
        self._execute("set threads=1")
        self._execute("set disabled_optimizers='build_side_probe_side'")
        if not self._write(query, target):
            target.unlink()
        self._execute("reset disabled_optimizers")
        self._execute("reset threads")

    def write_rejects(self, columns: Mapping[str, str], relation: str, target: Path) -> None:
        """Write one file, sorted by the source's file and row."""
        select = ", ".join(f"{value} as {quoted(name)}" for name, value in columns.items())
        self._write(f"select {select} from {relation} order by _file, _row", target)

    def _execute(self, sql: str) -> None:
        interruptible(self._connection, lambda: self._connection.execute(sql))

    def _write(self, query: str, target: Path) -> int:
        return interruptible(self._connection, lambda: write_parquet(self._connection, query, target))


def _as_found(files: TableFiles, column: Column) -> str:
    present = column.name in files.found and column.type != "VARCHAR"
    return quoted(column.name) if present else typed(files, column)
