"""What the platform must look like: public figures and the paper's own rows, each with the range we accept.

The platform is tuned against these rows and no others, and on the old system only: no row knows of an
augmented arm. Names are those of `observe`, or `<model> <metric>` of the old system's evaluation.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crops.config import ReformulationConfig
from crops.database import literal, open_database
from crops.logs import open_logs
from crops.logs.sql import add_texts
from crops.schema import LONG_PLAY, within_sql


@dataclass(frozen=True)
class Anchor:
    """A figure to match, as shares in [0, 1]."""

    name: str
    figure: str
    """What was measured elsewhere; "-" where no public figure exists."""
    source: str
    low: float | None = None
    """Accepted range; None where the row is reported only."""
    high: float | None = None

    def holds(self, measured: float) -> bool | None:
        """Return whether `measured` is accepted; None where there is no range."""
        if self.low is None or self.high is None:
            return None
        return math.isfinite(measured) and self.low <= measured <= self.high


def _around(name: str, figure: float, tolerance: float, source: str) -> Anchor:
    return Anchor(name, f"{figure:.2f}", source, max(0.0, figure - tolerance), min(1.0, figure + tolerance))


_COSOBE, _PAPER = "CosoBe (search sessions)", "CroPS, Table 2 and section 4"

ANCHORS: tuple[Anchor, ...] = (
    _around("searches with a click", 0.60, 0.15, "KuaiSAR (short-video search)"),
    _around("same query again, of pairs within 90 s", 0.63, 0.10, "Excite 1997 log"),
    *(
        _around(f"CTR at rank {rank}", ctr, 0.15, _COSOBE)
        for rank, ctr in enumerate((0.51, 0.34, 0.22, 0.12, 0.08), start=1)
    ),
    *(
        _around(f"P(click | shown, grade {grade})", rate, 0.15, f"{_COSOBE}, labels 0, 1, 2")
        for grade, rate in (("0", 0.06), ("1", 0.16), ("2 or 3", 0.33))
    ),
    Anchor("ranked set found by dense", "0.30", "CroPS, Table 5", 0.20, 0.40),
    Anchor("ranked set found by sparse", "0.21", "CroPS, Table 8", 0.14, 0.28),
    Anchor("bm25 recall@100/ct", "0.43", _PAPER, 0.35, 0.50),
    Anchor("bm25 recall@100/qr", "0.23", _PAPER, 0.17, 0.30),
    Anchor("bm25 recall@100/qr_truth", "0.23", f"{_PAPER}; ours by truth", 0.17, 0.30),
    Anchor("bm25 recall@100/qr_editor", "0.23", f"{_PAPER}; ours by an editor", 0.17, 0.30),
    Anchor("baseline recall@100/ct", "0.60", f"{_PAPER} (baseline = FS-LR)", 0.50, 0.70),
    Anchor("baseline recall@100/qr", "0.33", f"{_PAPER} (baseline = FS-LR)", 0.25, 0.40),
    Anchor("baseline recall@100/qr_truth", "0.33", f"{_PAPER}; ours by truth", 0.25, 0.40),
    Anchor("baseline recall@100/qr_editor", "0.33", f"{_PAPER}; ours by an editor", 0.25, 0.40),
    Anchor("baseline recall@50/qr_truth", "-", "none: the paper has 0.33 at 100"),
    Anchor("exponent of the query frequency law", "-", "none for short-video search"),
    Anchor("test searches whose query is new", "-", "none for short-video search"),
    Anchor("test clicks on items not shown for the query in training", "-", "none"),
    Anchor("reworded by the next search within 90 s, of searches", "-", "none: a setting"),
    Anchor("clicks per search", "-", "none"),
    Anchor("feed: mean share of a video watched", "-", "none"),
    Anchor("search: long plays, of clicks", "-", "none; long play at 18 s as in KuaiRand"),
)

BUBBLE = (
    "exposure that the query's top 10 items get",
    "exposure that the top 1 % of items get",
    "senses shown per ambiguous query",
    "relevant items that the query was ever shown",
    "test clicks on items not shown for the query in training",
    "catalogue shown in search so far",
)
"""What `observe` says of the filter bubble."""


# What the logs of a platform show, in figures: behaviour, funnel, repetition, and the filter bubble.
# Everything but `BY_TRUTH` needs the logs alone, so a team can read the same figures off its own.


_SOON = within_sql("searched", "next_at", ReformulationConfig().window_s)
"""Neighbouring searches of a user count as a pair within the engine's window of rewording (90 s)."""
HEAVY = 20
"""Searches that a query needs in a day for its exposure to be measured."""


