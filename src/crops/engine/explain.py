"""Why a document is a positive of a query: its evidence trail (`crops explain`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from crops.engine.backend import Backend, DuckDBBackend
from crops.engine.mined import Mined, name_searchers, read_mined
from crops.errors import CropsError
from crops.labels import POSITIVE_LABEL, Source
from crops.logs import Logs
from crops.logs.tables import literal
from crops.signals import CONSUMED, within_sql
from crops.text import content_id, document_text_sql, normalise_query

_SUGGESTIONS = 3


@dataclass(frozen=True)
class Trail:
    """The events of one kind that speak for a document; counts are None where fewer than k users did it."""

    source: Source
    events: int | None
    users: int | None
    via: tuple[str, ...] = ()
    """P1: the later query, if at least k users searched it."""
    rare_via: int = 0
    """P1: how many later queries of fewer users these are."""


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
    searches: int | None
    users: int | None
    """Both None: fewer than k users; of several days, those of the day with the most."""
    k: int
    positives: tuple[Positive, ...]
    rows: tuple[dict[str, Any], ...] = field(default=())
    """With `raw`: the rows of the logs behind each event."""


def explain(query: str, out: Path, logs: Path | None = None, *, raw: bool = False) -> Explanation:
    """Return the evidence of every positive of a query.

    What is shown stands for at least k users (`engine.k` of the mining): counts of fewer are left out, and so
    are later queries that fewer have searched.

    Args:
        query: any spelling of it.
        out: folder of a mining, or of a daily build.
        logs: the accepted logs, where they are not where the mining found them.
        raw: for the owner of the logs: every count, and the rows of the logs.

    Raises:
        CropsError: `out` is no mining, its logs are gone, or nobody searched the query (the nearest ones are
            named).
    """
    mined = read_mined(out)
    k = 1 if raw else mined.config.k
    sources = mined.open_logs(logs)
    with DuckDBBackend(mined.config.memory) as backend:
        mined.open(backend)
        text = normalise_query(query)
        backend.table("asked", f"select * from queries where query = {literal(text)}")
        known = backend.rows("select sum(searches) as searches, max(users) as users from asked")[0]
        if known["searches"] is None:
            raise CropsError(_unknown(backend, text, k))
        # From here on, evidence is that of this query.
        backend.table("own", "select e.* from evidence e join asked a on a.query_id = e.query_id")
        backend.view("evidence", "select * from own")
        name_searchers(backend, sources)
        trails = _trails(backend, mined, k)
        positives = tuple(_positive(row, trails) for row in backend.rows(_POSITIVES))
        rows = tuple(_log_rows(backend, mined, sources)) if raw else ()
    searches, users = (int(known["searches"]), known["users"]) if known["users"] >= k else (None, None)
    return Explanation(text, searches, users, mined.config.k, positives, rows)


def _unknown(backend: Backend, text: str, k: int) -> str:
    nearest = backend.rows(
        f"""
        select query, max(jaro_winkler_similarity(query, {literal(text)})) as alike from queries
        where users >= {k} group by query order by alike desc, query limit {_SUGGESTIONS}
        """
    )
    hint = ", ".join(f"'{row['query']}'" for row in nearest)
    return f"nobody searched '{text}' on the days mined" + (f"; the nearest queries: {hint}" if hint else "")


_POSITIVES = f"""
select s.item_id, max(s.label) as label, bit_or(s.sources) as sources, max(s.weight) as weight,
    max(e.theta) as theta, min(coalesce(i.text, g.text, '')) as text
from samples s join asked a on a.query_id = s.query_id
left join (select query_id, item_id, max(theta) as theta from own group by query_id, item_id) e
    on e.query_id = s.query_id and e.item_id = s.item_id
left join (select item_id, {document_text_sql()} as text from items) i on i.item_id = s.item_id
left join (select item_id, {document_text_sql()} as text from synthetic_items) g on g.item_id = s.item_id
where s.label >= {POSITIVE_LABEL}
group by s.item_id order by label desc, s.item_id
"""


def _positive(row: dict[str, Any], trails: dict[int, list[Trail]]) -> Positive:
    values = {**row, "sources": Source(row["sources"])}
    return Positive(**values, trails=tuple(trails.get(row["item_id"], ())))


def _trails(backend: Backend, mined: Mined, k: int) -> dict[int, list[Trail]]:
    """Return the trails by item, highest source first; rare later queries of an item as one."""
    name_via(backend, mined)
    trails: dict[int, list[Trail]] = {}
    for row in backend.rows(trails_sql(k, "item_id")):
        trails.setdefault(row["item_id"], []).append(trail_of(row, k))
    return trails


def trails_sql(k: int, key: str) -> str:
    """Return the SQL of the trails of the evidence in `own`, with the tables `searchers` and `via`.

    Args:
        k: users behind whatever is named.
        key: the columns of `own` that a trail is of: `item_id`, or `query_id, item_id` for several queries.
    """
    return f"""
        select {key}, source, via, count(*) as events, count(distinct user_id) as users,
            count(distinct via_query_id) as vias
        from (
            select e.query_id, e.item_id, e.source, e.via_query_id, s.user_id, s.search_id,
                case when v.users >= {k} then v.query end as via
            from own e left join searchers s on s.search_id = e.search_id and s.day = e.day
            left join via v on v.query_id = e.via_query_id
        ) t
        group by {key}, source, via order by {key}, source desc, users desc, via nulls last
        """


def trail_of(row: Mapping[str, Any], k: int) -> Trail:
    """Return a row of `trails_sql` as a trail, without the counts that stand for fewer than k users."""
    enough = row["users"] >= k
    via = () if row["via"] is None else (row["via"],)
    return Trail(
        Source(row["source"]),
        row["events"] if enough else None,
        row["users"] if enough else None,
        via,
        0 if via else row["vias"],
    )


def name_via(backend: Backend, mined: Mined) -> None:
    """Make `via(query_id, query, users)`: the later queries of the evidence."""
    if not mined.by_event:
        backend.view("via", "select query_id, query, users from queries")
        return
    # There a group is an event: the id of a later query is the hash of its text.
    wanted = {row["id"] for row in backend.rows("select distinct via_query_id as id from own")}
    schema = pa.schema([("query_id", pa.int64()), ("query", pa.string()), ("users", pa.int64())])
    texts = backend.arrow("select query, max(users) as users from queries group by query").to_pylist()
    rows = [{"query_id": content_id(row["query"]), **row} for row in texts]
    found = [row for row in rows if row["query_id"] in wanted]
    backend.load("via", schema, [pa.RecordBatch.from_pylist(found, schema=schema)])


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
