"""Logs by URI: a table is the list of its Parquet files, whoever keeps that list.

A folder of an object store lists its files, a Delta Lake or Iceberg table those of a snapshot, a metastore
those of a table. The list is made once, when the logs are opened: what is written to the table later changes
nothing. Both engines read the files themselves, so that neither needs a connector of the table format.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs as stores

from crops.database import read_through
from crops.errors import CropsError, MissingExtraError, nearest
from crops.logs.days import day_of, is_day
from crops.schema import FEED_EVENTS, ITEMS, SEARCH_IMPRESSIONS, SEARCHES, Table

KINDS = ("delta", "iceberg", "hive")
"""Table formats by the name before the colon."""
STORES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""Schemes of stores that pyarrow opens."""
EXTRA = "lake"
DAY_COLUMNS = ("day", "dt", "ds", "date")
"""Partition columns that hold the day of their rows, as YYYY-MM-DD or YYYYMMDD; or year, month and day."""
_NAMED = re.compile(rf"(?:{'|'.join(KINDS)}):.|[A-Za-z][A-Za-z0-9+.-]+://.")
_VERSION = re.compile(r"(.+?)(?:@([^@/]+))?")
_TABLES = (ITEMS.name, SEARCH_IMPRESSIONS.name, FEED_EVENTS.name, SEARCHES.name)
_CREDENTIALS = (
    "set the credentials of the store in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a "
    "profile; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_*), with the right to list and read"
)
_REFUSED = re.compile(
    r"access.?denied|forbidden|\b40[13]\b|credential|signature|not authori|InvalidAccessKey", re.I
)
_ABSENT = re.compile(r"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist|\b404\b|container.*not.*exist", re.I)


@dataclass(frozen=True)
class DataFile:
    """A Parquet file of a table."""

    path: Path | str
    """A path of this machine, or a URI."""
    stamp: str
    """Bytes and, where a file may be overwritten, the time of its last change."""
    day: str | None = None
    """YYYY-MM-DD, where the table is partitioned by day."""


@dataclass(frozen=True)
class TableSource:
    """The files of a table at one moment."""

    uri: str
    """What names them again: with the version or snapshot that was read."""
    files: tuple[DataFile, ...]
    named: Callable[[pa.Field], str | None] = field(default=lambda column: str(column.name))
    """The table's name of a column of a file; None for one that the table has dropped."""
    parted: frozenset[str] = frozenset()
    """Partition columns, whose values the files may not hold."""


def is_uri(logs: str | Path) -> bool:
    """Return whether logs are named by a URI, or table by table in a TOML file, and are no local folder."""
    return _NAMED.match(str(logs)) is not None or (str(logs).endswith(".toml") and Path(logs).is_file())


def table_uris(logs: str) -> dict[str, str]:
    """Return the URI of each table of logs: those that a TOML file names, or the children of a URI.

    Args:
        logs: `logs.toml`; a folder of a store, `s3://bucket/logs`; of Delta Lake tables,
            `delta:s3://bucket/logs`; a namespace of a catalogue, `iceberg:catalog.namespace`; or a database,
            `hive:db`.

    Raises:
        CropsError: the file names another table, or a URI cannot be understood.
    """
    if not _NAMED.match(logs):
        return _read_tables(Path(logs))
    kind, _, rest = logs.partition(":")
    if kind not in KINDS:
        return {name: f"{logs.rstrip('/')}/{name}" for name in _TABLES}
    name, version = _parted(rest)
    if version is not None and version.isdigit():
        raise CropsError(
            f"{logs}: a version is one table's; name each table with its own in a logs.toml, such as "
            f'{SEARCH_IMPRESSIONS.name} = "{kind}:...@{version}"'
        )
    at = f"@{version}" if version else ""
    between = "/" if kind == "delta" else "."
    return {table: f"{kind}:{name.rstrip('/')}{between}{table}{at}" for table in _TABLES}


def _read_tables(file: Path) -> dict[str, str]:
    try:
        named = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CropsError(f"{file}: cannot be read as TOML: {error}") from error
    for name, uri in named.items():
        if name not in _TABLES or not isinstance(uri, str):
            raise CropsError(
                f"{file}: {name} is no table with its source as text; write "
                f'{ITEMS.name} = "s3://bucket/items".{nearest(name, _TABLES)}'
            )
    here = file.absolute().parent
    return {name: uri if _NAMED.match(uri) else str(here / uri) for name, uri in named.items()}


def find_source(uri: str, table: Table) -> TableSource | None:
    """Return the files of a table now, None if there is no such table.

    Raises:
        CropsError: the store or the catalogue does not answer or refuses, a version is not there, or the
            table holds what its files alone do not show.
        MissingExtraError: a package that reads the format is not installed.
    """
    kind, _, rest = uri.partition(":")
    if kind not in KINDS:
        return _plain(uri)
    find = {"delta": _delta, "iceberg": _iceberg, "hive": _hive}[kind]
    return find(*_parted(rest), table)


