"""Merging the window of a daily build: 7 days of synthetic samples that share queries and pairs in part.

Prints CPU seconds (user + sys) and peak resident memory of the merge alone, in a process of its own, and a
hash of the rows in their order, which is the same for any memory and version.
"""

from __future__ import annotations

import argparse
import hashlib
import json
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

from crops.database import open_database
from crops.schema import EVIDENCE, ITEMS, QUERIES, SAMPLES, SYNTHETIC_ITEMS

DAYS = [f"2026-01-{day:02d}" for day in range(5, 12)]
TABLES = (SAMPLES, QUERIES, EVIDENCE, ITEMS, SYNTHETIC_ITEMS)
SOURCES, LABELS = np.array([1, 2, 4, 16, 32]), np.array([4, 3, 2, 5, 4])


def make_days(folder: Path, samples: int, documents: int) -> Path:
    """Write a build of 7 mined days with so many samples each: some 20 of the `documents` of a query."""
    out = folder / f"build-{samples}-{documents}"
    for number, day in enumerate([] if out.exists() else DAYS):
        rng = np.random.default_rng(number)
        pool = np.random.default_rng(99).integers(-(2**63), 2**63 - 1, samples // 12)
        queries = np.unique(rng.choice(pool, samples // 20))
        drawn = np.stack([rng.choice(len(queries), samples), rng.integers(0, documents, samples)])
        query, item = np.unique(drawn, axis=1)
        item = (queries[query] // 64 + 7919 * item) % (samples // 10) + 1
        query, item = np.unique(np.stack([query, item]), axis=1)
        kind = rng.integers(0, 5, len(query))
        n = len(query)
        pairs = {"query_id": queries[query], "item_id": item, "sources": SOURCES[kind]}
        spoken = np.flatnonzero(kind >= 3)
        items = np.arange(1, samples // 10)
        texts = [f"title {number} of {one} with some more words on it" for one in items]
        rows = {
            SAMPLES: {**pairs, "label": LABELS[kind], "weight": np.ones(n)},
            QUERIES: {
                "query_id": queries,
                "query": [f"query number {one}" for one in queries],
                "searches": np.ones(len(queries), int),
                "users": np.ones(len(queries), int),
            },
            EVIDENCE: {
                "query_id": pairs["query_id"][spoken],
                "item_id": item[spoken],
                "source": SOURCES[kind[spoken]],
                "search_id": rng.integers(0, 2**60, len(spoken)),
                "day": [day] * len(spoken),
            },
            ITEMS: {"item_id": items, "ocr_cover": texts, "photo_caption": texts, "keyword": texts},
            SYNTHETIC_ITEMS: {"item_id": np.zeros(0, int)},
        }
        target = out / f"day={day}"
        target.mkdir(parents=True)
        for table, columns in rows.items():
            schema, size = table.arrow(), len(columns.get("query_id", columns.get("item_id")))
            made = [
                pa.array(columns[field.name]).cast(field.type)
                if field.name in columns
                else pa.nulls(size, field.type)
                for field in schema
            ]
            pq.write_table(
                pa.table(made, schema=schema), target / f"{table.name}.parquet", row_group_size=122_880
            )
        facts = {"command": "mine", "seed": 0, "logs": "/none", "generated": None, "scorers": {}}
        (target / "manifest.json").write_text(json.dumps(facts))
        report = {"days": [day], "input": {"users": 1, "items": 1, "queries": 1}, "pairs": []}
        (target / "report.json").write_text(json.dumps({**report, "novelty": {}, "notes": []}))
    return out


def merge(out: Path, memory: str, engine: str) -> None:
    """Merge the days in this process, and print its figures."""
    from crops.config import EngineConfig
    from crops.engine.daily import merge_window

    begin = time.process_time()
    merge_window(out, EngineConfig(memory=memory, engine=engine, master="local[2]"), {})
    cpu = time.process_time() - begin
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(cpu, int(peak[1]) * 1024 / 1e6 if peak else float("nan"))


def rows_of(window: Path) -> tuple[int, str]:
    """Return the number of samples, and a hash of all rows of all tables in their order."""
    found = hashlib.sha256()
    with open_database("2GB", tempfile.gettempdir()) as database:
        for table in TABLES:
            file = window / f"{table.name}.parquet"
            reader = database.sql(f"from read_parquet('{file}')").to_arrow_reader(100_000)
            for batch in reader:
                for row in batch.to_pylist():
                    found.update(repr(row).encode())
    return pq.read_metadata(window / "samples.parquet").num_rows, found.hexdigest()[:16]


def main() -> None:
    """Merge a window, and print a row of figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=500_000, help="of each of the 7 days")
    parser.add_argument(
        "--documents", type=int, default=40, help="of a query: with more of them days share fewer pairs"
    )
    parser.add_argument("--memory", default="512MB")
    parser.add_argument("--engine", default="duckdb", choices=("duckdb", "spark"))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "crops-bench-window")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    out = make_days(given.folder, given.samples, given.documents)
    if given.run:
        merge(out, given.memory, given.engine)
        return
    subprocess.run(["rm", "-rf", str(out / "window")], check=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--run"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(done.stderr[-1500:])
    cpu, peak = map(float, done.stdout.split()[-2:])
    samples, found = rows_of(out / "window")
    print(
        "| limit | samples of the days | of the window | CPU s | peak MB | rows |\n|---|---|---|---|---|---|"
    )
    days = sum(pq.read_metadata(file).num_rows for file in out.glob("day=*/samples.parquet"))
    print(f"| {given.memory} | {days:,} | {samples:,} | {cpu:.1f} | {peak:.0f} | {found} |")


if __name__ == "__main__":
    main()
