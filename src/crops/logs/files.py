"""Which Parquet files make up a table of a logs folder, and whether their columns fit the contract."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crops.errors import CropsError, nearest
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


def lake_table(path: Path) -> tuple[str, Path] | None:
    """Return the format and the folder of the Delta Lake, Iceberg or Hudi table that a path is or lies in."""
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


_LAKE_REMEDY = (
    "write its current snapshot as plain Parquet into another folder "
    "(Spark: spark.read.format(...).load(...).write.parquet(...)) and name that"
)


def _lake_problem(format_: str) -> str:
    return f"is a table of {format_}: its files also hold rows that were deleted or replaced since"


@dataclass(frozen=True)
class FileFault:
    """A fault that stops a whole file from being read."""

    file: str
    """Path relative to the logs folder."""
    problem: str
    remedy: str


@dataclass(frozen=True)
class TableFiles:
    """The files of one table and what their footers say."""

    table: Table
    files: tuple[Path, ...] = ()
    """Sorted by path."""
    days: tuple[str | None, ...] = ()
    """The hive partition of each file, YYYY-MM-DD; None where the file is not in one."""
    footers: tuple[pa.Schema, ...] = ()
    """The columns of each file."""
    rows: int = 0
    """Of the whole table."""
    found: Mapping[str, str] = field(default_factory=dict)
    """The contract's columns that hold values in some file: `integer`, `float`, `boolean` or `text`."""
    extra: tuple[str, ...] = ()
    """Columns that the contract does not know; they are carried into the rejects only."""

    @property
    def partitioned(self) -> bool:
        """Whether the files lie in hive partitions by day."""
        return any(self.days)

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
            found=found,
            extra=extra,
        )

    @property
    def exact(self) -> bool:
        """Whether all files have columns of the contract only, in its very types."""
        types = {field.name: field.type for field in self.table.arrow()}
        return all(types.get(column.name) == column.type for footer in self.footers for column in footer)

    def absent(self) -> tuple[str, ...]:
        """Return the optional columns that no file holds values of."""
        return tuple(name for name in self.table.names() if name not in self.found)


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
            f"{table.name}.parquet", f"stands beside the folder {table.name}/", "keep one of the two"
        )
        return TableFiles(table), [fault]
    lakes = dict.fromkeys(filter(None, map(lake_table, [folder, *roots, *{file.parent for file in files}])))
    if lakes:
        return TableFiles(table), [
            FileFault(os.path.relpath(path, folder), _lake_problem(format_), _LAKE_REMEDY)
            for format_, path in lakes
        ]
    if not files:
        missing = [] if table.name in OPTIONAL_TABLES else [_missing_table(folder, table)]
        return TableFiles(table), missing

    days, faults = _days(folder, table, files)
    footers: list[pa.Schema] = []
    rows = 0
    for file in files:
        name = str(file.relative_to(folder))
        try:
            with pq.ParquetFile(file) as parquet:
                footers.append(parquet.schema_arrow)
                rows += parquet.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            faults.append(FileFault(name, f"is not readable as Parquet ({error})", "write the file again"))
            continue
        faults += [FileFault(name, *fault) for fault in column_faults(table, footers[-1])]
    found, extra = _columns(table, footers)
    return TableFiles(table, tuple(files), tuple(days), tuple(footers), rows, found, extra), faults


def describe(faults: Iterable[FileFault]) -> list[str]:
    """Return one line per distinct fault, naming the first file that has it and how many more do."""
    files: dict[tuple[str, str], list[str]] = {}
    for fault in faults:
        files.setdefault((fault.problem, fault.remedy), []).append(fault.file)
    return [
        f"{names[0]}{f' (and {len(names) - 1} more)' if len(names) > 1 else ''}: {problem}; {remedy}"
        for (problem, remedy), names in files.items()
    ]


def _parquet_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    return sorted(
        path
        for path in root.rglob("*.parquet")
        if path.is_file() and not any(part[0] in "_." for part in path.relative_to(root).parts)
    )


def _missing_table(folder: Path, table: Table) -> FileFault:
    where = f"{table.name}/day=YYYY-MM-DD/*.parquet" if table.partitioned else f"{table.name}/*.parquet"
    hint = nearest(table.name, (path.stem for path in folder.iterdir()))
    return FileFault(f"{table.name}.parquet", f"is missing.{hint}", f"write {table.name}.parquet or {where}")


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
        if parts and not _is_day(parts[-1]):
            faults.append(FileFault(name, "the partition is not a day", "name the folder day=YYYY-MM-DD"))
    if any(days) and not all(days):
        name = str(files[days.index(None)].relative_to(folder))
        faults.append(FileFault(name, "lies beside day=... folders", "move it into the folder of its day"))
    return days, faults


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


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


def _columns(table: Table, footers: Iterable[pa.Schema]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the widest kind of each column of the contract that holds values, and the other columns."""
    kinds: dict[str, set[str]] = {}
    for footer in footers:
        for column in footer:
            kinds.setdefault(column.name, set()).add(kind(column.type))
    known = {name: kinds[name] - {"null"} for name in table.names() if name in kinds}
    found = {name: "float" if "float" in seen else min(seen) for name, seen in known.items() if seen}
    return found, tuple(name for name in kinds if name not in known)


def column_faults(table: Table, footer: pa.Schema) -> list[tuple[str, str]]:
    """Return (problem, remedy) of each missing, repeated or wrongly typed column of one file."""
    types = {column.name: column.type for column in footer}
    faults = [
        (f"column {name} is there {count} times", "keep one, or rename the others")
        for name, count in Counter(footer.names).items()
        if count > 1
    ]
    for column in table.columns:
        expected = f"{column.type}: {column.doc}"
        if column.name not in types:
            if not column.optional:
                hint = nearest(column.name, set(types) - set(table.names()))
                faults.append((f"column {column.name} is missing ({expected}).{hint}", "add or rename it"))
        elif not _accepts(column, types[column.name]):
            found = types[column.name]
            problem = f"column {column.name} is {found}, expected {expected}"
            faults.append((problem, _type_remedy(column, found)))
    return faults


def _accepts(column: Column, type_: pa.DataType) -> bool:
    found = kind(type_)
    if found == "null":
        return column.nullable
    return found in _KINDS[column.type] or (found == "float" and column.measure)


def _type_remedy(column: Column, found: pa.DataType) -> str:
    name = column.name
    if pa.types.is_temporal(found) and name.endswith("_at"):
        return f"write integer microseconds UTC, e.g. epoch_us({name}) in SQL"
    if pa.types.is_floating(found):
        return f"write whole numbers: floats lose digits beyond 2^53; in pandas, {name}.astype('Int64')"
    if column.type == "BIGINT" and name.endswith("_id"):
        return "give each id a signed 64-bit integer and keep the map"
    return f"write it as {column.type}"