def _parted(name: str) -> tuple[str, str | None]:
    """Return a name without the version behind its last `@`, and the version."""
    match = _VERSION.fullmatch(name)
    return (match[1], match[2]) if match else (name, None)


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn what a store or a catalogue says into one sentence with its remedy."""
    try:
        yield
    except CropsError:
        raise
    except Exception as error:  # whatever the client of a store or a catalogue comes up with
        said = " ".join(re.sub(r"\x1b\[\d*m|↳", "", str(error)).split())[:400]
        if _ABSENT.search(said):
            remedy = "the bucket is not there: correct its name, or its region (AWS_REGION)"
        elif _REFUSED.search(said):
            remedy = _CREDENTIALS
        else:
            remedy = "correct the name, or how the store is reached (AWS_ENDPOINT_URL, AWS_REGION, ...)"
        raise CropsError(f"{uri} cannot be read ({said}); {remedy}") from error


# Stores: what pyarrow opens, for pyarrow itself and for DuckDB.

_given: dict[str, stores.FileSystem] = {}
"""Stores by `scheme://authority` that a catalogue gave its own credentials for."""


def open_store(uri: str) -> tuple[stores.FileSystem, str]:
    """Return the store of a URI and the path in it; of a local path the local one."""
    scheme, found, rest = uri.partition("://")
    if not found or scheme == "file":
        return stores.LocalFileSystem(), rest if found else uri
    scheme = {"s3a": "s3", "s3n": "s3"}.get(scheme, scheme)
    authority, _, path = rest.partition("/")
    root = f"{scheme}://{authority}"
    store, base = (_given[root], authority) if root in _given else _opened(root)
    return store, f"{base.rstrip('/')}/{path}"


@functools.cache
def _opened(root: str) -> tuple[stores.FileSystem, str]:
    if root.partition("://")[0] not in STORES:
        raise CropsError(
            f"{root}: no store that is read; known are {', '.join(f'{one}://' for one in STORES)}"
        )
    with _explained(root):
        store, base = stores.FileSystem.from_uri(root)
    return store, base


@functools.cache
def _read_from_stores() -> None:
    """Let DuckDB read the URIs of stores through pyarrow: its own extensions would have to be downloaded."""
    from fsspec import AbstractFileSystem

    class Stores(AbstractFileSystem):  # type: ignore[misc]
        """The calls of DuckDB; it asks for files only, never for a listing."""

        protocol = STORES
        cachable = False

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path

        def unstrip_protocol(self, name: str) -> str:
            return name

        def glob(self, path: str, **_: object) -> list[str]:
            # The file itself is named, as a pattern (see `crops.database.pattern`).
            return [re.sub(r"\[([\[*?])\]", r"\1", path)]

        def info(self, path: str, **_: object) -> dict[str, object]:
            store, inside = open_store(path)
            return {"name": path, "size": store.get_file_info(inside).size, "type": "file"}

        def modified(self, path: str) -> datetime:
            store, inside = open_store(path)
            changed: datetime = store.get_file_info(inside).mtime
            return changed

        def open(self, path: str, mode: str = "rb", **_: object) -> pa.NativeFile:
            store, inside = open_store(path)
            return store.open_input_file(inside)

    read_through(Stores())


def data_file(uri: str, stamp: str, day: str | None) -> DataFile:
    """Return a file: a path where it is on this machine, else a URI, which DuckDB is made to read."""
    path = re.sub(r"^file:(//)?", "", uri)
    if "://" not in path:
        return DataFile(Path(path), stamp, day)
    _read_from_stores()
    return DataFile(re.sub(r"^s3[an]:", "s3:", path), stamp, day)


def stamp_now(file: DataFile) -> str | None:
    """Return the stamp that a file has now, None if it is gone."""
    store, inside = open_store(str(file.path))
    info = store.get_file_info(inside)
    if not info.is_file:
        return None
    return f"{info.size} {info.mtime_ns}" if " " in file.stamp else str(info.size)


def as_day(value: object) -> str | None:
    """Return the day that a partition's value is, None if it is none."""
    text = re.sub(r"^(\d{4})(\d\d)(\d\d)$", r"\1-\2-\3", str(value))
    return text if is_day(text) else None


def day_of_partition(values: Mapping[str, object]) -> str | None:
    """Return the day that the partition columns of a file name, None if they name none."""
    if {"year", "month", "day"} <= values.keys():
        return as_day("-".join(str(values[part]).zfill(2) for part in ("year", "month", "day")))
    return next(filter(None, (as_day(values[name]) for name in DAY_COLUMNS if name in values)), None)


