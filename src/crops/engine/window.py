"""The rolling window of a daily build: days merged, older ones at a lower weight."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from crops.config import DecayConfig, EngineConfig
from crops.engine.backend import DuckDBBackend
from crops.engine.content import CONTENT, read_content, write_content
from crops.engine.report import p3_coverage
from crops.engine.tables import columns_sql
from crops.engine.totals import add_reports
from crops.labels import DEFAULT_LABELS, SOURCE_GROUPS, Source
from crops.logs.days import days_before
from crops.outputs import console, publish, read_manifest, recorded, timed, write_manifest
from crops.schema import EVIDENCE, ITEMS, QUERIES, SAMPLES, SYNTHETIC_ITEMS, Table

WINDOW = "window"
"""Folder of the merged days, beside theirs."""
REPORT = "report.json"
_DAY = re.compile(r"day=(\d{4}-\d\d-\d\d)")


def day_folder(out: Path, day: str) -> Path:
    """Return the folder of a day of a daily build."""
    return out / f"day={day}"


def built_days(out: Path) -> list[str]:
    """Return the days of a daily build, YYYY-MM-DD, sorted."""
    found = (_DAY.fullmatch(path.name) for path in out.glob("day=*"))
    return sorted(match[1] for match in found if match)


def merge_window(out: Path, config: EngineConfig) -> dict[str, Any]:
    """Merge the last `config.daily.window` calendar days of a build into `out`/window, if they changed.

    Per pair the sources of all days are united and the highest label wins. Its weight is that of its freshest
    reason: the largest w * decay(s) ^ age over the days and sources s that earned this label, where w is the
    weight on that day, age its distance to the last day in days. `searches` of a query is the sum over the
    days; `users`, where the days cannot be told apart, the largest of a day: a lower bound. Of an item, the
    latest day's row counts. Folders of days before the window are removed, and named.

    Args:
        out: folder of the daily build.
        config: window, decay and memory.

    Returns:
        the report: labels and `p3_coverage` of the window, other counts summed over days.

    Raises:
        CropsError: memory or disk is not enough (the old window stays).
    """
    built = built_days(out)
    if not built:
        discard(out / WINDOW)
        return {}
    first = days_before(built[-1], config.daily.window - 1)
    days = [day for day in built if day >= first]
    expired = [day for day in built if day < first]
    for day in expired:
        what = _left(day, first, built[-1])
        console.print(f"[yellow]{day_folder(out, day)} is removed:[/yellow] {what}", soft_wrap=True)
    state = {
        "parts": {day: read_content(day_folder(out, day)) for day in days},
        "daily": config.daily.model_dump(mode="json"),
    }
    if not _is_current(out / WINDOW, state):
        _publish_window(out, days, config, state, [_left(day, first, built[-1]) for day in expired])
    for day in expired:
        discard(day_folder(out, day))
    report: dict[str, Any] = json.loads((out / WINDOW / REPORT).read_text())
    return report


def _left(day: str, first: str, last: str) -> str:
    return f"{day} left the window ({first} to {last})"


def discard(folder: Path) -> None:
    """Remove a folder of a build, if it is there: for a reader it goes as a whole."""
    if folder.exists():
        gone = folder.rename(folder.with_name(f".{folder.name}.tmp"))
        shutil.rmtree(gone)


def _is_current(window: Path, state: dict[str, Any]) -> bool:
    if not (window / CONTENT).exists():
        return False
    manifest = read_manifest(window, "mine")
    return all(manifest.get(name) == value for name, value in state.items())


def _publish_window(
    out: Path, days: Sequence[str], config: EngineConfig, state: dict[str, Any], left: Sequence[str]
) -> None:
    parts = {day: day_folder(out, day) for day in days}
    missing = _missing(days)
    if missing:
        console.print(f"[yellow]no build of {', '.join(missing)}:[/yellow] the window goes on without")
    seconds: dict[str, float] = {}
    with publish(out / WINDOW, "mine") as folder:
        with timed(seconds, f"window of {len(days)} days"):
            coverage, labels = _write_tables(parts, folder, config)
        reports = [json.loads((part / REPORT).read_text()) for part in parts.values()]
        report = {**add_reports(reports), "labels": labels, "p3_coverage": coverage}
        report["input"]["queries"] = coverage["queries"]
        report["notes"] += [f"no build of {day}: the window goes on without" for day in missing]
        report["notes"] += left
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        last = read_manifest(parts[days[-1]], "mine")
        engine = config.model_copy(update={"days": tuple(days)}).model_dump(mode="json", exclude_none=True)
        write_manifest(
            folder,
            "mine",
            config={"seed": last["seed"], "engine": engine},
            seconds=seconds,
            **{name: last[name] for name in ("generated", "scorers")},
            logs=_logs_of(parts[days[-1]]),
            days=list(days),
            missing_days=missing,
            logs_of_days={day: _logs_of(part) for day, part in parts.items()},
            **state,
        )
        write_content(folder, config.memory)


def _logs_of(part: Path) -> str:
    """Return where the logs of a day are now."""
    manifest = read_manifest(part, "mine")
    return str(recorded(manifest["logs"], part, manifest.get("made_in")))


def _missing(days: Sequence[str]) -> list[str]:
    first, last = date.fromisoformat(days[0]), date.fromisoformat(days[-1])
    between = ((first + timedelta(days=age)).isoformat() for age in range((last - first).days))
    return [day for day in between if day not in days]


def _write_tables(
    parts: Mapping[str, Path], folder: Path, config: EngineConfig
) -> tuple[dict[str, Any], dict[str, int]]:
    """Write the merged tables; return the coverage of P3 and the samples by label."""
    last = date.fromisoformat(max(parts))
    ages = {day: (last - date.fromisoformat(day)).days for day in parts}
    merged = {
        SAMPLES: (samples_sql(ages, config.daily.decay), "r.query_id, r.item_id"),
        QUERIES: (_QUERIES.format(_union(QUERIES, ages)), "r.query_id"),
        EVIDENCE: (
            _union(EVIDENCE, ages),
            "r.query_id, r.item_id, r.source, r.day, r.search_id nulls last, r.via_query_id nulls last, "
            "r.watched_at nulls last",
        ),
        ITEMS: (_latest(ITEMS, ages), "r.item_id"),
        SYNTHETIC_ITEMS: (_latest(SYNTHETIC_ITEMS, ages), "r.item_id"),
    }
    with DuckDBBackend(config.memory) as backend:
        for table, (rows, order) in merged.items():
            for day, part in parts.items():
                backend.read_parquet(_name(table, ages[day]), [part / f"{table.name}.parquet"], table.arrow())
            target = folder / f"{table.name}.parquet"
            backend.emit(f"select {columns_sql(table, {})} from ({rows}) r", order, target)
            backend.write(target)
            backend.read_parquet(table.name, [target], table.arrow())
        count = backend.rows(_COVERAGE)[0]
        labels = backend.rows("select label, count(*) as n from samples group by label order by label desc")
    return p3_coverage(**count), {str(row["label"]): row["n"] for row in labels}


_QUERIES = """
select query_id, min(query) as query, sum(searches) as searches, max(users) as users
from ({}) d group by query_id
"""

_COVERAGE = f"""
select (select count(*) from queries) as queries,
    (select count(distinct query_id) from samples where (sources & {Source.KNOWLEDGE.value}) <> 0) as covered,
    (select count(*) from samples) as samples,
    (select count(*) from samples where (sources & {Source.KNOWLEDGE.value}) <> 0) as generated
