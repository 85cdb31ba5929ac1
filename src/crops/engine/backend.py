"""Where the engine's SQL runs: an embedded DuckDB, whose methods Spark has too.

The SQL of this package keeps to the common subset of DuckDB and Spark; whatever differs between engines
(opening logs and Parquet, Arrow in and out, writing files) is behind these methods.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from crops.database import (
    Connection,
    explained,
    interruptible,
    literal,
    open_database,
    parquet,
    parquet_files,
)
from crops.errors import CropsError
from crops.logs import Logs
from crops.outputs import Scratch
from crops.schema import ARROW_TYPES

if TYPE_CHECKING:
    from crops.engine.scoring import CachedScorer
    from crops.engine.spark import SparkBackend

BATCH_ROWS = 8192
"""Rows per Arrow batch between SQL and Python: texts of a batch stay in the megabytes."""
SQL_TYPES = {type_: "STRING" if name == "VARCHAR" else name for name, type_ in ARROW_TYPES.items()}
"""Names that DuckDB and Spark both know."""
_FAST_PARQUET = "compression lz4_raw, parquet_version v2, dictionary_size_limit 1"
"""Without dictionaries: a quarter less CPU time where most columns are ids."""
BatchFunction = Callable[[Iterator[pa.RecordBatch]], Iterable[pa.RecordBatch]]
"""Batches in, batches out; on Spark it is pickled and runs in the workers."""


def columns_of(schema: pa.Schema, there: Collection[str]) -> list[str]:
    """Return the SQL of the columns of a schema, NULL for nullable ones that are not there."""
    return [
        one.name
        if one.name in there or not one.nullable
        else f"cast(null as {SQL_TYPES[one.type]}) as {one.name}"
        for one in schema
    ]


def id_sql(number: int) -> str:
    """Return a 64-bit id as SQL; the lowest of them cannot be written as a number."""
    return f"cast('{number}' as BIGINT)"


Backend: TypeAlias = "DuckDBBackend | SparkBackend"
"""Named tables and views of one job, made by SQL; used as a context manager, gone at its end."""


class DuckDBBackend:
    """Runs inside this process and spills to disk beyond its memory limit."""

    memory: int | None
    """Bytes that one step of the job may hold; None where the engine bounds its memory itself."""

    def __init__(self, memory: str, threads: int | None = None) -> None:
        """Open an empty database.

        Args:
            memory: limit of the whole process, e.g. "2GB".
            threads: worker threads; all cores when None. Results do not depend on it.

        Raises:
            CropsError: `memory` is no size.
        """
        self.memory = parse_memory(memory)
        self._given = memory
        self._files: list[Path | str] = []
        self._writers: dict[Path, pq.ParquetWriter] = {}
        self._counted: dict[Path, int] = {}
        self._spill = Scratch("crops-engine-")
        self._connection = open_database(f"{duckdb_limit(self.memory)}B", self._spill.name, threads=threads)

    def __enter__(self) -> Self:
        """Return the open database."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the database and remove what it spilled."""
        self._connection.close()
        self._spill.cleanup()

    def check_workers(
        self, folder: Path, logs: Logs | None, scorers: Sequence[CachedScorer], others: Sequence[Path] = ()
    ) -> None:
        """Raise where a machine that will work on the job has not what it needs: this process has.

        Args:
            folder: where the job writes.
            logs: what it reads; None for a job that reads no logs.
            scorers: what it scores with, and where the scores are kept.
            others: further files that it reads.
        """

    def keep_in(self, work: Path, build: Callable[[], str]) -> None:
        """Keep the tables of a job as stages of a build (see `crops.engine.stages`), on a cluster only.

        A job in one process is short but for its scores, which outlive it.

        Args:
            work: the folder of the stages, which the job alone uses.
            build: makes the name of the build, `crops.engine.stages.build_key`.
        """

    def read_logs(self, name: str, logs: Logs, table: str, days: Collection[str] | None) -> None:
        """Name a table of the logs, of some days (all when None), as the contract types it."""
        self._files += logs.tables[table].on(days).files
        self.view(name, logs.sql(table, days))

    def read_parquet(self, name: str, files: Sequence[Path], schema: pa.Schema) -> None:
        """Name Parquet files of one schema, nulls for columns that a former release did not write.

        Without files the name has no rows.
        """
        if not files:
            nulls = ", ".join(f"cast(null as {SQL_TYPES[field.type]}) as {field.name}" for field in schema)
            self.view(name, f"select {nulls} where 1 = 0")
            return
        columns = ", ".join(columns_of(schema, pq.read_schema(parquet_files(files[0])[0]).names))
        self.view(name, f"select {columns} from {parquet(*files)}")

    def view(self, name: str, query: str) -> None:
        """Name a query; it runs each time it is read."""
        self._execute(f"create or replace view {name} as {query}")

    def table(self, name: str, query: str) -> None:
        """Run a query once and keep its rows."""
        self._execute(f"create or replace table {name} as {query}")

    def stage(self, name: str, query: Callable[[], str], key: str) -> None:
        """Keep the rows of a query, which is made and run only where the stage is not there: always, here.

        Args:
            name: the table.
            query: makes the SQL; tables that it makes on its way are gone afterwards.
            key: what decides the rows, besides the job.
        """
        self.table(name, query())

    def append(self, name: str, query: str) -> None:
        """Add a query's rows to a table, which is made if it is not there."""
        self._execute(f"create table if not exists {name} as from ({query}) limit 0")
        self._execute(f"insert into {name} {query}")

    def append_partitioned(self, name: str, query: str, partitions: int) -> None:
        """Add a query's rows to a table that is read by ranges of its column `query_id`.

        Several partitions are files next to what is spilled; their statistics let a range skip the others.

        Args:
            name: the table, made by the first call.
            query: the rows.
            partitions: into how many ranges of all 64-bit numbers the rows are laid apart.
        """
        if partitions == 1:
            self.append(name, query)
            return
        folder = Path(self._spill.name) / name
        # As floating-point numbers: a rounded bound moves a row into the partition beside its own, no more.
        bucket = f"cast(floor(query_id / {2.0**64 / partitions}) as INTEGER)"
        self._execute(
            f"copy (select *, {bucket} as bucket from ({query}) q) to {literal(folder)} "
            f"(format parquet, partition_by (bucket), append, {_FAST_PARQUET})"
        )
        files = sorted(folder.rglob("*.parquet"))
        source = parquet(*files) if files else f"({query}) q limit 0"
        self.view(name, f"select * from {source}")

    def drop_tables(self, *names: str) -> None:
        """Drop tables, where they are there."""
        for name in names:
            self._execute(f"drop table if exists {name}")

    def load_lines(self, name: str, file: Path, function: BatchFunction, schema: pa.Schema) -> None:
        """Keep what a Python function makes of the lines of a file.

        Args:
            name: the new table.
            file: its lines are given in batches of one binary column, `line`, with their ends.
            function: batches in, batches of `schema` out.
            schema: of the new table.
        """
        self.load(name, schema, function(line_batches(file)))

    def load(self, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Keep the rows of Arrow batches as a table, one batch in memory at a time.

        The batches are pulled by the calling thread, so an exception raised while making them (or Ctrl-C)
        arrives unchanged and a scorer's own thread pool has one owner.
        """
        with self._explained(), self._connection.cursor() as writer:
            writer.register("batch", schema.empty_table())
            writer.execute("begin")
            writer.execute(f"create or replace table {name} as select * from batch")
            for batch in batches:
                writer.register("batch", batch)
                writer.execute(f"insert into {name} by name select * from batch")
            writer.execute("commit")

    def map_batches(self, name: str, query: str, function: BatchFunction, schema: pa.Schema) -> None:
        """Stream a query's rows through a Python function into a table; nothing is held whole.

        Args:
            name: the new table.
            query: the input rows; give it an order if the function's answer may depend on the batching.
            function: batches in, batches out; only the columns of `schema` are kept.
            schema: of the new table.
        """
        with self._explained(), self._connection.cursor() as reader:
            source = reader.sql(query).to_arrow_reader(BATCH_ROWS)
            self.load(name, schema, (batch.select(schema.names) for batch in function(iter(source))))

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Return the few rows of a query as dicts."""
        rows: list[dict[str, Any]] = self.arrow(query).to_pylist()
        return rows

    def count(self, table: str) -> int:
        """Return the number of rows of a table or view."""
        return int(self.rows(f"select count(*) as n from {table}")[0]["n"])

    def arrow(self, query: str) -> pa.Table:
        """Return all rows of a query."""
        with self._explained():
            table: pa.Table = interruptible(
                self._connection, lambda: self._connection.sql(query).to_arrow_table()
            )
        return table

    def stream(self, query: str) -> pa.RecordBatchReader:
        """Return all rows of a query, a batch in memory at a time."""
        with self._explained():
            return self._connection.cursor().sql(query).to_arrow_reader(BATCH_ROWS)

    def emit(self, query: str, order: str, target: Path) -> None:
        """Add a query's rows, in an order, to the rows that will be written to a Parquet file."""
        with self._explained(disk=True), self._connection.cursor() as reader:
            interruptible(reader, lambda: self._write_rows(reader, f"{query} order by {order}", target))

    def write(self, target: Path) -> None:
        """Write what was emitted for a table, in the order of the calls: as one file, here.

        Raises:
            CropsError: the file does not hold as many rows as the queries gave.
        """
        with self._explained(disk=True):
            self._writers.pop(target).close()
            check_rows([target], self._counted.pop(target), target)

    def _write_rows(self, reader: Connection, query: str, target: Path) -> None:
        rows = reader.sql(query).to_arrow_reader(ROW_GROUP)
        if target not in self._writers:
            self._writers[target], self._counted[target] = open_parquet(target, rows.schema), 0
        for batch in rows:
            self._counted[target] += batch.num_rows
            self._writers[target].write_batch(batch.cast(self._writers[target].schema))

    def _execute(self, sql: str) -> None:
        with self._explained():
            interruptible(self._connection, lambda: self._connection.execute(sql))

    def _explained(self, *, disk: bool = False) -> contextlib.AbstractContextManager[None]:
        return explained(f"engine.memory = '{self._given}'", self._files, disk=disk)


def line_batches(file: Path) -> Iterator[pa.RecordBatch]:
    """Yield the lines of a file, with their ends, as batches of one binary column `line`."""
    with file.open("rb") as lines:
        while block := list(itertools.islice(lines, BATCH_ROWS)):
            yield pa.record_batch({"line": pa.array(block, pa.binary())})


_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)}
_PROCESS = 260_000_000
"""Python, Arrow and the code of the database, besides the rows."""
_LEAST = 64_000_000
_SMALL_PARTITION = 3_000_000
_FILES = 4
"""Of a partition: its bounds follow its rows and not the files, and it reads those that it touches."""
MERGE_ROW = 200
"""Bytes that an impression or a candidate takes in the hash tables and sorts of merging, with room to
spare."""
KEPT_ROW = 55
"""Bytes that an impression takes while it is kept, with its share of the searches and of what was watched
near them."""
SEARCH_ROW = 300
"""Bytes that a search takes in those of mining, which joins feed events and later searches to it."""


