"""What the mining found, in numbers: `report.json`.

All counts of pairs are distinct (query, item) pairs unless a key says events.
"""

from __future__ import annotations

from typing import Any

from crops.config import EngineConfig
from crops.engine.backend import DuckDBBackend
from crops.engine.search import stage_sql
from crops.labels import DEFAULT_LABELS, POSITIVE_LABEL, Source, parse_sources

_STAGES = (Source.CLICKED, Source.EXPOSED, Source.UNEXPOSED, Source.FILTERED)
_POSITIVE_SOURCES = {"p0": Source.CLICKED, "p1": Source.REFORMULATION, "p2": Source.FEED}
_SHOWN = (Source.CLICKED | Source.EXPOSED).value


def build_report(
    backend: DuckDBBackend, config: EngineConfig, *, theta: bool, similarity: bool
) -> dict[str, Any]:
    """Return the report of a finished job.

    Args:
        backend: holds the tables of the job.
        config: its settings.
        theta: whether a relevance scorer filtered P1 and P2.
        similarity: whether a similarity scorer filtered P1.

    Returns:
        `days`, `input` (rows read), `sources` (candidates -> after each filter -> kept), `labels`, `novelty`
        (share of real positives that the system never showed for that query), `rescued` (P1 and P2 positives
        that search alone would have called negatives, by that label), `p3_coverage`, `notes`.
    """
    report = {
        "days": [row["day"] for row in backend.rows("select distinct day from searches order by day")],
        "input": _input(backend),
        "sources": _sources(backend, config, theta, similarity),
        "labels": _labels(backend),
        "novelty": _novelty(backend),
        "rescued": _rescued(backend),
        "p3_coverage": _coverage(backend),
    }
    return {**report, "notes": _notes(report, config)}


def _input(backend: DuckDBBackend) -> dict[str, Any]:
    clicked = f"select distinct search_id from impressions where source = {Source.CLICKED.value}"
    counts = _counts(
        backend,
        {
            "searches": "select search_id from searches",
            "searches_without_click": f"select search_id from searches where search_id not in ({clicked})",
            "queries": "select query_id from queries",
            "users": "select distinct user_id from searches",
            "feed_events": "select item_id from log_feed",
            "feed_events_consumed": "select item_id from feed",
            "items": "select item_id from log_items",
        },
    )
    stages = backend.rows("select stage, count(*) as n from log_impressions group by stage order by stage")
    return {**counts, "impressions": {row["stage"]: row["n"] for row in stages}}


def _sources(backend: DuckDBBackend, config: EngineConfig, theta: bool, similarity: bool) -> dict[str, Any]:
    considered, kept = _by_stage(backend, "pairs"), _by_stage(backend, "search_samples")
    p1, p2 = (f"source = {source.value}" for source in (Source.REFORMULATION, Source.FEED))
    counted_p1 = {
        "candidates": _pairs("p1_found"),
        "after_similarity": _pairs("p1_similar"),
        "after_relevance": _pairs("relevant", p1),
        "kept": _pairs("positives", p1),
    }
    counted_p2 = {
        "candidates": _pairs("p2_found"),
        "after_relevance": _pairs("relevant", p2),
        "kept": _pairs("positives", p2),
    }
    counted_p3 = {
        "candidates": _pairs("generated"),
        "of_mined_queries": _pairs("generated", "query_id in (select query_id from queries)"),
        "kept": _pairs("p3"),
    }
    return {
        "search": {stage: {"candidates": considered[stage], "kept": kept[stage]} for stage in considered},
        "p1": {
            "similarity": config.reformulation.similarity if similarity else "none",
            "theta": config.reformulation.relevance if theta else "none",
            **_counts(backend, counted_p1),
        },
        "p2": {"theta": config.feed.relevance if theta else "none", **_counts(backend, counted_p2)},
        "p3": _counts(backend, counted_p3),
    }


def _counts(backend: DuckDBBackend, queries: dict[str, str]) -> dict[str, int]:
    """Return the number of rows of each query, asked for in one statement."""
    columns = (f"(select count(*) from ({query}) c) as {name}" for name, query in queries.items())
    return backend.rows(f"select {', '.join(columns)}")[0]


