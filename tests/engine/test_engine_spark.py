"""Spark gives what DuckDB gives, to the last digit of every table; what is missing is said at once."""

import functools
import importlib.util
import json
import pickle
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from days import DAYS, plain_job, write_days
from handmade import NOON, Row, assert_signals_agree, clicked, shown, write_logs
from large_logs import large_logs

from crops.config import DocumentConfig, EngineConfig, RelevanceConfig
from crops.database import open_database, read_columns
from crops.engine import CachedScorer, mine, probe
from crops.engine.daily import mine_daily
from crops.engine.knowledge import _SCHEMA, _parsed
from crops.engine.scoring import _score
from crops.engine.spark import SparkBackend, _check, _check_master, check_workers, explain_failure
from crops.engine.without import Without
from crops.errors import CropsError, MissingExtraError
from crops.logs import open_logs
from crops.relevance import model_hash, scorers
from crops.relevance.score import load_scorer
from crops.schema import SEARCH_IMPRESSIONS

needs_spark = pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
    reason="needs pyspark (extra [spark]) and Java 17",
)
TEXT = DocumentConfig(fields=("ocr_cover", "click_query"), click_users=2)
TABLES = ("samples", "queries", "evidence", "items", "synthetic_items")


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
    logs, out, engine: str, scored: str, generated, without=None, document=None, **settings
) -> tuple[dict[str, pa.Table], Row]:
    config = EngineConfig(engine=engine, master="local[2]", **settings)
    relevance, similarity = (scorer() if name in scored else None for name in ("theta", "similarity"))
    given = {"relevance": relevance, "similarity": similarity, "generated": generated, "without": without}
    report = mine(logs, out, config, seed=3, document=document, **given)
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
    "knowledge": {"max_pairs": 100},
}
BOTS = {"max_searches_per_day": 25, "max_feed_events_per_day": 2000}


@needs_spark
def test_signals_mean_the_same_in_python_and_in_sql(session):
    with SparkBackend("local[2]", "1GB") as backend:
        assert_signals_agree(backend)


@needs_spark
def test_parity_on_700_searches(tmp_path, session):
    """Every cap at work, a user with 5 % of everything, and some users and an item left out."""
    report = assert_parity(tmp_path, 700, without=Without(frozenset({1, 2}), frozenset({1})), **CAPS)
    assert report["input"]["without"]["search_impressions"] > 0
    assert len(report["days"]) == 3
    sources = report["sources"]
    assert sources["p1"]["kept"] > 15
    assert sources["p2"]["kept"] > 50
    assert sources["p3"]["kept"] > 50
    assert sources["search"]["filtered"]["kept"] < sources["search"]["filtered"]["candidates"]


@needs_spark
@pytest.mark.verify
@pytest.mark.parametrize("scored", ["none", "theta", "similarity"])
def test_parity_without_theta_or_similarity(tmp_path, session, scored):
    report = assert_parity(tmp_path, 200, scored, **CAPS)
    assert report["sources"]["p1"]["theta"] == (0.6 if scored == "theta" else "none")
    assert report["sources"]["p1"]["similarity"] == (0.5 if scored == "similarity" else "none")
    assert report["sources"]["p2"]["kept"] > 0


@needs_spark
@pytest.mark.verify
def test_columns_of_any_name_change_nothing_on_either_engine(tmp_path, session):
    """Names that the engines use themselves, and names that differ from the contract's in case only."""
    logs = large_logs(tmp_path / "logs", 200)
    before, _ = mined(logs, tmp_path / "plain", "duckdb", "theta", None)
    names = "Query ITEM_ID _file _row _day _reasons file_row_number _metadata day".split() + [""]
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
def test_parity_of_click_queries(tmp_path, session):
    left = Without(frozenset({1, 2}), frozenset({1}))
    assert_parity(tmp_path, 300, without=left, document=TEXT, days=DAYS[1:])
    assert 0 < pq.read_table(tmp_path / "spark" / "items.parquet")["click_query"].null_count < 59


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