def path_values(path: str) -> dict[str, object]:
    """Return the partition columns that folders `name=value` of a path name."""
    parts = (part.partition("=") for part in path.split("/")[:-1])
    return {name: unquote(value) for name, found, value in parts if found}


def _plain(uri: str) -> TableSource | None:
    """Return the Parquet files below a folder of a store, or the file of that name."""
    with _explained(uri):
        store, base = open_store(uri.rstrip("/"))
        infos = [one for one in store.get_file_info([base, f"{base}.parquet"]) if one.is_file]
        if not (infos and infos[0].path == base):
            infos += store.get_file_info(stores.FileSelector(base, allow_not_found=True, recursive=True))
        bucket = base.partition("/")[0]
        if not infos and bucket and store.get_file_info(bucket).type == stores.FileType.NotFound:
            raise FileNotFoundError(f"the bucket does not exist: {bucket}")
    found, parted, others = [], set[str](), list[str]()
    for info in sorted((one for one in infos if one.is_file), key=lambda one: str(one.path)):
        below = info.path.removeprefix(f"{base}/") if info.path.startswith(f"{base}/") else info.base_name
        if match := re.match(r"(?:.*/)?(?:(_delta_log|\.hoodie)/|metadata/.*\.metadata\.json)", below):
            kind = {"_delta_log": "delta", None: "iceberg"}.get(match[1], "hive")
            raise CropsError(
                f"{uri} is a table of a lake format: its files also hold rows that were deleted or replaced "
                f"since; name its snapshot as {kind}:..."
            )
        if any(part[:1] in ("_", ".") for part in below.split("/")):
            continue
        if not info.path.endswith(".parquet"):
            others.append(below)
        else:
            values = path_values(below)
            parted |= values.keys()
            day = day_of_partition(values)
            full = uri.rstrip("/") + info.path[len(base) :]
            found.append(data_file(full, f"{info.size} {info.mtime_ns}", day))
    if others and not found:
        raise CropsError(
            f"{uri} holds no file named *.parquet, but {len(others):,} others such as {others[0]}; "
            "name Parquet files so, or make them Parquet"
        )
    return TableSource(uri, tuple(found), parted=frozenset(parted)) if found else None


# Table formats: the files of one snapshot.


def _needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, EXTRA)


def _delta(name: str, version: str | None, table: Table) -> TableSource | None:
    """Return the files of a version of a Delta Lake table: a number, a time, or the newest."""
    _needs("deltalake")
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    uri = f"delta:{name}"
    options = {"allow_http": "true"} if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http:") else None
    with _explained(uri):
        try:
            opened = DeltaTable(name, storage_options=options)
        except TableNotFoundError:
            return None
    newest = opened.version()
    if version is not None:
        try:
            opened.load_as_version(int(version) if version.isdigit() else version)
        except Exception as error:  # of deltalake, one for each thing that may be missing
            raise CropsError(
                f"{uri} has no version {version} any more, or not yet ({error}); its newest is {newest}: "
                "name one that its history lists, or leave it out"
            ) from error
    if "deletionVectors" in (opened.protocol().reader_features or ()) and (
        pa.RecordBatchReader.from_stream(opened.deletion_vectors()).read_all().num_rows
    ):
        raise CropsError(
            f"{uri} marks rows as deleted outside of its files (deletion vectors); write them out first: "
            "REORG TABLE ... APPLY (PURGE)"
        )
    actions = pa.table(opened.get_add_actions(flatten=True)).to_pylist()
    names = {
        one.metadata.get("delta.columnMapping.physicalName", one.name): one.name
        for one in opened.schema().fields
    }
    root = unquote(opened.table_uri).rstrip("/")
    files = []
    for action in sorted(actions, key=lambda one: str(one["path"])):
        path = unquote(action["path"])
        values = {
            names.get(key.removeprefix("partition."), key.removeprefix("partition.")): value
            for key, value in action.items()
            if key.startswith("partition.")
        }
        full = path if "://" in path else f"{root}/{path}"
        files.append(data_file(full, str(action["size_bytes"]), day_of_partition(values)))
    parted = frozenset(opened.metadata().partition_columns)
    source = f"{uri}@{opened.version()}"
    return TableSource(source, tuple(files), lambda column: names.get(column.name), parted)


