"""Queries that join the text of an item: those that led to clicks on it, as in the paper's record, and more.

Counted on the very day that is mined click queries would give the answer away: the document of a clicked pair
would hold its query. So they are counted on days before only, and who trains on them asks first
(`require_lag`).

`expand` (ours) adds what the mining found: what was consumed after a rewording is then found by the first
wording, by any retriever and without training. Such queries are of the mined days: only indexes read them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crops.config import BotConfig, DocumentConfig, ExpansionConfig
from crops.database import read_columns
from crops.engine.backend import Backend, DuckDBBackend
from crops.engine.events import NoSearchError, load_events
from crops.engine.evidence import name_later_queries
from crops.engine.mined import days_seen, name_searchers, read_mined
from crops.engine.without import Without
from crops.errors import CropsError
from crops.labels import Source, parse_sources
from crops.logs import Logs
from crops.logs.days import days_before, spans
from crops.outputs import MANIFEST, publish, read_manifest, write_manifest
from crops.schema import ITEMS
from crops.text import CLICK_QUERY, MINED_QUERY, SEPARATOR, normalise_query

COUNTED = "click_query_days"
"""Where the manifest of a mining notes the days on which the click queries of its items were counted."""
CLICK_QUERIES = pa.schema([("item_id", pa.int64()), (CLICK_QUERY, pa.string())])


def count_click_queries(
    backend: Backend,
    history: Mapping[str, Logs],
    before: str,
    document: DocumentConfig,
    bots: BotConfig,
    without: Without | None = None,
) -> tuple[pa.Table, list[str]]:
    """Return the click queries of items as they were known when a day began, and the days counted.

    Args:
        backend: empty, and of no use afterwards.
        history: accepted logs by day; those of later days are not read.
        before: the day, YYYY-MM-DD.
        document: how many queries of an item, of how many people, over how many days.
        bots: whose clicks do not count.
        without: whose rows are left out.

    Returns:
        item_id, click_query (normalised texts, those of most people first), by item_id; items without one
        are left out.
    """
    earliest, parts = days_before(before, document.click_days), dict[Path | str, tuple[Logs, list[str]]]()
    for day, logs in sorted(history.items()):
        if earliest <= day < before:
            parts.setdefault(logs.path, (logs, []))[1].append(day)
    read = []
    for logs, days in parts.values():
        with contextlib.suppress(NoSearchError):  # of people who are not left out
            load_events(backend, logs, days, bots, keep=False, without=without)
            backend.append("asked", f"select s.user_id, {_QUERY} as query from searches s {_OF_QUERY}")
            backend.append("clicks", _CLICKS)
            backend.drop_tables("searches", "queries")  # the next logs have their own
            read += days
    if not read:
        return CLICK_QUERIES.empty_table(), read
    backend.table("pairs", _PAIRS.format(users=document.click_users))
    most = document.click_queries
    places = ", ".join(f"max(case when place = {place} then query end)" for place in range(1, most + 1))
    rows = backend.arrow(
        f"select item_id, concat_ws('{SEPARATOR}', {places}) as {CLICK_QUERY} "
        f"from ({_kept_sql('pairs', most, document.click_chars)}) k group by item_id order by item_id"
    )
    return rows.cast(CLICK_QUERIES), sorted(read)


_QUERY = f"replace(q.query, '{SEPARATOR}', ' ')"
_OF_QUERY = "join queries q on q.query_id = s.query_id"
_CLICKS = f"""
select i.item_id, i.search_id, s.user_id, {_QUERY} as query
from impressions i join searches s on s.search_id = i.search_id {_OF_QUERY}
where i.source = {Source.CLICKED.value}
"""
_PAIRS = """
select c.item_id, c.query, count(distinct c.user_id) as users, count(distinct c.search_id) as events
from clicks c join (
    select query from asked group by query having count(distinct user_id) >= {users}
) k on k.query = c.query
group by c.item_id, c.query
"""


def _kept_sql(pairs: str, most: int, chars: int) -> str:
    """Return the SELECT of the pairs within the caps, with their `place`: those of most people first.

    Args:
        pairs: table of item_id, query, users, events and more; one row for each item and query.
        most: queries of an item.
        chars: characters of them all; the queries from the one on that would exceed them are left out.
    """
    return f"""
    select * from (
        select p.*, sum(length(query)) over (
            partition by item_id order by place rows between unbounded preceding and current row
        ) as chars
        from (
            select p.*, row_number() over (
                partition by item_id order by users desc, events desc, query
            ) as place
            from {pairs} p
        ) p where place <= {most}
    ) q where chars <= {chars}
    """


def with_click_queries(items: str, clicks: str) -> str:
    """Return the SELECT of a table of items with the click queries of another table in place of their own."""
    columns = ", ".join("c.click_query" if name == CLICK_QUERY else f"i.{name}" for name in ITEMS.names())
    return f"select {columns} from {items} i left join {clicks} c on c.item_id = i.item_id"


def mined_click_queries(mined: Path) -> pa.Table:
    """Return the click queries of a mining's items, as `count_click_queries`.

    Raises:
        CropsError: as `require_lag`.
    """
    require_lag(mined)
    return read_columns(mined / f"{ITEMS.name}.parquet", CLICK_QUERIES.names)


def require_lag(mined: Path) -> None:
    """Refuse items whose click queries may count the days that are learned from, or later ones.

    Raises:
        CropsError: they do, or nobody noted on which days they were counted.
    """
    manifest = read_manifest(mined, "mine") if (mined / MANIFEST).exists() else {}
    counted, days = manifest.get(COUNTED), manifest.get("days", [])
    if counted is None:
        raise CropsError(
            f"{mined}: column click_query may count the very days that are learned from or tested on, which "
            "gives the answers away; mine with --fields that name click_query, or index the logs: it is then "
            "counted anew, on the days before"
        )
    if late := [day for day in counted if day >= min(days)]:
        raise CropsError(
            f"{mined}: column click_query counts {spans(late)}, and the samples are of {spans(days)}, which "
            "gives the answers away; mine again"
        )


class NothingToAddError(CropsError):
    """A mining has no evidence of the sources that are to be added."""


ADDED = "added.parquet"
"""The file of an expansion."""


def expand(
    mined: Path,
    out: Path,
    config: ExpansionConfig,
    logs: Path | None = None,
    remove: Collection[str] = (),
) -> dict[str, int]:
    """Write the queries that a mining adds to the texts of its items; return their numbers.

    `added.parquet` has a row for each item and query: `place` among the item's, `searchers` (people who
    searched the query), `sources` (bits), `users` and `events` behind the pair, `via` (P1: the later query of
    most people) and `via_users`, `theta` (the highest), `first_day` and `last_day`. It is for the owner of
    the logs.

    Args:
        mined: folder of a mining, or of a daily build: each day is then mined once, and what leaves the
            window leaves the texts.
        out: the folder to write.
        config: whose evidence counts, and the caps.
        logs: the accepted logs, where they are not where the mining found them.
        remove: queries that are added to nothing.

    Returns:
        `pairs` of `items` and `queries`.

    Raises:
        CropsError: there is no mining, its logs are gone, it has no evidence of these sources, or theta is
            asked for and was not scored.
    """
    found, names = read_mined(mined), ", ".join(config.sources)
    removed = sorted({normalise_query(text) for text in remove})
    with DuckDBBackend(found.config.memory) as backend, publish(out, "expand") as folder:
        found.open(backend)
        name_searchers(backend, found.open_logs(logs))
        schema = pa.schema([("query", pa.string())])
        backend.load("removed", schema, [pa.RecordBatch.from_pydict({"query": removed}, schema=schema)])
        backend.table("own", _OWN.format(bits=int(parse_sources(config.sources)), users=config.users))
        name_later_queries(backend, found)
        seen = backend.rows("select count(*) as events, count(theta) as scored from own")[0]
        if not seen["events"]:
            raise NothingToAddError(
                f"{found.folder} has no evidence of {names} to add, of queries that {config.users} or "
                "more people searched; mine these sources, or lower expansion.users"
            )
        if config.relevance > 0 and not seen["scored"]:
            raise CropsError(
                f"{found.folder} was mined without theta, so expansion.relevance = {config.relevance} is of "
                "no use; leave it out, or mine with theta"
            )
        backend.table("pairs", _FOUND.format(relevance=config.relevance))
        backend.table("kept", _kept_sql("pairs", config.queries, config.chars))
        target = folder / ADDED
        backend.emit(_ADDED, "k.item_id, k.place", target)
        backend.write(target)
        distinct = "count(distinct item_id) as items, count(distinct query) as queries"
        counts = backend.rows(f"select count(*) as pairs, {distinct} from kept")[0]
        write_manifest(
            folder,
            "expand",
            config={"expansion": config.model_dump(mode="json")},
            seconds={},
            mined=str(found.folder.absolute()),
            days=days_seen(found.folder),
            k=found.config.k,
            removed=removed,
            **counts,
        )
    return counts


_OWN = f"""
select e.item_id, e.source, e.search_id, e.via_query_id, e.theta, e.day, s.user_id,
    {_QUERY} as query, q.users as searchers