TIMES = {
    "us, UTC": pa.timestamp("us", "UTC"),
    "us": pa.timestamp("us"),
    "ns, UTC": pa.timestamp("ns", "UTC"),
    "ns": pa.timestamp("ns"),
    "ms": pa.timestamp("ms"),
    "int96": pa.timestamp("ns"),
    "number": pa.int64(),
}


@needs_spark
@pytest.mark.verify
def test_files_of_many_writers_in_one_table_are_read_alike(tmp_path, session):
    """A day whose files give their times in every unit, and other columns in the types of other writers."""
    at = [NOON + second * 1_000_000 + 7_000 for second in range(3)]
    for number, (kind, type_) in enumerate(TIMES.items()):
        other = number % 2 == 1
        rows = {
            "user_id": pa.array([1, 2, 3], pa.uint32() if other else pa.int64()),
            "search_id": pa.array([3 * number + n for n in range(3)]),
            "query": pa.array(["a", None, "b"]).dictionary_encode() if number % 3 else ["a", "", "b"],
            "item_id": pa.array([1, 2, 3], pa.int16() if other else pa.int64()),
            "stage": ["exposed"] * 3,
            "clicked": [True, False, None],
            "play_ms": pa.nulls(3) if other else [1, 2, None],
            "searched_at": pa.array(at).cast(pa.timestamp("us", "UTC")).cast(type_),
        }
        if kind.startswith("ns"):  # what is less than a microsecond is cut off
            rows["searched_at"] = pa.array([1000 * time + 999 for time in at]).cast(type_)
        folder = tmp_path / "search_impressions" / "dt=2026-01-05"
        folder.mkdir(parents=True, exist_ok=True)
        file, old = folder / f"{number}.parquet", kind == "int96"
        pq.write_table(pa.table(rows), file, use_deprecated_int96_timestamps=old)
    pq.write_table(pa.table({"item_id": [1, 2, 3], "ocr_cover": ["a", "b", "c"]}), tmp_path / "items.parquet")
    (tmp_path / "logs.toml").write_text(
        'items = "items.parquet"\nsearch_impressions = "search_impressions"\n'
    )
    logs = open_logs(tmp_path / "logs.toml")
    columns = [*SEARCH_IMPRESSIONS.names(), "day"]
    select = f"select {', '.join(columns)} from read_rows order by search_id"
    with open_database() as db:
        ours = db.sql(f"with read_rows as ({logs.sql('search_impressions')}) {select}").fetchall()
    with SparkBackend("local[2]", "1GB") as backend:
        backend.read_logs("read_rows", logs, "search_impressions", None)
        theirs = [tuple(row.values()) for row in backend.rows(select)]
    assert [row[columns.index("searched_at")] for row in ours] == at * len(TIMES)
    assert theirs == ours


@needs_spark
@pytest.mark.parametrize("tail", ['{"query": "b", "ocr', ""])
def test_documents_are_read_by_the_workers_and_a_bad_line_is_named(tmp_path, session, tail):
    lines = [json.dumps({"query": "b", "ocr_cover": f"text {n}"}) for n in range(3)]
    path = tmp_path / "generated.jsonl"
    path.write_bytes("\r\n\n".join([*lines, tail]).encode())
    given = "generated", path, functools.partial(_parsed, path=path), _SCHEMA
    with SparkBackend("local[2]", "1GB") as backend:
        backend.load_lines(*given)
        assert backend.count("generated") == 3
        path.write_text("\n".join([*lines, "{no}", lines[0]]))
        with pytest.raises(CropsError, match=r"generated.jsonl, line 4: not JSON"):
            backend.load_lines(*given)