def _pairs(table: str, where: str = "1 = 1") -> str:
    return f"select distinct query_id, item_id from {table} where {where}"


def _by_stage(backend: DuckDBBackend, table: str) -> dict[str, int]:
    stage = stage_sql("sources")
    rows = backend.rows(f"select {stage} as stage, count(*) as n from {table} group by {stage}")
    counts = {row["stage"]: row["n"] for row in rows}
    return {str(stage.name).lower(): counts.get(stage.value, 0) for stage in _STAGES}


def _labels(backend: DuckDBBackend) -> dict[str, int]:
    rows = backend.rows("select label, count(*) as n from samples group by label order by label desc")
    return {str(row["label"]): row["n"] for row in rows}


def _novelty(backend: DuckDBBackend) -> dict[str, Any]:
    chosen = {name: f"(s.sources & {source.value}) <> 0" for name, source in _POSITIVE_SOURCES.items()}
    chosen["all"] = f"s.label >= {POSITIVE_LABEL} and s.item_id > 0"
    never = f"(coalesce(p.sources, 0) & {_SHOWN}) = 0"
    columns = ", ".join(
        f"count(case when {which} then 1 end) as all_{name}, "
        f"count(case when {which} and {never} then 1 end) as new_{name}"
        for name, which in chosen.items()
    )
    row = backend.rows(
        f"""
        select {columns} from samples s
        left join pairs p on p.query_id = s.query_id and p.item_id = s.item_id
        """
    )[0]
    return {
        name: {
            "positives": row[f"all_{name}"],
            "never_shown": row[f"new_{name}"],
            "share": _share(row[f"new_{name}"], row[f"all_{name}"]),
        }
        for name in chosen
    }


def _rescued(backend: DuckDBBackend) -> dict[str, int]:
    """Count the P1 and P2 positives that search alone would have called negatives, by that label."""
    stage = stage_sql("p.sources")
    rows = backend.rows(
        f"""
        select {stage} as stage, count(*) as n
        from (select distinct query_id, item_id from positives) k
        join pairs p on p.query_id = k.query_id and p.item_id = k.item_id
        group by {stage}
        """
    )
    counts = {row["stage"]: row["n"] for row in rows}
    by_label = {str(DEFAULT_LABELS[stage]): counts.get(stage.value, 0) for stage in _STAGES[1:]}
    return {"pairs": sum(by_label.values()), **by_label}


def _coverage(backend: DuckDBBackend) -> dict[str, Any]:
    """Count the mined queries with a generated document, and the samples that are generated."""
    count = _counts(
        backend,
        {
            "queries": "select query_id from queries",
            "covered": "select distinct query_id from p3",
            "generated": "select item_id from p3",
            "samples": "select item_id from samples",
        },
    )
    return {
        "queries": count["queries"],
        "with_generation": count["covered"],
        "without_generation": count["queries"] - count["covered"],
        "share_of_queries": _share(count["covered"], count["queries"]),
        "samples": count["generated"],
        "share_of_samples": _share(count["generated"], count["samples"]),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _notes(report: dict[str, Any], config: EngineConfig) -> list[str]:
    """Return a sentence for everything that was asked for and could not be done."""
    wanted, rows, sources = parse_sources(config.sources), report["input"], report["sources"]
    mined = {name for name, source in _POSITIVE_SOURCES.items() if source & wanted and name != "p0"}
    notes = [
        f"no {stage.name.lower()} documents in the logs: label {DEFAULT_LABELS[stage]} is absent"
        for stage in (Source.UNEXPOSED, Source.FILTERED)
        if stage & wanted and stage.name and not rows["impressions"].get(stage.name.lower())
    ]
    if "p2" in mined and not rows["feed_events"]:
        notes.append("no feed events on these days: P2 is absent")
    notes += [
        f"{name.upper()}: theta = none, candidates are not filtered by relevance"
        for name in sorted(mined)
        if sources[name]["theta"] == "none"
    ]
    if "p1" in mined and sources["p1"]["similarity"] == "none":
        notes.append("P1: later queries are not filtered by similarity")
    if Source.KNOWLEDGE & wanted and not sources["p3"]["of_mined_queries"]:
        notes.append("no generated document for any of these queries: P3 is absent")
    return notes
