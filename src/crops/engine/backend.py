"""Where the engine's SQL runs: an embedded DuckDB that spills to disk beyond its memory limit.

The SQL of this room keeps to the common subset of DuckDB and Spark; whatever differs between engines
(opening Parquet, Arrow in and out, writing files) is behind the methods below.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa

from crops.errors import CropsError
from crops.logs import interruptible

BATCH_ROWS = 8192
"""Rows per Arrow batch between SQL and Python: texts of a batch stay in the megabytes."""

BatchFunction = Callable[[Iterator[pa.RecordBatch]], Iterable[pa.RecordBatch]]


class DuckDBBackend:
    """Tables of one job; used as a context manager, everything is gone at its end."""

    def __init__(self, memory: str, threads: int | None = None) -> None:
        """Open an empty database.

        Args:
            memory: memory limit in DuckDB's notation, e.g. "2GB".
            threads: worker threads; all cores when None. Results do not depend on it.

        Raises:
            CropsError: DuckDB does not understand `memory`.
        """
        self._spill = tempfile.TemporaryDirectory(prefix="crops-engine-")
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": memory,
            "temp_directory": self._spill.name,
        }
        if threads is not None:
            config["threads"] = threads
        try:
            self._connection = duckdb.connect(config=config)
        except duckdb.Error as error:
            self._spill.cleanup()
            raise CropsError(f"engine.memory = '{memory}': write a size such as '2GB' ({error})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._spill.cleanup()

    def view(self, name: str, query: str) -> None:
        """Name a query; it runs each time it is read."""
        self._connection.execute(f"create view {name} as {query}")

    def table(self, name: str, query: str) -> None:
        """Run a query once and keep its rows."""
        self._execute(f"create table {name} as {query}")

    def load(self, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Keep the rows of Arrow batches as a table, one batch in memory at a time.

        The batches are pulled by the calling thread, so an exception raised while making them (or Ctrl-C)
        arrives unchanged and a scorer's own thread pool has one owner.
        """
        with self._connection.cursor() as writer:
            writer.register("batch", schema.empty_table())
            writer.execute("begin")
            writer.execute(f"create table {name} as select * from batch")
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
        with self._connection.cursor() as reader:
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
        table: pa.Table = interruptible(
            self._connection, lambda: self._connection.sql(query).to_arrow_table()
        )
        return table

    def write(self, query: str, path: Path) -> None:
        """Write a query's rows to one Parquet file, in the query's order."""
        target = str(path).replace("'", "''")
        self._execute(f"copy ({query}) to '{target}' (format parquet, compression zstd)")

    def _execute(self, sql: str) -> None:
        interruptible(self._connection, lambda: self._connection.execute(sql))
