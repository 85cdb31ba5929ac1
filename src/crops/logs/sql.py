"""SQL over the files of a table of the logs: its rows as the contract defines them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from crops.database import Connection, failing_as, literal, open_database, path_literal, quoted
from crops.logs.days import DAY_US, day_of
from crops.logs.files import TableFiles, kind
from crops.schema import EARLIEST_US, LATEST_US, Column, Table
from crops.text import normalised_texts

_ROW_NUMBER = "file_row_number"
"""The column that DuckDB adds on demand, not to files that have their own."""
_SCHEMA = pa.schema([("raw", pa.string()), ("query", pa.string())])


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
    return table_rows(files, {name: name for name in files.found})


def table_rows(files: TableFiles, columns: Mapping[str, str]) -> str:
    """Return the relation of the named columns of a table; see `rows_of`."""
    days = files.days if files.labelled else ()
    return rows_of(files.files, files.footers, columns, times=files.table.times, days=days)


def rows_of(
    files: Sequence[Path | str],
    footers: Sequence[pa.Schema],
    columns: Mapping[str, str],
    *,
    times: Collection[str] = (),
    days: Sequence[str | None] = (),
) -> str:
    """Return the relation of the named columns of Parquet files, with `_file` (path) and `_row` (from 0).

    Other columns may have any name: columns are read by their place, for DuckDB takes names that differ in
    case only for one, and the names that it adds itself may be in a file too.

    Args:
        files: at least one.
        footers: their columns, no name twice in one file.
        columns: name in the relation -> column of the files; NULL where a file lacks it, text where the
            files disagree on what it is.
        times: names whose timestamps and dates become microseconds.
        days: of the files, where the relation has a column `_day` that their paths do not tell.
    """
    mixed = mixed_columns(columns, footers, times)
    parts = []
    read = zip(files, footers, days or (None,) * len(files), strict=True)
    for _, run in itertools.groupby(read, key=_layout):
        alike = list(run)
        footer = alike[0][1]
        places = distinct_names(footer.names)
        names = dict(zip(footer.names, places, strict=True))
        types = {column.name: column.type for column in footer}
        values = {column.name: quoted(names[column.name]) for column in footer if kind(column.type) != "null"}
        chosen = []
        for name, column in columns.items():
            value = values.get(column, "null")
            if name in times and column in values and pa.types.is_temporal(types[column]):
                value = _microseconds(value, types[column])
            value = f"cast({value} as VARCHAR)" if name in mixed else value
            chosen.append(f"{value} as {quoted(name)}")
        if days:
            chosen.append(f"{literal(alike[0][2] or '')} as _day")
        parts.append(_select([file for file, _, _ in alike], places, chosen))
    return f"({' union all '.join(parts)})"


def _microseconds(value: str, type_: pa.DataType) -> str:
    """Return a timestamp or date as the contract counts it; what is less than a microsecond is cut off."""
    stamp = pa.types.is_timestamp(type_)
    if stamp and type_.unit == "ns":
        return f"epoch_ns({value}) // 1000"  # a cast would round
    zoned = stamp and type_.tz
    return f"epoch_us(cast({value} as {'TIMESTAMPTZ' if zoned else 'TIMESTAMP'}))"


def distinct_names(names: Sequence[str]) -> list[str]:
    """Return names that differ not in case only: the places of columns are added where they would.

    An empty name gets its place too.
    """
    counts = Counter(name.lower() for name in names)
    return [
        name if name and counts[name.lower()] == 1 else f"{name} {place}" for place, name in enumerate(names)
    ]


def _select(files: Sequence[Path | str], names: Sequence[str], chosen: Sequence[str]) -> str:
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


def _layout(file: tuple[Path | str, pa.Schema, str | None]) -> tuple[object, ...]:
    """Return what files share that are read by one call; one with an own `file_row_number` stands alone."""
    path, footer, day = file
    alone = path if _ROW_NUMBER in (name.lower() for name in footer.names) else None
    return alone, day, *((column.name, str(column.type)) for column in footer)


def mixed_columns(
    columns: Mapping[str, str], footers: Sequence[pa.Schema], times: Collection[str]
) -> set[str]:
    """Return the names that are read as text, as the files disagree on what their columns are."""
    return {name for name, column in columns.items() if len(_kinds(column, footers, name in times)) > 1}


def _kinds(name: str, footers: Iterable[pa.Schema], time: bool) -> set[str]:
    """Return the kinds of a column's values in the files; numbers are one, and so are lists, and structs."""
    types = [column.type for footer in footers for column in footer if column.name == name]
    types = [pa.int64() if time and pa.types.is_temporal(one) else one for one in types]
    found = {"nested" if pa.types.is_nested(one) else kind(one) for one in types}
    return {"number" if one in ("integer", "float") else one for one in found - {"null"}}


def day_sql(files: TableFiles) -> str:
    """Return the SQL expression of the day: the hive partition, or the UTC day of the row's time.

    It is NULL where the time is out of range.
    """
    if files.labelled:
        return "_day"
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
    with failing_as(f"{files.files[0]} is not readable; write it again"), open_database() as connection:
        numbers = connection.execute(query).fetchall()
    return tuple(sorted(day_of(number) for (number,) in numbers))


def _no_rows(table: Table) -> str:
    columns = [f"cast(null as {column.type}) as {quoted(column.name)}" for column in table.columns]
    return f"select {', '.join(columns)}, cast(null as VARCHAR) as day where false"


def add_texts(db: Connection, typed: str) -> None:
    """Register `texts(raw, query)`: each distinct text that a SELECT gives, and its normalised form.

    Join it with what was typed, so that SQL means by "the same query" what the engine does. A text with
    nothing to read is no query and is not in it.

    Args:
        db: the connection.
        typed: SELECT of one column of texts.
    """
    raw = db.sql(f"select distinct * from ({typed})").to_arrow_table().column(0).drop_null().to_pylist()
    texts = normalised_texts(raw)
    db.register("texts", pa.table([list(texts), list(texts.values())], schema=_SCHEMA))
