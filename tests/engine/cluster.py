"""A real Spark cluster, a master and its workers; as a script, a driver that may be killed."""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from crops.config import EngineConfig, RelevanceConfig
from crops.engine import CachedScorer, mine
from crops.engine.daily import Job, mine_daily
from crops.engine.spark import SparkBackend
from crops.engine.spark_rows import rows_engine
from crops.engine.stages import Stages
from crops.errors import CropsError
from crops.logs import check, open_logs
from crops.relevance import scorers

_FOR_FEW_ROWS = """
spark.sql.shuffle.partitions 2
spark.sql.codegen.wholeStage false
spark.sql.adaptive.enabled false
spark.executor.memory 512m
"""


class Cluster:
    """A master and its workers, each with one core."""

    def __init__(self, folder: Path, ended: contextlib.ExitStack) -> None:
        self.folder, self.ended = folder, ended
        (folder / "spark-defaults.conf").write_text(_FOR_FEW_ROWS)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.master = f"spark://127.0.0.1:{self.port}"
        deploy = "org.apache.spark.deploy"
        command = [f"{deploy}.master.Master", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = self.start(command, "master")
        self.wait("master", "I have been elected leader")

    def worker(self, name: str, first: str = "true", **more: str) -> subprocess.Popen:
        """Start a worker; `first` is run by its shell before, `more` is its environment."""
        options = ["--cores", "1", "--memory", "1g", "--work-dir", str(self.folder / f"work-{name}")]
        command = ["org.apache.spark.deploy.worker.Worker", self.master, *options]
        process = self.start(command, name, first, **more)
        self.wait(name, "Successfully registered with master")
        return process

    def start(self, command: list[str], name: str, first: str = "true", **more: str) -> subprocess.Popen:
        home = Path(importlib.util.find_spec("pyspark").origin).parent
        whole = ["sh", "-c", f'{first} && exec "$@"', "sh", str(home / "bin" / "spark-class"), *command]
        if "mount" in first:
            whole = ["unshare", "-m", *whole]
        log = (self.folder / f"{name}.log").open("w")
        whole, own = [*whole, "--webui-port", "0"], self._environment() | more
        process = subprocess.Popen(whole, env=own, stdout=log, stderr=subprocess.STDOUT)
        self.ended.callback(log.close)
        self.ended.callback(process.wait)
        self.ended.callback(process.terminate)
        return process

    def wait(self, name: str, words: str) -> None:
        for _ in range(600):
            if words in (self.folder / f"{name}.log").read_text():
                return
            time.sleep(0.2)
        raise AssertionError((self.folder / f"{name}.log").read_text())

    def mine(self, logs: Path, out: Path, **given: Any) -> subprocess.CompletedProcess:
        """Run a driver that mines to its end (see `drive`)."""
        return self.drive("mine", logs, out, **({"scores": str(self.folder / "scores")} | given))

    def drive(self, job: str, logs: Path, out: Path, **given: Any) -> subprocess.CompletedProcess:
        """Run a driver to its end (see `drive`)."""
        return subprocess.run(
            [sys.executable, __file__, job, str(logs), str(out), self.master, json.dumps(given)],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=1800,
        )

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_CONF_DIR": str(self.folder),
            # What lives for seconds is not worth the better compiler.
            "JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        }


def may_mount() -> bool:
    """Return whether a worker can be given other folders than the driver."""
    return shutil.which("unshare") is not None and not subprocess.run(["unshare", "-m", "true"]).returncode


def scored(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Score by a hash of the two texts."""
    for batch in batches:
        texts = zip(batch["left"].to_pylist(), batch["right"].to_pylist(), strict=True)
        hashes = [hashlib.sha256(f"{left}|{right}".encode()).hexdigest() for left, right in texts]
        scores = [round(int(one[:4], 16) % 1000 / 999, 6) for one in hashes]
        yield batch.append_column("score", pa.array(scores, pa.float64()))


def drive(job: str, logs: str, out: str, master: str, given: dict[str, Any]) -> dict[str, Any]:
    """Do a job; return the `stages` that were written, bytes of the `largest_task`, `executors_killed`.

    Args:
        job: "mine", "check", or "daily": a build of the `days` that are given.
        logs: their folder.
        out: the folder to write.
        master: of the cluster.
        given: `config`, `generated`; to mine, `theta` ("minilm" or a pseudo-random one) with the folder of
            its `scores`; `driver_dies_at` a stage that is written and not in its place yet, `executors_die`
            after so many stages, `executors_die_every` so many; `unasked`: workers are not asked what they
            have.
    """
    from pyspark.serializers import CloudPickleSerializer

    kept: list[str] = []
    tasks: list[int] = []
    killed: list[int] = []

    def dumps(self: CloudPickleSerializer, task: Any, dumps=CloudPickleSerializer.dumps) -> bytes:
        pickled = dumps(self, task)
        tasks.append(len(pickled))
        return pickled

    def keep(self: Stages, written: Path, place: Path, *more: Any, keep=Stages.keep) -> None:
        if len(kept) + 1 == given.get("driver_dies_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        keep(self, written, place, *more)
        kept.append(place.name)

    def writing(self: Stages, place: Path, writing=Stages.writing) -> Path:
        every = given.get("executors_die_every")
        if given.get("executors_die") == len(kept) or (every and len(kept) % every == every - 1):
            threading.Timer(0.3, _kill_executor, [killed]).start()
        return writing(self, place)

    Stages.keep, Stages.writing, CloudPickleSerializer.dumps = keep, writing, dumps
    if given.get("unasked"):
        SparkBackend.check_workers = lambda *_: None
    config = EngineConfig(engine="spark", master=master, **given.get("config", {}))
    if job == "check":
        check(logs, out, engine=rows_engine(config))
    elif job == "daily":
        mine_daily(
            open_logs(logs), Path(out), Job(config, None, None, Path(given["generated"])), given["days"]
        )
    else:
        _mine(logs, out, config, given)
    return {"stages": kept, "largest_task": max(tasks, default=0), "executors_killed": len(killed)}


def _mine(logs: str, out: str, config: EngineConfig, given: dict[str, Any]) -> None:
    theta = given.get("theta")
    models = scorers(RelevanceConfig()) if theta == "minilm" else (scored, scored)
    relevance, similarity = (
        CachedScorer(model, Path(given["scores"]) / kind) if theta else None
        for model, kind in zip(models, ("relevance", "similarity"), strict=True)
    )
    documents, models = given.get("generated"), {"relevance": relevance, "similarity": similarity}
    mine(open_logs(logs), out, config, generated=documents, seed=3, **models)


def _kill_executor(killed: list[int]) -> None:
    from pyspark import SparkContext

    application = SparkContext._active_spark_context.applicationId
    own = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
            if "CoarseGrainedExecutorBackend" in command and application in command:
                own.append(int(pid))
    if own:
        victim = sorted(own)[len(killed) % len(own)]
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(drive(*sys.argv[1:5], json.loads(sys.argv[5]))))
    except CropsError as error:
        sys.exit(str(error))