@needs_spark
def test_stages_are_taken_by_the_next_job_and_only_what_is_damaged_is_made_again(tmp_path, session):
    def job(reads: list[str]) -> tuple[list[int], int]:
        def scored() -> str:
            reads.append("scores")
            backend.table("inner", "select x, x * x as square from numbers")
            return "select x, square from inner"

        schema = pa.schema([("x", pa.int64())])
        with SparkBackend("local[2]", "1GB") as backend:
            backend._local = False
            backend.keep_in(tmp_path / "work", lambda: "build")
            backend.load("numbers", schema, [pa.RecordBatch.from_pydict({"x": [1, 2, 3]}, schema=schema)])
            for _ in range(2):
                backend.append("twice", "select x from numbers where x > 1")
            backend.map_batches("mapped", "select x from twice", lambda batches: batches, schema)
            backend.stage("scores", scored, "model")
            backend.drop_tables("inner")
            query = "select s.square from scores s join mapped m on m.x = s.x order by s.square"
            return [row["square"] for row in backend.rows(query)], backend._stages.taken

    reads = []
    assert job(reads) == ([4, 4, 9, 9], 0)
    assert job(reads) == ([4, 4, 9, 9], 5)
    (scores,) = (tmp_path / "work" / "build").glob("scores-*")
    part = max(scores.glob("part-*"), key=lambda file: file.stat().st_size)
    part.write_bytes(part.read_bytes()[:-20])
    assert job(reads) == ([4, 4, 9, 9], 4)
    assert reads == ["scores", "scores"]
    assert not [*(tmp_path / "work" / "build").glob("*.tmp")]


@needs_spark
@pytest.mark.parametrize("lookback", [0, 1])
def test_a_daily_build_on_spark_has_the_rows_of_one_on_duckdb_in_their_order(tmp_path, session, lookback):

    logs, built = write_days(tmp_path / "logs"), []
    items = pq.read_table(logs.path / "items.parquet").to_pylist()
    never_used = [{"item_id": number, "ocr_cover": f"never used {number}"} for number in (901, 900)]
    pq.write_table(pa.Table.from_pylist([*never_used, *items]), logs.path / "items.parquet")
    for engine in ("duckdb", "spark"):
        out = tmp_path / engine
        job = plain_job(engine=engine, master="local[2]", daily={"lookback": lookback})
        job = replace(job, without=Without(items=frozenset({901})))
        mine_daily(open_logs(logs.path), out, job, DAYS[:2])
        built.append(
            {
                f"{folder}/{name}": pq.read_table(out / folder / f"{name}.parquet")
                for folder in ("window", f"day={DAYS[0]}")
                for name in TABLES
            }
        )
    for name in built[0]:
        assert built[0][name].equals(built[1][name]), name
    assert built[0]["window/items"]["item_id"].to_pylist()[-2:] == [30, 900]
    assert 900 not in built[0][f"day={DAYS[0]}/items"]["item_id"].to_pylist()


@needs_spark
def test_on_a_cluster_a_table_is_a_folder_of_what_the_workers_wrote_in_the_order_of_its_rows(
    tmp_path, session
):
    """Two sorted files of each call; that of none has an empty one, which a table of no rows keeps."""
    table, empty, torn = (tmp_path / f"{name}.parquet" for name in ("table", "empty", "torn"))
    with SparkBackend("local[2]", "1GB") as backend:
        backend._local = False
        for low, high in ((0, 300), (300, 300), (300, 1000)):
            for target in (table, torn):
                backend.emit(f"select id as n from range({low}, {high})", "n", target)
        backend.emit("select id as n from range(0)", "n", empty)
        moved = {file.stat().st_ino for file in tmp_path.glob(".table.*/part-*.parquet")}
        for target in (table, empty):
            backend.write(target)
        max(tmp_path.glob(".torn.parquet.0.emitted/part-*.parquet")).unlink()
        with pytest.raises(CropsError, match=r"torn.parquet: \d+ of 1,000 rows arrived"):
            backend.write(torn)
    files = sorted(table.iterdir())
    assert [file.name for file in files] == [f"part-{number:05d}.parquet" for number in range(4)]
    assert [row for file in files for row in pq.read_table(file)["n"].to_pylist()] == [*range(1000)]
    assert {file.stat().st_ino for file in files} < moved
    assert read_columns(table, ["n"])["n"].to_pylist() == [*range(1000)]
    assert read_columns(empty, ["n"]).num_rows == 0
    assert not torn.exists()


