"""A daily build beside a catalogue that is much larger than what a day names: bytes, CPU seconds, memory.

Logs of 7 days, 20 documents per search, items drawn evenly. The first 6 days are built, then the last one is
added, each in a process of its own. Printed are CPU (user + sys, without imports), the peak resident memory
of the second, and a hash of the window's rows in their order, which is the same for any memory and version.
    python benchmarks/engine/bench_daily.py [--impressions 700000] [--items 1000000] [--memory 512MB]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
from bench_check import generate
from bench_window import rows_of

DAYS = 7


def build(logs: Path, out: Path, memory: str, *, last: bool) -> None:
    """Build all days but the last, or add that one; print CPU seconds and peak MB of this process."""
    from crops.config import EngineConfig
    from crops.engine.daily import Job, mine_daily
    from crops.logs import open_logs

    opened = open_logs(logs)
    days = opened.search_days[-1:] if last else opened.search_days[:-1]
    begin = time.process_time()
    mine_daily(opened, out, Job(EngineConfig(memory=memory), None, None), days)
    cpu = time.process_time() - begin
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(cpu, int(peak[1]) * 1024 / 1e6 if peak else float("nan"))


def main() -> None:
    """Build, and print a row of figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--impressions", type=int, default=700_000, help="of all days")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--memory", default="512MB")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "crops-bench-daily")
    parser.add_argument("--run", choices=("first", "last"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    logs, out = given.folder / f"logs-{given.impressions}-{given.items}", given.folder / "out"
    if given.run:
        build(logs, out, given.memory, last=given.run == "last")
        return
    if not logs.exists():
        given.folder.mkdir(parents=True, exist_ok=True)
        generate(logs, given.impressions, given.impressions, dirty=False, days=DAYS, items=given.items)
    shutil.rmtree(out, ignore_errors=True)
    figures = []
    for run in ("first", "last"):
        command = [sys.executable, __file__, *sys.argv[1:], "--run", run]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(done.stderr[-1500:])
        figures.append([float(number) for number in done.stdout.split()[-2:]])
    day, window = max(out.glob("day=*")), out / "window"
    files = [day / "items.parquet", window / "items.parquet"]
    named, known = (pq.read_metadata(file).num_rows for file in files)
    size = [sum(file.stat().st_size for file in one.rglob("*.parquet")) / 1e6 for one in (day, window, out)]
    print(
        "| limit | items of a day, of the window | MB: a day, window, build | CPU s: 6 days, the last "
        "| peak MB | rows |"
    )
    print(
        f"| {given.memory} | {named:,}, {known:,} | {size[0]:.1f}, {size[1]:.1f}, {size[2]:.1f} "
        f"| {figures[0][0]:.1f}, {figures[1][0]:.1f} | {figures[1][1]:.0f} | {rows_of(window)[1]} |"
    )


if __name__ == "__main__":
    main()
