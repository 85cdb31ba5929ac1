"""A real Spark cluster: killed drivers and workers, workers that see other folders or have a full disk."""

import contextlib
import importlib.util
import json
import re
import shutil

import pyarrow.parquet as pq
import pytest
from cluster import Cluster, may_mount, scored
from large_logs import large_logs

from crops.config import EngineConfig, RelevanceConfig
from crops.engine import mine
from crops.engine.stages import RECORD, work_folder
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
    logs = large_logs(folder / "logs", searches)
    lines = [{"query": f"query {n % 40}", "ocr_cover": f"text {n}"} for n in range(200)]
    (folder / "generated.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return logs, folder / "generated.jsonl"


def mine_here(folder, logs, generated, models=(scored, scored), **config):
    given = dict(zip(("relevance", "similarity"), models, strict=True))
    mine(logs, folder / "ours", EngineConfig(**config), generated=generated, seed=3, **given)


def said(driver) -> str:
    """Return the sentence that a driver ended with."""
    assert "Traceback" not in driver.stderr, driver.stderr
    return driver.stderr.partition("nanobind: leaked")[0].strip().splitlines()[-1]


def assert_equal(out):
    for name in TABLES:
        theirs, own = (pq.read_table(folder / f"{name}.parquet") for folder in (out, out.with_name("ours")))
        assert own.num_rows > 0
        assert theirs.cast(own.schema).equals(own), name  # Spark notes where a column has no null


@pytest.mark.verify
def test_a_job_whose_driver_and_worker_were_killed_has_the_rows_of_one_process(tmp_path, cluster):
    logs, generated = write_job(tmp_path, 60)
    given = {"theta": True, "generated": str(generated)}
    killed = cluster.mine(logs.path, tmp_path / "out", driver_dies_at=12, **given)
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "out").exists()
    kept = {record.parent.name for record in work_folder(tmp_path / "out").rglob(RECORD)}
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
