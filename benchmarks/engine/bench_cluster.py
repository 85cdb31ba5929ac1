"""What a killed driver costs on a cluster of two workers on this machine, and what a task carries.

python benchmarks/engine/bench_cluster.py --searches 20000
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "engine"))

from cluster import Cluster
from large_logs import large_logs


def main() -> None:
    """Mine undisturbed, then killed before a share of the stages and again, and print seconds and bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--searches", type=int, default=20_000, help="of 20 documents each, and as many feed events"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as ended:
        folder = Path(name)
        logs = large_logs(folder / "logs", given.searches)
        cluster = Cluster(folder, ended)
        for worker in ("one", "two"):
            cluster.worker(worker)

        def mine(out: str, **more: object) -> tuple[float, dict]:
            start = time.perf_counter()
            done = cluster.mine(
                logs.path, folder / out, theta=True, scores=str(folder / f"{out}-scores"), **more
            )
            seconds = time.perf_counter() - start
            if done.returncode not in (0, -9):
                raise SystemExit(done.stderr)
            return seconds, json.loads(done.stdout or "{}")

        mine("warm")
        seconds, whole = mine("whole")
        stages = len(whole["stages"])
        print(f"undisturbed: {seconds:.0f} s, {stages} stages, largest task {whole['largest_task']:,} bytes")
        for share in (0.25, 0.5, 0.75, 1.0):
            killed, _ = mine(f"at-{share}", driver_dies_at=round(share * stages))
            resumed, rest = mine(f"at-{share}")
            print(
                f"killed in stage {round(share * stages)} after {killed:.0f} s: "
                f"{resumed:.0f} s for the other {len(rest['stages'])}"
            )


if __name__ == "__main__":
    main()
