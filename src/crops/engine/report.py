"""What a mining found, in numbers: `report.json`, and more for `crops engine-report`.

All counts of pairs are distinct (query, item) pairs unless a key says events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crops.config import EngineConfig
from crops.engine.backend import Backend, DuckDBBackend
from crops.engine.candidates import miners
from crops.engine.mined import Mined, name_searchers, read_mined
from crops.errors import CropsError
from crops.labels import (
    ALL_SOURCES,
    DEFAULT_LABELS,
    POSITIVE_LABEL,
    POSITIVE_ORIGINS,
    SEARCH_SOURCES,
    SEARCH_STAGES,
    Source,
    parse_sources,
)

POSITIVES = {row.key: row.bit for row in POSITIVE_ORIGINS}
"""The sources of positives by their short names."""
_BY_PEOPLE = {key: source for key, source in POSITIVES.items() if source is not Source.KNOWLEDGE}
_SHOWN = Source.CLICKED | Source.EXPOSED
_BOT_LIKE = "bot-like users"
"""What the note on them names."""


@dataclass
class PairCounts:
    """Distinct pairs by where they come from; they add up over the partitions of a job."""

    merged: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Pairs by (bits of what the system considered, bits of what was kept)."""
    candidates: Counter[int] = field(default_factory=Counter)
    """P1 (after similarity) and P2 pairs by bits."""
    relevant: Counter[int] = field(default_factory=Counter)
    """The same above alpha."""

    def add(self, backend: Backend) -> None:
        """Count the partition that the backend holds."""
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