@needs_spark
def test_what_scores_in_a_worker_travels_as_a_spec_however_much_the_driver_has_read(tmp_path):
    from pyspark.cloudpickle import dumps, loads

    relevance, similarity = scorers(RelevanceConfig())
    relevance.encoder._append([b"%d" % n for n in range(10_000)], np.ones((10_000, 384), np.float32))
    tasks = [
        dumps(functools.partial(_score, scorer=CachedScorer(one, tmp_path), name="theta", total=1))
        for one in (relevance, similarity)
    ]
    assert max(map(len, tasks)) < 2_000
    first, again, other = (loads(task).keywords["scorer"].scorer for task in (tasks[0], *tasks))
    assert first is again  # a process loads it once, for all of its tasks
    assert first.encoder is other.encoder  # and one model for both
    assert len(first.encoder.vectors) == 0
    assert first.calibration == relevance.calibration
    assert other.calibration == similarity.calibration
    with pytest.raises(CropsError, match="has another model of theta at minilm than the driver"):
        load_scorer(replace(relevance.spec, hash="0" * 64))


@needs_spark
def test_rows_that_a_worker_wrote_elsewhere_are_missed(tmp_path, session):
    """One of its tasks wrote into a folder that only its machine has."""
    target = tmp_path / "evidence.parquet"
    with SparkBackend("local[2]", "1GB") as backend:
        for first in (0, 10):
            backend.emit(f"select id from range({first}, {first + 2})", "id", target)
        for folder in backend._emitted[target]:
            max(folder.glob("part-*.parquet"), key=lambda part: pq.read_metadata(part).num_rows).unlink()
        with pytest.raises(CropsError, match=r"evidence.parquet: \d of 4 rows arrived in .*nothing is publ"):
            backend.write(target)
    assert not target.exists()


@needs_spark
def test_the_workers_are_asked_before_the_work(started, tmp_path):
    file = tmp_path / "rows"
    file.write_text("12345")
    check_workers(started, [tmp_path / "out"], {str(file): 5}, [])
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(CropsError, match=r"^Spark's worker \S+ sees another .*/rows than the driver"):
        check_workers(started, [tmp_path / "out"], {str(file): 6}, [])


def other_python() -> str | None:
    """Return a Python of another minor version, if there is one."""
    for minor in range(9, 16):
        found = shutil.which(f"python3.{minor}")
        if found and minor != sys.version_info.minor:
            asked = subprocess.run([found, "-c", "import sys; print(sys.executable)"], capture_output=True)
            if asked.returncode == 0:
                return asked.stdout.decode().strip()
    return None


@needs_spark
@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("/nowhere/python", "a worker has no Python at /nowhere/python; set PYSPARK_PYTHON to one that all"),
        (
            other_python(),
            r"the workers run Python 3.\d+, and the driver 3.\d+; set PYSPARK_PYTHON to the same",
        ),
    ],
)
def test_a_python_of_the_workers_that_will_not_do_is_named(
    tmp_path, session, started, monkeypatch, python, message
):
    if python is None:
        pytest.skip("needs a Python of another minor version")
    logs = write_logs(tmp_path / "logs", [shown(1, 1, "a", 0, 1), clicked(2, 1, "b", 30, 2)])
    monkeypatch.setattr(started.sparkContext, "pythonExec", python)
    config = EngineConfig(engine="spark", master="local[2]")
    with pytest.raises(CropsError, match=f"^the Spark job failed: {message}"):
        mine(logs, tmp_path / "out", config, relevance=None, similarity=None)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


