"""P2: what the users who issued a query consumed in the feed around that time (CroPS, system level)."""

from __future__ import annotations

from crops.config import FeedConfig
from crops.engine.backend import Backend
from crops.engine.candidates import COLUMNS, Miner
from crops.labels import Source
from crops.schema import MICROSECONDS


def near_sql(config: FeedConfig, users: str = "1 = 1") -> str:
    """Return the SELECT of every search with what its user consumed in the feed around it.

    Columns: query_id, search_id and user_id of the search; item_id, watched_at; distance, which is
    |watched_at - searched_at| <= window_s, in microseconds.

    Args:
        config: settings of P2.
        users: SQL condition on `user_id`, for work in shards.
    """
    window = round(config.window_s * MICROSECONDS)
    # What can be near lies in the same stretch of one window's length, or in one beside it: with the stretch
    # in the join, the work of a user grows with what is near and not with all searches times all events.
    shifted = " union all ".join(
        f"select s.*, s.searched_at - s.searched_at % {window} + {shift} as stretch "
        f"from (select * from searches where {users}) s"
        for shift in (-window, 0, window)
    )
    return f"""
    select s.query_id, s.search_id, s.user_id, f.item_id, f.watched_at,
        abs(f.watched_at - s.searched_at) as distance
    from ({shifted}) s join (select * from near_feed where {users}) f
        on f.user_id = s.user_id and f.watched_at - f.watched_at % {window} = s.stretch
    where f.watched_at >= s.searched_at - {window} and f.watched_at <= s.searched_at + {window}
    """


def candidates_sql(backend: Backend, config: FeedConfig, found: str) -> str:
    """Return the SELECT of the P2 candidates of some groups, and make the table `near` that it reads.

    For each user and query (or event, where groups are events): the items that the user consumed near a
    search, up to `max_items` distinct ones, nearest in time first, ties by watched_at (earlier first), then
    item_id. An item counts once, at its nearest time, credited to the search it was nearest to (the lower
    search_id of two equally near).

    Where a user and query have no more than `max_items` rows, nothing can be over the limit, and an item may
    still be there at several times: `keep_relevant` leaves the nearest, when theta has made the rows few.

    Args:
        backend: holds what was found.
        config: settings of P2.
        found: SELECT of rows of `near_sql` with their `group_id`, all of a group, if any.
    """
    backend.table("near", found)
    kept = "n.group_id, n.query_id, n.item_id, n.search_id, n.user_id, n.watched_at"
    return f"""
    with busy as (
        select group_id, user_id from near group by group_id, user_id having count(*) > {config.max_items}
    ), nearest as (
        select * from (
            select n.*, row_number() over (
                partition by n.group_id, n.user_id, n.item_id order by n.distance, n.watched_at, n.search_id
            ) as visit
            from near n join busy b on b.group_id = n.group_id and b.user_id = n.user_id
        ) v where visit = 1
    ), ranked as (
        select nearest.*, row_number() over (
            partition by group_id, user_id order by distance, watched_at, item_id
        ) as place
        from nearest
    ), kept as (
        select {kept} from near n left join busy b on b.group_id = n.group_id and b.user_id = n.user_id
        where b.user_id is null
        union all
        select {kept} from ranked n where n.place <= {config.max_items}
    )
    select {COLUMNS} from (
        select k.*, cast({Source.FEED.value} as INTEGER) as source, cast(null as BIGINT) as via_query_id from
        kept k
    ) c
    """


MINER = Miner(near_sql, candidates_sql)