def build_report(
    backend: Backend, config: EngineConfig, counts: PairCounts, *, theta: bool, similarity: bool
) -> dict[str, Any]:
    """Return the report of a finished job.

    Args:
        backend: holds the tables of the job.
        config: its settings.
        counts: what its partitions counted.
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
        "sources": _sources(backend, config, counts, theta, similarity),
        "labels": _labels(counts),
        "novelty": _novelty(counts),
        "rescued": _rescued(counts),
        "pairs": pair_counts(counts.merged),
        "p3_coverage": _reach(backend, counts),
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
    backend: Backend, config: EngineConfig, counts: PairCounts, theta: bool, similarity: bool
) -> dict[str, Any]:
    kept: Counter[int] = Counter()
    for _, sources, n in counts.samples():
        kept[sources] += n
    report: dict[str, Any] = {"search": _search(counts)}
    for row, miner in miners(ALL_SOURCES).items():
        settings = getattr(config, row.section)
        after = {"after_relevance": count_bit(counts.relevant, row.bit), "kept": count_bit(kept, row.bit)}
        numbers: dict[str, Any] = {"theta": settings.relevance if theta else "none"}
        numbers["candidates"] = count_bit(counts.candidates, row.bit)
        if miner.same_intent:
            found = (
                _pairs(f"{row.key}_found") if row.bit & parse_sources(config.sources) else "select 1 limit 0"
            )
            after = {"after_similarity": numbers["candidates"], **after}
            numbers["candidates"] = _counts(backend, {"n": found})["n"]
            numbers = {"similarity": settings.similarity if similarity else "none", **numbers}
        report[row.key] = {**numbers, **after}
    generated = {
        "candidates": _pairs("generated"),
        "of_mined_queries": _pairs("generated", "query_id in (select query_id from queries)"),
    }
    report["p3"] = {**_counts(backend, generated), "kept": count_bit(kept, Source.KNOWLEDGE)}
    return report


def _search(counts: PairCounts) -> dict[str, dict[str, int]]:
    found = {stage: {"candidates": 0, "kept": 0} for stage in SEARCH_STAGES}
    for (considered, sources), n in counts.merged.items():
        if considered:
            stage = stage_of(Source(considered))
            found[stage]["candidates"] += n
            found[stage]["kept"] += n if sources & SEARCH_SOURCES else 0
    return {str(stage.name).lower(): numbers for stage, numbers in found.items()}


def _counts(backend: Backend, queries: dict[str, str]) -> dict[str, int]:
    """Return the number of rows of each query, asked for in one statement."""
    columns = (f"(select count(*) from ({query}) c) as {name}" for name, query in queries.items())
    return backend.rows(f"select {', '.join(columns)}")[0]


def _pairs(table: str, where: str = "1 = 1") -> str:
    return f"select distinct query_id, item_id from {table} where {where}"


def _labels(counts: PairCounts) -> dict[str, int]:
    found: Counter[int] = Counter()
    for _, sources, n in counts.samples():
        found[label_of(sources)] += n
    return {str(label): found[label] for label in sorted(found, reverse=True)}


def _novelty(counts: PairCounts) -> dict[str, Any]:
    positives: Counter[str] = Counter()
    never: Counter[str] = Counter()
    for considered, sources, n in counts.samples():
        names = [name for name, source in _BY_PEOPLE.items() if sources & source]
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
        for name in (*_BY_PEOPLE, "all")
    }


def _rescued(counts: PairCounts) -> dict[str, int]:
    """Count the P1 and P2 positives that search alone would have called negatives, by that label."""
    found: Counter[Source] = Counter()
    for considered, sources, n in counts.samples():
        if any(sources & row.bit for row in miners(ALL_SOURCES)):
            found[stage_of(considered)] += n
    by_label = {str(DEFAULT_LABELS[stage]): found[stage] for stage in SEARCH_STAGES[1:]}
    return {"pairs": sum(by_label.values()), **by_label}


def pair_counts(merged: Counter[tuple[int, int]]) -> list[dict[str, int]]:
    """Return the rows of `pairs` from the pairs by (considered, sources)."""
    return [
        {"considered": considered, "sources": sources, "pairs": merged[considered, sources]}
        for considered, sources in sorted(merged)
    ]


def _reach(backend: Backend, counts: PairCounts) -> dict[str, Any]:
    """Count the mined queries with a generated document, and the samples that are generated."""
    count = _counts(
        backend,
        {"queries": "select query_id from queries", "covered": "select distinct query_id from p3"},
    )
    samples = sum(n for *_, n in counts.samples())
    generated = sum(n for _, sources, n in counts.samples() if sources & Source.KNOWLEDGE)
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
    mined = {name for name, source in _BY_PEOPLE.items() if source & wanted and name != "p0"}
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
            f"{bots['users']} {_BOT_LIKE} left out, with {bots['searches']} searches and "
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


def count_bit(counter: Counter[int], source: Source) -> int:
    """Return the pairs that have the bit of `source`."""
    return sum(n for bits, n in counter.items() if bits & source)


def stage_of(considered: Source) -> Source:
    """Return the highest search bit, 0 for none."""
    return next((stage for stage in SEARCH_STAGES if considered & stage), Source(0))


def label_of(sources: Source) -> int:
    """Return the highest label among the bits."""
    return max(label for source, label in DEFAULT_LABELS.items() if sources & source)


_BLOCKS = 5
_TOP_USERS = 20


def insights(out: Path, logs: Path | None = None, *, owner: bool = False) -> dict[str, Any]:
    """Return the report of a mining with `disagreements`, `coverage` and `influence`.

    `disagreements`: for each source of positives, how many of its pairs another source makes positive too,
    and the highest stage they reached in search (`nothing`: the system did not consider them).
    `coverage`: share of the queries with a positive, by source, of the frequent ones that make a third of all
    searches (head), the next third (torso) and the rest (tail); queries of equal frequency stay together.
    `influence`: how the positives spread over the users whose behaviour they rest on, the most influential
    first, in blocks of k.

    For others than the owner of the logs, k (`engine.k` of the mining) people must have searched, and k must
    are behind the positives of each source that found any; otherwise there is no report. Then totals over
    all queries are counted whole. A row of `coverage` has no share of a source unless k people are behind
    that, and no counts unless k are behind every row; `influence` has rows of k users and none for fewer;
    who was left out as bot-like is not counted. The owner sees all, and the ids of the most influential
    users.

    Args:
        out: folder of a mining, or of a daily build.
        logs: the accepted logs, where they are not where the mining found them.
        owner: whether the reader owns the logs.

    Raises:
        CropsError: `out` is no mining, its logs are gone, or it stands for fewer than k users and the reader
            is not the owner.
    """
    mined = read_mined(out)
    k = 1 if owner else mined.config.k
    with DuckDBBackend(mined.config.memory) as backend:
        mined.open(backend)
        name_searchers(backend, mined.open_logs(logs))
        backend.table("voices", _VOICES)
        backend.table("spoken", "select distinct query_id, item_id, user_id from voices")
        if few := _few(backend, mined, k):
            raise CropsError(
                f"{mined.folder}: fewer than k = {k} users {few}: its report is for the owner of the logs "
                "only (--owner)"
            )
        coverage, influence = _coverage(backend, k), _influence(backend, mined.config.k, k)
        if owner:
            # As text: many readers of JSON round numbers above 2^53.
            influence["top"] = backend.rows(
                "select * replace (cast(user_id as VARCHAR) as user_id) from influential "
                f"where place <= {_TOP_USERS} order by place"
            )
    return {
        **(mined.report if owner else _without_bots(mined.report)),
        "k": k,
        "disagreements": _disagreements(mined),
        "coverage": coverage,
        "influence": influence,
    }


_VOICES = """
select distinct e.query_id, e.item_id, e.source, s.user_id
from evidence e join searchers s on s.search_id = e.search_id and s.day = e.day
"""


def _few(backend: Backend, mined: Mined, k: int) -> str:
    """Return what fewer than k users did, as the end of a sentence; empty where there is no such thing."""
    if mined.report["input"]["users"] < k:
        return "searched"
    rows = backend.rows("select source, count(distinct user_id) as users from voices group by source")
    users = {row["source"]: row["users"] for row in rows}
    clicked = mined.report["sources"]["search"]["clicked"]
    found = {name: mined.report["sources"].get(name, clicked)["candidates"] for name in _BY_PEOPLE}
    few = [name for name, count in found.items() if count and users.get(POSITIVES[name].value, 0) < k]
    return f"are behind the positives of {', '.join(few)}" if few else ""


def _without_bots(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report that does not count what single users did who were left out, as bot-like or by name."""
    counts = {name: value for name, value in report["input"].items() if name not in ("bots", "without")}
    return {**report, "input": counts, "notes": [one for one in report["notes"] if _BOT_LIKE not in one]}


