"""Logs as the engine sees them: queries by normalised text, integer ids, one source bit per impression.

`group_id` is the training group of an event, see `GROUP_COLUMN`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import pyarrow as pa

from crops.config import BotConfig
from crops.engine.backend import Backend, file_partitions
from crops.engine.midnight import Beside, read_beside, see_midnight
from crops.engine.without import Without, read_logs
from crops.errors import CropsError
from crops.labels import Source
from crops.logs import Logs
from crops.schema import CONSUMED
from crops.text import content_id, document_text_sql, normalised_texts

GroupBy = Literal["query", "event"]
GROUP_COLUMN = {"query": "query_id", "event": "search_id"}
"""What the `group_id` of an event is."""
_SOURCE = f"""case
    when stage = 'filtered' then {Source.FILTERED.value}
    when stage = 'unexposed' then {Source.UNEXPOSED.value}
    when coalesce(clicked, false) or coalesce(liked, false) then {Source.CLICKED.value}
    else {Source.EXPOSED.value} end"""


class NoSearchError(CropsError):
    """There is nothing to mine."""


_DAY_US = 86_400_000_000
_TEXT_SCHEMA = pa.schema([("raw", pa.string()), ("query_id", pa.int64()), ("query", pa.string())])


def load_events(
    backend: Backend,
    logs: Logs,
    days: Sequence[str] | None,
    bots: BotConfig | None = None,
    group_by: GroupBy = "query",
    *,
    keep: bool = True,
    without: Without | None = None,
    beside: Beside | None = None,
) -> None:
    """Make the tables `log_impressions` to `documents` (see `crops.engine.mine.TABLES`) of some days.

    Args:
        backend: holds the tables.
        logs: accepted logs.
        days: days to read, YYYY-MM-DD.
        bots: who counts as bot-like; None keeps everybody.
        group_by: what a training group is.
        keep: whether `impressions` is kept; a job that reads few of them once is faster without.
        without: whose rows are left out.
        beside: the days beside the mined ones, where these see over midnight.

    Raises:
        NoSearchError: the days hold no search.
        CropsError: a search_id belongs to two users or two queries.
    """
    read_logs(backend, logs, days, without)
    raw = "select query as raw from log_impressions"
    if beside is not None:
        raw += f" union all {read_beside(backend, beside, days or logs.search_days)}"
    add_texts(backend, "texts", f"select distinct raw from ({raw}) q")
    backend.table("search_events", _SEARCH_EVENTS)
    _check_searches(backend, days, without)
    backend.table("bots", _NO_BOTS if bots is None else _bots_sql(bots))
    group = GROUP_COLUMN[group_by]
    size = file_partitions(backend.count("log_impressions"), backend.memory) if keep else 1
    backend.append_partitioned("searches", _SEARCHES.format(group=group), size)
    backend.table("bot_searches", _BOT_SEARCHES)
    backend.table("queries", _QUERIES)
    backend.drop_tables("search_events")  # large, and nobody reads it again
    groups = "select query_id as group_id, query_id from queries"
    backend.view("groups", groups if group_by == "query" else "select group_id, query_id from searches")
    if keep:
        backend.append_partitioned("staged_impressions", _IMPRESSIONS, size)
    else:
        backend.view("staged_impressions", _IMPRESSIONS)
    backend.view("impressions", f"select *, {group} as group_id from staged_impressions")
    backend.view("feed", f"select user_id, item_id, watched_at from log_feed where {CONSUMED}")
    see_midnight(backend, beside)
    backend.view("documents", f"select item_id, {document_text_sql()} as text from log_items")


_SEARCH_EVENTS = """
select l.search_id, min(l.user_id) as user_id, min(t.query_id) as query_id,
    min(l.searched_at) as searched_at, min(l.day) as day,
    min(l.user_id) <> max(l.user_id) or min(t.query_id) <> max(t.query_id) as mixed
from log_impressions l join texts t on t.raw = l.query
group by l.search_id
"""
_NO_BOTS = "select user_id from search_events where 1 = 0"
_SEARCHES = """
select e.search_id, e.{group} as group_id, e.query_id, e.user_id, e.searched_at, e.day
from search_events e left join bots b on b.user_id = e.user_id
where b.user_id is null
"""
_BOT_SEARCHES = """
select e.search_id from search_events e join bots b on b.user_id = e.user_id
"""
_QUERIES = """
select s.query_id, t.query, s.searches, s.users
from (
    select query_id, count(*) as searches, count(distinct user_id) as users from searches group by query_id
) s join (select distinct query_id, query from texts) t on t.query_id = s.query_id
"""
_IMPRESSIONS = f"""
select l.search_id, s.query_id, l.item_id, cast({_SOURCE} as INTEGER) as source,
    l.stage = 'exposed' and {CONSUMED} as consumed
from log_impressions l join searches s on s.search_id = l.search_id
"""


def _bots_sql(bots: BotConfig) -> str:
    return f"""
    select distinct user_id from (
        select user_id from search_events group by user_id, day having count(*) > {bots.max_searches_per_day}
        union all
        select f.user_id from log_feed f join (
            select user_id from log_feed group by user_id having count(*) > {bots.max_feed_events_per_day}
        ) often on often.user_id = f.user_id
        group by f.user_id, f.watched_at - f.watched_at % {_DAY_US}
        having count(*) > {bots.max_feed_events_per_day}
    ) busy
    """


def add_texts(backend: Backend, name: str, distinct: str) -> None:
    """Make a table of `raw`, `query_id` and `query`: the texts of a SELECT of `raw`, normalised.

    A text with nothing to read is no query and is not in it.
    """
    backend.map_batches(name, distinct, _normalise, _TEXT_SCHEMA)


def _normalise(batches: Iterator[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
    for batch in batches:
        texts = normalised_texts(batch.column("raw").to_pylist())
        columns = [list(texts), [content_id(text) for text in texts.values()], list(texts.values())]
        yield pa.RecordBatch.from_arrays(
            [pa.array(values, field.type) for values, field in zip(columns, _TEXT_SCHEMA, strict=True)],
            schema=_TEXT_SCHEMA,
        )


def _check_searches(backend: Backend, days: Sequence[str] | None, without: Without | None) -> None:
    if not backend.count("search_events"):
        where = f"on {', '.join(days)}" if days else "on any day"
        where += " without the users and items left out" if without else ""
        raise NoSearchError(
            f"search_impressions: no search {where}, so nothing can be mined; "
            "check engine.days and the rejects of `crops check`"
        )
    mixed = backend.rows("select min(search_id) as search_id from search_events where mixed")[0]["search_id"]
    if mixed is not None:
        raise CropsError(
            f"search_impressions, column search_id: {mixed} belongs to more than one user or query; "
            "a search_id is one query event of one user, give each event its own"
        )
