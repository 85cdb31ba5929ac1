"""Which Parquet files make up a table of the logs, and whether their columns fit the contract."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crops.errors import CropsError, nearest
from crops.logs.days import is_day
from crops.logs.lake import (
    DataFile,
    TableSource,
    data_file,
    digest,
    find_source,
    open_store,
    path_values,
    stamp_now,
)
from crops.schema import Column, Table

OPTIONAL_TABLES = ("feed_events",)
"""Tables that a logs folder may lack."""
_PARTITION = re.compile(r"day=(.*)")
_KINDS = {
    "BIGINT": {"integer"},
    "INTEGER": {"integer"},
    "DOUBLE": {"integer", "float"},
    "BOOLEAN": {"boolean"},
    "VARCHAR": {"text"},
}
_ICEBERG = re.compile(r"(v\d+|\d{5}-[0-9a-f-]{36})(\.gz)?\.metadata\.json|version-hint\.text")
_LAKE_REMEDY = (
    "write its current snapshot as plain Parquet into another folder "
    "(Spark: spark.read.format(...).load(...).write.parquet(...)) and name that"
)


@dataclass(frozen=True)
class TableFiles:
    """The files of one table and what their footers say."""

    table: Table
    files: tuple[Path | str, ...] = ()
    """Sorted by path; URIs of stores are text."""
    days: tuple[str | None, ...] = ()
    """The partition of each file, YYYY-MM-DD; None where the file is not in one."""
    footers: tuple[pa.Schema, ...] = ()
    """The columns of each file."""
    counts: tuple[int, ...] = ()
    """The rows of each file."""
    found: Mapping[str, str] = field(default_factory=dict)
    """The contract's columns that hold values in some file: `integer`, `float`, `boolean` or `text`."""
    extra: tuple[str, ...] = ()
    """Columns that the contract does not know; they are carried into the rejects only."""
    source: str = ""
    """The URI of the table, with its version; empty for a local folder."""
    stamps: tuple[str, ...] = ()
    """Of each file of a source by URI what changes with it: see `crops.logs.lake.DataFile`."""
    renamed: bool = False
    """Whether columns have other names in the table than in its files."""

    @property
    def rows(self) -> int:
        """The rows of the files."""
        return sum(self.counts)

    @property
    def partitioned(self) -> bool:
        """Whether the files lie in hive partitions by day."""
        return any(self.days)

    @property
    def labelled(self) -> bool:
        """Whether the path of a file does not tell its day as `day=YYYY-MM-DD`."""
        told = (str(file).rpartition("/day=")[2].partition("/")[0] for file in self.files)
        return self.partitioned and tuple(told) != self.days

    def on(self, days: Collection[str] | None) -> TableFiles:
        """Return the files that may hold rows of the days, with the columns that they have.

        All files when `days` is None or there are no partitions.
        """
        if days is None or not self.partitioned:
            return self
        kept = [i for i, day in enumerate(self.days) if day in days]
        footers = tuple(self.footers[i] for i in kept)
        found, extra = _columns(self.table, footers)
        return replace(
            self,
            files=tuple(self.files[i] for i in kept),
            days=tuple(self.days[i] for i in kept),
            footers=footers,
            counts=tuple(self.counts[i] for i in kept),
            found=found,
            extra=extra,
            stamps=tuple(self.stamps[i] for i in kept) if self.source else (),
        )

    def version(self, day: str | None = None) -> str:
        """Return a hash of the files of a source by URI, or of those of one day."""
        part = self.on(day and [day])
        return digest((str(file), stamp) for file, stamp in zip(part.files, part.stamps, strict=True))

    @property
    def exact(self) -> bool:
        """Whether all files have columns of the contract only, in its very types."""
        types = {field.name: field.type for field in self.table.arrow()}
        return all(types.get(column.name) == column.type for footer in self.footers for column in footer)

    def absent(self) -> tuple[str, ...]:
        """Return the optional columns that no file holds values of; own ids are lacking to nobody."""
        return tuple(c.name for c in self.table.columns if not c.own_of and c.name not in self.found)