from evidence e join queries q on q.query_id = e.query_id
left join searchers s on s.search_id = e.search_id and s.day = e.day
where (e.source & {{bits}}) <> 0 and e.item_id > 0 and q.users >= {{users}}
    and q.query not in (select query from removed)
"""
_FOUND = """
select item_id, query, max(searchers) as searchers, bit_or(source) as sources,
    count(distinct user_id) as users, count(distinct search_id) as events, max(theta) as theta,
    min(day) as first_day, max(day) as last_day
from own where {relevance} = 0 or theta >= {relevance}
group by item_id, query
"""
_ADDED = """
select k.item_id, k.place, k.query, k.searchers, k.sources, k.users, k.events, v.via, v.via_users, k.theta,
    k.first_day, k.last_day
from kept k left join (
    select o.item_id, o.query, l.query as via, count(distinct o.user_id) as via_users, row_number() over (
        partition by o.item_id, o.query order by count(distinct o.user_id) desc, l.query
    ) as turn
    from own o join via l on l.query_id = o.via_query_id group by o.item_id, o.query, l.query
) v on v.item_id = k.item_id and v.query = k.query and v.turn = 1
"""


def read_expansion(folder: Path, before: str | None = None) -> pa.Table:
    """Return the rows of an expansion (see `expand`), by item and place.

    Args:
        folder: what `expand` wrote.
        before: a day, YYYY-MM-DD, that must not have been mined for it: a test day.

    Raises:
        CropsError: there is none, or it was mined from that day or a later one.
    """
    days = read_manifest(folder, "expand")["days"]
    if before is not None and (late := [day for day in days if day >= before]):
        raise CropsError(
            f"{folder} adds queries of {spans(late)}, and {before} is the test day: that gives the answers "
            "away; expand a mining of earlier days"
        )
    return pq.read_table(folder / ADDED)


def added_texts(added: pa.Table) -> pa.Table:
    """Return the queries that an expansion adds to each item as one text: item_id, mined_query."""
    texts: dict[int, list[str]] = {}
    for item, query in zip(added["item_id"].to_pylist(), added["query"].to_pylist(), strict=True):
        texts.setdefault(item, []).append(query)
    joined = [SEPARATOR.join(queries) for queries in texts.values()]
    return pa.table({"item_id": pa.array(texts, pa.int64()), MINED_QUERY: pa.array(joined, pa.string())})
