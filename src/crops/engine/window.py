"""The window of a daily build: mined days merged pair by pair, one range of ids after the other.

The days' files are sorted by id, so a range reads little of each; the ranges follow each other in the order
of the output, and their number changes no row.
"""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from crops.config import DecayConfig, EngineConfig
from crops.database import parquet_files
from crops.engine.backend import MERGE_ROW, Backend, id_sql, query_partitions
from crops.engine.documents import with_click_queries
from crops.engine.mine import open_backend
from crops.engine.mined import columns_sql
from crops.engine.report import p3_coverage, pair_counts, share
from crops.engine.stages import build_key, work_folder
from crops.engine.without import Without, read_catalogues
from crops.labels import DEFAULT_LABELS, SOURCE_GROUPS, Source
from crops.logs import Logs
from crops.schema import EVIDENCE, ITEMS, QUERIES, SAMPLES, SYNTHETIC_ITEMS, Table
from crops.text import document_text_sql


def write_window(
    folders: Mapping[str, Path],
    target: Path,
    window: Path,
    config: EngineConfig,
    *,
    clicks: bool,
    logs: Mapping[str, Logs],
    without: Without | None,
) -> tuple[dict[str, Any], dict[str, int]]:
    """Write the merged tables, on the engine of the build; return the coverage of P3, and samples by label.

    Args:
        folders: the mined days.
        target: the folder to write.
        window: what it becomes: on a cluster the stages of the merge lie beside it.
        config: engine, memory and decay.
        clicks: whether the documents have the click queries of the first day: of no other would they all be
            older than every sample.
        logs: of the days, where they are there: what is in their catalogues is in the window.
        without: whose items are left out of these.

    Raises:
        CropsError: as `crops.engine.mine.open_backend`, or memory or disk is not enough.
    """
    last = date.fromisoformat(max(folders))
    ages = {day: (last - date.fromisoformat(day)).days for day in folders}
    catalogues = _catalogues({ages[day]: of_day for day, of_day in logs.items()})
    # At one age the catalogue, which is read now, counts before the row that the day has kept.
    items = _latest(ITEMS, {name: 2 * age for name, (age, _) in catalogues.items()} | _places(ITEMS, ages))
    if clicks:
        items = with_click_queries(f"({items})", f"items_{max(ages.values())}")
    merged = {
        SAMPLES: (samples_sql(ages, config.daily.decay), "r.query_id, r.item_id"),
        QUERIES: (
            "select query_id, min(query) as query, sum(searches) as searches, max(users) as users "
            f"from ({_union(QUERIES, ages)}) d group by query_id",
            "r.query_id",
        ),
        EVIDENCE: (
            _union(EVIDENCE, ages),
            "r.query_id, r.item_id, r.source, r.day, r.search_id nulls last, r.via_query_id nulls last, "
            "r.watched_at nulls last",
        ),
        ITEMS: (items, "r.item_id"),
        SYNTHETIC_ITEMS: (_latest(SYNTHETIC_ITEMS, _places(SYNTHETIC_ITEMS, ages)), "r.item_id"),
    }
    tables = {
        table: {age: folders[day] / f"{table.name}.parquet" for day, age in ages.items()} for table in merged
    }
    files = {
        table: [file for path in of_days.values() for file in parquet_files(path)]
        for table, of_days in tables.items()
    }
    work = work_folder(window)
    with open_backend(config) as backend:
        rows_of = [of_day.tables[ITEMS.name] for _, of_day in catalogues.values()]
        named = [file for part in rows_of for file in part.files]
        local = [file for file in named if isinstance(file, Path)]
        backend.check_workers(target, None, [], [*(paths[0] for paths in files.values()), *local])
        read = [file for paths in files.values() for file in paths]
        settings = (ages, config.daily.model_dump(mode="json"), clicks, without and without.digest())
        versions = [(age, of_day.catalogue()) for age, of_day in catalogues.values()]
        backend.keep_in(work, functools.partial(build_key, named, read, *settings, versions))
        read_catalogues(backend, {f"day_{name}": of_day for name, (_, of_day) in catalogues.items()}, without)
        for table, (rows, order) in merged.items():
            for age, path in tables[table].items():
                backend.read_parquet(f"day_{table.name}_{age}", [path], table.arrow())
            key, name = order.removeprefix("r.").partition(",")[0], target / f"{table.name}.parquet"
            names = [f"{table.name}_{age}" for age in ages.values()]
            groups = _file_groups(files[table], key) if backend.memory else []
            if table is ITEMS:
                names += catalogues
                if backend.memory:
                    groups += _row_groups(backend, [f"day_{name}" for name in catalogues])
            for where in _ranges(groups, key, backend.memory):
                _merge_range(backend, table, rows, names, where)
                backend.emit("select * from merged r", order, name)
                backend.drop_tables("merged")
            backend.write(name)
            backend.read_parquet(table.name, [name], table.arrow())
        count = backend.rows(_COVERAGE)[0]
        labels = backend.rows("select label, count(*) as n from samples group by label order by label desc")
    shutil.rmtree(work, ignore_errors=True)
    return p3_coverage(**count), {str(row["label"]): row["n"] for row in labels}


def _catalogues(logs: Mapping[int, Logs]) -> dict[str, tuple[int, Logs]]:
    """Return each distinct catalogue under the name of its rows, with the age of the newest day it is of."""
    found: dict[object, tuple[int, Logs]] = {}
    for age, of_day in sorted(logs.items(), key=lambda one: one[0]):
        files = of_day.tables[ITEMS.name]
        found.setdefault((files.files, files.stamps), (age, of_day))
    return {f"catalogue_{age}": (age, of_day) for age, of_day in found.values()}


