"""What a killed driver costs on a cluster of two workers on this machine, and what a task carries.

python benchmarks/engine/bench_cluster.py --searches 2000

CPU seconds are those of the drivers, the workers and all that they start. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "engine"))

from cluster import Cluster
from large_logs import large_logs

_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Mine undisturbed, then killed before a share of the stages and again, and print seconds and bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--searches", type=int, default=2_000, help="of 20 documents each, and as many feed events"
    )
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.5], help="of the stages, when the driver is killed"
    )
    given = parser.parse_args()
    # What a killed driver leaves behind becomes a child of this process, which counts its CPU time.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as ended:
        folder = Path(name)
        logs = large_logs(folder / "logs", given.searches)
        cluster = Cluster(folder, ended)
        workers = [cluster.worker(worker) for worker in ("one", "two")]

        def mine(out: str, **more: object) -> tuple[str, dict]:
            start, before = time.perf_counter(), _cpu(workers)
            done = cluster.mine(
                logs.path, folder / out, theta=True, scores=str(folder / f"{out}-scores"), **more
            )
            seconds = time.perf_counter() - start
            _reap({cluster.process.pid, *(worker.pid for worker in workers)})
            if done.returncode not in (0, -9):
                raise SystemExit(done.stderr)
            spent = f"{seconds:.0f} s, {_cpu(workers) - before:.0f} CPU-s"
            return spent, json.loads(done.stdout or "{}")

        spent, whole = mine("whole")
        stages = len(whole["stages"])
        print(
            f"undisturbed: {spent}, {stages} stages, largest task {whole['largest_task']:,} bytes", flush=True
        )
        for share in given.shares:
            killed, _ = mine(f"at-{share}", driver_dies_at=round(share * stages))
            resumed, rest = mine(f"at-{share}")
            print(
                f"killed in stage {round(share * stages)} after {killed}; "
                f"the same command again: {resumed} for the other {len(rest['stages'])}",
                flush=True,
            )


def _reap(known: set[int]) -> None:
    """Wait for the children that are not known: JVMs and workers' Pythons whose parent is gone."""
    for _ in range(600):
        children = {int(pid) for pid in Path("/proc/thread-self/children").read_text().split()} - known
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if not children:
            return
        time.sleep(0.1)
    raise SystemExit(f"still running: {children}")


def _cpu(workers: list[subprocess.Popen]) -> float:
    """Return the CPU seconds of the children that have ended, and of the workers with theirs."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = ended.ru_utime + ended.ru_stime
    for worker in workers:
        stat = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += sum(map(int, stat[11:15])) / os.sysconf("SC_CLK_TCK")
    return seconds


if __name__ == "__main__":
    main()