@needs_spark
def test_a_store_that_spark_has_no_client_of_is_named(tmp_path, session):
    logs = write_logs(tmp_path / "logs", [shown(1, 1, "a", 0, 1), clicked(2, 1, "b", 30, 2)])
    stored = replace(logs.tables["items"], files=("s3://bucket/items.parquet",))
    logs = replace(logs, tables={**logs.tables, "items": stored})
    config = EngineConfig(engine="spark", master="local[2]")
    with pytest.raises(
        CropsError, match="^the Spark job failed: Spark has no client of the store; name it in"
    ):
        mine(logs, tmp_path / "out", config, relevance=None, similarity=None)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_a_master_that_does_not_answer_is_said_soon(monkeypatch):
    def silent(address, timeout):
        raise TimeoutError(f"timed out after {timeout} s")

    monkeypatch.setattr(socket, "create_connection", silent)
    with pytest.raises(CropsError, match=r"10.0.0.1:7077: timed out after 3.0 s; b:7077: timed out"):
        _check_master("spark://10.0.0.1:7077,b:7077")


def test_masters_are_checked_at_once(monkeypatch):
    for master in ("", "spark:/x", "spark://", "spark://host", "local[0]", "mesos://h:1", "local 2"):
        with pytest.raises(CropsError, match=r"write local\[n\], spark://host:port"):
            _check_master(master)
    for master in ("local", "local[*]", "local[2]"):
        _check_master(master)
    for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CropsError, match="HADOOP_CONF_DIR"):
        _check_master("yarn")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        _check_master(f"spark://127.0.0.1:1,127.0.0.1:{port}")  # one of two is enough
    start = time.monotonic()
    with pytest.raises(CropsError, match=f"spark://127.0.0.1:{port}' cannot be reached: .*refused"):
        _check_master(f"spark://127.0.0.1:{port}")
    assert time.monotonic() - start < 2


@needs_spark
def test_what_spark_needs_is_named_and_leaves_no_output(monkeypatch, tmp_path):
    logs = write_logs(tmp_path / "logs", [shown(1, 1, "a", 0, 1), clicked(2, 1, "b", 30, 2)])
    config = EngineConfig(engine="spark", master="spark://127.0.0.1:1")
    with pytest.raises(CropsError, match="cannot be reached"):
        mine(logs, tmp_path / "out", config, relevance=None, similarity=None)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(CropsError, match="Java 17"):
        SparkBackend("local[2]", "1GB")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"crops-retrieval\[spark\]"):
        SparkBackend("local[2]", "1GB")


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


