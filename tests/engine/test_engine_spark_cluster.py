"""A real Spark cluster: killed drivers and workers, workers that see other folders or have a full disk."""

import contextlib
import dataclasses
import importlib.util
import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster import Cluster, may_mount, scored
from days import DAYS, plain_job, write_days
from large_logs import large_logs
from test_engine_spark_check import assert_alike

from crops.config import EngineConfig, RelevanceConfig
from crops.engine import mine
from crops.engine.daily import day_folder, mine_daily
from crops.engine.stages import RECORD, work_folder
from crops.logs import check
from crops.relevance import scorers

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
    reason="needs pyspark (extra [spark]) and Java 17",
)
needs_mount = pytest.mark.skipif(not may_mount(), reason="needs the right to mount")
TABLES = ("samples", "queries", "evidence", "items", "synthetic_items")


@pytest.fixture
def cluster(tmp_path):
    """A master and a worker like the driver, and one that differs in all that may differ."""
    with contextlib.ExitStack() as ended:
        started = Cluster(tmp_path, ended)
        started.worker("one")
        started.worker("other", f"umask 077 && cd {tmp_path}", HOME="/nowhere", PATH="/usr/bin:/bin")
        yield started


def write_job(folder, searches: int):
    """Return logs and documents that an LLM might have written for their queries."""
    return large_logs(folder / "logs", searches), write_generated(folder)


def write_generated(folder):
    lines = [{"query": f"query {n % 40}", "ocr_cover": f"text {n}"} for n in range(200)]
    (folder / "generated.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "generated.jsonl"


def mine_here(folder, logs, generated, models=(scored, scored), **config):
    given = dict(zip(("relevance", "similarity"), models, strict=True))
    mine(logs, folder / "ours", EngineConfig(**config), generated=generated, seed=3, **given)


def said(driver) -> str:
    """Return the sentence that a driver ended with."""
    assert "Traceback" not in driver.stderr, driver.stderr
    return driver.stderr.partition("nanobind: leaked")[0].strip().splitlines()[-1]


def stages_of(out):
    """Return the stages that a killed job which writes `out` has left whole."""
    return {record.parent.name for record in work_folder(out).rglob(RECORD)}


def assert_equal(out, ours=None):
    for name in TABLES:
        folders = (out, ours or out.with_name("ours"))
        theirs, own = (pq.read_table(folder / f"{name}.parquet") for folder in folders)
        assert own.num_rows > 0
        assert theirs.cast(own.schema).equals(own), name  # Spark notes where a column has no null


@pytest.mark.verify
def test_a_job_whose_driver_and_worker_were_killed_has_the_rows_of_one_process(tmp_path, cluster):
    logs, generated = write_job(tmp_path, 60)
    given = {"theta": True, "generated": str(generated)}
    killed = cluster.mine(logs.path, tmp_path / "out", driver_dies_at=12, **given)
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "out").exists()
    kept = stages_of(tmp_path / "out")
    assert len(kept) == 11
    done = cluster.mine(logs.path, tmp_path / "out", executors_die=2, **given)
    assert done.returncode == 0, done.stderr
    assert "goes on where a job like this one was stopped" in done.stderr
    driven = json.loads(done.stdout)
    assert driven["executors_killed"] > 0
    assert not kept & {*driven["stages"]}
    assert 0 < driven["largest_task"] < 100_000
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]
    mine_here(tmp_path, logs, generated)
    assert_equal(tmp_path / "out")


@pytest.mark.verify
def test_kills_all_along_change_nothing(tmp_path, cluster):
    """A job that loses a worker at every fourth stage, and one whose driver dies after every five."""
    logs, generated = write_job(tmp_path, 60)
    given = {"theta": True, "generated": str(generated)}
    mine_here(tmp_path, logs, generated)
    done = cluster.mine(logs.path, tmp_path / "workers", executors_die_every=4, **given)
    assert done.returncode == 0, done.stderr
    assert_equal(tmp_path / "workers")
    driven = json.loads(done.stdout)
    assert driven["executors_killed"] >= 5
    shutil.rmtree(tmp_path / "scores")
    kills = 0
    while (done := cluster.mine(logs.path, tmp_path / "driver", driver_dies_at=6, **given)).returncode:
        assert done.returncode == -9, done.stderr
        kills += 1
    assert kills >= len(driven["stages"]) // 6
    assert_equal(tmp_path / "driver")


def spoil(logs):
    """Add rows that are rejected or merged to each file of the impressions."""
    for file in sorted((logs / "search_impressions").rglob("*.parquet")):
        table = pq.read_table(file, partitioning=None)
        rows = table.to_pylist()
        few = [row for row in rows if row["search_id"] % 6 == 0]  # of those all rows are rejected
        bad = [row | {"clicked": True, "stage": "exposed"} for row in rows[::5]]  # two rows of one key
        bad += [row | {"search_id": row["search_id"] + 10**6, "query": "\u200b"} for row in rows[::7]]
        bad += [row | {"item_id": 10**6} for row in rows[::11]]
        bad += [row | {"item_id": row["item_id"] % 12 + 1, "query": "other words"} for row in few[::13]]
        bad += [row | {"searched_at": row["searched_at"] + 86_400_000_000} for row in few[::17]]
        pq.write_table(pa.Table.from_pylist(rows + bad, table.schema), file)


