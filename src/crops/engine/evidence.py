"""What may be told to people who do not own the logs: one rule for every report, page, reply and sheet.

- A query is named and counted if at least k distinct people searched it.
- A trail is all evidence of one query, one item, one source and, for P1, one later query. It is counted, and
  its later query is named, if at least k distinct people stand behind that very trail.
- Of the other trails only their source is told: that somebody's behaviour makes the item a positive of the
  query, not how often, by how many, when or under which later query.

People are the distinct `user_id` of the logs, counted over all days mined; totals are sums of told trails, so
that no difference of two numbers tells what a single person did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from crops.engine.backend import Backend, DuckDBBackend, id_sql
from crops.engine.mined import Mined, name_searchers, read_mined
from crops.errors import CropsError
from crops.labels import POSITIVE_LABEL, Source
from crops.logs import Logs
from crops.logs.tables import literal
from crops.signals import CONSUMED, within_sql
from crops.text import content_id, document_text_sql, normalise_query


@dataclass(frozen=True)
class Trail:
    """The events of one kind that speak for a document; counts are None where fewer than k people did it."""

    source: Source
    events: int | None
    users: int | None
    via: tuple[str, ...] = ()
    """P1: the later query, where the trail is told."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Trail:
        """Return a row of `trails` as a trail."""
        via = () if row["via"] is None else (row["via"],)
        return cls(Source(row["source"]), row["events"], row["users"], via)


def told_queries_sql(k: int, queries: str = "queries") -> str:
    """Return the SELECT of the queries that at least k people searched.

    Args:
        k: people behind whatever is told.
        queries: the table; over several days its `users` are those of the busiest day, a lower bound.
    """
    return f"select * from {queries} where users >= {k}"


def tell_trails(backend: Backend, mined: Mined, k: int) -> None:
    """Make `trails` and `totals` of the evidence in `own`.

    `trails(query_id, item_id, source, via, events, users)`: a row for each trail that is told, and a row
    without counts and later query for a source of a pair none of whose trails is.

    `totals(query_id, source, items, events, users)`: of the told trails of a query; counts are null where
    none is. What a language model wrote stands for nobody: its documents are always counted.

    Args:
        backend: holds `own` (rows of the evidence), `searchers` and `queries`.
        mined: the mining they come from.
        k: people behind whatever is told.
    """
    _name_later_queries(backend, mined)
    backend.table("counted", _COUNTED.format(k=k))
    backend.table("trails", _TRAILS)
    backend.table("totals", _TOTALS)


_KEY = "{0}.query_id = {1}.query_id and {0}.item_id = {1}.item_id and {0}.source = {1}.source"

_COUNTED = """
select o.query_id, o.item_id, o.source, o.via_query_id, count(*) as events,
    count(distinct s.user_id) as users, count(distinct s.user_id) >= {k} as told
from own o left join searchers s on s.search_id = o.search_id and s.day = o.day
group by o.query_id, o.item_id, o.source, o.via_query_id
"""

_TRAILS = f"""
select c.query_id, c.item_id, c.source, v.query as via, c.events, c.users
from counted c left join via v on v.query_id = c.via_query_id where c.told
union all
select distinct c.query_id, c.item_id, c.source, cast(null as VARCHAR), cast(null as BIGINT),
    cast(null as BIGINT)
from counted c
where not exists (select 1 from counted t where t.told and {_KEY.format("t", "c")})
"""

_TOTALS = f"""
select c.query_id, c.source,
    nullif(count(distinct case when c.free then o.item_id end), 0) as items,
    nullif(count(case when c.free then 1 end), 0) as events,
    case when count(case when c.free then 1 end) > 0
        then count(distinct case when c.free then s.user_id end) end as users
from (select *, told or source = {Source.KNOWLEDGE.value} as free from counted) c
join own o on {_KEY.format("o", "c")} and o.via_query_id is not distinct from c.via_query_id
left join searchers s on s.search_id = o.search_id and s.day = o.day
group by c.query_id, c.source
"""


def _name_later_queries(backend: Backend, mined: Mined) -> None:
    """Make `via(query_id, query)`: the later queries of the evidence."""
    if not mined.by_event:
        backend.view("via", "select query_id, query from queries")
        return
    # There a group is an event: the id of a later query is the hash of its text.
    wanted = {row["id"] for row in backend.rows("select distinct via_query_id as id from own")}
    schema = pa.schema([("query_id", pa.int64()), ("query", pa.string())])
    texts = [row["query"] for row in backend.rows("select distinct query from queries")]
    rows = [{"query_id": content_id(text), "query": text} for text in texts]
    found = [row for row in rows if row["query_id"] in wanted]
    backend.load("via", schema, [pa.RecordBatch.from_pylist(found, schema=schema)])


# ------------------------------------------------------------------------------
# Why a document is a positive of a query: its evidence trail (`crops explain`).


_SUGGESTIONS = 3


