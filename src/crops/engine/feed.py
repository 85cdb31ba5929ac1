"""P2: what the users who issued a query consumed in the feed around that time (CroPS, system level)."""

from __future__ import annotations

from crops.config import FeedConfig
from crops.engine.candidates import MICROSECONDS
from crops.labels import Source


def feed_sql(config: FeedConfig) -> str:
    """Return the SELECT of all P2 candidates.

    For each query event: the items that its user consumed in the feed while
    |watched_at - searched_at| <= window_s, up to `max_items` distinct ones, nearest in time first, ties by
    watched_at (earlier first), then item_id. An item watched twice counts once, at its nearest time.
    """
    window = round(config.window_s * MICROSECONDS)
    return f"""
    select query_id, item_id, cast({Source.FEED.value} as BIGINT) as source, search_id,
        cast(null as BIGINT) as via_query_id, user_id, watched_at, day
    from (
        select query_id, search_id, user_id, day, item_id, watched_at, row_number() over (
            partition by search_id order by distance, watched_at, item_id
        ) as place
        from (
            select query_id, search_id, user_id, day, item_id, watched_at, distance, row_number() over (
                partition by search_id, item_id order by distance, watched_at
            ) as visit
            from (
                select s.query_id, s.search_id, s.user_id, s.day, f.item_id, f.watched_at,
                    abs(f.watched_at - s.searched_at) as distance
                from searches s join feed f on f.user_id = s.user_id
                    and f.watched_at >= s.searched_at - {window} and f.watched_at <= s.searched_at + {window}
            ) near
        ) visits
        where visit = 1
    ) placed
    where place <= {config.max_items}
    """