@pytest.mark.verify
def test_a_check_whose_driver_and_workers_were_killed_has_the_rows_of_one_process(tmp_path, cluster):
    """So has a second check, which takes over what did not change."""
    logs, out, ours = large_logs(tmp_path / "logs", 60).path, tmp_path / "out", tmp_path / "ours"
    spoil(logs)

    def killed_at(stage):
        killed = cluster.drive("check", logs, out, driver_dies_at=stage)
        assert killed.returncode == -9, killed.stderr
        kept = stages_of(out)
        assert len(kept) == stage - 1
        return kept

    def goes_on(kept):
        done = cluster.drive("check", logs, out, executors_die_every=2)
        assert done.returncode == 0, done.stderr
        assert "goes on where a job like this one was stopped" in done.stderr
        driven = json.loads(done.stdout)
        assert driven["executors_killed"] > 0
        assert driven["stages"]
        assert not kept & {*driven["stages"]}
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]
        report = check(logs, ours)
        assert_alike(ours, out)
        return report

    kept = killed_at(5)
    assert not out.exists()
    first = goes_on(kept)
    reasons = {fault.reason for fault in first.faults if fault.table == "search_impressions"}
    assert reasons >= {"duplicate_key", "empty_query", "unknown_item", "mixed_search", "wrong_day"}
    assert first.merged["search_impressions"] > 0

    for name in ("search_impressions", "feed_events"):
        (late,) = (logs / name / "day=2026-01-06").glob("part-0.parquet")
        shutil.copy(late, late.with_name("part-2.parquet"))  # each row twice
    before = (out / "manifest.json").read_bytes()
    kept = killed_at(3)
    assert (out / "manifest.json").read_bytes() == before
    days = goes_on(kept).days["search_impressions"]
    assert days["taken_over"] > 0
    assert days["read"] > 0


@pytest.mark.verify
def test_a_window_whose_driver_and_workers_were_killed_has_the_rows_of_one_process(tmp_path, cluster):
    """Of two days that were mined in one process, and one that the workers mined, in several files."""
    logs, out, ours = write_days(tmp_path / "logs"), tmp_path / "out", tmp_path / "ours"
    generated = write_generated(tmp_path)

    def build_here(**config):
        mine_daily(logs, ours, dataclasses.replace(plain_job(**config), generated=generated))

    def build_there(**given):
        return cluster.drive("daily", logs.path, out, days=DAYS[2:], generated=str(generated), **given)

    build_here()
    for day in DAYS[:2]:
        shutil.copytree(day_folder(ours, day), day_folder(out, day))

    done = build_there(executors_die_every=4)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["executors_killed"] >= 5
    assert (day_folder(out, DAYS[2]) / "samples.parquet").is_dir()
    assert_equal(out / "window", ours / "window")

    # The days are there: what is left to do is to merge them with other weights.
    config = {"daily": {"decay": {"p1": 0.5, "p2": 0.25}}}
    build_here(**config)
    before = (out / "window" / "manifest.json").read_bytes()
    killed = build_there(config=config, driver_dies_at=3)
    assert killed.returncode == -9, killed.stderr
    assert (out / "window" / "manifest.json").read_bytes() == before
    kept = stages_of(out / "window")
    assert len(kept) == 2
    done = build_there(config=config, executors_die_every=2)
    assert done.returncode == 0, done.stderr
    assert "goes on where a job like this one was stopped" in done.stderr
    driven = json.loads(done.stdout)
    assert driven["executors_killed"] > 0
    assert len(driven["stages"]) == len(TABLES) - 2
    assert not kept & {*driven["stages"]}
    assert not work_folder(out / "window").exists()
    assert_equal(out / "window", ours / "window")


@pytest.mark.verify
def test_theta_in_the_workers_is_theta_in_the_driver(tmp_path, cluster):
    logs, generated = write_job(tmp_path, 60)
    given = {"theta": "minilm", "config": {"feed": {"relevance": 0.1}, "reformulation": {"relevance": 0.1}}}
    done = cluster.mine(logs.path, tmp_path / "out", generated=str(generated), **given)
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["largest_task"] < 100_000
    mine_here(tmp_path, logs, generated, scorers(RelevanceConfig()), **given["config"])
    assert_equal(tmp_path / "out")


@pytest.mark.verify
@needs_mount
def test_a_worker_that_does_not_share_the_output_folder(tmp_path, cluster):
    logs, _ = write_job(tmp_path, 60)
    shared = tmp_path / "shared"
    shared.mkdir()
    cluster.worker("hidden", f"mount -t tmpfs none {shared}")
    refused = cluster.mine(logs.path, shared / "refused")
    assert refused.returncode == 1
    assert "does not see what the driver wrote into" in said(refused)
    assert list(shared.iterdir()) == []

    # An executor that came after the workers were asked: the rows that it wrote are missed.
    missed = cluster.mine(logs.path, shared / "missed", unasked=True)
    assert missed.returncode == 1
    assert re.search(r"\d+ of \d+ rows arrived in .*nothing is published", said(missed))
    assert [path.name for path in shared.iterdir()] == [".missed.work"]


@pytest.mark.verify
@needs_mount
def test_a_full_disk_of_a_worker_leaves_the_former_output(tmp_path):
    logs, _ = write_job(tmp_path, 60)
    with contextlib.ExitStack() as ended:
        cluster = Cluster(tmp_path, ended)
        good = cluster.worker("good")
        done = cluster.mine(logs.path, tmp_path / "out")
        assert done.returncode == 0, done.stderr
        before = (tmp_path / "out" / "manifest.json").read_bytes()
        good.terminate()
        good.wait()
        small = tmp_path / "small"
        small.mkdir()
        cluster.worker("full", f"mount -t tmpfs -o size=48k none {small}", SPARK_LOCAL_DIRS=str(small))
        failed = cluster.mine(logs.path, tmp_path / "out", theta=True)
        assert failed.returncode == 1
        assert "a disk is full, that of a worker" in said(failed)
        assert (tmp_path / "out" / "manifest.json").read_bytes() == before