def _iceberg(name: str, version: str | None, table: Table) -> TableSource | None:
    """Return the files of a snapshot of an Iceberg table: a number, a branch or tag, or the newest."""
    _needs("pyiceberg")
    from pyiceberg.catalog import load_catalog
    from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError
    from pyiceberg.transforms import DayTransform, IdentityTransform

    uri = f"iceberg:{name}"
    catalog, _, rest = name.partition(".")
    with _explained(uri):
        try:
            opened = load_catalog(catalog).load_table(rest)
        except (NoSuchTableError, NoSuchNamespaceError):
            return None
        if version is None:
            snapshot = opened.current_snapshot()
        elif version.isdigit():
            snapshot = opened.snapshot_by_id(int(version))
        else:
            snapshot = opened.snapshot_by_name(version)
        if snapshot is None and version is None:
            return TableSource(uri, ())
        if snapshot is None:
            known = ", ".join(str(one.snapshot_id) for one in opened.snapshots()[-3:])
            raise CropsError(
                f"{uri} has no snapshot {version}, or it has expired; the newest are {known or 'none'}: name "
                "one of those, or leave it out"
            )
        tasks = list(opened.scan(snapshot_id=snapshot.snapshot_id).plan_files())
    if any(task.delete_files for task in tasks):
        raise CropsError(
            f"{uri}@{snapshot.snapshot_id} marks rows as deleted outside of its files (merge on read); write "
            "them out first: CALL system.rewrite_data_files(table => '...', options => "
            "map('delete-file-threshold', '1'))"
        )
    # As other engines do: the newest rows under the names of now, former ones under those of then.
    schemas, then = opened.schemas(), snapshot.schema_id
    schema = schemas[then] if version is not None and then in schemas else opened.schema()
    files, parted = [], set[str]()
    for task in sorted(tasks, key=lambda one: str(one.file.file_path)):
        values: dict[str, object] = {}
        for place, part in enumerate(opened.specs()[task.file.spec_id].fields):
            source, value = schema.find_column_name(part.source_id), task.file.partition[place]
            if isinstance(part.transform, IdentityTransform):
                values[str(source)] = value
                parted.add(str(source))
            elif isinstance(part.transform, DayTransform) and source == table.time and value is not None:
                values["day"] = day_of(value) if isinstance(value, int) else value
        path = str(task.file.file_path)
        _lend(path, opened.io)
        files.append(data_file(path, str(task.file.file_size_in_bytes), day_of_partition(values)))

    def named(column: pa.Field) -> str | None:
        id_ = (column.metadata or {}).get(b"PARQUET:field_id")
        # Files that were added as they are have no ids, and are read by their names.
        return str(column.name) if id_ is None else schema.find_column_name(int(id_))

    return TableSource(f"{uri}@{snapshot.snapshot_id}", tuple(files), named, frozenset(parted))


def _lend(path: str, io: Any) -> None:  # noqa: ANN401 (of any catalogue)
    """Read the store of a path with what the catalogue says of it: endpoint, region, lent credentials."""
    scheme, found, rest = path.partition("://")
    authority = rest.partition("/")[0]
    root = f"{scheme}://{authority}"
    if found and scheme in ("s3", "gs") and root not in _given and hasattr(io, "fs_by_scheme"):
        _given[root] = io.fs_by_scheme(scheme, authority)


def _hive(name: str, version: str | None, table: Table) -> TableSource | None:
    """Return the files of a table of Spark's catalogue as they are now; a metastore keeps no snapshots."""
    if version is not None:
        raise CropsError(f"hive:{name}@{version}: a metastore keeps no versions; leave @{version} out")
    if importlib.util.find_spec("pyspark") is None:
        raise MissingExtraError("pyspark", "spark")
    from pyspark.sql import SparkSession

    uri = f"hive:{name}"
    running = SparkSession.getActiveSession()
    with _explained(uri):
        settings: dict[str, bool | float | int | str | None] = {
            "spark.ui.enabled": "false",
            "spark.log.level": "ERROR",
        }
        spark = running or SparkSession.builder.config(map=settings).enableHiveSupport().getOrCreate()
        try:
            if not spark.catalog.tableExists(name):
                return None
            if spark.catalog.getTable(name).tableType in ("VIEW", "TEMPORARY"):
                raise CropsError(
                    f"{uri} is a view: the files below it do not show what it leaves out or computes; write "
                    f"it as a table: CREATE TABLE ... USING parquet AS SELECT * FROM {name}"
                )
            found = sorted(unquote(one) for one in spark.table(name).inputFiles())
            other = [one for one in found if re.search(r"\.(orc|avro|json|csv|txt|gz)$", one)]
        finally:
            if running is None:
                spark.stop()
    if other:
        raise CropsError(f"{uri} is no table of Parquet files ({other[0]}); write it as one")
    files = []
    for path in found:
        store, inside = open_store(re.sub(r"^file:(//)?", "", path))
        info = store.get_file_info(inside)
        files.append(data_file(path, f"{info.size} {info.mtime_ns}", day_of_partition(path_values(path))))
    parted = frozenset(value for path in found for value in path_values(path))
    return TableSource(uri, tuple(files), parted=parted)


def digest(files: Iterator[tuple[str, str]]) -> str:
    """Return a short hash of the names and stamps of files, whatever their order."""
    return hashlib.sha256(repr(sorted(files)).encode()).hexdigest()[:16]
