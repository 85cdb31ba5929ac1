"""What the mining found, in numbers: `report.json`.

All counts of pairs are distinct (query, item) pairs unless a key says events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from crops.config import EngineConfig
from crops.engine.backend import Backend
from crops.labels import (
    DEFAULT_LABELS,
    POSITIVE_LABEL,
    POSITIVE_ORIGINS,
    SEARCH_SOURCES,
    SEARCH_STAGES,
    Source,
    parse_sources,
)

_POSITIVE_SOURCES = {row.key: row.bit for row in POSITIVE_ORIGINS if row.bit is not Source.KNOWLEDGE}

_SHOWN = Source.CLICKED | Source.EXPOSED

BOT_LIKE = "bot-like users"

"""What the note on them names."""


def build_report(
    backend: Backend, config: EngineConfig, census: Census, *, theta: bool, similarity: bool
) -> dict[str, Any]:
    """Return the report of a finished job.

    Args:
        backend: holds the tables of the job.
        config: its settings.
        census: the counts of its parts.
        theta: whether a relevance scorer filtered P1 and P2.
        similarity: whether a similarity scorer filtered P1.

    Returns:
        `days`, `input` (rows read), `sources` (candidates -> after each filter -> kept), `labels`, `novelty`
        (share of real positives that the system never showed for that query), `rescued` (P1 and P2 positives
        that search alone would have called negatives, by that label), `pairs` (number of pairs by the bits of
        what the system considered and of the samples' sources), `p3_coverage`, `notes`.
    """
    report = {
        "days": [row["day"] for row in backend.rows("select distinct day from searches order by day")],
        "input": _input(backend),
        "sources": _sources(backend, config, census, theta, similarity),
        "labels": _labels(census),
        "novelty": _novelty(census),
        "rescued": _rescued(census),
        "pairs": pair_counts(census.merged),
        "p3_coverage": _coverage(backend, census),
    }
    return {**report, "notes": _notes(report, config)}


def _input(backend: Backend) -> dict[str, Any]:
    clicked = f"select distinct search_id from impressions where source = {Source.CLICKED.value}"
    counts = _counts(
        backend,
        {
            "searches": "select search_id from searches",
            "searches_without_click": "select s.search_id from searches s "
            f"left join ({clicked}) c on c.search_id = s.search_id where c.search_id is null",
            "queries": "select query_id from queries",
            "users": "select distinct user_id from searches",
            "feed_events": "select item_id from log_feed",
            "feed_events_consumed": "select item_id from feed",
            "items": "select item_id from log_items",
        },
    )
    stages = backend.rows("select stage, count(*) as n from log_impressions group by stage order by stage")
    return {**counts, "impressions": {row["stage"]: row["n"] for row in stages}, "bots": _bots(backend)}


def _bots(backend: Backend) -> dict[str, int]:
    """Count the users left out as bot-like, and their rows."""
    return _counts(
        backend,
        {
            "users": "select user_id from bots",
            "searches": "select search_id from bot_searches",
            "feed_events": "select f.item_id from log_feed f join bots b on b.user_id = f.user_id",
        },
    )


def _sources(
    backend: Backend, config: EngineConfig, census: Census, theta: bool, similarity: bool
) -> dict[str, Any]:
    kept_bits: Counter[int] = Counter()
    for _, sources, n in census.samples():
        kept_bits[sources] += n

    def funnel(source: Source) -> dict[str, int]:
        counters = {
            "candidates": census.candidates,
            "after_relevance": census.relevant,
            "kept": kept_bits,
        }
        return {name: count_bit(counter, source) for name, counter in counters.items()}

    p1 = funnel(Source.REFORMULATION)
    found = _counts(backend, {"n": "select distinct query_id, item_id from p1_found"})["n"]
    counted_p3 = {
        "candidates": _pairs("generated"),
        "of_mined_queries": _pairs("generated", "query_id in (select query_id from queries)"),
    }
    return {
        "search": _search(census),
        "p1": {
            "similarity": config.reformulation.similarity if similarity else "none",
            "theta": config.reformulation.relevance if theta else "none",
            "candidates": found,
            "after_similarity": p1["candidates"],
            "after_relevance": p1["after_relevance"],
            "kept": p1["kept"],
        },
        "p2": {"theta": config.feed.relevance if theta else "none", **funnel(Source.FEED)},
        "p3": {**_counts(backend, counted_p3), "kept": count_bit(kept_bits, Source.KNOWLEDGE)},
    }


def _search(census: Census) -> dict[str, dict[str, int]]:
    counts = {stage: {"candidates": 0, "kept": 0} for stage in SEARCH_STAGES}
    for (considered, sources), n in census.merged.items():
        if considered:
            stage = stage_of(Source(considered))
            counts[stage]["candidates"] += n
            counts[stage]["kept"] += n if sources & SEARCH_SOURCES else 0
    return {str(stage.name).lower(): count for stage, count in counts.items()}


def _counts(backend: Backend, queries: dict[str, str]) -> dict[str, int]:
    """Return the number of rows of each query, asked for in one statement."""
    columns = (f"(select count(*) from ({query}) c) as {name}" for name, query in queries.items())
    return backend.rows(f"select {', '.join(columns)}")[0]


def _pairs(table: str, where: str = "1 = 1") -> str:
    return f"select distinct query_id, item_id from {table} where {where}"


def _labels(census: Census) -> dict[str, int]:
    counts: Counter[int] = Counter()
    for _, sources, n in census.samples():
        counts[label_of(sources)] += n
    return {str(label): counts[label] for label in sorted(counts, reverse=True)}


def _novelty(census: Census) -> dict[str, Any]:
    positives: Counter[str] = Counter()
    never: Counter[str] = Counter()
    for considered, sources, n in census.samples():
        names = [name for name, source in _POSITIVE_SOURCES.items() if sources & source]
        if label_of(sources) >= POSITIVE_LABEL and sources != Source.KNOWLEDGE:
            names.append("all")
        for name in names:
            positives[name] += n
            never[name] += 0 if considered & _SHOWN else n
    return {
        name: {
            "positives": positives[name],
            "never_shown": never[name],
            "share": share(never[name], positives[name]),
        }
        for name in (*_POSITIVE_SOURCES, "all")
    }


def _rescued(census: Census) -> dict[str, int]:
    """Count the P1 and P2 positives that search alone would have called negatives, by that label."""
    counts: Counter[Source] = Counter()
    for considered, sources, n in census.samples():
        if sources & (Source.REFORMULATION | Source.FEED):
            counts[stage_of(considered)] += n
    by_label = {str(DEFAULT_LABELS[stage]): counts[stage] for stage in SEARCH_STAGES[1:]}
    return {"pairs": sum(by_label.values()), **by_label}


def pair_counts(merged: Counter[tuple[int, int]]) -> list[dict[str, int]]:
    """Return the rows of `pairs` from the pairs by (considered, sources)."""
    return [
        {"considered": considered, "sources": sources, "pairs": merged[considered, sources]}
        for considered, sources in sorted(merged)
    ]


def _coverage(backend: Backend, census: Census) -> dict[str, Any]:
    """Count the mined queries with a generated document, and the samples that are generated."""
    count = _counts(
        backend,
        {"queries": "select query_id from queries", "covered": "select distinct query_id from p3"},
    )
    samples = sum(n for *_, n in census.samples())
    generated = sum(n for _, sources, n in census.samples() if sources & Source.KNOWLEDGE)
    return p3_coverage(samples=samples, generated=generated, **count)


def p3_coverage(*, queries: int, covered: int, samples: int, generated: int) -> dict[str, Any]:
    """Return how far generated documents reach: queries that have one, samples that are one."""
    return {
        "queries": queries,
        "with_generation": covered,
        "without_generation": queries - covered,
        "share_of_queries": share(covered, queries),
        "samples": generated,
        "share_of_samples": share(generated, samples),
    }


def share(part: int, whole: int) -> float | None:
    """Return a share to six digits, None of nothing."""
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
    missing = sorted(set(config.days or ()) - set(report["days"]))
    if missing:
        notes.append(f"no searches on {', '.join(missing)}")
    if rows["bots"]["users"]:
        bots = rows["bots"]
        notes.append(
            f"{bots['users']} {BOT_LIKE} left out, with {bots['searches']} searches and "
            f"{bots['feed_events']} feed events"
        )
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


# ------------------------------------------------------------------------------
# Counts of a mining job that add up over its parts.


@dataclass
class Census:
    """Distinct pairs by where they come from; parts of a job are disjoint in their queries."""

    merged: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Pairs by (bits of what the system considered, bits of what was kept)."""
    candidates: Counter[int] = field(default_factory=Counter)
    """P1 (after similarity) and P2 pairs by bits."""
    relevant: Counter[int] = field(default_factory=Counter)
    """The same above alpha."""

    def add(self, backend: Backend) -> None:
        """Count the part that the backend holds."""
        for row in backend.rows(
            "select considered, sources, count(*) as n from merged group by considered, sources"
        ):
            self.merged[row["considered"], row["sources"]] += row["n"]
        for counter, table in ((self.candidates, "candidate_pairs"), (self.relevant, "scored_pairs")):
            for row in backend.rows(f"select sources, count(*) as n from {table} group by sources"):
                counter[row["sources"]] += row["n"]

    def samples(self) -> Iterator[tuple[Source, Source, int]]:
        """Yield (considered, sources, pairs) of the samples."""
        for (considered, sources), n in self.merged.items():
            if sources:
                yield Source(considered), Source(sources), n


def count_bit(counter: Counter[int], source: Source) -> int:
    """Return the pairs that have the bit of `source`."""
    return sum(n for bits, n in counter.items() if bits & source)


def stage_of(considered: Source) -> Source:
    """Return the highest search bit, 0 for none."""
    return next((stage for stage in SEARCH_STAGES if considered & stage), Source(0))


def label_of(sources: Source) -> int:
    """Return the highest label among the bits."""
    return max(label for source, label in DEFAULT_LABELS.items() if sources & source)
