"""`crops check`: rows per CPU-second and peak memory, beside a plain copy of the same logs by DuckDB.

Each run is a process of its own on one core; CPU is user + system time without imports, memory the peak
resident set of the process with them (VmHWM). Logs of 4 days, 20 documents per search; `dirty` has faults in
every file of impressions, `clean` has none. `check` writes accepted rows and rejects, `report` only
reports; `copy` is DuckDB's partitioned COPY of the same rows: no rule, no key, no rejects. With `--again`
dirty logs of 8 days: all of them into a new folder, and the last day added to the checked seven before it.
    python benchmarks/engine/bench_check.py [--rows 1000000] [--rounds 5] [--again]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb

ITEMS = 100_000
START_US = 1_767_225_600_000_000
"""2026-01-01 UTC."""
DAY_US = 86_400_000_000
DAYS = 4


def generate(
    folder: Path, impressions: int, feed: int, *, dirty: bool, days: int = DAYS, items: int = ITEMS
) -> None:
    """Write logs; if dirty, one search of 1,000 has a blank query and one impression of 1,500 a rank of 0."""
    folder.mkdir()
    blank = "case when hash(s) % 1000 = 0 then '  ' else 'how to query ' || (hash(s) % 20000) end"
    query = blank if dirty else "'how to query ' || (hash(s) % 20000)"
    rank = "case when h % 1500 = 1 then 0 else k + 1 end" if dirty else "k + 1"
    span = days * DAY_US
    searched = f"{START_US} + (s * {span} // {max(1, impressions // 20)})::BIGINT"
    watched = f"{START_US} + (i * {span} // {max(1, feed)})::BIGINT"
    with duckdb.connect() as connection:
        connection.execute(f"""copy (select i + 1 as item_id, 'title of item ' || i as ocr_cover,
            'a caption of about forty letters ' || i % 1000 as photo_caption, 'tag' || i % 50 as keyword,
            20000::BIGINT as duration_ms from range({items}) t(i)) to '{folder}/items.parquet'""")
        connection.execute(f"""copy (select (hash(s) % {impressions // 100})::BIGINT as user_id,
            s as search_id, {query} as query, {searched} as searched_at,
            1 + ((hash(s) + k * 7) % {items})::BIGINT as item_id,
            case when k < 10 then 'exposed' when k < 15 then 'unexposed' else 'filtered' end as stage,
            (case when k < 10 then {rank} end)::INTEGER as rank, (h % 1000) / 1000.0 as pre_score,
            (h % 8)::BIGINT as routes, 'a' as arm, k < 10 and h % 7 = 0 as clicked, false as liked,
            case when k < 10 and h % 7 = 0 then (h % 60000)::BIGINT end as play_ms,
            20000::BIGINT as duration_ms, strftime(make_timestamp({searched}), '%Y-%m-%d') as day
            from (select i // 20 as s, i % 20 as k, hash(i) as h from range({impressions}) t(i)))
            to '{folder}/search_impressions' (format parquet, partition_by (day))""")
        if feed:
            connection.execute(f"""copy (select (h % {feed // 100})::BIGINT as user_id,
                1 + (h // 7 % {items})::BIGINT as item_id, {watched} as watched_at,
                (h % 60000)::BIGINT as play_ms, 20000::BIGINT as duration_ms, h % 50 = 0 as liked,
                strftime(make_timestamp({watched}), '%Y-%m-%d') as day
                from (select i, hash(i + 7) as h from range({feed}) t(i)))
                to '{folder}/feed_events' (format parquet, partition_by (day))""")


def check(logs: Path, out: Path | None) -> int:
    """Check, with output or only reporting; return the rows."""
    from crops.logs import check as run

    return sum(table.rows for table in run(logs, out).tables.values())


def copy(logs: Path, out: Path) -> int:
    """Copy the rows as DuckDB does it by itself."""
    rows = 0
    with duckdb.connect(config={"memory_limit": "2GB", "threads": 1}) as connection:
        for table in ("items", "search_impressions", "feed_events"):
            files = sorted(str(file) for file in logs.rglob("*.parquet") if table in str(file))
            if files:
                partition = "" if table == "items" else ", partition_by (day)"
                written = connection.execute(
                    f"copy (from read_parquet({files})) to '{out}-{table}' (format parquet{partition})"
                )
                rows += written.fetchall()[0][0]
    return rows


def measure(what: str, logs: Path, out: Path) -> dict[str, float]:
    """Run in this process and print what it took."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import crops.logs  # noqa: F401  (imports are not part of the figure)

    before = cpu()
    rows = copy(logs, out) if what == "copy" else check(logs, out if what == "check" else None)
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return {"rows": rows, "cpu": cpu() - before, "mb": peak}


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="check again what is checked")
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "LOGS", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], Path(arguments.one[1]), Path(arguments.one[2]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        (again if arguments.again else compare)(Path(folder), arguments.rows, arguments.rounds)


def compare(folder: Path, rows: int, rounds: int) -> None:
    """Interleave the runs and print their medians."""
    shapes = {
        "impressions, dirty": (0, True),
        "impressions + feed, dirty": (rows, True),
        "impressions + feed, clean": (rows, False),
    }
    for name, (feed, dirty) in shapes.items():
        generate(folder / name, rows, feed, dirty=dirty)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(rounds):
        for name in shapes:
            for what in ("check", "report", "copy"):
                run = in_a_process(what, folder / name, folder / f"out {number} {what} {name}")
                found.setdefault((name, what), []).append(run)
    tell(found)


def again(folder: Path, rows: int, rounds: int) -> None:
    """Check all days, all but the last, all after these, and all once more; print the medians."""
    logs, last, found = folder / "logs", [], {}
    generate(logs, rows, rows, dirty=True, days=8)
    for table in ("search_impressions", "feed_events"):
        last.append(max((logs / table).glob("day=*")))
    for number in range(rounds):
        runs = {"all 8 days": in_a_process("check", logs, folder / f"all {number}")}
        for day in last:
            day.rename(folder / day.parent.name)
        runs["the first 7 days"] = in_a_process("check", logs, folder / f"out {number}")
        for day in last:
            (folder / day.parent.name).rename(day)
        runs["the eighth added"] = in_a_process("check", logs, folder / f"out {number}")
        runs["nothing new"] = in_a_process("check", logs, folder / f"out {number}")
        for what, run in runs.items():
            found.setdefault(("impressions + feed, dirty", what), []).append(run)
    tell(found)


def in_a_process(what: str, logs: Path, out: Path) -> dict[str, float]:
    """Run in a process of its own; return what it took."""
    command = [sys.executable, __file__, "--one", what, str(logs), str(out)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    took: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return took


def tell(found: dict[tuple[str, str], list[dict[str, float]]]) -> None:
    """Print the medians."""
    print("| logs | run | rows | CPU s | M rows per CPU s | peak MB |\n|---|---|---|---|---|---|")
    for (name, what), runs in found.items():
        seconds, peak = (statistics.median(run[key] for run in runs) for key in ("cpu", "mb"))
        total = int(runs[0]["rows"])
        print(f"| {name} | {what} | {total:,} | {seconds:.2f} | {total / seconds / 1e6:.2f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
