"""Spark gives what DuckDB gives, to the last digit of every table; what cannot be reached is said at once."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import Row, assert_signals_agree, clicked, shown, write_logs
from large_logs import large_logs

from crops.config import EngineConfig
from crops.engine import mine
from crops.engine.spark import SparkBackend, _check_master, check_workers
from crops.engine.without import Without
from crops.errors import CropsError, MissingExtraError
from crops.logs import open_logs

needs_spark = pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
    reason="needs pyspark (extra [spark]) and Java 17",
)
TABLES = ("samples", "queries", "evidence", "items", "synthetic_items")


FOR_FEW_ROWS = {
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.codegen.wholeStage": "false",  # compiling takes longer than these rows
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.autoBroadcastJoinThreshold": "10MB",
}


@pytest.fixture(scope="module")
def started():
    """One Spark for all tests: every job would start its own."""
    backend = SparkBackend("local[2]", "1GB")
    yield backend._spark
    backend._spark.stop()


@pytest.fixture
def session(started):
    """The Spark with settings under which small jobs are fast."""
    usual = {name: started.conf.get(name) for name in FOR_FEW_ROWS}
    for name, value in FOR_FEW_ROWS.items():
        started.conf.set(name, value)
    yield
    for name, value in usual.items():
        started.conf.set(name, value)


def scorer():
    """Return a pseudo-random scorer that Spark can send to its workers (a test module is not importable
    there)."""

    def score(left: str, right: str) -> float:
        import hashlib

        return int.from_bytes(hashlib.sha256(f"{left}|{right}".encode()).digest()[:4], "big") % 1000 / 999

    def scored(batches):
        for batch in batches:
            pairs = zip(batch["left"].to_pylist(), batch["right"].to_pylist(), strict=True)
            yield batch.append_column(
                "score", pa.array([round(score(*pair), 6) for pair in pairs], pa.float64())
            )

    return scored


def mined(
    logs, out, engine: str, scored: str, generated, without=None, **settings
) -> tuple[dict[str, pa.Table], Row]:
    config = EngineConfig(engine=engine, master="local[2]", **settings)
    relevance, similarity = (scorer() if name in scored else None for name in ("theta", "similarity"))
    given = {"relevance": relevance, "similarity": similarity, "generated": generated, "without": without}
    report = mine(logs, out, config, seed=3, **given)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(f"{name}.parquet" for name in TABLES), "report.json", "manifest.json", "config.toml"]
    )
    return {name: pq.read_table(out / f"{name}.parquet") for name in TABLES}, report


def assert_parity(folder, searches: int, scored: str = "theta and similarity", **settings) -> Row:
    logs = large_logs(folder / "logs", searches)
    generated = folder / "generated.jsonl"
    lines = [
        {"query": f"query {n % 40}", "ocr_cover": f"text {n}", "keyword": "é\u0000'\n"} for n in range(200)
    ]
    generated.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = [
        mined(logs, folder / engine, engine, scored, generated, **settings) for engine in ("duckdb", "spark")
    ]
    (ours, report), (theirs, their_report) = results
    for name in TABLES:
        assert ours[name].schema.names == theirs[name].schema.names
        assert ours[name].schema.types == theirs[name].schema.types
        assert ours[name].equals(theirs[name]), name
    assert report == their_report
    return report


CAPS = {
    "max_positives_per_user": 3,
    "search": {"max_clicked": 3, "max_exposed": 2, "max_unexposed": 3, "max_filtered": 4},
    "feed": {"max_items": 4},
}
BOTS = {"max_searches_per_day": 25, "max_feed_events_per_day": 2000}


@needs_spark
def test_signals_mean_the_same_in_python_and_in_sql(session):
    with SparkBackend("local[2]", "1GB") as backend:
        assert_signals_agree(backend)


@needs_spark
def test_parity_on_1500_searches(tmp_path, session):
    """Every cap at work, and a user with 5 % of everything."""
    report = assert_parity(tmp_path, 1_500, **CAPS)
    assert report["input"]["searches"] == 1_500
    assert len(report["days"]) == 3
    sources = report["sources"]
    assert sources["p1"]["kept"] > 50
    assert sources["p2"]["kept"] > 50
    assert sources["p3"]["kept"] > 50
    assert sources["search"]["filtered"]["kept"] < sources["search"]["filtered"]["candidates"]


@needs_spark
@pytest.mark.parametrize(
    "scored",
    [
        "none",
        pytest.param("theta", marks=pytest.mark.verify),
        pytest.param("similarity", marks=pytest.mark.verify),
    ],
)
def test_parity_without_theta_or_similarity(tmp_path, session, scored):
    left_out = Without(frozenset({1, 2}), frozenset({1}))
    report = assert_parity(tmp_path, 200, scored, without=left_out, **CAPS)
    assert report["input"]["without"]["search_impressions"] > 0
    assert report["sources"]["p1"]["theta"] == (0.6 if scored == "theta" else "none")
    assert report["sources"]["p1"]["similarity"] == (0.5 if scored == "similarity" else "none")
    assert report["sources"]["p2"]["kept"] > 0


@needs_spark
@pytest.mark.verify
def test_columns_of_any_name_change_nothing_on_either_engine(tmp_path, session):
    """Names that the engines use themselves, and names that differ from the contract's in case only."""
    logs = large_logs(tmp_path / "logs", 200)
    before, _ = mined(logs, tmp_path / "plain", "duckdb", "theta", None)
    names = [
        "Query",
        "ITEM_ID",
        "_file",
        "_row",
        "_day",
        "_reasons",
        "file_row_number",
        "_metadata",
        "day",
        "",
    ]
    for file in logs.path.rglob("*.parquet"):
        table = pq.read_table(file, partitioning=None)
        for number, name in enumerate(names):
            column = pa.array([f"{name} {row}" for row in range(len(table))])
            table = table.add_column(number % 2 * len(table.schema), name, column)
        pq.write_table(table, file)
    for engine in ("duckdb", "spark"):
        after, _ = mined(open_logs(logs.path), tmp_path / engine, engine, "theta", None)
        assert all(after[name].equals(before[name]) for name in TABLES)