def parse_memory(text: str) -> int:
    """Return the bytes of a size such as "2GB", "512MiB" or "1.5 GB".

    Raises:
        CropsError: `text` is no size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise CropsError(f"engine.memory = '{text}': write a size such as '2GB'")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def duckdb_limit(memory: int) -> int:
    """Return what DuckDB may use of the memory of the whole process, in bytes."""
    return max(memory - _PROCESS, memory // 3, _LEAST)


def query_partitions(rows: int, memory: int | None) -> int:
    """Return into how many partitions merging is cut: its hash tables stay small, and fit into memory."""
    return 1 if memory is None else max(shards(rows, MERGE_ROW, memory), rows // _SMALL_PARTITION)


def file_partitions(rows: int, memory: int | None) -> int:
    """Return into how many files `rows` impressions are laid apart, for partitions to read.

    They stay in memory (1) where they take no more than a third of it.
    """
    return 1 if shards(rows, 3 * KEPT_ROW, memory) == 1 else query_partitions(rows, memory) * _FILES


def shards(rows: int, row_bytes: int, memory: int | None) -> int:
    """Return into how many shards `rows` rows are cut so that a step on one of them fits into memory."""
    if memory is None:
        return 1
    return max(1, -(-rows * row_bytes // duckdb_limit(memory)))


ROW_GROUP = 122_880
_DISTINCT = ("item_id", "search_id", "watched_at", "theta")
"""Columns of too many values for a dictionary."""


def open_parquet(target: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a writer of a table of the engine; give it batches of `ROW_GROUP` rows."""
    # Engines differ in what they call nullable, and leave notes of their own.
    fields = [field.with_nullable(True).remove_metadata() for field in schema]
    repeated = [field.name for field in fields if field.name not in _DISTINCT]
    return pq.ParquetWriter(target, pa.schema(fields), compression="snappy", use_dictionary=repeated)


