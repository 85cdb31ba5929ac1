"""The same SQL on Spark: an existing cluster, or threads of this machine (`local[n]`).

On a cluster every table that is kept is a stage (`crops.engine.stages`); `local[n]` keeps its tables itself.

Before a job the workers are asked whether they see its folders, run the same code and hold the same model.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import json
import mmap
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from crops.database import parquet_files
from crops.engine import backend as shared
from crops.engine import probe as on_worker
from crops.engine.backend import check_rows, concatenate, parse_memory
from crops.engine.stages import Stages
from crops.errors import CropsError, MissingExtraError
from crops.logs import Logs
from crops.logs.files import TableFiles
from crops.logs.sql import distinct_names
from crops.outputs import console, timed
from crops.schema import ARROW_TYPES, EARLIEST_US, LATEST_US, Column, Table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from crops.engine.scoring import CachedScorer
    from crops.protocols import PairScorer

CONNECT_S = 3.0
"""How long a master may take to answer."""
_DAY_US = 86_400_000_000


class SparkBackend:
    """Tables are stages on the shared disk, or kept by Spark (`local[n]`), which bounds its own memory."""

    memory: int | None = None

    def __init__(self, master: str, memory: str) -> None:
        """Reach the cluster.

        Args:
            master: local[n], spark://host:port, k8s://https://host:port or yarn.
            memory: of the driver, e.g. "2GB"; of no meaning where a session runs already.

        Raises:
            CropsError: Spark or Java is missing, or the master does not answer.
        """
        size = parse_memory(memory)
        _check_installed()
        _check_master(master)
        from pyspark.sql import SparkSession  # seconds to import

        self._owned = SparkSession.getActiveSession() is None
        self._spark = _session(master, size)
        self._local = master.startswith("local")
        self._stages: Stages | None = None
        self._tables: dict[str, list[DataFrame]] = {}
        self._emitted: dict[Path, list[Path]] = {}
        self._counted: Counter[Path] = Counter()

    def __enter__(self) -> Self:
        """Return the open session."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget the tables, and end the session if it was started here.

        Raises:
            CropsError: Spark failed, with its cause in a sentence.
        """
        try:
            self.drop_tables(*list(self._tables))
            if self._owned:
                self._spark.stop()
        except _failures() as closing:  # where its process is gone, what it was asked before says more
            error = error or closing
        if isinstance(error, _failures()):
            raise CropsError(explain_failure(str(error))) from error

    def keep_in(self, work: Path, build: Callable[[], str]) -> None:
        """Keep the tables of a job from now on as stages of a build; `local[n]` dies with its driver."""
        self._stages = None if self._local else Stages(work, build())

    def check_workers(
        self, folder: Path, logs: Logs | None, scorers: Sequence[CachedScorer], others: Sequence[Path] = ()
    ) -> None:
        """Run a task on every executor that looks for what the job needs."""
        found = (file for table in (logs.tables if logs else {}).values() for file in table.files)
        files = [file for file in found if isinstance(file, Path)]  # a store is the same for all
        files = [*files[:: len(files) // _MOST_FILES + 1], *others]
        sizes = {str(file): file.stat().st_size for file in files}
        folders = [folder, *(scorer.folder for scorer in scorers)]
        with timed({}, "workers"):
            check_workers(self._spark, folders, sizes, [scorer.scorer for scorer in scorers])

    def read_logs(self, name: str, logs: Logs, table: str, days: Collection[str] | None) -> None:
        """Name a table of the logs."""
        self.read_files(name, logs.tables[table], days)

    def read_files(self, name: str, files: TableFiles, days: Collection[str] | None) -> None:
        """Name the rows of files that keep the contract of their table, of some days (all when None)."""
        contract, frames = files.table, []
        for (day, columns), paths in layouts(files.on(days)).items():
            # By their places, as a lake table may name a column otherwise than its files do.
            frame = self._spark.read.parquet(*paths).toDF(*distinct_names([one for one, _ in columns]))
            found = {column: str(type_) for column, type_ in columns}
            frame = frame.selectExpr(*_log_columns(contract, dict(frame.dtypes), found, day))
            frames.append(frame)
        empty = self._spark.createDataFrame([], _log_schema(contract))
        frame = functools.reduce(lambda left, right: left.unionByName(right), frames or [empty])
        if contract.partitioned and days is not None:
            frame = frame.where(frame["day"].isin(*days))
        frame.createOrReplaceTempView(name)

    def read_parquet(self, name: str, files: Sequence[Path], schema: pa.Schema) -> None:
        """Name Parquet files of one schema."""
        paths = [file_uri(file) for file in files]
        frame = self._spark.read.parquet(*paths) if paths else self._spark.createDataFrame([], _ddl(schema))
        frame.selectExpr(*shared.columns_of(schema, frame.columns)).createOrReplaceTempView(name)

    def view(self, name: str, query: str) -> None:
        """Name a query; it runs each time it is read."""
        self._sql(query).createOrReplaceTempView(name)

    def table(self, name: str, query: str) -> None:
        """Run a query once and keep its rows."""
        self.stage(name, lambda: query, query)

    def stage(self, name: str, query: Callable[[], str], key: str) -> None:
        """Keep the rows of a query, which is made and run only where the stage is not there.

        Args:
            name: the table.
            query: makes the SQL; tables that it makes on its way are gone afterwards.
            key: what decides the rows, besides the job.
        """
        self.drop_tables(name)
        self._keep(name, lambda: self._sql(query()), key)

    def append(self, name: str, query: str) -> None:
        """Add a query's rows to a table, which is made if it is not there."""
        self._keep(name, lambda: self._sql(query), query)

    def append_partitioned(self, name: str, query: str, partitions: int) -> None:
        """Add a query's rows to a table; Spark partitions its tables itself."""
        self.append(name, query)

    def drop_tables(self, *names: str) -> None:
        """Drop tables, where they are there."""
        for name in names:
            self._tables.pop(name, None)
            self._spark.catalog.dropTempView(name)

    def load_lines(self, name: str, file: Path, function: shared.BatchFunction, schema: pa.Schema) -> None:
        """Keep what a Python function makes, in the workers, of the lines of a file."""
        lines = self._spark.read.option("lineSep", "\n").text(file_uri(file))
        # The last line may have been torn off by a kill: what tells is that it has no end.
        torn = f"cast(value as BINARY) = X'{_after_last_end(file).hex()}'"
        line = f"concat(cast(value as BINARY), case when {torn} then X'' else X'0A' end) as line"
        in_worker = functools.partial(_in_worker, function=function, names=schema.names)
        self.drop_tables(name)
        try:
            self._keep(name, lambda: lines.selectExpr(line).mapInArrow(in_worker, _ddl(schema)), str(schema))
        except _failures():
            for _ in function(shared.line_batches(file)):
                pass  # a worker does not know the number of its first line: this names the line that is wrong
            raise

    def load(self, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Keep the rows of Arrow batches, which the driver holds, as a table."""
        self.drop_tables(name)
        rows = pa.Table.from_batches(list(batches), schema)
        self._keep(name, lambda: self._spark.createDataFrame(rows, _ddl(schema)), str(schema))

    def map_batches(self, name: str, query: str, function: shared.BatchFunction, schema: pa.Schema) -> None:
        """Stream a query's rows through a Python function in the workers."""
        self.drop_tables(name)
        in_worker = functools.partial(_in_worker, function=function, names=schema.names)
        self._keep(name, lambda: self._sql(query).mapInArrow(in_worker, _ddl(schema)), query)

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Return the few rows of a query as dicts."""
        rows: list[dict[str, Any]] = self.arrow(query).to_pylist()
        return rows

    def count(self, table: str) -> int:
        """Return the number of rows of a table or view."""
        return int(self.rows(f"select count(*) as n from {table}")[0]["n"])

    def arrow(self, query: str) -> pa.Table:
        """Return all rows of a query."""
        return self._sql(query).toArrow()

    def emit(self, query: str, order: str, target: Path) -> None:
        """Add a query's rows, in an order, to the rows of a table that will be written."""
        folders = self._emitted.setdefault(target, [])
        folder = target.with_name(f".{target.name}.{len(folders)}.emitted")
        self._counted[target] += self.count(f"({query}) counted")
        rows = self._sql(f"{query} order by {order}").write
        rows.option("parquet.block.row.count.limit", shared.ROW_GROUP).parquet(f"file://{folder}")
        folders.append(folder)

    def write(self, target: Path) -> None:
        """Write what was emitted for a table, in the order of the calls.

        On a cluster that is a folder of the files that the workers wrote: the driver only moves them.
        """
        if self._local:
            self.write_file(target)
            return
        with self._arrived(target) as files:
            target.mkdir()
            filled = [file for file in files if pq.read_metadata(file).num_rows] or files[:1]
            for number, file in enumerate(filled):
                file.rename(target / f"part-{number:05d}.parquet")

    def write_file(self, target: Path, names: Sequence[str] | None = None) -> None:
        """Write what was emitted as one file, which the driver makes; its columns may get other names."""
        with self._arrived(target) as files:
            concatenate(files, target, names)

    @contextlib.contextmanager
    def _arrived(self, target: Path) -> Iterator[list[Path]]:
        """Give the files that the workers wrote for a table, in the order of its rows, for it to be made of.

        Raises:
            CropsError: they, or those of the table that was made, do not hold as many rows as were counted.
        """
        folders, counted = self._emitted.pop(target), self._counted.pop(target)
        # Spark numbers the files of sorted rows in their order.
        files = [file for folder in folders for file in sorted(folder.glob("part-*.parquet"))]
        check_rows(files, counted, target)
        yield files
        check_rows(parquet_files(target), counted, target)
        for folder in folders:
            shutil.rmtree(folder)

    def _keep(self, name: str, make: Callable[[], DataFrame], key: str) -> None:
        # Plans that contain all plans before them would soon take longer to analyse than to run.
        stages = self._stages
        kept = make().localCheckpoint() if stages is None else self._staged(stages, name, make, key)
        frames = self._tables.setdefault(name, [])
        frames.append(kept)
        functools.reduce(lambda left, right: left.union(right), frames).createOrReplaceTempView(name)

    def _staged(self, stages: Stages, name: str, make: Callable[[], DataFrame], key: str) -> DataFrame:
        from pyspark.sql.types import StructType

        place = stages.place(name, key)
        if not stages.is_there(place):
            with stages.within():
                frame, written = make(), stages.writing(place)
                rows = write_parts(frame, written)
            stages.keep(written, place, rows, frame.schema.json())
        schema = StructType.fromJson(json.loads(stages.schema(place)))
        return self._spark.read.schema(schema).parquet(file_uri(place))

    def _sql(self, query: str) -> DataFrame:
        return self._spark.sql(spark_texts(query))


def spark_texts(query: str) -> str:
    """Return a query whose texts Spark reads as standard SQL does: it takes backslashes for escapes."""

    def escaped(text: re.Match[str]) -> str:
        return "'{}'".format(text[1].replace("\\", "\\\\").replace("''", "\\'"))

    return re.sub(r"'((?:[^']|'')*)'", escaped, query)


def write_parts(frame: DataFrame, folder: Path) -> int:
    """Write rows as Parquet files of a new folder, by the workers; return how many rows were made."""
    from pyspark.sql import Observation
    from pyspark.sql import functions as sql

    counted = Observation()
    frame.observe(counted, sql.count(sql.lit(1)).alias("rows")).write.parquet(f"file://{folder}")
    rows: int = counted.get["rows"]
    return rows


def _check_installed() -> None:
    if importlib.util.find_spec("pyspark") is None:
        raise MissingExtraError("pyspark", "spark")
    home = os.environ.get("JAVA_HOME")
    if shutil.which("java", path=f"{home}/bin" if home else None) is None:
        raise CropsError("Spark needs Java 17, and there is no `java`: install it or set JAVA_HOME")


def _check_master(master: str) -> None:
    """Raise unless the master answers now: Spark itself would try for minutes."""
    if re.fullmatch(r"local(\[(\*|[1-9][0-9]*)\])?", master):
        return
    if master == "yarn":
        if not (os.environ.get("HADOOP_CONF_DIR") or os.environ.get("YARN_CONF_DIR")):
            raise CropsError("Spark master 'yarn': set HADOOP_CONF_DIR to the cluster's settings")
        return
    match = re.fullmatch(r"(?:spark|k8s)://(?:https?://)?(.+)", master)
    hosts = [host.rpartition(":") for host in match[1].split(",")] if match else []
    if not hosts or not all(host and port.isdigit() for host, _, port in hosts):
        raise CropsError(
            f"Spark master '{master}': write local[n], spark://host:port, k8s://https://host:port or yarn"
        )
    faults = [fault for host, _, port in hosts if (fault := _unreachable(host, int(port)))]
    if len(faults) == len(hosts):
        raise CropsError(f"Spark master '{master}' cannot be reached: {'; '.join(faults)}")


def _unreachable(host: str, port: int) -> str | None:
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=CONNECT_S):
            return None
    except (OSError, OverflowError) as error:
        return f"{host}:{port}: {error}"


