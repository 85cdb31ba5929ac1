"""Logs as the engine sees them: queries by normalised text, integer ids, one source bit per impression.

Tables made here, read by the other modules:
- `texts(raw, query_id, query)`: normalised form of every text as typed;
- `searches(search_id, user_id, query_id, searched_at, day)`: one row per query event;
- `queries(query_id, query, searches, users)`: the distinct normalised queries;
- `impressions(search_id, query_id, item_id, source, consumed)`: `source` is one bit of `crops.labels.Source`;
- `feed(user_id, item_id, watched_at)`: what was consumed in the feed;
- `documents(item_id, text)`: document text of the real items.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from crops.engine.backend import DuckDBBackend
from crops.errors import CropsError
from crops.labels import Source
from crops.logs import Logs
from crops.text import document_text_sql, normalise_query, query_id

LONG_PLAY_MS = 18_000
"""A play of this length, or of the whole item if that is shorter, is consumption."""

CONSUMED = f"""(coalesce(clicked, false) or coalesce(liked, false) or coalesce(play_ms >= case
    when duration_ms > 0 and duration_ms <= {LONG_PLAY_MS} then duration_ms
    else {LONG_PLAY_MS} end, false))"""
"""Clicked, liked or a long play. A missing signal is no signal; an unknown (or zero) length asks for 18 s."""

_SOURCE = f"""case
    when stage = 'filtered' then {Source.FILTERED.value}
    when stage = 'unexposed' then {Source.UNEXPOSED.value}
    when coalesce(clicked, false) or coalesce(liked, false) then {Source.CLICKED.value}
    else {Source.EXPOSED.value} end"""

_TEXT_SCHEMA = pa.schema([("raw", pa.string()), ("query_id", pa.int64()), ("query", pa.string())])


def load_events(backend: DuckDBBackend, logs: Logs, days: Sequence[str] | None) -> None:
    """Make the tables named above from the logs of `days` (all days when None).

    Raises:
        CropsError: the days hold no search, or a search_id stands for two users or two queries.
    """
    backend.view("log_impressions", logs.sql("search_impressions", days))
    distinct = "select distinct query as raw from log_impressions"
    backend.map_batches("texts", distinct, _normalise, _TEXT_SCHEMA)
    backend.table("search_events", _SEARCH_EVENTS)
    _check_searches(backend, days)
    backend.view("searches", "select search_id, user_id, query_id, searched_at, day from search_events")
    backend.table("queries", _QUERIES)
    backend.table("impressions", _IMPRESSIONS)
    backend.view("log_feed", logs.sql("feed_events", days))
    backend.view("feed", f"select user_id, item_id, watched_at from log_feed where {CONSUMED}")
    backend.view("log_items", logs.sql("items"))
    backend.view("documents", f"select item_id, {document_text_sql()} as text from log_items")


_SEARCH_EVENTS = """
select l.search_id, min(l.user_id) as user_id, min(t.query_id) as query_id,
    min(l.searched_at) as searched_at, min(l.day) as day,
    min(l.user_id) <> max(l.user_id) or min(t.query_id) <> max(t.query_id) as mixed
from log_impressions l join texts t on t.raw = l.query
group by l.search_id
"""

_QUERIES = """
select s.query_id, t.query, s.searches, s.users
from (
    select query_id, count(*) as searches, count(distinct user_id) as users from searches group by query_id
) s join (select distinct query_id, query from texts) t on t.query_id = s.query_id
"""

_IMPRESSIONS = f"""
select l.search_id, t.query_id, l.item_id, cast({_SOURCE} as BIGINT) as source,
    l.stage = 'exposed' and {CONSUMED} as consumed
from log_impressions l join texts t on t.raw = l.query
"""


def _normalise(batches: Iterator[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
    """Add query_id and normalised text; a text of Unicode white space only is no query and leaves."""
    for batch in batches:
        raw = [text for text in batch.column("raw").to_pylist() if normalise_query(text)]
        ids, queries = [query_id(text) for text in raw], [normalise_query(text) for text in raw]
        yield pa.RecordBatch.from_pydict({"raw": raw, "query_id": ids, "query": queries}, schema=_TEXT_SCHEMA)


def _check_searches(backend: DuckDBBackend, days: Sequence[str] | None) -> None:
    if not backend.count("search_events"):
        where = f"on {', '.join(days)}" if days else "on any day"
        raise CropsError(
            f"search_impressions: no search {where}, so nothing can be mined; "
            "check engine.days and the rejects of `crops check`"
        )
    mixed = backend.rows("select min(search_id) as search_id from search_events where mixed")[0]["search_id"]
    if mixed is not None:
        raise CropsError(
            f"search_impressions, column search_id: {mixed} stands for more than one user or query; "
            "a search_id is one query event of one user, give each event its own"
        )
