"""The rules of the logs (`crops.logs.rules`) on Spark: the same SQL, rows read and written by the workers."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pyarrow as pa
import pyarrow.parquet as pq

from crops.config import EngineConfig
from crops.engine.backend import check_rows
from crops.engine.spark import SparkBackend, day_of_time, file_uri, layouts, microseconds, write_parts
from crops.engine.stages import build_key, work_folder
from crops.logs import Logs
from crops.logs.check import Engine
from crops.logs.files import TableFiles, kind
from crops.logs.sql import distinct_names, mixed_columns
from crops.outputs import unique
from crops.schema import Table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def rows_engine(config: EngineConfig) -> Engine | None:
    """Return what opens the engine of the settings for a check, None for DuckDB, which is its default."""
    return functools.partial(SparkRows, config.master, config.memory) if config.engine == "spark" else None


class SparkRows(SparkBackend):
    """What `crops.logs.rows.RowEngine` asks for; on a cluster every table is a stage beside the output."""

    hash = "xxhash64"

    def __init__(self, master: str, memory: str) -> None:
        """Reach the cluster, see `SparkBackend`."""
        super().__init__(master, memory)
        self.made_by = f"Spark {self._spark.version}"
        self._relations: dict[tuple[Path | str, ...], str] = {}
        self._opened: dict[tuple[str, ...], DataFrame] = {}
        self._work: Path | None = None

    def __enter__(self) -> Self:
        """Return the open session."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the session; the stages of a check that failed wait for the next."""
        super().__exit__(kind, error, trace)
        if self._work is not None and error is None:
            shutil.rmtree(self._work, ignore_errors=True)

    def prepare(self, logs: Logs, folder: Path | None, out: Path | None, last: str) -> None:
        """Ask the workers for what they need, and find the stages of a check that was killed."""
        if folder is None or out is None:
            return
        self.check_workers(folder, logs, [])
        self._work = work_folder(Path(os.path.realpath(out)))
        files = [file for table in logs.tables.values() for file in table.files]
        self.keep_in(self._work, functools.partial(build_key, files, [], "check", logs.snapshots(), last))

    def passes(self, rows: int) -> int:
        """Return one pass: Spark bounds its memory itself."""
        return 1

    def relation(self, files: TableFiles) -> str:
        """Return the view of all rows."""
        if files.files not in self._relations:
            name = f"rows_{len(self._relations)}"
            self._rows_of(files).createOrReplaceTempView(name)
            self._relations[files.files] = name
        return self._relations[files.files]

    def read(self, name: str, files: TableFiles) -> None:
        """Name the rows of files that keep the contract."""
        self.read_files(name, files, None)

    def function(self, name: str, function: Callable[[str], str]) -> None:
        """Name a function of one text, which runs in the workers."""

        def known(text: str | None) -> str | None:
            return None if text is None else function(text)

        self._spark.udf.register(name, known, "string")

    def keep(self, query: str, folder: Path) -> None:
        """Write the rows of a query, by the workers."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        rows = write_parts(self._sql(query), folder)
        check_rows(sorted(folder.glob("part-*.parquet")), rows, folder)

    def kept(self, name: str, folder: Path) -> None:
        """Name the rows that `keep` wrote."""
        self._spark.read.parquet(file_uri(folder)).createOrReplaceTempView(name)

    def write_accepted(self, query: str, target: Path) -> None:
        """Write the rows of a day as several files, by the workers; a table without days as one."""
        if not target.parent.name.startswith("day="):
            self.emit(query, "_file, _row", target)
            self.write_file(target)
            return
        folder = unique(target.parent, "tmp")
        rows = write_parts(self._sql(query), folder)
        parts = sorted(folder.glob("part-*.parquet"))
        check_rows(parts, rows, target)
        for number, part in enumerate(part for part in parts if pq.read_metadata(part).num_rows):
            target.parent.mkdir(parents=True, exist_ok=True)
            part.rename(target.parent / f"part-{number}.parquet")
        shutil.rmtree(folder)

    def write_rejects(self, columns: Mapping[str, str], relation: str, target: Path) -> None:
        """Write one file of a relation's rows in the order of the source."""
        target.parent.mkdir(parents=True, exist_ok=True)
        select = ", ".join(f"{value} as column_{place}" for place, value in enumerate(columns.values()))
        self.emit(f"select {select} from {relation}", "_file, _row", target)
        self.write_file(target, list(columns))

    def _rows_of(self, files: TableFiles) -> DataFrame:
        """Read files in their own types; those that disagree on what a column is give it as text."""
        table = files.table
        names = {name: name for name in files.found}
        names |= {f"extra_{number}": name for number, name in enumerate(files.extra)}
        mixed = mixed_columns(names, files.footers, table.times)
        frames = []
        for (day, columns), paths in layouts(files).items():
            frames.append(self._alike(table, names, mixed, day, columns, paths))
        frame = functools.reduce(_union, frames)
        typed = {column.name: column.sql for column in table.columns}
        there = set(frame.columns)
        wanted = [*table.names(), *(name for name in names if name not in typed), "_file", "_row"]
        chosen = [
            f"`{name}`" if name in there else f"cast(null as {typed.get(name, 'STRING')}) as `{name}`"
            for name in wanted
        ]
        return frame.selectExpr(*chosen, *(["_day"] if table.partitioned else []))

    def _alike(
        self,
        table: Table,
        names: Mapping[str, str],
        mixed: Collection[str],
        day: str | None,
        footer: Sequence[tuple[str, pa.DataType]],
        paths: Sequence[str],
    ) -> DataFrame:
        """Read the named columns of files of one layout and one day."""
        # Spark reads a footer whenever it is given files.
        if (key := tuple(paths)) not in self._opened:
            self._opened[key] = self._spark.read.parquet(*paths)
        read = self._opened[key]
        # A column of the files may have the name of what Spark adds: that is asked for as such.
        added = read.metadataColumn("_metadata")
        places = distinct_names([name for name, _ in footer])
        file, row = (f"_{name} of {len(places)} columns" for name in ("file", "row"))
        frame = read.select("*", added["file_path"], added["row_index"]).toDF(*places, file, row)
        types = dict(frame.dtypes)
        found = {name: (place, type_) for place, (name, type_) in zip(places, footer, strict=True)}
        columns = []
        for name, column in names.items():
            place, type_ = found.get(column, ("", pa.null()))
            if kind(type_) == "null":
                continue
            value = "`{}`".format(place.replace("`", "``"))
            if name in table.times:
                value = microseconds(value, types[place], str(type_))
            columns.append(f"{f'cast({value} as STRING)' if name in mixed else value} as `{name}`")
        frame = frame.selectExpr(*columns, f"{_path(f'`{file}`')} as _file", f"`{row}` as _row")
        if not table.partitioned:
            return frame
        on = day_of_time(str(table.time)) if day is None else f"'{day}'"
        return frame.selectExpr("*", f"{on} as _day")


def _path(value: str) -> str:
    """Return the SQL of a file's path, or its URI in a store, as the logs name it: Spark encodes it."""
    plain = f"url_decode(replace({value}, '+', '%2B'))"
    decoded = f"case when contains({value}, '%') then {plain} else {value} end"
    return f"regexp_replace(regexp_replace({decoded}, '^file:/+', '/'), '^s3a:', 's3:')"


def _union(left: DataFrame, right: DataFrame) -> DataFrame:
    return left.unionByName(right, allowMissingColumns=True)
