"""The sums that every metric is made of, per user and day, by SQL over the logs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from crops.config import ReformulationConfig
from crops.engine.backend import DuckDBBackend
from crops.engine.events import load_events
from crops.engine.reformulation import keep_same_intent, later_searches_sql
from crops.engine.scoring import CachedScorer
from crops.errors import CropsError
from crops.logs import Logs
from crops.logs.tables import literal, quoted
from crops.online.metrics import BEHAVIOUR_STATISTICS, route_statistics
from crops.online.truth import read_truth
from crops.signals import LONG_PLAY

MAX_ROUTES = 62
"""Bits of `routes` that hold a route."""


@dataclass(frozen=True)
class Reading:
    """How logs are read."""

    routes: Mapping[str, int]
    """The recall routes to measure and their bits in `search_impressions.routes`, 0 = lowest."""
    reformulation: ReformulationConfig
    similarity: CachedScorer | None
    """P(same intent) of two queries; None lets every other text of the window count as reformulation."""
    memory: str
    """Memory limit of DuckDB, e.g. "2GB"."""

    def __post_init__(self) -> None:
        """Refuse bits that no mask has.

        Raises:
            CropsError: a bit is negative or above `MAX_ROUTES`.
        """
        for name, bit in self.routes.items():
            if not 0 <= bit <= MAX_ROUTES:
                raise CropsError(f"route {name}: bit {bit} is not within 0 and {MAX_ROUTES}")


def user_days(
    logs: Logs, reading: Reading, days: Collection[str] | None = None, truth: Sequence[Path] = ()
) -> pa.Table:
    """Return user_id, arm as logged (null: in none), day and the statistics, one row per user, arm and day.

    The statistics are BIGINT sums over the user's searches of the day: `BEHAVIOUR_STATISTICS`, those of the
    routes, and with truth `senses`, `ambiguous` and `satisfied` (if the
    truth knows). A reformulation counts on the day of the search that it follows. Everybody in the logs is
    kept: who acts like a bot does so in every arm.

    Args:
        logs: accepted logs.
        reading: how to read them.
        days: days to read (YYYY-MM-DD); all when None.
        truth: folders of a simulation's truth; a file is taken from the first that has it.

    Raises:
        CropsError: no search on the days, unusable truth, or the scorer broke its contract.
    """
    with DuckDBBackend(reading.memory) as backend:
        load_events(backend, logs, sorted(days) if days is not None else None, keep=False)
        backend.table("rewordings", later_searches_sql(reading.reformulation))
        keep_same_intent(backend, "rewordings", "same_intent", reading.reformulation, reading.similarity)
        backend.table("per_search", _per_search_sql(reading))
        told = read_truth(backend, truth) if truth else ()
        return backend.arrow(_per_day_sql(reading, told))


def creator_reach(
    logs: Logs, memory: str, days: Collection[str] | None = None, experiment: str | None = None
) -> dict[str | None, tuple[int, int, int]]:
    """Return by arm (None: in none): creators that were shown, creators of the catalogue, users looked at.

    More users see more creators, so every arm is looked at through as many users as the smallest has, drawn
    by a hash. Empty where items have no authors.

    Args:
        logs: accepted logs.
        memory: memory limit of DuckDB.
        days: days to read (YYYY-MM-DD); all when None.
        experiment: whose arms, where `arm` names several experiments as "a=x;b=y".
    """
    with DuckDBBackend(memory) as backend:
        backend.read_logs("log_impressions", logs, "search_impressions", days)
        backend.read_logs("log_items", logs, "items", None)
        rows = backend.rows(_REACH.format(arm=_arm_sql(experiment)))
    return {row["arm"]: (row["shown"], row["creators"], row["users"]) for row in rows if row["creators"]}


_REACH = """
with seen as (
    select distinct user_id, {arm} as arm, item_id from log_impressions where stage = 'exposed'
), ordered as (
    select user_id, arm, row_number() over (partition by arm order by hash(user_id), user_id) as place
    from (select distinct user_id, arm from seen)
), least as (
    select min(users) as users from (select count(*) as users from ordered group by arm)
)
select s.arm, count(distinct i.author_id) as shown, any_value(l.users) as users,
    (select count(distinct author_id) from log_items) as creators
from seen s
join ordered o on o.user_id = s.user_id and o.arm is not distinct from s.arm
join least l on o.place <= l.users
join log_items i on i.item_id = s.item_id
group by s.arm order by s.arm
"""


def _arm_sql(experiment: str | None) -> str:
    if experiment is None:
        return "nullif(arm, '')"
    pattern = f"(?:^|;){re.escape(experiment)}=([^;]*)"
    return f"nullif(regexp_extract(arm, {literal(pattern)}, 1), '')"


def _per_search_sql(reading: Reading) -> str:
    routes = "".join(
        f", count(*) filter ({test}) as {quoted(name)}" for name, test in _route_tests(reading.routes).items()
    )
    return f"""
    select search_id, min(nullif(arm, '')) as arm,
        1 as searches,
        cast(coalesce(bool_or(clicked), false) as INTEGER) as clicked_searches,
        count(*) filter (stage = 'exposed') as shown,
        count(*) filter (clicked) as clicks,
        count(*) filter (play_ms > 0) as plays,
        count(*) filter ({LONG_PLAY}) as long_plays,
        count(*) filter (stage <> 'filtered') as ranked{routes}
    from log_impressions group by search_id
    """


def _route_tests(routes: Mapping[str, int]) -> dict[str, str]:
    """Return when an impression counts, by statistic, in the order of `route_statistics`."""
    stages = {"ranked": "stage <> 'filtered'", "shown": "stage = 'exposed'"}
    tests = [
        f"{stage} and {test}"
        for bit in routes.values()
        for test in (f"(routes & {1 << bit}) <> 0", f"routes = {1 << bit}")
        for stage in stages.values()
    ]
    return dict(zip(route_statistics(tuple(routes)), tests, strict=True))


def _per_day_sql(reading: Reading, told: Sequence[str]) -> str:
    plain = [name for name in BEHAVIOUR_STATISTICS if name != "reformulated"]
    sums = {name: f"p.{quoted(name)}" for name in (*plain, *route_statistics(tuple(reading.routes)))}
    sums["reformulated"] = "case when r.search_id is null then 0 else 1 end"
    sums.update({name: f"t.{name}" for name in told})
    written = ", ".join(f"cast(coalesce(sum({sql}), 0) as BIGINT) as {quoted(n)}" for n, sql in sums.items())
    truth = "left join truth_per_search t on t.search_id = s.search_id" if told else ""
    return f"""
    select s.user_id, p.arm, s.day, {written}
    from searches s join per_search p on p.search_id = s.search_id
    left join (select distinct search_id from same_intent) r on r.search_id = s.search_id
    {truth}
    group by s.user_id, p.arm, s.day order by s.user_id, s.day, p.arm
    """