def _places(table: Table, ages: Mapping[str, int]) -> dict[str, int]:
    """Return the rows of each day by their name, and when their turn is."""
    return {f"{table.name}_{age}": 2 * age + 1 for age in ages.values()}


def _merge_range(backend: Backend, table: Table, rows: str, names: Sequence[str], where: str) -> None:
    """Make `merged`: the merged rows of a table whose id is in a range."""
    for name in names:
        backend.view(name, f"select * from day_{name} where {where}")
    backend.table("merged", f"select {columns_sql(table)} from ({rows}) r")


Group = tuple[int, int, int]
"""The lowest and the highest id of some rows, and the bytes that merging them takes."""
_CUTS = 256


def _row_groups(backend: Backend, tables: Sequence[str]) -> list[Group]:
    """Return the rows of catalogues, which are in no order, in groups of ids that follow each other."""
    if not tables:
        return []
    # UTF-8 takes up to 3 bytes for what people write.
    size = f"{MERGE_ROW} + 3 * length(coalesce({document_text_sql()}, ''))"
    rows = " union all ".join(f"select item_id, {size} as size from {table}" for table in tables)
    found = backend.rows(
        "select min(item_id) as low, max(item_id) as high, cast(sum(size) as BIGINT) as size from "
        f"(select r.*, ntile({_CUTS}) over (order by item_id) as part from ({rows}) r) p group by part"
    )
    return [(row["low"], row["high"], row["size"]) for row in found]


def _file_groups(files: Iterable[Path], key: str) -> list[Group]:
    """Return the row groups of files."""
    groups = []
    for file in files:
        footer = pq.read_metadata(file)
        column = footer.schema.to_arrow_schema().get_field_index(key)
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            found = group.column(column).statistics
            known = found is not None and found.has_min_max
            low, high = (found.min, found.max) if known else (-(2**63), 2**63 - 1)
            groups.append((low, high, group.num_rows * MERGE_ROW + group.total_byte_size))
    return groups


def _ranges(groups: Sequence[Group], key: str, memory: int | None) -> list[str]:
    """Return SQL conditions on a column of ids that cut groups of rows into ranges that fit into memory.

    They are in ascending order, and about as large as each other: by the bounds of the groups, as if the ids
    within one lay evenly. The rows of one id are never cut.
    """
    number = query_partitions(sum(size for *_, size in groups) // MERGE_ROW, memory)
    if number == 1 or not groups:
        return ["1 = 1"]
    lows, highs, sizes = np.array(groups, np.float64).T
    ends = np.maximum(highs, np.nextafter(lows, np.inf))
    ids = np.unique(np.concatenate([lows, ends]))
    below = np.zeros(len(ids))  # what lies below each id
    for low, end, size in zip(lows, ends, sizes, strict=True):
        below += np.interp(ids, [low, end], [0, size])
    cuts = np.interp(below[-1] * np.arange(1, number) / number, below, ids)
    bounds = [None, *sorted({int(cut) for cut in cuts if abs(cut) < 2.0**63}), None]
    return [
        " and ".join(
            f"{key} {sign} {id_sql(bound)}" for sign, bound in ((">=", low), ("<", high)) if bound is not None
        )
        or "1 = 1"
        for low, high in zip(bounds, bounds[1:], strict=False)
    ]


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
        f"from samples_{age}"
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
        f"select {', '.join(table.names())}, {age} as age from {table.name}_{age}" for age in ages.values()
    )


def _latest(table: Table, turns: Mapping[str, int]) -> str:
    """Return the SELECT of the first row of each id: of the relation whose turn is first."""
    rows = " union all ".join(
        f"select {', '.join(table.names())}, {turn} as turn from {name}" for name, turn in turns.items()
    )
    return (
        "select * from (select d.*, row_number() over (partition by item_id order by turn) as place "
        f"from ({rows}) d) p where place = 1"
    )


def add_reports(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the sum of mining reports of single days: counts are added, settings kept, shares worked out.

    `users` of the input is the largest of a day (days cannot tell whether they saw the same people), `items`
    that of the last day.

    Args:
        reports: see `crops.engine.report.build_report`; of days with the same settings, in their order.
    """
    total: dict[str, Any] = _add(reports)
    total["days"] = [day for report in reports for day in report["days"]]
    total["input"]["users"] = max(report["input"]["users"] for report in reports)
    total["input"]["items"] = reports[-1]["input"]["items"]
    if "without" in total["input"]:
        total["input"]["without"]["items"] = reports[-1]["input"].get("without", {}).get("items", 0)
    pairs: Counter[tuple[int, int]] = Counter()
    for row in (row for report in reports for row in report["pairs"]):
        pairs[row["considered"], row["sources"]] += row["pairs"]
    total["pairs"] = pair_counts(pairs)
    for row in total["novelty"].values():
        row["share"] = share(row["never_shown"], row["positives"])
    total["notes"] = list(dict.fromkeys(note for report in reports for note in report["notes"]))
    if len(reports) > 1:
        total["notes"] += [
            "sources, novelty and rescued are sums over days: a pair found on two days counts twice",
            "users is that of the day with the most: who came on two days is not counted twice",
        ]
    return total


def _add(values: Sequence[Any]) -> Any:  # noqa: ANN401  (any part of a JSON document)
    first = values[0]
    if isinstance(first, dict):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _add([value[name] for value in values if name in value]) for name in names}
    return sum(values) if isinstance(first, int) and not isinstance(first, bool) else first
