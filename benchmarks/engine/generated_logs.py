"""Generated logs for the engine's benchmarks: any size, skewed users and queries, sessions, reformulations.

Per search 20 documents are considered (4 shown, 6 ranked and not shown, 10 filtered), drawn from 400 that
belong to the query. A user has five sessions of 45 minutes a day; searches and feed events fall into them,
so that P2 finds what real sessions hold. Every second search follows another of the same user by 5 to 125
seconds.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import duckdb

DAY_START = 1_767_571_200_000_000
"""2026-01-05 00:00 UTC in microseconds."""
DAY = "2026-01-05"
PER_SEARCH = 20
SLOTS = 5
_SLOT_US = 86_400_000_000 // SLOTS
_SESSION_US = 2_700_000_000


def make_logs(folder: Path, impressions: int, seed: int = 1, memory: str = "3GB") -> Path:
    """Write a day of `impressions` impressions and as many feed events; an existing folder is used again.

    Args:
        folder: where generated logs are kept; one folder below it for each size and seed.
        impressions: rows of search_impressions, a multiple of 100.
        seed: of everything random; the rows do not depend on the number of threads.
        memory: for the generating DuckDB.
    """
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    logs = folder / f"logs-{impressions}-{seed}-{version}"
    if (logs / "items.parquet").exists():
        return logs
    searches = impressions // PER_SEARCH
    users, items = searches // 6, searches // 5
    for table in ("search_impressions", "feed_events"):
        (logs / table / f"day={DAY}").mkdir(parents=True, exist_ok=True)
    with duckdb.connect(config={"memory_limit": memory, "temp_directory": str(folder / "spill")}) as db:
        for name, sql in _MACROS.items():
            db.execute(f"create macro {name} as {sql}")
        for slot in range(SLOTS):
            here = {"slot": slot, "users": users, "items": items, "seed": seed}
            texts = searches * 2 // 5
            rows = _SEARCHES.format(
                **here, first=slot * (searches // SLOTS), n=searches // SLOTS, texts=texts
            )
            db.execute(f"create or replace temp table searches as {rows}")
            for table, query in (("search_impressions", _IMPRESSIONS), ("feed_events", _FEED)):
                target = logs / table / f"day={DAY}" / f"{slot}.parquet"
                select = query.format(**here, first=slot * (impressions // SLOTS), n=impressions // SLOTS)
                db.execute(f"copy ({select}) to '{target}' (format parquet)")
        db.execute(f"copy ({_ITEMS.format(items=items)}) to '{logs / 'items.parquet'}' (format parquet)")
    return logs


_MACROS = {
    # A number in [0, 1) for row n, salt and seed.
    "u(n, salt, seed)": "(hash(n, salt, seed) >> 11) / 9007199254740992.0",
    "session_at(slot, user_id, seed)": f"{DAY_START} + slot * {_SLOT_US}"
    f" + cast(u(user_id, 100 + slot, seed) * {_SLOT_US - _SESSION_US} as BIGINT)",
}

# Odd rows follow the row before: same user, a little later, mostly another query, sometimes the same.
_SEARCHES = """
select n + 1 as search_id, user_id, query_number, 'query ' || (query_number % 977) || ' about topic ' ||
query_number
    as query, cast(session_at({slot}, user_id, {seed}) + later as BIGINT) as searched_at
from (
    select n, cast(floor(pow(u(first, 1, {seed}), 1.5) * {users}) as BIGINT) as user_id,
        cast(floor(pow(u(case when n % 10 = 1 then first else n end, 2, {seed}), 3) * {texts}) as BIGINT)
            as query_number,
        u(first, 3, {seed}) * 2500e6 + (n - first) * (5e6 + u(n, 4, {seed}) * 120e6) as later
    from (select range as n, range - range % 2 as first from range({first}, {first} + {n}))
)
order by n
"""

_IMPRESSIONS = """
select user_id, search_id, query, searched_at, item_id, stage, case when stage = 'exposed' then place + 1 end
as rank,
    stage = 'exposed' and u(search_id * 32 + place, 6, {seed}) < 0.2 as clicked,
    case when stage = 'exposed' then cast(u(search_id * 32 + place, 7, {seed}) * 20000 as BIGINT) end as
    play_ms, cast(5000 + item_id % 60 * 1000 as BIGINT) as duration_ms
from (
    select s.*, place, case when place < 4 then 'exposed' when place < 10 then 'unexposed' else 'filtered'
    end as stage,
        1 + (query_number * 7919 + place * 20 + cast(floor(pow(u(search_id * 32 + place, 5, {seed}), 2) * 20)
        as BIGINT))
            % {items} as item_id
    from searches s, (select range as place from range(20))
)
"""

_FEED = """
select user_id, cast(1 + floor(pow(u(n, 11, {seed}), 2) * {items}) as BIGINT) as item_id,
    cast(session_at({slot}, user_id, {seed}) + u(n, 12, {seed}) * 2700e6 as BIGINT) as watched_at,
    cast(u(n, 13, {seed}) * 26000 as BIGINT) as play_ms, 30000 as duration_ms
from (
    select range as n, cast(floor(pow(u(range, 10, {seed}), 1.5) * {users}) as BIGINT) as user_id
    from range({first}, {first} + {n})
)
"""

_ITEMS = """
select range + 1 as item_id, 'title ' || range as ocr_cover, 'caption words ' || range % 97 as photo_caption
from range({items})
"""