def _session(master: str, memory: int) -> SparkSession:
    from pyspark.sql import SparkSession

    settings: dict[str, bool | float | int | str | None] = {
        "spark.driver.memory": f"{memory >> 20}m",
        "spark.log.level": "ERROR",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.ansi.enabled": "true",
        # A log may have a column that differs from one of the contract in case only.
        "spark.sql.caseSensitive": "true",
        # With it the optimiser loses a column that is null throughout, such as theta without a scorer.
        "spark.sql.constraintPropagation.enabled": "false",
        # Broadcasts are chosen by sizes that were measured, not by those of compressed files: a table of many
        # times 10 MB in memory would be sent to every worker, or kill the driver.
        "spark.sql.autoBroadcastJoinThreshold": "-1",
        "spark.sql.adaptive.autoBroadcastJoinThreshold": "10MB",
        "spark.sql.execution.arrow.maxRecordsPerBatch": str(shared.BATCH_ROWS),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.legacy.parquet.nanosAsLong": "true",
    }
    if master.startswith("local"):
        # Nobody else connects, and names of a laptop often do not resolve.
        settings |= {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}
        settings["spark.sql.shuffle.partitions"] = str(2 * (os.cpu_count() or 1))
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # the workers' Python; a cluster has its own
    builder = SparkSession.builder.appName("crops mine").master(master)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        return builder.config(map=settings).getOrCreate()
    except Exception as error:  # whatever Py4J, Java or the cluster come up with
        raise CropsError(
            f"Spark master '{master}': no session could be started: {explain_failure(str(error))}"
        ) from error
    finally:
        # PySpark puts its own handler in place, and leaves it there after the session: Ctrl-C would no longer
        # reach a query of DuckDB in the same process.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)


