"""Will this help? What the sources would bring on some logs, and what a held-out day could show.

All is counted from the logs, with the SQL that `crops mine` and the test sets use, and without a model: theta
and the similarity of queries drop part of what is found, and the shares that stay are taken from elsewhere
(`KEPT`). The last day is held out, as `crops mine` does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from crops.config import EngineConfig
from crops.engine.backend import DuckDBBackend
from crops.engine.events import load_events
from crops.engine.feed import near_sql
from crops.engine.reformulation import later_searches_sql
from crops.evaluation.testsets import CLICKED, candidates_sql
from crops.labels import Source
from crops.logs import Logs
from crops.logs.days import DAY_US
from crops.schema import MICROSECONDS

KEPT = {"p0": (1.0, 1.0), "p1": (0.24, 0.19), "p2": (0.11, 0.10)}
"""Share of the pairs found that the filters leave, and of those never shown for their query, by source: as in
the demo (`crops demo`, seed 0)."""
SPREAD = {"ct": 0.18, "qr": 0.23}
"""Standard deviation over queries of the difference in recall@100 between two trained models, there too."""


@dataclass(frozen=True)
class Expected:
    """Pairs of query and item that a source would bring; a pair counts once, however many speak for it."""

    found: int
    """Before the filters."""
    pairs: float
    """Expected after them."""
    fresh: float
    """Those of `pairs` that were never shown for their query."""
    queries: float
    """Queries with at least one of `pairs`."""


@dataclass(frozen=True)
class Outlook:
    """What the logs hold; who is left out as bot-like is not in it."""

    mined: tuple[str, ...]
    """The days that would be mined."""
    tested: str | None
    """The day that would be held out; None where the logs hold one day only."""
    counts: Mapping[str, int]
    """Rows of each query of `_COUNTS`, by its name."""
    stages: Mapping[str, int]
    """Impressions by stage."""
    sources: Mapping[str, Expected]
    """Of the mined days, by the key of the source: p0, p1, p2."""
    qr: Expected
    """What was consumed after a rewording on the held-out day."""


def outlook(logs: Logs, config: EngineConfig, days: Collection[str]) -> Outlook:
    """Count what the logs would bring.

    Args:
        config: settings of the sources, and the memory.
        days: the days of the logs that count, YYYY-MM-DD; the last one is held out.

    Raises:
        CropsError: the days hold no search, or the memory does not suffice.
    """
    days = sorted(days)
    mined, tested = (days[:-1], days[-1]) if len(days) > 1 else (days, None)
    with DuckDBBackend(config.memory) as backend:
        load_events(backend, logs, days, config.bots)
        for name, query in _tables(config, tested).items():
            backend.table(name, query)
        counts = {name: backend.count(f"({query}) q") for name, query in _counts(config).items()}
        stages = backend.rows("select stage, count(*) as n from log_impressions group by stage")
        sources = {key: _expected(backend, key, tested=False) for key in KEPT}
        qr = _expected(backend, "p1", tested=True)
    return Outlook(tuple(mined), tested, counts, {row["stage"]: row["n"] for row in stages}, sources, qr)


def _tables(config: EngineConfig, tested: str | None) -> dict[str, str]:
    """Return the tables that are counted, in the order in which they are made."""
    day = f"case when s.day = '{tested}' then 1 else 0 end as tested"
    window = round(config.reformulation.window_s * MICROSECONDS)
    return {
        "candidates": candidates_sql(tested) if tested else "select item_id from log_items where 1 = 0",
        # Of rows with one search_id any day will do: they are one event.
        "placed": f"select s.*, {day} from searches s",
        "consumed": "select distinct search_id, query_id, item_id from impressions where consumed",
        "shown": f"""
            select i.query_id, i.item_id, min(p.tested) as tested
            from impressions i join placed p on p.search_id = i.search_id
            where i.source in ({Source.CLICKED.value}, {Source.EXPOSED.value})
            group by i.query_id, i.item_id""",
        "later": f"select l.*, p.tested from ({later_searches_sql(config.reformulation)}) l "
        "join placed p on p.search_id = l.search_id",
        "after": "select l.search_id, l.via_search_id, l.query_id, c.item_id, l.tested "
        "from later l join consumed c on c.search_id = l.via_search_id",
        "near": f"select n.search_id, n.query_id, n.item_id, p.tested from ({near_sql(config.feed)}) n "
        "join placed p on p.search_id = n.search_id",
        "pages": f"""
            select search_id from (
                select search_id, searched_at, lead(searched_at) over (
                    partition by user_id, query_id order by searched_at
                ) as next_at from searches
            ) s where next_at > searched_at and next_at <= searched_at + {window}""",
        "clicks": f"select c.*, p.tested from ({CLICKED}) c join placed p on p.search_id = c.search_id",
        "pairs": f"""
            select 'p0' as source, i.query_id, i.item_id, p.tested
            from impressions i join placed p on p.search_id = i.search_id
            where i.source = {Source.CLICKED.value}
            union all select 'p1', query_id, item_id, tested from after
            union all select 'p2', query_id, item_id, tested from near""",
    }


def _counts(config: EngineConfig) -> dict[str, str]:
    """Return what is counted: the rows of each query."""
    unshown = "left join shown k on k.query_id = a.query_id and k.item_id = a.item_id"
    return {
        "searches": "select 1 from searches",
        "users": "select distinct user_id from searches",
        "returning_users": "select user_id from searches group by user_id having count(*) > 1",
        "searches_without_click": "select s.search_id from searches s "
        "left join (select distinct search_id from consumed) c on c.search_id = s.search_id "
        "where c.search_id is null",
        "times_of_day": f"select distinct searched_at % {DAY_US} from searches",
        "reworded": "select distinct search_id from later",
        "paged": "select search_id from pages",
        "rewordings": "select 1 from later",
        "rewordings_consumed": "select distinct search_id, via_search_id from after",
        "rewordings_fresh": f"select distinct a.search_id, a.via_search_id from after a {unshown} "
        "where k.item_id is null",
        "consumed": "select 1 from consumed",
        "shown_unclicked": f"select 1 from impressions where source = {Source.EXPOSED.value}",
        "feed_events": "select 1 from log_feed",
        "feed_consumed": "select 1 from feed",
        "feed_users": "select s.user_id from (select distinct user_id from searches) s "
        "join (select distinct user_id from log_feed) f on f.user_id = s.user_id",
        "searches_near_feed": "select distinct search_id from near",
        "llm_queries": f"select 1 from queries where users >= {config.knowledge.min_users}",
        "test_clicks": "select 1 from clicks where tested = 1",
        "test_clicks_fresh": f"select 1 from clicks a {unshown} and k.tested = 0 "
        "where a.tested = 1 and k.item_id is null",
        "ct_queries": "select distinct a.query_id from clicks a join candidates c on c.item_id = a.item_id "
        "where a.tested = 1",
    }


def _expected(backend: DuckDBBackend, source: str, *, tested: bool) -> Expected:
    """Return what is expected of a source on the held-out day, or on those before."""
    rows = backend.rows(
        f"""
        select pairs, fresh, count(*) as queries from (
            select p.query_id, count(*) as pairs, sum(case when k.item_id is null then 1 else 0 end) as fresh
            from (
                select distinct query_id, item_id from pairs
                where source = '{source}' and tested = {int(tested)}
            ) p left join shown k on k.query_id = p.query_id and k.item_id = p.item_id and k.tested = 0
            group by p.query_id
        ) q group by pairs, fresh
        """
    )
    kept, kept_fresh = KEPT[source]
    found, fresh = (sum(row["queries"] * int(row[name]) for row in rows) for name in ("pairs", "fresh"))
    # As if the filters judged each pair on its own.
    queries = sum(row["queries"] * (1 - (1 - kept) ** row["pairs"]) for row in rows)
    return Expected(found, kept * found, kept_fresh * fresh, float(queries))