def _disagreements(mined: Mined) -> list[dict[str, Any]]:
    rows = []
    for name, source in POSITIVES.items():
        own = [row for row in mined.report["pairs"] if row["sources"] & source]
        also = {
            other: sum(row["pairs"] for row in own if row["sources"] & bit)
            for other, bit in POSITIVES.items()
            if other != name
        }
        reached = {
            str(stage.name).lower() if stage else "nothing": sum(
                row["pairs"] for row in own if stage_of(Source(row["considered"])) == stage
            )
            for stage in (*SEARCH_STAGES, Source(0))
        }
        rows.append(
            {"source": name, "positives": sum(row["pairs"] for row in own), "also": also, "search": reached}
        )
    return rows


def _coverage(backend: Backend, k: int) -> list[dict[str, Any]]:
    backend.table("frequencies", _FREQUENCIES)
    bits = {name: f"(bits & {source.value}) <> 0" for name, source in POSITIVES.items()}
    covered = {**bits, "any": " or ".join(bits.values())}
    counts = ", ".join(
        f"sum(case when {test} then 1 else 0 end) as {name}_queries" for name, test in covered.items()
    )
    people = ", ".join(
        f"count(distinct case when v.source = {source.value} then v.user_id end) as {name}_users"
        for name, source in POSITIVES.items()
    )
    known = ", ".join(f"min(u.{name}_users) as {name}_users" for name in (*POSITIVES, "any"))
    rows = backend.rows(
        f"""
        select f.part, count(*) as queries, sum(f.searches) as searches, max(f.searches) as most,
            min(f.searches) as least, max(f.users) as users,
            max(case when f.users >= {k} then f.searches end) as told_most,
            min(case when f.users >= {k} then f.searches end) as told_least, {known}, {counts}
        from frequencies f
        left join ({_POSITIVE_BITS}) p on p.query = f.query
        left join (
            select f.part, count(distinct v.user_id) as any_users, {people}
            from voices v join queries q on q.query_id = v.query_id join frequencies f on f.query = q.query
            group by f.part
        ) u on u.part = f.part
        group by f.part order by max(f.searches) desc
        """
    )
    # A row that is missing from the total would be told by the others.
    told = all(max(row["users"], row["any_users"] or 0) >= k for row in rows)
    return [_coverage_row(row, list(covered), k, told=told) for row in rows]