def _failures() -> tuple[type[BaseException], ...]:
    """Return what PySpark, its bridge to Java and a bridge that broke raise."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    return PySparkException, Py4JError, ConnectionError


def _in_worker(
    batches: Iterator[pa.RecordBatch], *, function: shared.BatchFunction, names: list[str]
) -> Iterator[pa.RecordBatch]:
    # An empty partition has no batch to show its columns: the function never sees it.
    first = next(batches, None)
    if first is not None:
        for batch in function(itertools.chain([first], batches)):
            yield batch.select(names)


def file_uri(file: Path | str) -> str:
    """Return the URI of a file, safe from Hadoop's wildcards; its client of S3 is called s3a."""
    start = "file://" if isinstance(file, Path) else ""
    return start + re.sub(r"([\\\[\]{}*?,])", r"\\\1", re.sub("^s3:", "s3a:", str(file)))


def _after_last_end(file: Path) -> bytes:
    """Return what follows the last end of a line."""
    if not file.stat().st_size:
        return b""
    with file.open("rb") as lines, mmap.mmap(lines.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return mapped[mapped.rfind(b"\n") + 1 :]


def layouts(files: TableFiles) -> dict[tuple[str | None, tuple[tuple[str, pa.DataType], ...]], list[str]]:
    """Return the URIs of files by what those share that are read at once: a day, and columns with types."""
    groups: dict[tuple[str | None, tuple[tuple[str, pa.DataType], ...]], list[str]] = {}
    for file, day, footer in zip(files.files, files.days, files.footers, strict=True):
        columns = tuple((field.name, field.type) for field in footer)
        groups.setdefault((day, columns), []).append(file_uri(file))
    return groups


def _log_columns(
    table: Table, types: Mapping[str, str], footer: Mapping[str, str], day: str | None
) -> list[str]:
    columns = []
    for column in table.columns:
        value = f"`{column.name}`" if column.name in types else "null"
        if column.name in table.times:
            value = microseconds(value, types.get(column.name, ""), footer.get(column.name, ""))
        columns.append(f"cast({value} as {_type(column)}) as {column.name}")
    if not table.partitioned:
        return columns
    if day is not None:
        return [*columns, f"'{day}' as day"]
    return [*columns, f"{day_of_time(str(table.time))} as day"]


def day_of_time(time: str) -> str:
    """Return the SQL of the UTC day of a time, null where it is out of range."""
    date = f"cast(date_from_unix_date(cast({time} div {_DAY_US} as INTEGER)) as STRING)"
    return f"case when {time} between {EARLIEST_US} and {LATEST_US} then {date} end"


def microseconds(value: str, type_: str, footer: str) -> str:
    """Return a time as the contract counts it, of a column of Spark's type and the type of the footer."""
    if type_ in ("timestamp", "timestamp_ntz", "date"):
        return f"unix_micros(cast({value} as TIMESTAMP))"
    # Nanoseconds are read as whole numbers, see `_session`.
    return f"{value} div 1000" if footer.startswith("timestamp[ns") and type_ == "bigint" else value


def _log_schema(table: Table) -> str:
    columns = [f"{column.name} {_type(column)}" for column in table.columns]
    return ", ".join([*columns, "day STRING"] if table.partitioned else columns)


def _type(column: Column) -> str:
    return shared.SQL_TYPES[ARROW_TYPES[column.type]]


def _ddl(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {shared.SQL_TYPES[field.type]}" for field in schema)


_ROUNDS = 5
"""Spark chooses where a task runs: so often several are tried for every core, until no executor is left."""
_MOST_FILES = 400
"""So many of the logs' files are looked for: their names travel in every task that asks."""
_MAX_CHARS = 400


def check_workers(
    spark: SparkSession, folders: Sequence[Path], sizes: Mapping[str, int], scorers: Sequence[PairScorer]
) -> None:
    """Run tasks on every executor, and raise where one has not what the driver has.

    Each looks for a file that the driver wrote into each folder, and writes one that the driver looks for. It
    compares the versions of Python, crops and pyarrow, the bytes of the logs' files, and the hashes of the
    scorers' models (of their `spec`, where they have one).

    Args:
        spark: the session.
        folders: where the job writes; they are made if they are missing.
        sizes: bytes by path of each file that is read.
        scorers: what scores in the workers.

    Raises:
        CropsError: an executor differs; it is named, with what it lacks.
    """
    from pyspark.cloudpickle import dumps

    token = secrets.token_hex(8)
    identities = [spec.identity for scorer in scorers if (spec := getattr(scorer, "spec", None))]
    expected = {
        "token": token,
        "folders": [str(folder) for folder in folders],
        "sizes": dict(sizes),
        "versions": on_worker.versions(),
        "identities": dumps(identities),
        "models": [identity() for identity in identities],
    }
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / on_worker.seen(token)).touch()
    try:
        for worker in _ask_everywhere(spark, expected):
            _check(worker, folders, token)
    finally:
        for folder in folders:
            for file in folder.glob(on_worker.seen(token, "*")):
                file.unlink()


def _check(worker: Mapping[str, Any], folders: Sequence[Path], token: str) -> None:
    where = f"Spark's worker {worker['worker']}"
    if worker["fault"]:
        raise CropsError(f"{where} {worker['fault']}")
    for folder in folders:
        file = folder / on_worker.seen(token, worker["nonce"])
        if not file.exists():
            raise CropsError(
                f"the driver does not see what {where} wrote into {folder}; "
                "name a folder that all machines share"
            )
        if not os.access(file, os.R_OK):
            raise CropsError(
                f"the driver cannot read what {where} wrote into {folder}; set its umask to 022, or run both "
                "as one user"
            )


def _ask_everywhere(spark: SparkSession, expected: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what the probe found, once for each executor that was reached."""
    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(on_worker)
    try:
        probe = functools.partial(on_worker.probe, expected=expected)
        reached: set[str] = set()
        for _ in range(_ROUNDS):
            executors = _executors(spark)
            tasks = 2 * max(spark.sparkContext.defaultParallelism, executors)
            rows = spark.range(0, tasks, 1, tasks).mapInArrow(probe, "found STRING").toArrow()
            for row in map(json.loads, rows["found"].to_pylist()):
                if row["executor"] not in reached:
                    reached.add(row["executor"])
                    yield row
            executors = _executors(spark)
            if len(reached) >= executors:
                return
        console.print(f"[yellow]{len(reached)} of {executors} executors answered[/yellow] what they have")
    finally:
        cloudpickle.unregister_pickle_by_value(on_worker)


def _executors(spark: SparkSession) -> int:
    """Return how many executors work for the session: without a cluster the driver is the only one."""
    listed = spark.sparkContext._jsc.sc().statusTracker().getExecutorInfos()
    return max(1, len(listed) - 1)


_AGAIN = "; nothing is published, and the same command goes on at the stage that failed"
_KNOWN = {
    r"ModuleNotFoundError: No module named '([\w.]+)'": (
        "a worker's Python has no module {}; install it there, or set PYSPARK_PYTHON to a Python that has it"
    ),
    r"Python in worker has different version: ([\d.]+) than that in driver: ([\d.]+)": (
        "the workers run Python {}, and the driver {}; set PYSPARK_PYTHON to the same Python on all "
        "machines, with crops installed"
    ),
    r'Cannot run program "([^"]+)"': (
        "a worker has no Python at {}; set PYSPARK_PYTHON to one that all machines have, with crops installed"
    ),
    r"Class \S+ not found|No FileSystem for scheme": (
        "Spark has no client of the store; name it in spark.jars.packages, of s3:// "
        "org.apache.hadoop:hadoop-aws in the version of Spark's Hadoop, or mine with --engine duckdb"
    ),
    r"Status Code: 40[13]\b": (
        "the store refuses what the workers know of it; give them credentials with the right to list and "
        "read (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or spark.hadoop.fs.s3a.*)"
    ),
    r"InvalidClassException|serialVersionUID": (
        "the cluster runs another version of Spark than the driver; install the pyspark of its version"
    ),
    "No space left on device": (
        f"a disk is full, that of a worker (SPARK_LOCAL_DIRS) or that of the output: free it{_AGAIN}"
    ),
    "ExecutorLostFailure": (
        "one task lost its worker four times: give the executors more memory (spark.executor.memoryOverhead)"
        f"{_AGAIN}"
    ),
}
"""What to do, by patterns of a failure, whose groups the sentence has."""


def explain_failure(text: str) -> str:
    """Return what Spark, Java or a worker's Python reported, as one sentence with its cause."""
    own = re.findall(r"crops\.errors\.\w*Error: (.+)", text)
    if own:
        return str(own[-1])
    for pattern, sentence in _KNOWN.items():
        if found := re.search(pattern, text):
            return f"the Spark job failed: {sentence.format(*found.groups())}"
    # The last exception of a worker's Python, the first cause of Java, or whatever was said first.
    python = re.findall(r"^(\w[\w.]*(?:Error|Exception|Interrupt): .+)$", text, re.MULTILINE)
    causes = re.findall(r"^Caused by: (?:[\w$]+\.)*([\w$]+: .+)$", text, re.MULTILINE)
    called = "An error occurred while calling "  # of no use to anybody but PySpark
    lines = [line for one in text.splitlines() if (line := one.strip(": ")) and not line.startswith(called)]
    said = (causes or python or lines or ["nothing was said"])[-1 if causes or python else 0]
    return f"the Spark job failed: {said[:_MAX_CHARS]}"