"""


def samples_sql(ages: Mapping[str, int], decay: DecayConfig) -> str:
    """Return the SELECT of the merged samples.

    Args:
        ages: age in days of each day, whose samples are the table samples_<age>.
        decay: factor per day of age, by source.
    """
    rates = {
        bit: getattr(decay, group) for group, bits in SOURCE_GROUPS.items() for bit in Source if bit & bits
    }
    fresh = " union all ".join(
        f"select query_id, item_id, label, sources, weight * greatest({_freshness(rates, age)}) as weight "
        f"from {_name(SAMPLES, age)}"
        for age in ages.values()
    )
    levels = sorted(set(DEFAULT_LABELS.values()), reverse=True)
    heaviest = ", ".join(f"max(case when label = {level} then weight end)" for level in levels)
    return f"""
    select query_id, item_id, max(label) as label, bit_or(sources) as sources,
        coalesce({heaviest}) as weight
    from ({fresh}) d group by query_id, item_id
    """


def _freshness(rates: Mapping[Source, float], age: int) -> str:
    # Powers are taken here: engines may differ in the last bit.
    return ", ".join(
        f"case when label = {label} and (sources & {source.value}) <> 0 "
        f"then cast({rates[source] ** age!r} as DOUBLE) else cast(0 as DOUBLE) end"
        for source, label in DEFAULT_LABELS.items()
    )


def _union(table: Table, ages: Mapping[str, int]) -> str:
    return " union all ".join(
        f"select {', '.join(table.names())}, {age} as age from {_name(table, age)}" for age in ages.values()
    )


def _latest(table: Table, ages: Mapping[str, int]) -> str:
    return (
        "select * from (select d.*, row_number() over (partition by item_id order by age) as place "
        f"from ({_union(table, ages)}) d) p where place = 1"
    )


def _name(table: Table, age: int) -> str:
    return f"{table.name}_{age}"
