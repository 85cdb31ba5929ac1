"""DuckDB with bounded memory, for reading logs."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import duckdb

from crops.errors import CropsError
from crops.logs.tables import Logs, scan

_Result = TypeVar("_Result")


@contextlib.contextmanager
def database(source: Logs, memory: str, spill: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a DuckDB connection of bounded memory whose failures come out as errors that a user can act on.

    Args:
        source: the logs that will be read; a damaged file of theirs is named.
        memory: the limit, e.g. "2GB".
        spill: folder for what does not fit.

    Raises:
        CropsError: `memory` is no size or not enough, or a file is damaged behind a sound footer.
    """
    try:
        connection = duckdb.connect(config={"memory_limit": memory, "temp_directory": spill})
    except duckdb.Error as error:
        raise CropsError(f"memory limit {memory!r}: {error}; give a size such as 2GB") from error
    with connection:
        try:
            yield connection
        except duckdb.OutOfMemoryException as error:
            raise CropsError(f"{memory} of memory are not enough to check {source.path}: {error}") from error
        except duckdb.Error as error:
            _blame_file(source, error)
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


def _blame_file(source: Logs, error: duckdb.Error) -> None:
    """Raise a CropsError for the first file that cannot be read to its end, if there is one."""
    with duckdb.connect() as connection:
        for file in (file for files in source.tables.values() for file in files.files):
            try:
                connection.execute(f"select bit_xor(hash(t)) from {scan([file])} t").fetchall()
            except duckdb.Error as fault:
                raise CropsError(f"{file} is damaged ({fault}); write the file again") from error