@needs_spark
@pytest.mark.verify
def test_parity_of_groups_of_one_event(tmp_path, session):
    report = assert_parity(tmp_path, 300, group_by="event", min_users=2, bots=BOTS, **CAPS)
    assert report["input"]["bots"]["users"] > 0


@needs_spark
@pytest.mark.verify
@pytest.mark.parametrize("settings", [{}, {"bots": BOTS, **CAPS}], ids=["defaults", "caps"])
def test_parity_on_100k_searches(tmp_path, started, settings):
    """With the settings of production."""
    assert_parity(tmp_path, 100_000, **settings)


@needs_spark
def test_rows_that_a_worker_wrote_elsewhere_are_missed(tmp_path, session, monkeypatch):
    """One of its tasks wrote into a folder that only its machine has."""
    write = SparkBackend.write

    def lossy(self, target):
        if target.name == "evidence.parquet":
            for folder in self._emitted[target]:
                max(folder.glob("part-*.parquet"), key=lambda part: pq.read_metadata(part).num_rows).unlink()
        write(self, target)

    monkeypatch.setattr(SparkBackend, "write", lossy)
    logs = write_logs(tmp_path / "logs", [shown(1, 1, "a", 0, 1), clicked(2, 1, "b", 30, 2)])
    config = EngineConfig(engine="spark", master="local[2]")
    with pytest.raises(CropsError, match=r"evidence.parquet: \d of 2 rows arrived in .*nothing is published"):
        mine(logs, tmp_path / "out", config, relevance=None, similarity=None)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


@needs_spark
def test_the_workers_are_asked_before_the_work(started, tmp_path):
    file = tmp_path / "rows"
    file.write_text("12345")
    check_workers(started, [tmp_path / "out"], {str(file): 5}, [])
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(CropsError, match=r"^Spark's worker \S+ sees another .*/rows than the driver"):
        check_workers(started, [tmp_path / "out"], {str(file): 6}, [])


def test_a_master_that_refuses_is_said_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(CropsError, match=f"spark://127.0.0.1:{port}' cannot be reached: .*refused"):
        _check_master(f"spark://127.0.0.1:{port}")
    assert time.monotonic() - start < 2


def test_a_master_that_does_not_answer_is_said_soon(monkeypatch):
    def silent(address, timeout):
        raise TimeoutError(f"timed out after {timeout} s")

    monkeypatch.setattr(socket, "create_connection", silent)
    with pytest.raises(CropsError, match=r"10.0.0.1:7077: timed out after 3.0 s; b:7077: timed out"):
        _check_master("spark://10.0.0.1:7077,b:7077")


def test_one_of_two_masters_is_enough():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        _check_master(f"spark://127.0.0.1:1,127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize(
    "master", ["", "spark:/x", "spark://", "spark://host", "local[0]", "mesos://h:1", "local 2"]
)
def test_what_is_no_master_is_said(master):
    with pytest.raises(CropsError, match=r"write local\[n\], spark://host:port"):
        _check_master(master)


@pytest.mark.parametrize("master", ["local", "local[*]", "local[2]"])
def test_local_masters_need_no_answer(master):
    _check_master(master)


def test_yarn_needs_the_settings_of_its_cluster(monkeypatch):
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    monkeypatch.delenv("YARN_CONF_DIR", raising=False)
    with pytest.raises(CropsError, match="HADOOP_CONF_DIR"):
        _check_master("yarn")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"crops-retrieval\[spark\]"):
        SparkBackend("local[2]", "1GB")


@needs_spark
def test_missing_java_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(CropsError, match="Java 17"):
        SparkBackend("local[2]", "1GB")


@needs_spark
def test_an_unreachable_master_leaves_no_output(tmp_path):
    logs = write_logs(tmp_path / "logs", [shown(1, 1, "a", 0, 1), clicked(2, 1, "b", 30, 2)])
    config = EngineConfig(engine="spark", master="spark://127.0.0.1:1")
    with pytest.raises(CropsError, match="cannot be reached"):
        mine(logs, tmp_path / "out", config, relevance=None, similarity=None)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


@needs_spark
def test_a_scorer_that_breaks_its_contract_in_a_worker_is_named(tmp_path, session):
    def wrong(batches):
        for batch in batches:
            yield batch.append_column("score", pa.array([2.0] * batch.num_rows))

    logs = write_logs(tmp_path / "logs", [shown(1, 1, "a", 0, 1), clicked(2, 1, "b", 30, 2)])
    config = EngineConfig(engine="spark", master="local[2]")
    with pytest.raises(CropsError, match="^the scorer of theta gave 0 probabilities for 1 pairs"):
        mine(logs, tmp_path / "out", config, relevance=wrong, similarity=None)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