@dataclass(frozen=True)
class Days:
    """The two days that are compared, YYYY-MM-DD."""

    train: str
    test: str


_TABLES = """
create view impressions as
    select l.* replace (t.query as query) from ({impressions}) l join texts t on t.raw = l.query;
create table items as {items};
create table shown as
    select day, query, search_id, item_id, rank, clicked, play_ms, duration_ms
    from impressions where stage = 'exposed';
create table ranked as select day, routes, stage from impressions where stage <> 'filtered';
create table searches as
    select day, search_id, any_value(user_id) as user_id, any_value(query) as query,
           any_value(searched_at) as searched, bool_or(clicked) as clicked, sum(clicked::int) as clicks
    from impressions group by all;
create table pairs as
    select day, query, next_query, next_at - searched as gap from (
        select *, lead(query) over w as next_query, lead(searched) over w as next_at from searches
        window w as (partition by user_id order by searched, search_id))
    where {soon};
create table train_shown as select distinct query, item_id from shown where day = '{train}';
create table feed as {feed};
"""

_BY_LOGS = {
    "searches": "select count(*) from searches where day = '{test}'",
    "queries": "select count(distinct query) from searches where day = '{test}'",
    "searches with a click": "select avg(clicked::int) from searches where day = '{test}'",
    "clicks per search": "select avg(clicks) from searches where day = '{test}'",
    **{
        f"CTR at rank {rank}": f"select avg(clicked::int) from shown where day = '{{test}}' and rank = {rank}"
        for rank in range(1, 11)
    },
    "same query again, of pairs within 90 s": """
        select avg((query = next_query)::int) from pairs where day = '{test}'""",
    "reworded by the next search within 90 s, of searches": """
        select (select count(*) from pairs where day = '{test}' and query <> next_query)
             / (select count(*) from searches where day = '{test}')""",
    "median gap of reformulations, s": """
        select median(gap) / 1e6 from pairs where day = '{test}' and query <> next_query""",
    "exponent of the query frequency law": """
        select -regr_slope(ln(n), ln(place)) from (
            select n, row_number() over (order by n desc, query) as place from (
                select query, count(*) as n from searches where day = '{test}' group by all)
            qualify place <= 1000)""",
    "test searches whose query is new": """
        select avg((query not in (select query from searches where day = '{train}'))::int)
        from searches where day = '{test}'""",
    "test queries that are new": """
        select avg((query not in (select query from searches where day = '{train}'))::int)
        from (select distinct query from searches where day = '{test}')""",
    "test clicks on items not shown for the query in training": """
        select avg((t.item_id is null)::int) from shown s
        left join train_shown t using (query, item_id)
        where day = '{test}' and clicked and query in (select query from train_shown)""",
    "exposure that the query's top 10 items get": """
        select sum(top) / sum(n) from (
            select query, sum(n) as n, sum(n) filter (place <= 10) as top from (
                select query, item_id, count(*) as n,
                       row_number() over (partition by query order by count(*) desc, item_id) as place
                from shown where day = '{test}' group by query, item_id)
            where query in (select query from searches where day = '{test}' group by query
                            having count(*) >= {heavy}) group by query)""",
    "exposure that the top 1 % of items get": """
        select sum(n) filter (place <= items / 100) / sum(n) from (
            select item_id, count(*) as n, row_number() over (order by count(*) desc, item_id) as place
            from shown where day = '{test}' group by item_id), (select count(*) as items from items)""",
    "catalogue shown in search so far": """
        select (select count(distinct item_id) from shown) / (select count(*) from items)""",
    "feed: mean share of a video watched": """
        select avg(least(play_ms / duration_ms, 1)) from feed where day = '{test}' and {known}""",
    "feed: long views": """
        select avg(({long_play})::int) from feed where day = '{test}'""",
    "search: long plays, of clicks": """
        select avg(({long_play})::int) from shown where day = '{test}' and clicked""",
}

_BY_ROUTE = """
    select avg(((routes >> {bit}) & 1)) from ranked where day = '{test}' and stage in ({stages})"""

