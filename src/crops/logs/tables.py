"""Opens a logs folder and gives the SQL that reads its tables as the contract defines them."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa

from crops.errors import CropsError
from crops.logs.files import FileFault, TableFiles, describe, inspect, kind
from crops.logs.values import PLAIN
from crops.outputs import MANIFEST
from crops.schema import EARLIEST_US, LATEST_US, LOG_TABLES, Column, Table

DAY_US = 86_400_000_000
"""Microseconds of a day."""
_ROW_NUMBER = "file_row_number"
"""The column that DuckDB adds on demand, not to files that have their own."""


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


def open_logs(path: str | Path) -> Logs:
    """Open a logs folder, looking at the footers of its Parquet files.

    Raises:
        CropsError: the folder is missing, or any of its files is missing, unreadable, or has a missing or
            wrongly typed column; all such faults are named together, with remedies.
    """
    path = Path(path)
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


def text_kind(logs: str | Path) -> str:
    """Return what the texts of a logs folder are, as its import or check noted: `plain` when nobody did."""
    logs = Path(logs)
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
        return f"select {', '.join(columns)} from {contract_rows(files)}"
    select = f"select {', '.join(columns)}, {day_sql(files)} as day from {contract_rows(files)}"
    if days is None or files.partitioned:
        return select
    wanted = ", ".join(["null", *(literal(day) for day in sorted(days))])
    return f"select * from ({select}) where day in ({wanted})"


def typed(files: TableFiles, column: Column, cast: str = "cast") -> str:
    """Return the SQL expression of a column in its contract type, NULL where no file holds it."""
    return f"{cast}({quoted(column.name) if column.name in files.found else 'null'} as {column.type})"


def contract_rows(files: TableFiles) -> str:
    """Return the relation of the contract's columns that the files hold, typed as there; see `rows_of`."""
    return rows_of(files.files, files.footers, {name: name for name in files.found})


def rows_of(files: Sequence[Path], footers: Sequence[pa.Schema], columns: Mapping[str, str]) -> str:
    """Return the relation of the named columns of Parquet files, with `_file` (path) and `_row` (from 0).

    Other columns may have any name: what is read is told by its place, for DuckDB takes names that differ in
    case only for one, and the names that it adds itself may be in a file too.

    Args:
        files: at least one.
        footers: their columns, no name twice in one file.
        columns: name in the relation -> column of the files; NULL where a file lacks it, text where the
            files disagree on what it is.
    """
    mixed = {column for column in columns.values() if len(_kinds(column, footers)) > 1}
    parts = []
    for _, run in itertools.groupby(zip(files, footers, strict=True), key=_layout):
        alike = list(run)
        footer = alike[0][1]
        names = dict(zip(footer.names, told_apart(footer.names), strict=True))
        values = {column.name: quoted(names[column.name]) for column in footer if kind(column.type) != "null"}
        chosen = []
        for name, column in columns.items():
            value = values.get(column, "null")
            value = f"cast({value} as VARCHAR)" if column in mixed else value
            chosen.append(f"{value} as {quoted(name)}")
        parts.append(_select([file for file, _ in alike], list(names.values()), chosen))
    return f"({' union all '.join(parts)})"


def told_apart(names: Sequence[str]) -> list[str]:
    """Return names that differ not in case only: the places of columns are added where they would.

    An empty name gets its place too.
    """
    counts = Counter(name.lower() for name in names)
    return [
        name if name and counts[name.lower()] == 1 else f"{name} {place}" for place, name in enumerate(names)
    ]


def _select(files: Sequence[Path], names: Sequence[str], chosen: Sequence[str]) -> str:
    """Return the SELECT of rows of files of one layout, whose columns get the names in their order."""
    taken = {name.lower() for name in names}
    file = "_file"
    while file in taken:
        file += "_"
    numbered = _ROW_NUMBER not in taken
    options = f"hive_partitioning=false, filename='{file}'" + (f", {_ROW_NUMBER}=true" if numbered else "")
    row = _ROW_NUMBER if numbered else "row_number() over () - 1"
    paths = ", ".join(path_literal(path) for path in files)
    fields = ", ".join([*chosen, f"{quoted(file)} as _file", f"{row} as _row"])
    return f"select {fields} from read_parquet([{paths}], {options}) files({', '.join(map(quoted, names))})"


def _layout(file: tuple[Path, pa.Schema]) -> tuple[object, ...]:
    """Return what files share that are read by one call; one with an own `file_row_number` stands alone."""
    path, footer = file
    alone = path if _ROW_NUMBER in (name.lower() for name in footer.names) else None
    return alone, *((column.name, str(column.type)) for column in footer)


def _kinds(name: str, footers: Iterable[pa.Schema]) -> set[str]:
    """Return the kinds of a column's values in the files; numbers are one, and so are lists, and structs."""
    types = [column.type for footer in footers for column in footer if column.name == name]
    found = {"nested" if pa.types.is_nested(one) else kind(one) for one in types}
    return {"number" if one in ("integer", "float") else one for one in found - {"null"}}


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
    query = f"select distinct {time} // {DAY_US} from {contract_rows(files)} where {in_range}"
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
