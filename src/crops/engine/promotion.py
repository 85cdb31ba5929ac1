"""P4, ours: what search ranked or filtered, never showed, and theta finds right all the same.

Nobody consumed it, so nobody can steer it: it has no user and no cap per user. Without it all that a search
ranked and had no room to show is a negative.
"""

from __future__ import annotations

from crops.config import PromotionConfig
from crops.engine.backend import Backend
from crops.engine.candidates import COLUMNS, Miner
from crops.labels import Source

_SHOWN = Source.EXPOSED | Source.CLICKED


def unshown_sql(config: PromotionConfig, users: str = "1 = 1") -> str:
    """Return the SELECT of what users' searches found and did not show: query_id, search_id, item_id."""
    return f"""
    select i.query_id, i.search_id, i.item_id
    from impressions i join (select * from searches where {users}) s on s.search_id = i.search_id
    where i.source in ({Source.UNEXPOSED.value}, {Source.FILTERED.value})
    """


def candidates_sql(backend: Backend, config: PromotionConfig, found: str) -> str:
    """Return the SELECT of the P4 candidates: pairs that no search of the group showed, at their first one.

    The backend holds `staged`.
    """
    return f"""
    select {COLUMNS} from (
        select f.group_id, f.query_id, f.item_id, cast({Source.PROMOTED.value} as INTEGER) as source,
            min(f.search_id) as search_id, cast(null as BIGINT) as via_query_id,
            cast(null as BIGINT) as user_id, cast(null as BIGINT) as watched_at
        from ({found}) f join staged k on k.group_id = f.group_id and k.item_id = f.item_id
        where (k.considered & {_SHOWN.value}) = 0
        group by f.group_id, f.query_id, f.item_id
    ) c
    """


MINER = Miner(unshown_sql, candidates_sql)