def _columns(table: Table, footers: Iterable[pa.Schema]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the widest kind of each column of the contract that holds values, and the other columns."""
    kinds: dict[str, set[str]] = {}
    for footer in footers:
        for column in footer:
            time = column.name in table.times and pa.types.is_temporal(column.type)
            kinds.setdefault(column.name, set()).add("integer" if time else kind(column.type))
    known = {name: kinds[name] - {"null"} for name in table.names() if name in kinds}
    found = {name: "float" if "float" in seen else min(seen) for name, seen in known.items() if seen}
    return found, tuple(name for name in kinds if name not in known)


def kind(type_: pa.DataType) -> str:
    """Return `integer`, `float`, `boolean`, `text`, `null`, or the name of a type that no contract has."""
    if pa.types.is_dictionary(type_):
        return kind(type_.value_type)
    if pa.types.is_integer(type_) and type_ != pa.uint64():
        return "integer"
    if pa.types.is_floating(type_):
        return "float"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return "text"
    names = {pa.bool_(): "boolean", pa.null(): "null"}
    return names.get(type_, str(type_))


@dataclass(frozen=True)
class FileFault:
    """A fault that stops a whole file from being read."""

    file: str
    """Path relative to the logs folder."""
    problem: str
    remedy: str


def inspect(folder: Path, table: Table) -> tuple[TableFiles, list[FileFault]]:
    """Find the files of `table` and read their footers.

    A table is `<name>.parquet` or a folder of Parquet files of that name, as DuckDB, pandas and Spark write
    them; files and folders whose names begin with `_` or `.` are left out.

    Returns:
        what was found, and every file-level fault; the first is of use only when there are none.
    """
    roots = [path for path in (folder / f"{table.name}.parquet", folder / table.name) if path.exists()]
    files = [file for root in roots for file in _parquet_files(root)]
    if len(roots) > 1:
        fault = FileFault(
            f"{table.name}.parquet", f"is next to the folder {table.name}/", "keep one of the two"
        )
        return TableFiles(table), [fault]
    lakes = dict.fromkeys(filter(None, map(lake_table, [folder, *roots, *{file.parent for file in files}])))
    if lakes:
        return TableFiles(table), [
            FileFault(os.path.relpath(path, folder), _lake_problem(format_), _LAKE_REMEDY)
            for format_, path in lakes
        ]
    listed = folder / f"{table.name}{LISTED}"
    if listed.exists():
        return _inspect_listed(listed, table, files)
    if not files:
        missing = [] if table.name in OPTIONAL_TABLES else [_missing_table(folder, table)]
        return TableFiles(table), missing

    days, faults = _days(folder, table, files)
    footers: list[pa.Schema] = []
    counts: list[int] = []
    for file in files:
        name = str(file.relative_to(folder))
        try:
            with pq.ParquetFile(file) as parquet:
                footers.append(parquet.schema_arrow)
                counts.append(parquet.metadata.num_rows)
        except (pa.ArrowException, OSError) as error:
            faults.append(FileFault(name, f"is not readable as Parquet ({error})", "write the file again"))
            continue
        parts = _parted_faults(table, footers[-1], path_values(name))
        faults += [FileFault(name, *fault) for fault in (*parts, *column_faults(table, footers[-1]))]
    found, extra = _columns(table, footers)
    return TableFiles(table, tuple(files), tuple(days), tuple(footers), tuple(counts), found, extra), faults


LISTED = ".files.json"
"""Behind a table's name: the files of its source that `crops check` left where they are, as all of their rows
are accepted."""


def list_files(folder: Path, files: TableFiles) -> None:
    """Note files of a source as part of the table of a logs folder."""
    rows = [
        {"path": str(file), "stamp": stamp, "day": day}
        for file, stamp, day in zip(files.files, files.stamps, files.days, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    listed = {"source": files.source, "files": rows}
    (folder / f"{files.table.name}{LISTED}").write_text(json.dumps(listed, indent=1) + "\n")


def _inspect_listed(listed: Path, table: Table, own: list[Path]) -> tuple[TableFiles, list[FileFault]]:
    """Read the footers of listed files and of those of the folder."""
    noted = json.loads(listed.read_text())
    there = [data_file(row["path"], row["stamp"], row["day"]) for row in noted["files"]]
    days, faults = _days(listed.parent, table, own)
    there += [DataFile(file, str(file.stat().st_size), day) for file, day in zip(own, days, strict=True)]
    found, more = _with_footers(TableSource(noted["source"], tuple(there)), table)
    return found, faults + more


_FOOTERS_AT_ONCE = 16
"""A store answers slowly, and many questions at a time."""


def inspect_source(logs: str, uri: str | None, table: Table) -> tuple[TableFiles, list[FileFault]]:
    """Find the files of a table by its URI and read their footers, as `inspect` does in a folder.

    Args:
        logs: named in faults.
        uri: of the table; None where the logs name none for it.
        table: the contract.
    """
    source = find_source(uri, table) if uri else None
    if source is None or not source.files:
        if table.name in OPTIONAL_TABLES and not (uri and source is None and logs.endswith(".toml")):
            return TableFiles(table), []
        what = "holds no Parquet file" if source else "is not there: it was moved, or is named otherwise"
        remedy = (
            f'name it in a logs.toml, such as {table.name} = "delta:s3://bucket/table", or correct the URI'
        )
        return TableFiles(table), [FileFault(uri or table.name, what if uri else "is not named", remedy)]
    return _with_footers(source, table)


def _with_footers(source: TableSource, table: Table) -> tuple[TableFiles, list[FileFault]]:
    files = tuple(file.path for file in source.files)
    days = tuple(file.day for file in source.files) if table.partitioned else (None,) * len(files)
    faults = []
    if any(days) and not all(days):
        name = str(files[days.index(None)])
        faults.append(FileFault(name, "has no partition by day, and others have", "move it into one, or out"))
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        read = list(pool.map(_footer, source.files))
    footers, renamed = [], False
    for file, (footer, _, error) in zip(files, read, strict=True):
        if footer is None:
            remedy = "check or open the table as it is now, or write the file again"
            faults.append(FileFault(str(file), error, remedy))
            continue
        names = [source.named(column) for column in footer]
        renamed |= names != footer.names
        # What the table has dropped keeps its place, without a name or values.
        columns = zip(names, footer, strict=True)
        footer = pa.schema(
            [pa.field("", pa.null()) if name is None else pa.field(name, one.type) for name, one in columns]
        )
        footers.append(footer)
        parts = _parted_faults(table, footer, source.parted)
        faults += [
            FileFault(str(file), *fault) for fault in (*parts, *column_faults(table, footer, times=True))
        ]
    found, extra = _columns(table, footers)
    counts, stamps = tuple(rows for _, rows, _ in read), tuple(file.stamp for file in source.files)
    return TableFiles(
        table, files, days, tuple(footers), counts, found, extra, source.uri, stamps, renamed
    ), faults


def _footer(file: DataFile) -> tuple[pa.Schema | None, int, str]:
    """Return the columns of a file and its rows, or what is wrong with it."""
    try:
        store, inside = open_store(str(file.path))
        if (now := stamp_now(file)) != file.stamp:
            what = (
                "is gone: it was deleted, or moved" if now is None else "was overwritten since it was listed"
            )
            return None, 0, what
        with store.open_input_file(inside) as opened, pq.ParquetFile(opened) as parquet:
            return _with_old_times(parquet), parquet.metadata.num_rows, ""
    except (pa.ArrowException, OSError) as error:
        return None, 0, f"cannot be read as Parquet ({' '.join(str(error).split())})"


def _with_old_times(parquet: pq.ParquetFile) -> pa.Schema:
    """Return the columns of a file, its INT96 (the times of Spark and Hive) as timestamps of seconds.

    Arrow gives INT96 and nanoseconds one type, and Spark must not read files of both at once. Parquet itself
    has no seconds.
    """
    schema: pa.Schema = parquet.schema_arrow
    for column in map(parquet.schema.column, range(len(parquet.schema))):
        if column.physical_type == "INT96" and schema.names.count(column.path) == 1:
            place = schema.get_field_index(column.path)
            schema = schema.set(place, schema.field(place).with_type(pa.timestamp("s")))
    return schema


def _parquet_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    return sorted(
        path
        for path in root.rglob("*.parquet")
        if path.is_file() and not any(part[0] in "_." for part in path.relative_to(root).parts)
    )


_RAW = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".gz")
"""Suffixes of files that are logs before an import."""


def _missing_table(folder: Path, table: Table) -> FileFault:
    where = f"{table.name}/day=YYYY-MM-DD/*.parquet" if table.partitioned else f"{table.name}/*.parquet"
    files = [*folder.iterdir()]
    remedy = f"write {table.name}.parquet or {where}"
    if any(path.suffix in _RAW for path in files):
        remedy = f"these are raw files: crops import --guess {folder} makes tables of them"
    elif hint := nearest(table.name, (path.stem for path in files)):
        remedy += f".{hint}"
    return FileFault(f"{table.name}.parquet", "is missing", remedy)


def _days(folder: Path, table: Table, files: list[Path]) -> tuple[list[str | None], list[FileFault]]:
    """Return the hive partition of each file and the faults of the partition names."""
    if not table.partitioned:
        return [None] * len(files), []
    days: list[str | None] = []
    faults = []
    for file in files:
        name = str(file.relative_to(folder))
        parts = [match[1] for part in Path(name).parts[:-1] if (match := _PARTITION.fullmatch(part))]
        days.append(parts[-1] if parts else None)
        if parts and not is_day(parts[-1]):
            faults.append(FileFault(name, "the partition is not a day", "name the folder day=YYYY-MM-DD"))
    if any(days) and not all(days):
        name = str(files[days.index(None)].relative_to(folder))
        faults.append(FileFault(name, "is next to day=... folders", "move it into the folder of its day"))
    return days, faults


def describe(faults: Iterable[FileFault]) -> list[str]:
    """Return one line per distinct fault, naming the first file that has it and how many more do."""
    files: dict[tuple[str, str], list[str]] = {}
    for fault in faults:
        files.setdefault((fault.problem, fault.remedy), []).append(fault.file)
    return [
        f"{names[0]}{f' (and {len(names) - 1} more)' if len(names) > 1 else ''}: {problem}; {remedy}"
        for (problem, remedy), names in files.items()
    ]


def _parted_faults(table: Table, footer: pa.Schema, parted: Collection[str]) -> list[tuple[str, str]]:
    """Return the faults of columns whose values are in the paths of a file, and not in it."""
    return [
        (f"column {name} is a partition, and not in the files", "write it into the files as well")
        for name in table.names()
        if name in parted and name not in footer.names
    ]


def column_faults(table: Table, footer: pa.Schema, *, times: bool = False) -> list[tuple[str, str]]:
    """Return (problem, remedy) of each missing, repeated or wrongly typed column of one file.

    With `times` a time may be a timestamp, which is UTC where it has no zone.
    """
    types = {column.name: column.type for column in footer}
    faults = [
        (f"column {name} is there {count} times", "keep one, or rename the others")
        for name, count in Counter(footer.names).items()
        if count > 1 and name
    ]
    for column in table.columns:
        expected = f"{column.type}: {column.doc}"
        if column.name not in types:
            if not column.optional:
                hint = nearest(column.name, set(types) - set(table.names()))
                remedy = "add or rename it" + (f".{hint}" if hint else "")
                faults.append((f"column {column.name} is missing ({expected})", remedy))
        elif not (
            _accepts(column, types[column.name]) or (times and _is_time(table, column, types[column.name]))
        ):
            found = types[column.name]
            problem = f"column {column.name} is {found}, expected {expected}"
            faults.append((problem, _type_remedy(column, found)))
    return faults


def _accepts(column: Column, type_: pa.DataType) -> bool:
    found = kind(type_)
    if found == "null":
        return column.nullable
    return found in _KINDS[column.type] or (found == "float" and column.measure)


def _is_time(table: Table, column: Column, type_: pa.DataType) -> bool:
    """Return whether a column is a time that is read as one; the time of an event is more than a date."""
    date = pa.types.is_date(type_) and column.name != table.time
    return column.name in table.times and (pa.types.is_timestamp(type_) or date)


def _type_remedy(column: Column, found: pa.DataType) -> str:
    name = column.name
    if pa.types.is_date(found) and name.endswith("_at"):
        return "a date has no time of day: give the time of the event, in integer microseconds UTC"
    if pa.types.is_temporal(found) and name.endswith("_at"):
        return f"write integer microseconds UTC, e.g. epoch_us({name}) in SQL"
    if pa.types.is_floating(found):
        return f"write whole numbers: floats lose digits beyond 2^53; in pandas, {name}.astype('Int64')"
    if column.type == "BIGINT" and name.endswith("_id"):
        return "give each id a signed 64-bit integer, e.g. by crops.ids.number_of"
    return f"write it as {column.type}"


def lake_table(path: Path) -> tuple[str, Path] | None:
    """Return the format and the folder of the Delta Lake, Iceberg or Hudi table that a path is or is in."""
    real = path.resolve()  # a link into such a table is read as its files are
    for folder in dict.fromkeys((path, *path.parents, real, *real.parents)):
        if (folder / "_delta_log").is_dir():
            return "Delta Lake", folder
        if (folder / ".hoodie").is_dir():
            return "Hudi", folder
        metadata = folder / "metadata"
        if metadata.is_dir() and any(_ICEBERG.fullmatch(file.name) for file in metadata.iterdir()):
            return "Iceberg", folder
    return None


def refuse_lake_tables(paths: Iterable[Path]) -> None:
    """Refuse files of table formats whose deleted and replaced rows are still in the files.

    Args:
        paths: files, or folders that are read by the files in them.

    Raises:
        CropsError: one is, or lies in, such a table; snapshots are not read.
    """
    for folder in dict.fromkeys(
        path.absolute() if path.is_dir() else path.absolute().parent for path in paths
    ):
        if found := lake_table(folder):
            raise CropsError(f"{found[1]} {_lake_problem(found[0])}; {_LAKE_REMEDY}")


def _lake_problem(format_: str) -> str:
    return f"is a table of {format_}: its files also hold rows that were deleted or replaced since"
