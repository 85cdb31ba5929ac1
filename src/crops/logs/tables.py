"""Opens a logs folder and gives the SQL that reads its tables as the contract defines them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import duckdb

from crops.errors import CropsError
from crops.logs.files import FileFault, TableFiles, describe, inspect
from crops.logs.values import PLAIN
from crops.outputs import MANIFEST
from crops.schema import EARLIEST_US, LATEST_US, LOG_TABLES, Column, Table

DAY_US = 86_400_000_000
"""Microseconds of a day."""


@dataclass(frozen=True)
class Logs:
    """An opened logs folder whose files have the columns and types of the contract."""

    path: Path
    """Absolute, as are the paths of the files."""
    tables: Mapping[str, TableFiles]
    """By table name; an absent feed has no files."""
    search_days: tuple[str, ...]
    """Days with search impressions, YYYY-MM-DD, sorted."""
    feed_days: tuple[str, ...]
    """Days with feed events, YYYY-MM-DD, sorted; empty without a feed."""

    def absent(self) -> dict[str, tuple[str, ...]]:
        """Return the optional columns that no file has, by table, leaving out absent tables."""
        return {name: files.absent() for name, files in self.tables.items() if files.files}

    def sql(self, table: str, days: Collection[str] | None = None) -> str:
        """Return a DuckDB SELECT of the table's columns in order, partitioned ones with `day` VARCHAR.

        Optional columns that are absent read as typed NULLs and an absent feed reads as no rows. The SELECT
        fails on values that do not fit their type, such as a play time of NaN: `crops check` takes them out.

        Args:
            table: name of a table of the logs.
            days: the days wanted, YYYY-MM-DD; all when None. Without meaning for `items`.

        Raises:
            CropsError: no search impressions on any of the days.
        """
        if table == "search_impressions" and days is not None and not set(days) & set(self.search_days):
            raise CropsError(
                f"{self.path}: no search_impressions on {', '.join(sorted(days)) or 'an empty list of days'};"
                f" the days there are: {', '.join(self.search_days)}"
            )
        return select_sql(self.tables[table], days)


def open_logs(path: Path) -> Logs:
    """Open a logs folder, looking at the footers of its Parquet files.

    Raises:
        CropsError: the folder is missing, or any of its files is missing, unreadable, or has a missing or
            wrongly typed column; all such faults are named together, with remedies.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise CropsError(f"{path} is not a folder; name the folder that holds items.parquet")
    tables: dict[str, TableFiles] = {}
    faults: list[FileFault] = []
    for table in LOG_TABLES:
        tables[table.name], found = inspect(path, table)
        faults += found
    if faults:
        raise CropsError("\n  ".join([f"{path}: the logs cannot be read:", *describe(faults)]))
    days = {name: table_days(tables[name]) for name in ("search_impressions", "feed_events")}
    return Logs(path, tables, days["search_impressions"], days["feed_events"])


def text_kind(logs: Path) -> str:
    """Return what the texts of a logs folder are, as its import or check noted: `plain` when nobody did."""
    for folder in (logs, logs.parent) if logs.name == "accepted" else (logs,):
        if (folder / MANIFEST).exists():
            return str(json.loads((folder / MANIFEST).read_text()).get("text", PLAIN))
    return PLAIN


def literal(text: str) -> str:
    """Return `text` as an SQL string."""
    return "'{}'".format(text.replace("'", "''"))


def path_literal(path: Path) -> str:
    """Return a path as an SQL string that DuckDB's readers, which take each path for a pattern, find."""
    # In brackets the special characters stand for themselves.
    return literal("".join(f"[{letter}]" if letter in "[*?" else letter for letter in str(path)))


def quoted(name: str) -> str:
    """Return `name` as an SQL identifier."""
    return '"{}"'.format(name.replace('"', '""'))


def select_sql(files: TableFiles, days: Collection[str] | None = None) -> str:
    """Return the SELECT of `Logs.sql` for the files of one table."""
    files = files.on(days)
    if not files.files:
        return _no_rows(files.table)
    columns = [f"{typed(files, column)} as {quoted(column.name)}" for column in files.table.columns]
    if not files.table.partitioned:
        return f"select {', '.join(columns)} from {scan(files.files)}"
    select = f"select {', '.join(columns)}, {day_sql(files)} as day from {scan(files.files)}"
    if days is None or files.partitioned:
        return select
    wanted = ", ".join(["null", *(literal(day) for day in sorted(days))])
    return f"select * from ({select}) where day in ({wanted})"


def typed(files: TableFiles, column: Column, cast: str = "cast") -> str:
    """Return the SQL expression of a column in its contract type, NULL where no file holds it."""
    return f"{cast}({quoted(column.name) if column.name in files.found else 'null'} as {column.type})"


def scan(paths: Iterable[Path]) -> str:
    """Return the table function that reads the files.

    Besides the columns of the files it has `_file` (path) and `file_row_number` (from 0).
    """
    names = ", ".join(path_literal(path) for path in paths)
    options = "union_by_name=true, hive_partitioning=false, filename='_file', file_row_number=true"
    return f"read_parquet([{names}], {options})"


def day_sql(files: TableFiles) -> str:
    """Return the SQL expression of the day: the hive partition, or the UTC day of the row's time.

    It is NULL where the time is out of range.
    """
    if files.partitioned:
        # The last match: a folder above the logs may be a partition too.
        return "regexp_extract(_file, '.*/day=([0-9-]+)/', 1)"
    time = files.table.time
    in_range = f"{time} between {EARLIEST_US} and {LATEST_US}"
    return f"case when {in_range} then strftime(make_timestamp(cast({time} as BIGINT)), '%Y-%m-%d') end"


def table_days(files: TableFiles) -> tuple[str, ...]:
    """Return the days of a table, YYYY-MM-DD, sorted: its partitions, or the UTC days of its times.

    Raises:
        CropsError: the file is not readable.
    """
    if files.partitioned or not files.files:
        return tuple(sorted({day for day in files.days if day}))
    time = files.table.time
    in_range = f"{time} between {EARLIEST_US} and {LATEST_US}"
    query = f"select distinct {time} // {DAY_US} from {scan(files.files)} where {in_range}"
    with duckdb.connect() as connection:
        try:
            numbers = connection.execute(query).fetchall()
        except duckdb.Error as error:
            raise CropsError(f"{files.files[0]} is not readable ({error}); write it again") from error
    return tuple(sorted((date(1970, 1, 1) + timedelta(days=number)).isoformat() for (number,) in numbers))


def day_bounds(day: str) -> tuple[int, int]:
    """Return the first and the last microsecond of a UTC day, YYYY-MM-DD."""
    first = (date.fromisoformat(day) - date(1970, 1, 1)).days * DAY_US
    return first, first + DAY_US - 1


def _no_rows(table: Table) -> str:
    columns = [f"cast(null as {column.type}) as {quoted(column.name)}" for column in table.columns]
    return f"select {', '.join(columns)}, cast(null as VARCHAR) as day where false"