def check_rows(files: Sequence[Path], counted: int, target: Path) -> None:
    """Compare the rows that files say they hold with the rows that were counted when they were made.

    Raises:
        CropsError: a file cannot be read, or some rows are missing (or too many): what wrote the files did
            not see the driver's folder.
    """
    written = 0
    for file in files:
        try:
            written += pq.read_metadata(file).num_rows
        except (OSError, pa.ArrowException) as error:
            raise CropsError(
                f"{file} is half-written ({error}), so nothing is published; run the command again, on a "
                "disk that keeps what is written"
            ) from error
    if written != counted:
        raise CropsError(
            f"{target.name}: {written:,} of {counted:,} rows arrived in {target.parent}, so nothing is "
            "published; all workers must see this folder at this path, and the disk must keep what is written"
        )


def concatenate(files: Sequence[Path], target: Path, names: Sequence[str] | None = None) -> None:
    """Make one Parquet file of the rows of files, in their order; the files are gone afterwards.

    One row group is in memory at a time. With `names` the columns get these instead of their own.
    """
    schema = pq.read_schema(files[0])
    if names is not None:
        schema = pa.schema([field.with_name(name) for field, name in zip(schema, names, strict=True)])
    with open_parquet(target, schema) as writer:
        for file in files:
            with pq.ParquetFile(file) as parquet_file:
                for batch in parquet_file.iter_batches(ROW_GROUP):
                    writer.write_batch(batch.rename_columns(schema.names).cast(writer.schema))
            file.unlink()