@dataclass(frozen=True)
class Positive:
    """A positive of the query."""

    item_id: int
    text: str
    label: int
    sources: Source
    weight: float
    theta: float | None
    trails: tuple[Trail, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """All positives of a query, highest label first."""

    query: str
    searches: int
    users: int
    """Of several days, those of the day with the most."""
    k: int
    positives: tuple[Positive, ...]
    rows: tuple[dict[str, Any], ...] = field(default=())
    """With `raw`: the rows of the logs behind each event."""


def explain(query: str, out: Path, logs: Path | None = None, *, raw: bool = False) -> Explanation:
    """Return the evidence of every positive of a query.

    What is shown stands for at least k people (`engine.k` of the mining), see `crops.engine.evidence`; a
    query that fewer searched is answered as one that nobody searched.

    Args:
        query: any spelling of it.
        out: folder of a mining, or of a daily build.
        logs: the accepted logs, where they are not where the mining found them.
        raw: for the owner of the logs: every count, and the rows of the logs.

    Raises:
        CropsError: `out` is no mining, its logs are gone, or fewer than k people searched the query (the
            nearest ones are named).
    """
    mined = read_mined(out)
    k = 1 if raw else mined.config.k
    sources = mined.open_logs(logs)
    with DuckDBBackend(mined.config.memory) as backend:
        mined.open(backend)
        text = normalise_query(query)
        backend.table("asked", f"select * from queries where query = {literal(text)}")
        known = backend.rows("select sum(searches) as searches, max(users) as users from asked")[0]
        if known["searches"] is None or known["users"] < k:
            raise CropsError(_unknown(backend, text, k))
        # From here on, evidence is that of this query, of all its events.
        backend.table(
            "own",
            f"select e.* replace ({id_sql(content_id(text))} as query_id) "
            "from evidence e join asked a on a.query_id = e.query_id",
        )
        backend.view("evidence", "select * from own")
        name_searchers(backend, sources)
        trails = _trails(backend, mined, k)
        positives = tuple(_positive(row, trails) for row in backend.rows(_POSITIVES))
        rows = tuple(_log_rows(backend, mined, sources)) if raw else ()
    return Explanation(text, int(known["searches"]), known["users"], mined.config.k, positives, rows)


def _unknown(backend: Backend, text: str, k: int) -> str:
    nearest = backend.rows(
        f"""
        select query, max(jaro_winkler_similarity(query, {literal(text)})) as alike
        from ({told_queries_sql(k)}) q group by query order by alike desc, query limit {_SUGGESTIONS}
        """
    )
    hint = ", ".join(f"'{row['query']}'" for row in nearest)
    near = f"; the nearest queries: {hint}" if hint else ""
    if k == 1:
        return f"nobody searched '{text}' on the days mined{near}"
    return (
        f"'{text}' is no query of at least {k} users on the days mined{near}; --raw, for the owner of the "
        "logs only, knows all"
    )


_POSITIVES = f"""
select s.item_id, max(s.label) as label, bit_or(s.sources) as sources, max(s.weight) as weight,
    max(e.theta) as theta, min(coalesce(i.text, g.text, '')) as text
from samples s join asked a on a.query_id = s.query_id
left join (select item_id, max(theta) as theta from own group by item_id) e on e.item_id = s.item_id
left join (select item_id, {document_text_sql()} as text from items) i on i.item_id = s.item_id
left join (select item_id, {document_text_sql()} as text from synthetic_items) g on g.item_id = s.item_id
where s.label >= {POSITIVE_LABEL}
group by s.item_id order by label desc, s.item_id
"""


def _positive(row: dict[str, Any], trails: dict[int, list[Trail]]) -> Positive:
    values = {**row, "sources": Source(row["sources"])}
    return Positive(**values, trails=tuple(trails.get(row["item_id"], ())))


def _trails(backend: Backend, mined: Mined, k: int) -> dict[int, list[Trail]]:
    """Return the trails by item, highest source and most people first."""
    tell_trails(backend, mined, k)
    trails: dict[int, list[Trail]] = {}
    for row in backend.rows("select * from trails order by item_id, source desc, users desc, via"):
        trails.setdefault(row["item_id"], []).append(Trail.of(row))
    return trails


def _log_rows(backend: Backend, mined: Mined, sources: list[tuple[Logs, list[str]]]) -> list[dict[str, Any]]:
    """Return the impressions and feed events that made each item a positive."""
    window_s = mined.config.reformulation.window_s
    of_source = {
        Source.CLICKED: "l.search_id = s.search_id",
        Source.REFORMULATION: within_sql("s.searched_at", "l.searched_at", window_s),
        Source.FEED: "l.watched_at = e.watched_at",
    }
    selects = []
    for number, (logs, days) in enumerate(sources):
        backend.read_logs(f"feed_{number}", logs, "feed_events", days)
        for source, when in of_source.items():
            feed = source == Source.FEED
            log, columns = (f"feed_{number}", _WATCHED) if feed else (f"log_{number}", _SHOWN)
            selects.append(
                f"select distinct e.source, e.via_query_id, l.user_id, {columns}, l.item_id, l.clicked, "
                "l.liked, l.play_ms, l.duration_ms from own e "
                "join searchers s on s.search_id = e.search_id and s.day = e.day "
                f"join {log} l on l.user_id = s.user_id and l.item_id = e.item_id and {when} "
                f"where e.source = {source.value} and {CONSUMED}"
            )
    rows = backend.rows(
        f"select * from ({' union all '.join(selects)}) r "
        "order by item_id, source desc, seen_at, user_id, search_id"
    )
    return [row for row in rows if _is_via(row)]


_SHOWN = "l.search_id, l.query, l.searched_at as seen_at"

_WATCHED = "s.search_id, cast(null as VARCHAR) as query, l.watched_at as seen_at"


def _is_via(row: dict[str, Any]) -> bool:
    """Take the later query off a row; return whether it is the one that the row's search asked."""
    via = row.pop("via_query_id")
    return via is None or content_id(normalise_query(row["query"])) == via
