"""A real Spark cluster, a master and two workers on this machine; one of them may see other folders."""

import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.config import EngineConfig
from crops.engine import mine
from crops.logs import open_logs
from crops.schema import ITEMS, SEARCH_IMPRESSIONS

pytestmark = [
    pytest.mark.verify,
    pytest.mark.skipif(
        importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
        reason="needs pyspark (extra [spark]) and Java 17",
    ),
]
TABLES = ("samples", "queries", "evidence", "items", "synthetic_items")
MINE = """
import sys
from pathlib import Path
from crops.config import EngineConfig
from crops.engine import mine
from crops.engine.spark import SparkBackend
from crops.errors import CropsError
from crops.logs import open_logs

logs, out, master, *options = sys.argv[1:]
config = EngineConfig(engine="spark", master=master)
if "unasked" in options:
    SparkBackend.check_workers = lambda *_: None
try:
    mine(open_logs(Path(logs)), Path(out), config, relevance=None, similarity=None)
except CropsError as error:
    sys.exit(str(error))
"""
NOON = 1_767_614_400_000_000


def write_logs(folder: Path) -> Path:
    """Searches of 5 users for 40 queries, three documents each."""
    rows = [
        {
            "user_id": n % 5 + 1,
            "search_id": n + 1,
            "query": f"query {n % 40}",
            "searched_at": NOON + n * 20_000_000,
            "item_id": (n * 7 + place) % 90 + 1,
            "stage": "exposed",
            "clicked": (n + place) % 3 == 0,
        }
        for n in range(200)
        for place in range(3)
    ]
    kept = pa.schema([field for field in SEARCH_IMPRESSIONS.arrow() if field.name in rows[0]])
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=kept), folder / "search_impressions.parquet")
    items = [{"item_id": n, "ocr_cover": f"document {n}"} for n in range(1, 91)]
    schema = pa.schema([ITEMS.arrow().field(name) for name in ("item_id", "ocr_cover")])
    pq.write_table(pa.Table.from_pylist(items, schema=schema), folder / "items.parquet")
    return folder


FOR_FEW_ROWS = """
spark.sql.shuffle.partitions 4
spark.sql.codegen.wholeStage false
"""


def environment(settings: Path) -> dict[str, str]:
    own = {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable, "SPARK_CONF_DIR": str(settings)}
    return {**os.environ, **own}


class Cluster:
    """A master and its workers, each with one core."""

    def __init__(self, folder: Path, ended: contextlib.ExitStack) -> None:
        self.folder, self.ended = folder, ended
        (folder / "spark-defaults.conf").write_text(FOR_FEW_ROWS)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.master = f"spark://127.0.0.1:{self.port}"
        deploy = "org.apache.spark.deploy"
        self.start([f"{deploy}.master.Master", "--host", "127.0.0.1", "--port", str(self.port)], "master")
        self.wait("master", "I have been elected leader")

    def worker(self, name: str, hidden: Path | None = None) -> subprocess.Popen:
        """Start a worker; `hidden` is a folder of which it sees another, empty one."""
        options = ["--cores", "1", "--memory", "1g", "--work-dir", str(self.folder / f"work-{name}")]
        command = ["org.apache.spark.deploy.worker.Worker", self.master, *options]
        process = self.start(command, name, hidden)
        self.wait(name, "Successfully registered with master")
        return process

    def start(self, command: list[str], name: str, hidden: Path | None = None) -> subprocess.Popen:
        home = Path(importlib.util.find_spec("pyspark").origin).parent
        whole = [str(home / "bin" / "spark-class"), *command, "--webui-port", "0"]
        if hidden:
            whole = [
                "unshare",
                "-m",
                "sh",
                "-c",
                f'mount -t tmpfs none "{hidden}" && exec "$@"',
                "sh",
                *whole,
            ]
        log = (self.folder / f"{name}.log").open("w")
        process = subprocess.Popen(whole, env=environment(self.folder), stdout=log, stderr=subprocess.STDOUT)
        self.ended.callback(log.close)
        self.ended.callback(process.wait)
        self.ended.callback(process.terminate)
        return process

    def wait(self, name: str, words: str) -> None:
        for _ in range(240):
            if words in (self.folder / f"{name}.log").read_text():
                return
            time.sleep(0.5)
        raise AssertionError((self.folder / f"{name}.log").read_text())

    def mine(self, logs: Path, out: Path, *options: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", MINE, str(logs), str(out), self.master, *options],
            env=environment(self.folder),
            capture_output=True,
            text=True,
            timeout=900,
        )


def may_mount() -> bool:
    return shutil.which("unshare") is not None and not subprocess.run(["unshare", "-m", "true"]).returncode


def test_a_worker_that_does_not_share_the_output_folder(tmp_path):
    if not may_mount():
        pytest.skip("needs the right to mount")
    logs, shared = write_logs(tmp_path / "logs"), tmp_path / "shared"
    shared.mkdir()
    with contextlib.ExitStack() as ended:
        cluster = Cluster(tmp_path, ended)
        cluster.worker("one")
        second = cluster.worker("two")

        done = cluster.mine(logs, shared / "out")
        assert done.returncode == 0, done.stderr
        ours = tmp_path / "duckdb"
        mine(open_logs(logs), ours, EngineConfig(), relevance=None, similarity=None)
        for name in TABLES:
            assert pq.read_table(shared / "out" / f"{name}.parquet").equals(
                pq.read_table(ours / f"{name}.parquet")
            )

        second.terminate()
        second.wait()
        cluster.worker("hidden", hidden=shared)
        done = cluster.mine(logs, shared / "refused")
        assert done.returncode == 1
        said = done.stderr.strip().splitlines()[-1]
        assert "does not see what the driver wrote into" in said, done.stderr
        assert "Traceback" not in done.stderr

        # An executor that came after the workers were asked: the rows that it wrote are missed.
        done = cluster.mine(logs, shared / "missed", "unasked")
        assert done.returncode == 1
        said = done.stderr.strip().splitlines()[-1]
        assert re.search(r"\d+ of \d+ rows arrived in .*nothing is published", said), done.stderr
        assert [path.name for path in shared.iterdir()] == ["out"]
