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
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from crops.engine.backend import Backend
from crops.engine.mined import Mined
from crops.labels import Source
from crops.text import content_id


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
