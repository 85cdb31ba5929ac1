"""Logs as if some users or items had never been in them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops.engine.backend import DuckDBBackend, duckdb_limit, id_sql, parse_memory
from crops.errors import CropsError
from crops.logs import Logs, open_logs
from crops.logs.tables import literal, path_literal, quoted
from crops.outputs import MANIFEST

FORGOTTEN = "forgotten.json"

"""Beside the days of a daily build: who and what no build takes up again."""

SCRATCH = ".logs-"

"""How the names of scratch folders begin."""


@dataclass(frozen=True)
class Forgotten:
    """Ids that are left out of everything that is built."""

    users: tuple[int, ...] = ()
    items: tuple[int, ...] = ()
    pending: bool = False
    """Whether outputs may still hold some of them: a forget is under way, or was killed."""

    def __bool__(self) -> bool:
        return bool(self.users or self.items)

    def digest(self) -> str:
        """Return a hash of the ids."""
        return hashlib.sha256(repr((self.users, self.items)).encode()).hexdigest()

    def plus(self, users: Collection[int], items: Collection[int]) -> Forgotten:
        """Return the union, pending."""
        return Forgotten(
            tuple(sorted({*self.users, *users})), tuple(sorted({*self.items, *items})), pending=True
        )


def read_forgotten(out: Path) -> Forgotten:
    """Return what a build leaves out."""
    path = out / FORGOTTEN
    if not path.exists():
        return Forgotten()
    found = json.loads(path.read_text())
    return Forgotten(tuple(found["users"]), tuple(found["items"]), found["pending"])


def write_forgotten(out: Path, forgotten: Forgotten) -> None:
    """Write what a build leaves out, whole or not at all."""
    staging = out / f".{FORGOTTEN}.tmp"
    facts = {"users": forgotten.users, "items": forgotten.items, "pending": forgotten.pending}
    staging.write_text(json.dumps(facts) + "\n")
    staging.replace(out / FORGOTTEN)


def finish_forgotten(out: Path) -> None:
    """Note that no output holds them any more."""
    write_forgotten(out, replace(read_forgotten(out), pending=False))


@contextlib.contextmanager
def without(
    logs: Logs, days: Sequence[str], forgotten: Forgotten, scratch: Path, memory: str
) -> Iterator[Logs | None]:
    """Yield the logs of some days without any row of some users and items; None where no search is left.

    Args:
        logs: accepted logs.
        days: the days wanted, YYYY-MM-DD.
        forgotten: whose rows are left out.
        scratch: folder for a copy, which is gone afterwards; Spark's workers must see it.
        memory: limit of the copying, e.g. "2GB".
    """
    if not forgotten:
        yield logs
        return
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=scratch) as folder:
        yield _subtract(logs, days, forgotten, Path(folder), memory)


def _subtract(
    logs: Logs, days: Sequence[str], forgotten: Forgotten, folder: Path, memory: str
) -> Logs | None:
    limit = f"{duckdb_limit(parse_memory(memory))}B"
    found = 0
    with duckdb.connect(
        config={"memory_limit": limit, "temp_directory": str(folder / ".spill")}
    ) as connection:
        _copy(connection, logs, "items", None, forgotten, folder / "items.parquet")
        for day in days:
            for table, there in (("search_impressions", logs.search_days), ("feed_events", logs.feed_days)):
                if day not in there:
                    continue
                target = folder / table / f"day={day}" / "part-0.parquet"
                rows = _copy(connection, logs, table, day, forgotten, target)
                found += rows if table == "search_impressions" else 0
    return open_logs(folder) if found else None


def holds(logs: Logs, day: str, forgotten: Forgotten) -> bool:
    """Return whether the logs of a day, or the catalogue, have a row of any of them."""
    tables: list[tuple[str, str | None]] = [("items", None)]
    tables += [("search_impressions", day)] if day in logs.search_days else []
    tables += [("feed_events", day)] if day in logs.feed_days else []
    with duckdb.connect() as connection:
        return any(
            connection.execute(
                f"select 1 from ({_rows(logs, table, on)}) l where not ({_others(table, forgotten)}) limit 1"
            ).fetchone()
            for table, on in tables
        )


def _copy(
    connection: duckdb.DuckDBPyConnection,
    logs: Logs,
    table: str,
    day: str | None,
    forgotten: Forgotten,
    target: Path,
) -> int:
    """Write one table and return its rows; a table without rows is not written, but for the items."""
    columns = ", ".join(quoted(column.name) for column in logs.tables[table].table.columns)
    rows = f"select {columns} from ({_rows(logs, table, day)}) l where {_others(table, forgotten)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    written = connection.execute(f"copy ({rows}) to {literal(str(target))} (format parquet)").fetchone()
    count = int(written[0]) if written else 0
    if not count and day is not None:
        target.unlink()
        target.parent.rmdir()
    return count


def _rows(logs: Logs, table: str, day: str | None) -> str:
    return logs.sql(table, None if day is None else [day])


def _others(table: str, forgotten: Forgotten) -> str:
    tests = ["1 = 1"]
    if forgotten.users and table != "items":
        tests.append(f"user_id not in ({_ids(forgotten.users)})")
    if forgotten.items:
        tests.append(f"item_id not in ({_ids(forgotten.items)})")
    return " and ".join(tests)


def _ids(ids: Sequence[int]) -> str:
    return ", ".join(map(id_sql, ids))


# ------------------------------------------------------------------------------
# What a folder of tables holds, as a hash: equal rows give equal hashes, however they lie in files.


CONTENT = "content.json"

"""The content manifest of a folder."""


def write_content(folder: Path, memory: str) -> str:
    """Write the content manifest of a folder: per file bytes and SHA-256, per table rows and content too.

    The content of a table is a hash of its sorted rows; that of the folder, a hash of its tables'. The
    manifest of the run, which holds times, is no content.

    Args:
        folder: holds Parquet files and others.
        memory: limit of the sorting, e.g. "2GB".

    Returns:
        the content of the folder, hexadecimal.
    """
    files: dict[str, dict[str, Any]] = {}
    with DuckDBBackend(memory) as backend:
        for path in sorted(folder.iterdir()):
            if path.name in (MANIFEST, CONTENT):
                continue
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _file_hash(path)}
            if path.suffix == ".parquet":
                files[path.name]["rows"] = pq.read_metadata(path).num_rows
                files[path.name]["content"] = table_content(backend, path)
    tables = {name: facts["content"] for name, facts in files.items() if "content" in facts}
    content = hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()
    (folder / CONTENT).write_text(json.dumps({"content": content, "files": files}, indent=2) + "\n")
    return content


def read_content(folder: Path) -> str:
    """Return the content hash that `write_content` wrote.

    Raises:
        CropsError: there is none.
    """
    path = folder / CONTENT
    if not path.exists():
        raise CropsError(
            f"{folder} has no {CONTENT}: it is no part of a daily build; delete it, build it anew"
        )
    return str(json.loads(path.read_text())["content"])


def table_content(backend: DuckDBBackend, path: Path) -> str:
    """Return the SHA-256 of a Parquet file's columns, rows sorted by all of them.

    It depends on names, types and values only: not on the order of rows, row groups or compression. One
    batch of rows is in memory at a time, beside the sort.
    """
    columns = [_Column(field) for field in pq.read_schema(path)]
    source = f"read_parquet({path_literal(path)}, hive_partitioning=false)"
    for batch in backend.stream(f"select * from {source} order by all"):
        for column, values in zip(columns, batch.columns, strict=True):
            column.add(values)
    digest = hashlib.sha256()
    for column in columns:
        column.into(digest)
    return digest.hexdigest()


class _Column:
    """Running hashes of a column, one per buffer: where batches end leaves no trace."""

    def __init__(self, field: pa.Field) -> None:
        self._name = f"{field.name} {field.type}"
        self._text = pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        self._parts = [hashlib.sha256() for _ in range(3)]

    def add(self, values: pa.Array) -> None:
        """Hash the next values: which are there, then numbers, or lengths and bytes of texts."""
        valid, data, lengths = self._parts
        valid.update(np.asarray(values.is_valid()).tobytes())
        if self._text:
            texts = pc.fill_null(values.cast(pa.large_string()), "")
            lengths.update(np.asarray(pc.binary_length(texts)).tobytes())
            data.update("".join(texts.to_pylist()).encode())
        else:
            numbers = pc.fill_null(values, pa.scalar(0, pa.int8()).cast(values.type))
            data.update(np.asarray(numbers).tobytes())

    def into(self, digest: hashlib._Hash) -> None:
        """Add the column to the hash of its table."""
        digest.update(self._name.encode())
        for part in self._parts:
            digest.update(part.digest())


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