_BY_TRUTH = {
    **{
        f"P(click | shown, grade {name})": f"""
        select avg(clicked::int) from shown join {{searches_file}} using (search_id)
        left join {{grades_file}} g using (need_id, item_id)
        where day = '{{test}}' and coalesce(grade, 0) in ({grades})"""
        for name, grades in (("0", "0"), ("1", "1"), ("2 or 3", "2, 3"))
    },
    "senses shown per ambiguous query": """
        select avg(senses) from (
            select query, count(distinct sense) as senses from shown
            join {items_file} using (item_id) join needs n using (need_id)
            where day = '{test}' and n.head = query group by query)""",
    "relevant items that the query was ever shown": """
        select avg((s.item_id is not null)::int) from (
            select distinct query, g.item_id from searches
            join {searches_file} using (search_id)
            join {grades_file} g using (need_id) where day = '{test}' and grade >= 2)
        left join (select distinct query, item_id from shown) s using (query, item_id)""",
}

_NEEDS = """
create table needs as
    select need_id, t.query as head, sense from {needs_file} n join texts t on t.raw = n.head;
"""


def observe(
    logs: str | Path, days: Days, routes: tuple[str, ...], truth: str | Path | None = None
) -> dict[str, float]:
    """Return what the logs show on the test day, by name; shares are in [0, 1].

    Args:
        logs: a logs folder with days as partitions.
        routes: names of the bits of `routes`, lowest first.
        truth: the simulator's truth, for what only it can tell; None for logs of real people.
    """
    by_route = {
        f"{name} set found by {route}": _BY_ROUTE.replace("{bit}", str(bit)).replace("{stages}", stages)
        for bit, route in enumerate(routes)
        for name, stages in (("ranked", "'exposed', 'unexposed'"), ("shown", "'exposed'"))
    }
    queries = {**_BY_LOGS, **by_route, **({} if truth is None else _BY_TRUTH)}
    with _tables(logs, days, truth) as rows:
        found = {name: rows(sql)[0][0] for name, sql in queries.items()}
    return {name: float("nan") if value is None else float(value) for name, value in found.items()}


@contextlib.contextmanager
def _tables(
    logs: str | Path, days: Days, truth: str | Path | None
) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
    """Make the tables that the figures are read off; yield what returns the rows of a query over them."""
    opened = open_logs(logs)
    names = {"impressions": "search_impressions", "feed": "feed_events", "items": "items"}
    settings = {
        "train": days.train,
        "test": days.test,
        "soon": _SOON,
        "long_play": LONG_PLAY,
        "known": "play_ms is not null and duration_ms > 0",
        "heavy": HEAVY,
        **{name: opened.sql(table) for name, table in names.items()},
    }
    if truth is not None:
        files = ("searches", "grades", "items", "needs")
        settings |= {f"{name}_file": literal(Path(truth) / f"{name}.parquet") for name in files}
    typed = f"select query from ({settings['impressions']})"
    with open_database() as db:
        add_texts(
            db, typed if truth is None else f"{typed} union all select head from {settings['needs_file']}"
        )
        db.execute((_TABLES if truth is None else _TABLES + _NEEDS).format(**settings))
        yield lambda sql: db.execute(sql.format(**settings)).fetchall()


_CURVES = {
    "CTR by rank": """
        select rank, avg(clicked::int) from shown where day = '{test}' group by all order by all""",
    "Query frequency (log10 of searches by log10 of place)": """
        select log10(place), log10(n) from (
            select n, row_number() over (order by n desc, query) as place from (
                select query, count(*) as n from searches where day = '{test}' group by all))
        where place = floor(power(1.3, round(ln(place) / ln(1.3)))) order by all""",
    "Gaps between a search and its reformulation (share of pairs)": """
        select 5 * floor(gap / 5e6), count(*) / sum(count(*)) over () from pairs
        where day = '{test}' and query <> next_query group by all order by all""",
    "Share of a feed video watched (share of views)": """
        select floor(10 * least(play_ms / duration_ms, 0.999)) / 10, count(*) / sum(count(*)) over ()
        from feed where day = '{test}' and {known} group by all order by all""",
}


def distributions(logs: str | Path, days: Days) -> dict[str, tuple[list[float], list[float]]]:
    """Return x and y of the distributions worth drawing, by name; arguments as in `observe`."""
    with _tables(logs, days, None) as rows:
        found = {name: rows(sql) for name, sql in _CURVES.items()}
    return {name: ([float(x) for x, _ in own], [float(y) for _, y in own]) for name, own in found.items()}
