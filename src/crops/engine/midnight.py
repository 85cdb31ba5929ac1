"""What the mining of a day sees of the days beside it: rows around midnight, that make no group.

Searches of the next day may be later queries (P1), and feed events of both days may be near a search (P2).
They are no searches, impressions or events of the day itself: nothing else reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crops.config import EngineConfig
from crops.engine.backend import Backend
from crops.logs import Logs
from crops.schema import CONSUMED, FEED_EVENTS, MICROSECONDS, SEARCH_IMPRESSIONS, Table


@dataclass(frozen=True)
class Beside:
    """The days beside a mined one, and how far it sees into them."""

    logs: Mapping[str, Logs]
    """Where each of these days is: the one before, the one after, both or neither."""
    later_s: float
    """A later query counts within so many seconds after a search."""
    feed_s: float
    """What was watched counts within so many seconds to both sides of a search."""

    @classmethod
    def of(cls, logs: Mapping[str, Logs], config: EngineConfig) -> Beside:
        """Return the days beside one that is mined with these settings."""
        return cls(logs, config.reformulation.window_s, config.feed.window_s)

    def files(self) -> list[Path | str]:
        """Return the files that hold their rows."""
        return [
            file
            for day, logs in self.logs.items()
            for table in (SEARCH_IMPRESSIONS, FEED_EVENTS)
            for file in logs.tables[table.name].on([day]).files
        ]


def read_beside(backend: Backend, beside: Beside, days: Sequence[str]) -> str:
    """Make `beside_impressions` and `beside_feed`; return the SELECT of the `raw` texts to know besides.

    An item that the catalogue of the mined day does not hold does not count.

    Args:
        backend: holds `log_impressions` and `log_items` of the mined days.
        beside: the days beside them.
        days: the mined days.
    """
    bounds = "(select min(searched_at) as first, max(searched_at) as last from log_impressions)"
    for name, table, days_of, reach in (
        (
            "beside_impressions",
            SEARCH_IMPRESSIONS,
            {day for day, logs in beside.logs.items() if day > max(days) and day in logs.search_days},
            f"l.searched_at > b.first and l.searched_at <= b.last + {_us(beside.later_s)}",
        ),
        (
            "beside_feed",
            FEED_EVENTS,
            {day for day, logs in beside.logs.items() if day in logs.feed_days},
            f"l.watched_at between b.first - {_us(beside.feed_s)} and b.last + {_us(beside.feed_s)}",
        ),
    ):
        read = _read(backend, name, table, {day: beside.logs[day] for day in sorted(days_of)})
        backend.table(
            name,
            f"select l.* from {read} l cross join {bounds} b where {reach} "
            "and l.item_id in (select item_id from log_items)",
        )
    return "select query as raw from beside_impressions"


def _us(seconds: float) -> int:
    return round(seconds * MICROSECONDS)


def _read(backend: Backend, name: str, table: Table, logs: Mapping[str, Logs]) -> str:
    """Return the relation of a table's rows on the days beside."""
    if not logs:
        backend.read_parquet(f"{name}_none", [], table.arrow())
        return f"{name}_none"
    for number, (day, source) in enumerate(logs.items()):
        backend.read_logs(f"{name}_{number}", source, table.name, [day])
    columns = ", ".join(table.names())
    rows = " union all ".join(f"select {columns} from {name}_{number}" for number in range(len(logs)))
    return f"({rows})"


def see_midnight(backend: Backend, beside: Beside | None) -> None:
    """Make `later_searches`, `later_impressions`, `near_feed` and `wordings`: what P1 and P2 look at.

    Args:
        backend: holds the events of the mined days and, with `beside`, the rows of `read_beside`.
        beside: the days beside them; None where a day sees nothing of them.
    """
    searches = "select search_id, query_id, user_id, searched_at from searches"
    impressions = "select search_id, item_id, consumed from impressions"
    feed, wordings = "select * from feed", "select query_id, query from queries"
    if beside is not None:
        backend.table("beside_searches", _SEARCHES)
        searches += " union all select search_id, query_id, user_id, searched_at from beside_searches"
        impressions += f" union all {_IMPRESSIONS}"
        feed = "select user_id, item_id, watched_at from feed union all " + _FEED
        wordings = "select distinct query_id, query from texts"
    backend.view("later_searches", searches)
    backend.view("later_impressions", impressions)
    backend.view("near_feed", feed)
    backend.view("wordings", wordings)


_EVENT = "select search_id, min(user_id) as user_id, min(searched_at) as searched_at"
_SEARCHES = f"""
select b.first - row_number() over (order by e.own_id) as search_id, e.own_id, e.query_id, e.user_id,
    e.searched_at
from (
    select l.search_id as own_id, min(l.user_id) as user_id, min(t.query_id) as query_id,
        min(l.searched_at) as searched_at
    from beside_impressions l join texts t on t.raw = l.query group by l.search_id
) e left join ({_EVENT} from log_impressions group by search_id) s
    on s.search_id = e.own_id and s.user_id = e.user_id and s.searched_at = e.searched_at
cross join (select least(min(search_id), 0) as first from log_impressions) b
where s.search_id is null
"""
"""A search that the mined day holds is one of its own. The others get ids that it does not have: days may
count their searches from 1 each."""
_IMPRESSIONS = f"""
select s.search_id, l.item_id, l.stage = 'exposed' and {CONSUMED} as consumed
from beside_impressions l join beside_searches s on s.own_id = l.search_id
"""
_FEED = f"select user_id, item_id, watched_at from beside_feed where {CONSUMED}"