@pytest.fixture
def expected(tmp_path):
    """What a worker must have, and has."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / probe.seen("t")).touch()
    (tmp_path / "rows").write_text("12345")
    return {
        "token": "t",
        "folders": [str(tmp_path / "out")],
        "sizes": {str(tmp_path / "rows"): 5},
        "versions": probe.versions(),
        "identities": pickle.dumps([functools.partial(str, "hash")]),
        "models": ["hash"],
    }


def asked(expected) -> dict:
    (batch,) = probe.probe(iter([pa.record_batch({"id": [1]})]), expected)
    (row,) = batch["found"].to_pylist()
    return json.loads(row)


LACKS = [
    ({"token": "other"}, "does not see what the driver wrote into .*out; name a folder that all"),
    ({"folders": ["/nowhere"]}, "does not see what the driver wrote into /nowhere"),
    ({"sizes": {"/nowhere/rows": 5}}, "does not see /nowhere/rows; put the logs where all machines see"),
    ({"sizes": {__file__: 5}}, "sees another .*test_engine_spark.py than the driver"),
    ({"versions": {"crops": "9.9"}}, r"has crops \S+, and the driver 9.9; install"),
    ({"versions": {"pyarrow": "1"}}, r"has pyarrow \S+, and the driver 1; inst"),
    ({"versions": {"the code of crops": "0"}}, "has the code of crops [0-9a-f]{12}, and the driver 0; inst"),
    ({"versions": {"python": "3.9"}}, r"has python \S+, and the driver 3.9"),
    ({"models": ["other"]}, "has another model of theta than the driver"),
    (
        {"identities": pickle.dumps([functools.partial(model_hash, "/nowhere")])},
        "has no model of theta at the driver's path .*/nowhere",
    ),
]


def test_what_a_worker_lacks_is_named(expected, tmp_path, monkeypatch):
    row = asked(expected)
    assert row["fault"] is None
    _check(row, [tmp_path / "out"], "t")
    for changed, message in LACKS:
        if "versions" in changed:
            changed = {"versions": probe.versions() | changed["versions"]}
        with pytest.raises(CropsError, match=rf"^Spark's worker \S+ {message}"):
            _check(asked(expected | changed), [tmp_path / "out"], "t")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(CropsError, match=r"cannot read what Spark's worker \S+ wrote into .*umask to 022"):
        _check(row, [tmp_path / "out"], "t")
    for file in (tmp_path / "out").glob(".seen-t-*"):
        file.unlink()
    with pytest.raises(CropsError, match=r"the driver does not see what Spark's worker \S+ wrote into .*out"):
        _check(row, [tmp_path / "out"], "t")


def test_a_worker_without_crops_is_named(expected, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "PACKAGES", {"crops": "no-such-package"})
    wanted = expected | {"versions": {**probe.versions(), "crops": "1.2"}}
    with pytest.raises(CropsError, match=r"has no crops in its Python \(.*install no-such-package 1.2 there"):
        _check(asked(wanted), [tmp_path / "out"], "t")


def test_the_scorers_say_which_model_they_read():
    relevance, similarity = scorers(RelevanceConfig())
    assert relevance.spec.identity() == similarity.spec.identity()
    assert len(relevance.spec.identity()) == 64


JAVA = """An error occurred while calling o91.localCheckpoint.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 2.0 failed 4 times,
most recent failure: Lost task 0.3 in stage 2.0 (TID 9): java.io.FileNotFoundException: x
\tat org.apache.spark.Foo.bar(Foo.scala:12)
Driver stacktrace:
Caused by: java.io.FileNotFoundException: File file:/logs/items.parquet does not exist
\tat org.apache.spark.Foo.baz(Foo.scala:13)
"""
PYTHON = """org.apache.spark.api.python.PythonException: Traceback (most recent call last):
  File "/x/worker.py", line 1, in main
{}

\tat org.apache.spark.api.python.BasePythonRunner.handlePythonException(PythonRunner.scala:1)
"""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (JAVA, "the Spark job failed: FileNotFoundException: File file:/logs/items.parquet does not exist"),
        (
            PYTHON.format("ModuleNotFoundError: No module named 'crops'"),
            "the Spark job failed: a worker's Python has no module crops; install it there, or set "
            "PYSPARK_PYTHON to a Python that has it",
        ),
        (
            "java.io.IOException: No space left on device\nCaused by: x",
            "the Spark job failed: a disk is full, that of a worker (SPARK_LOCAL_DIRS) or that of the output:"
            " free it; nothing is published, and the same command goes on at the stage that failed",
        ),
        (
            "java.nio.file.AccessDeniedException: s3a://b/x: software.amazon.awssdk.services.s3.model."
            "S3Exception: null (Service: S3, Status Code: 403, Request ID: 1)",
            "the Spark job failed: the store refuses what the workers know of it; give them credentials with "
            "the right to list and read (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "spark.hadoop.fs.s3a.*)",
        ),
        (PYTHON.format("ValueError: bad row"), "the Spark job failed: ValueError: bad row"),
        (PYTHON.format("crops.errors.CropsError: theta broke"), "theta broke"),
        ("Answer from Java side is empty", "the Spark job failed: Answer from Java side is empty"),
        ("", "the Spark job failed: nothing was said"),
        (
            "An error occurred while calling o57.sql.\n: org.apache.spark.SparkException: no such column",
            "the Spark job failed: org.apache.spark.SparkException: no such column",
        ),
        ("x" * 2_000, f"the Spark job failed: {'x' * 400}"),
    ],
)
def test_failures_are_sentences(text, sentence):
    assert explain_failure(text) == sentence
    assert "\n" not in sentence
