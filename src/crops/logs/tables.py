"""Opens a logs folder and gives the SQL that reads its tables as the contract defines them."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crops.database import Connection, failing_as, literal, open_database, path_literal, quoted
from crops.errors import CropsError, nearest, nearest_path
from crops.logs.days import DAY_US, day_of, is_day
from crops.logs.lake import (
    DataFile,
    TableSource,
    data_file,
    digest,
    find_source,
    is_uri,
    open_store,
    path_values,
    stamp_now,
    table_uris,
)
from crops.outputs import MANIFEST, check_local
from crops.schema import EARLIEST_US, ITEMS, LATEST_US, LOG_TABLES, SEARCHES, Column, Table
from crops.text import normalised_texts

PLAIN = "plain"
"""Texts are words."""
_ROW_NUMBER = "file_row_number"
"""The column that DuckDB adds on demand, not to files that have their own."""
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
_SCHEMA = pa.schema([("raw", pa.string()), ("query", pa.string())])


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
class Logs:
    """An opened logs folder whose files have the columns and types of the contract."""

    path: Path | str
    """Absolute, as are the paths of the files; or the URI as it was given."""
    tables: Mapping[str, TableFiles]
    """By table name; an absent feed has no files."""
    search_days: tuple[str, ...]
    """Days with search impressions, YYYY-MM-DD, sorted."""
    feed_days: tuple[str, ...]
    """Days with feed events, YYYY-MM-DD, sorted; empty without a feed."""

    def absent(self) -> dict[str, tuple[str, ...]]:
        """Return the optional columns that no file has, by table, leaving out absent tables."""
        return {name: files.absent() for name, files in self.tables.items() if files.files}

    def snapshots(self) -> dict[str, dict[str, str]]:
        """Return what was read of each table that is named by a URI: its source, and a hash of its files."""
        return {
            name: {"source": files.source, "files": files.version()}
            for name, files in self.tables.items()
            if files.source and files.files
        }

    def inputs(self, day: str) -> dict[str, int | str]:
        """Return what changes with each file that holds nothing but the day's rows, by its name."""
        found: dict[str, int | str] = {}
        for files in self.tables.values():
            if files.table.partitioned and files.partitioned:
                found |= self._stamps(files.on([day]))
        return found

    def catalogue(self) -> dict[str, int | str]:
        """Return the version of the catalogue: what changes with each of its files, by name."""
        return self._stamps(self.tables[ITEMS.name])

    def _stamps(self, files: TableFiles) -> dict[str, int | str]:
        found: dict[str, int | str] = {}
        for file, stamp in zip(files.files, files.stamps or [""] * len(files.files), strict=True):
            inside = isinstance(file, Path) and file.is_relative_to(self.path)
            name = os.path.relpath(file, self.path) if inside else str(file)
            found[name] = file.stat().st_size if isinstance(file, Path) and inside else stamp
        return found

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
    """Open a logs folder, or logs by URI (`crops.logs.lake`), looking at the footers of its Parquet files.

    Raises:
        CropsError: the folder is missing, or any of its files is missing, unreadable, or has a missing or
            wrongly typed column; all such faults are named together, with remedies. Or a store, a catalogue
            or a snapshot of a URI cannot be read.
    """
    if holds_searches_only(path):
        raise CropsError(
            f"{path} holds searches and nothing of their results: crops check counts what was reworded; for"
            " the rest, import items and which of them each search showed"
        )
    return _opened(path, LOG_TABLES)


def open_searches(path: str | Path) -> Logs:
    """Open a folder of searches without results, as `open_logs` does."""
    return _opened(path, (SEARCHES,))


def holds_searches_only(path: str | Path) -> bool:
    """Return whether a logs folder holds searches and nothing of their results."""
    if is_uri(path):
        known = table_uris(str(path)) if str(path).endswith(".toml") else {}
        return SEARCHES.name in known and not known.keys() & {"items", "search_impressions"}
    names = {file.stem for file in Path(path).iterdir()} if Path(path).is_dir() else set()
    return SEARCHES.name in names and not names & {"items", "search_impressions"}


def _opened(logs: str | Path, wanted: Sequence[Table]) -> Logs:
    tables: dict[str, TableFiles] = {}
    faults: list[FileFault] = []
    if not is_uri(logs):
        check_local(Path(logs))
    path = str(logs) if is_uri(logs) else Path(logs).absolute()
    uris = table_uris(path) if isinstance(path, str) else {}
    if isinstance(path, Path) and not path.is_dir():
        wrong = "is not a folder" if path.exists() else "does not exist"
        raise CropsError(f"{path} {wrong}; name the folder that holds items.parquet{nearest_path(path)}")
    for table in wanted:
        if isinstance(path, str):
            tables[table.name], found = inspect_source(path, uris.get(table.name), table)
        else:
            tables[table.name], found = inspect(path, table)
        faults += found
    if faults:
        inside = (name for name in ("logs", "accepted") if isinstance(path, Path) and (path / name).is_dir())
        hints = [f"did you mean {path}/{name}?" for name in inside][:1]
        raise CropsError("\n  ".join([f"{path}: the logs cannot be read:", *describe(faults), *hints]))
    days = {name: table_days(files) for name, files in tables.items() if files.table.partitioned}
    searched = days.get("search_impressions", days.get(SEARCHES.name, ()))
    return Logs(path, tables, searched, days.get("feed_events", ()))


def text_kind(logs: str | Path) -> str:
    """Return what the texts of a logs folder are, as its import or check noted: `plain` when nobody did."""
    if is_uri(logs):
        return PLAIN
    logs = Path(logs)
    for folder in (logs, logs.parent) if logs.name == "accepted" else (logs,):
        if (folder / MANIFEST).exists():
            return str(json.loads((folder / MANIFEST).read_text()).get("text", PLAIN))
    return PLAIN


# Which Parquet files make up a table, and whether their columns fit the contract.


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


# SQL over the files of a table.


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
