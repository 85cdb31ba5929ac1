"""DuckDB with bounded memory, for reading logs."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import duckdb

from crops.errors import CropsError
from crops.logs.tables import Logs, path_literal

_Result = TypeVar("_Result")


@contextlib.contextmanager
def database(source: Logs, memory: str, spill: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a DuckDB connection of bounded memory whose failures come out as errors that a user can act on.

    Args:
        source: the logs that will be read; a damaged file of theirs is named.
        memory: the limit, e.g. "2GB".
        spill: folder for what does not fit.

    Raises:
        CropsError: `memory` is no size or not enough, a file is damaged behind a sound footer, or the disk is
            full.
    """
    files = [file for table in source.tables.values() for file in table.files]
    with _explained(memory, files), _connect(":memory:", memory, spill) as connection:
        yield connection


@contextlib.contextmanager
def import_database(memory: str, folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection to a database in an empty folder, for imports: its tables take disk, not memory.

    Raises:
        CropsError: `memory` is no size or not enough, a file cannot be read, or the disk is full.
    """
    with (
        _explained(memory, []),
        _connect(str(folder / "import.db"), memory, str(folder)) as connection,
    ):
        connection.execute("set TimeZone='UTC'")
        yield connection


def _connect(path: str, memory: str, spill: str) -> duckdb.DuckDBPyConnection:
    try:
        return duckdb.connect(path, config={"memory_limit": memory, "temp_directory": spill})
    except (duckdb.ParserException, duckdb.InvalidInputException) as error:
        raise CropsError(f"memory limit {memory!r}: {error}; give a size such as 2GB") from error


@contextlib.contextmanager
def _explained(memory: str, files: Iterable[Path]) -> Iterator[None]:
    """Turn failures of DuckDB and of the disk into errors that a user can act on."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise CropsError(f"{memory} of memory are not enough: {error}") from error
    except (duckdb.Error, OSError) as error:
        _blame_file(files, error)
        if isinstance(error, duckdb.IOException | OSError):
            raise CropsError(
                f"{error}; free disk space, or name a folder on another disk: nothing was published"
            ) from error
        raise


def interruptible(connection: duckdb.DuckDBPyConnection, work: Callable[[], _Result]) -> _Result:
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


def _blame_file(files: Iterable[Path], error: Exception) -> None:
    """Raise a CropsError for the first file that cannot be read to its end, if there is one."""
    with duckdb.connect() as connection:
        for file in files:
            try:
                connection.execute(
                    f"select bit_xor(hash(t)) from read_parquet([{path_literal(file)}]) t"
                ).fetchall()
            except duckdb.Error as fault:
                if "string encoding" in str(fault):
                    remedy = "decode its texts as they were encoded, and write them as UTF-8"
                    raise CropsError(f"{file} holds text that is not UTF-8 ({fault}); {remedy}") from error
                raise CropsError(f"{file} is damaged ({fault}); write the file again") from error
