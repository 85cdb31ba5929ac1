"""DuckDB: the one place that opens it, quotes for it, interrupts it and explains its errors.

Everything that runs SQL inside this process goes through here, so that memory is bounded, paths are taken as
they are, Ctrl-C works, and a full disk or a damaged file comes out as one sentence.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from crops.errors import CropsError

Connection = duckdb.DuckDBPyConnection
Result = TypeVar("Result")


def open_database(
    memory: str | None = None,
    spill: str | Path | None = None,
    *,
    file: Path | None = None,
    threads: int | None = None,
) -> Connection:
    """Open a database; use it as a context manager.

    Args:
        memory: limit, e.g. "2GB"; DuckDB's own when None.
        spill: folder for what does not fit.
        file: keeps its tables, so that they take disk and not memory; in memory when None.
        threads: all cores when None.

    Raises:
        CropsError: `memory` is no size.
    """
    config: dict[str, str | bool | int | float | list[str]] = {}
    if memory is not None:
        config["memory_limit"] = memory
    if spill is not None:
        config["temp_directory"] = str(spill)
    if threads is not None:
        config["threads"] = threads
    try:
        connection = duckdb.connect(str(file or ":memory:"), config=config)
    except (duckdb.ParserException, duckdb.InvalidInputException) as error:
        raise CropsError(f"memory limit {memory!r}: {error}; give a size such as 2GB") from error
    for system in _file_systems:
        connection.register_filesystem(system)
    return connection


_file_systems: list[Any] = []


def read_through(file_system: Any) -> None:  # noqa: ANN401 (of fsspec, untyped)
    """Let every database that is opened from now on read the URIs of an fsspec file system."""
    _file_systems.append(file_system)


@contextlib.contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Turn each error of DuckDB into the sentence `what`, with the reason behind it.

    Raises:
        CropsError: `what: reason`.
    """
    try:
        yield
    except duckdb.Error as error:
        raise CropsError(f"{what}: {error}") from error


@contextlib.contextmanager
def explained(limit: str, files: Iterable[Path | str] = (), *, disk: bool = True) -> Iterator[None]:
    """Turn failures of long work, in DuckDB or on the disk, into errors that a user can act on.

    Args:
        limit: what sets the memory limit, e.g. "engine.memory = '2GB'".
        files: that are read; a damaged one is named.
        disk: also explain errors of Python's own writing and reading.

    Raises:
        CropsError: memory is not enough, a file is damaged behind a sound footer, or the disk is full.
    """
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise CropsError(f"{limit} is not enough: {error}") from error
    except (duckdb.Error, OSError) as error:
        if isinstance(error, OSError) and not disk:
            raise
        _blame_file(files, error)
        if isinstance(error, duckdb.IOException | OSError):
            raise CropsError(
                f"nothing was published: {error}; free disk space, or name a folder on another disk"
            ) from error
        raise


def _blame_file(files: Iterable[Path | str], error: Exception) -> None:
    """Raise a CropsError for the first file that cannot be read to its end, if there is one."""
    with open_database() as connection:
        for file in files:
            try:
                connection.execute(f"select bit_xor(hash(t)) from {parquet(file)} t").fetchall()
            except duckdb.Error as fault:
                if "string encoding" in str(fault):
                    remedy = "decode its texts as they were encoded, and write them as UTF-8"
                    raise CropsError(f"{file} holds text that is not UTF-8 ({fault}); {remedy}") from error
                raise CropsError(f"{file} is damaged ({fault}); write the file again") from error


def interruptible(connection: Connection, work: Callable[[], Result]) -> Result:
    """Return `work()`, which queries `connection`, and let Ctrl-C stop it at once.

    A thread that waits inside DuckDB may not notice a signal until the query ends: the work gets its own.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        result = pool.submit(work)
        try:
            return result.result()
        except KeyboardInterrupt:
            # An interrupt stops the running query only: the work may be between two.
            while not result.done():
                connection.interrupt()
                concurrent.futures.wait([result], timeout=0.05)
            raise


def write_parquet(connection: Connection, query: str, file: Path) -> int:
    """Write the rows of a query to a file, whose folder is made if it is not there; return how many."""
    file.parent.mkdir(parents=True, exist_ok=True)
    ((rows,),) = connection.execute(f"copy ({query}) to {literal(file)} (format parquet)").fetchall()
    return int(rows)


def count(connection: Connection, relation: str) -> int:
    """Return the number of rows of a relation."""
    ((rows,),) = connection.execute(f"select count(*) from {relation}").fetchall()
    return int(rows)


def quoted(name: str) -> str:
    """Return `name` as an SQL identifier."""
    return '"{}"'.format(name.replace('"', '""'))


def literal(value: str | Path) -> str:
    """Return a text, or the path of a file that is written, as an SQL string."""
    return "'{}'".format(str(value).replace("'", "''"))


def pattern(path: Path | str) -> str:
    """Return a path, or a URI, for a parameter of DuckDB's readers, which take each path for a pattern.

    A folder stands for the Parquet files in it, in the order of their names: a table is one file or several.
    """
    # In brackets the special characters stand for themselves.
    one = "".join(f"[{letter}]" if letter in "[*?" else letter for letter in str(path))
    return f"{one}/*.parquet" if isinstance(path, Path) and path.is_dir() else one


def parquet_files(table: Path) -> list[Path]:
    """Return the files of a table: itself, or those in the folder that it is, in the order of its rows."""
    return sorted(table.glob("*.parquet")) if table.is_dir() else [table]


def read_columns(table: Path, columns: Sequence[str]) -> pa.Table:
    """Return columns of a table, which is one file or a folder of files, in the order of its rows."""
    return pa.concat_tables(
        # `day=...` above the files is no column.
        [pq.read_table(file, columns=list(columns), partitioning=None) for file in parquet_files(table)]
    )


def path_literal(path: Path | str) -> str:
    """Return the path or URI of a file that is read as an SQL string."""
    return literal(pattern(path))


def parquet(*files: Path | str) -> str:
    """Return the relation of Parquet files, at least one; a folder `day=...` above them is no column."""
    return f"read_parquet([{', '.join(map(path_literal, files))}], hive_partitioning=false)"
