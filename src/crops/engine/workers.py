"""Spark's workers before a job: do they see its folders, run the same code and hold the same model?"""

from __future__ import annotations

import functools
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crops.engine import probe as on_worker
from crops.errors import CropsError
from crops.outputs import console

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from crops.protocols import PairScorer

_ROUNDS = 5
"""Spark chooses where a task runs: so often several are tried for every core, until no executor is left."""
_MAX_CHARS = 400


def check_workers(
    spark: SparkSession, folders: Sequence[Path], sizes: Mapping[str, int], scorers: Sequence[PairScorer]
) -> None:
    """Run tasks on every executor, and raise where one has not what the driver has.

    Each looks for a file that the driver wrote into each folder, and writes one that the driver looks for. It
    compares the versions of Python, crops and pyarrow, the bytes of the logs' files, and the hashes of the
    scorers' models (`identity`, where they have one).

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
    identities = [one for scorer in scorers if (one := getattr(scorer, "identity", None))]
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
        if not (folder / on_worker.seen(token, worker["nonce"])).exists():
            raise CropsError(
                f"the driver does not see what {where} wrote into {folder}; "
                "name a folder that all machines share"
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


def explain_failure(text: str) -> str:
    """Return what Spark, Java or a worker's Python reported, as one sentence with its cause."""
    own = re.findall(r"crops\.errors\.\w*Error: (.+)", text)
    if own:
        return str(own[-1])
    if missing := re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", text):
        return (
            f"the Spark job failed: a worker's Python has no module {missing[1]}; install it there, or set "
            "PYSPARK_PYTHON to a Python that has it"
        )
    # The last exception of a worker's Python, the first cause of Java, or whatever was said first.
    python = re.findall(r"^(\w[\w.]*(?:Error|Exception|Interrupt): .+)$", text, re.MULTILINE)
    causes = re.findall(r"^Caused by: (?:[\w$]+\.)*([\w$]+: .+)$", text, re.MULTILINE)
    lines = [line.strip(": ") for line in text.splitlines() if line.strip(": ")]
    said = (causes or python or lines or ["nothing was said"])[-1 if causes or python else 0]
    return f"the Spark job failed: {said[:_MAX_CHARS]}"
