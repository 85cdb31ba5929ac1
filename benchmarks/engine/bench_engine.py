"""The whole mining job and P1 alone, against pandas and Polars, each in a process of its own.

Prints CPU seconds (user + sys), peak resident memory and input rows per CPU-second. `score` fills the cache
of pair scores with a stand-in for theta (a hash; 50 % of the query pairs pass, 15 % of P1's and 10 % of P2's
documents, about as on the demo platform); the other rows read it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from generated_logs import make_logs

JOBS = ("score", "crops", "p1", "polars", "pandas")


def stand_in(batches):
    """Score by a hash of the two keys."""
    for batch in batches:
        left, right = (batch[name].to_numpy().view(np.uint64) for name in ("left_key", "right_key"))
        mixed = (left * np.uint64(0x9E3779B97F4A7C15) ^ right * np.uint64(0xC2B2AE3D27D4EB4F)) >> np.uint64(
            40
        )
        yield batch.append_column("score", pa.array(np.round(mixed / 2**24, 6)))


def run_job(job: str, logs: Path, cache: Path, out: Path, memory: str) -> None:
    """Run one contestant in this process and print its figures."""
    from crops.config import EngineConfig
    from crops.engine import CachedScorer, mine, reformulation_positives
    from crops.logs import open_logs

    limits = {"reformulation": {"relevance": 0.85}, "feed": {"relevance": 0.9}}
    config = EngineConfig.model_validate({"memory": memory, "sources": ("search", "p1", "p2"), **limits})
    if job in ("pandas", "polars"):
        import rivals

    begin = time.process_time()
    if job in ("score", "crops"):
        kept = {kind: CachedScorer(stand_in, cache / kind) for kind in ("relevance", "similarity")}
        mine(open_logs(logs), out, config, **kept)
    elif job == "p1":
        found = reformulation_positives(
            open_logs(logs), None, config.reformulation, similarity=None, relevance=None, memory=memory
        )
        print(f"{found.num_rows} rows of P1", file=sys.stderr)
    else:
        getattr(rivals, f"{job}_job")(logs, cache, out, config)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(time.process_time() - begin, int(peak[1]) * 1024 / 1e6 if peak else float("nan"))


def same_samples(ours: Path, theirs: Path) -> bool:
    """Return whether two outputs hold the same samples, row by row."""
    mine_, rival = (pq.read_table(folder / "samples.parquet") for folder in (ours, theirs))
    rival = rival.rename_columns({"source": "sources"})
    columns = ("query_id", "item_id", "sources", "label")
    return all(np.array_equal(mine_[name].to_numpy(), rival[name].to_numpy()) for name in columns)


def main() -> None:
    """Run the contestants one after the other, `--rounds` times, and print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--impressions", type=int, default=1_000_000, help="and as many feed events")
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--memory", default="2GB", help="limit of crops")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "crops-bench-engine")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        job, logs, cache, out = given.run
        run_job(job, Path(logs), Path(cache), Path(out), given.memory)
        return
    logs = make_logs(given.folder, given.impressions)
    cache, outs = given.folder / f"cache-{logs.name}", given.folder / f"out-{logs.name}"
    figures: dict[str, list[tuple[float, float]]] = {}
    for _ in range(given.rounds):
        for job in given.jobs.split(","):
            where = [str(path) for path in (logs, cache, outs / ("crops" if job == "score" else job))]
            command = [sys.executable, __file__, "--memory", given.memory, "--run", job, *where]
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            if done.returncode:
                print(f"{job}: failed ({done.returncode}): {done.stderr[-1500:]}")
                continue
            cpu, peak = done.stdout.split()[-2:]
            figures.setdefault(job, []).append((float(cpu), float(peak)))
    print(
        f"{given.impressions:,} impressions + as many feed events, "
        f"limit {given.memory}, {given.rounds} rounds"
    )
    print("| job | CPU s | peak MB | input rows per CPU-s | samples equal crops |\n|---|---|---|---|---|")
    for job, runs in figures.items():
        cpu, peak = np.median(runs, axis=0)
        rows = given.impressions * (1 if job == "p1" else 2)
        equal = same_samples(outs / "crops", outs / job) if job in ("pandas", "polars") else ""
        print(f"| {job} | {cpu:.2f} | {peak:.0f} | {rows / cpu / 1e6:.2f} M | {equal} |")


if __name__ == "__main__":
    main()