def _coverage_row(row: dict[str, Any], names: list[str], k: int, *, told: bool) -> dict[str, Any]:
    """Return a row of `coverage`; None stands for what fewer than k users are behind.

    `most` and `least` are each of one query.
    """
    users = {name: row[f"{name}_users"] or 0 for name in names}
    counted = {name: int(row[name]) if told else None for name in ("queries", "searches")}
    ends = {name: row[name] if row[name] == row[f"told_{name}"] else None for name in ("most", "least")}
    shares = {
        name: None if 0 < users[name] < k else share(int(row[f"{name}_queries"]), row["queries"])
        for name in names
    }
    return {"part": row["part"], **counted, **ends, "shares": shares}


_FREQUENCIES = """
select query, searches, users, case
    when 3 * more_frequent < total then 'head' when 3 * more_frequent < 2 * total then 'torso' else 'tail'
    end as part
from (
    select query, searches, users, sum(searches) over () as total,
        sum(searches) over (order by searches desc) - sum(searches) over (partition by searches)
            as more_frequent
    from (
        select query, cast(sum(searches) as BIGINT) as searches, max(users) as users
        from queries group by query
    ) q
) w
"""

_POSITIVE_BITS = f"""
select q.query, bit_or(s.sources) as bits
from samples s join queries q on q.query_id = s.query_id
where s.label >= {POSITIVE_LABEL} group by q.query
"""


def _influence(backend: Backend, size: int, k: int) -> dict[str, Any]:
    """Return how positives spread over users, in blocks of `size`; counts of fewer than k are None."""
    backend.table("influential", _INFLUENTIAL)
    total = backend.rows(
        """
        select (select count(*) from influential) as users, count(*) as pairs,
            sum(case when users = 1 then 1 else 0 end) as of_one_user, sum(users) as contributions,
            (select count(*) from influential where alone > 0) as lonely
        from (select query_id, item_id, count(*) as users from spoken group by query_id, item_id) p
        """
    )[0]
    blocks = backend.rows(
        f"""
        select min(place) as first, max(place) as last, sum(pairs) as contributions
        from influential where place <= {_BLOCKS * size}
        group by floor((place - 1) / {size}) having count(*) = {size} order by first
        """
    )
    numbers: dict[str, Any] = {name: int(value or 0) for name, value in total.items()}
    if 0 < numbers.pop("lonely") < k:
        numbers["of_one_user"] = None
    if blocks and 0 < numbers["users"] - blocks[-1]["last"] < k:
        blocks.pop()  # or the total less the blocks would be the share of the few that are left
    rows = [{name: int(value) for name, value in block.items()} for block in blocks]
    shares = [{**row, "share": share(row["contributions"], numbers["contributions"])} for row in rows]
    return {**numbers, "blocks": shares}


_INFLUENTIAL = """
select u.user_id, u.pairs, coalesce(a.alone, 0) as alone,
    row_number() over (order by u.pairs desc, u.user_id) as place
from (select user_id, count(*) as pairs from spoken group by user_id) u
left join (
    select s.user_id, count(*) as alone
    from spoken s join (
        select query_id, item_id from spoken group by query_id, item_id having count(*) = 1
    ) o on o.query_id = s.query_id and o.item_id = s.item_id
    group by s.user_id
) a on a.user_id = u.user_id
order by place
"""
