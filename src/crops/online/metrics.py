"""What an experiment measures: each metric is a ratio of two sums over users, which SQL reads off the logs.

CTR, long plays and reformulations are those of CroPS (Tables 6 and 9), Ratio_rank and Ratio_show those of its
Tables 5 and 8. docs/online-metrics.md has the formulas.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from crops.config import ReformulationConfig
from crops.database import literal, parquet, quoted
from crops.engine.backend import DuckDBBackend
from crops.engine.candidates import keep_same_intent
from crops.engine.events import add_texts, load_events
from crops.engine.reformulation import later_searches_sql
from crops.engine.scoring import CachedScorer
from crops.errors import CropsError
from crops.logs import Logs
from crops.schema import LONG_PLAY

Role = Literal["effect", "user", "route", "truth"]
"""Table of the metric: effects, shares per user, shares of the recall routes, and what only truth tells."""


@dataclass(frozen=True)
class Metric:
    """A ratio metric: sum of `numerator` over users / sum of `denominator` over users."""

    key: str
    label: str
    numerator: str
    denominator: str
    explanation: str
    role: Role = "effect"
    better: int = 1
    """+1: higher is better, -1: lower is better, 0: neither."""
    share: bool = True
    """Whether it is a share in [0, 1], to be printed in %."""


CTR, LPR, RQR = "ctr", "lpr", "rqr"
PRIMARY = (CTR, LPR, RQR)
"""The metrics whose tests are corrected together."""

_BEHAVIOUR = (
    Metric(CTR, "CTR", "clicked_searches", "searches", "searches with a click / searches"),
    Metric(
        "ctr_shown",
        "CTR per result",
        "clicks",
        "shown",
        "clicked results / shown results: CTR per impression",
    ),
    Metric(LPR, "LPR", "long_plays", "plays", "long plays / plays from search"),
    Metric(
        RQR,
        "RQR",
        "reformulated",
        "searches",
        "searches that the same user followed in the window by another text of one intent / searches",
        better=-1,
    ),
)
_USERS = (
    Metric("ctr_user", "CTR per user", "ctr_own", "ctr_has", "mean over users of their own CTR", "user"),
    Metric("lpr_user", "LPR per user", "lpr_own", "lpr_has", "mean over users of their own LPR", "user"),
    Metric("rqr_user", "RQR per user", "rqr_own", "rqr_has", "mean over users of their own RQR", "user", -1),
    Metric(
        "lpr_any", "users with a long play", "lpr_ever", "lpr_has", "users with a long play / players", "user"
    ),
    Metric("rqr_any", "users who reworded", "rqr_ever", "rqr_has", "of those who searched", "user", -1),
)
_TRUTH = (
    Metric(
        "satisfied",
        "satisfied",
        "satisfied",
        "searches",
        "searches that truly satisfied the searcher / searches",
        "truth",
    ),
    Metric(
        "senses",
        "senses",
        "senses",
        "ambiguous",
        "senses covered: different true meanings of the query shown per search of an ambiguous query",
        "truth",
        share=False,
    ),
)
_COUNTS = ("searches", "clicked_searches", "shown", "clicks", "plays", "long_plays", "ranked")
"""What every log has per user and day, beside `reformulated`; what its columns do not tell is 0."""


def route_metrics(routes: Sequence[str]) -> tuple[Metric, ...]:
    """Return Ratio_rank and Ratio_show of recall routes, each with the share that no other route found."""
    return tuple(
        Metric(
            f"{kind}_{stage}:{route}",
            f"Ratio_{stage}{', unique' if kind == 'only' else ''} ({route})",
            f"{kind}_{column}:{route}",
            column,
            f"share of the {column} results that {route} {'alone ' if kind == 'only' else ''}found",
            "route",
            better=0,
        )
        for route in routes
        for kind in ("ratio", "only")
        for stage, column in (("rank", "ranked"), ("show", "shown"))
    )


def metrics_of(routes: Sequence[str], statistics: Sequence[str]) -> tuple[Metric, ...]:
    """Return the metrics that the measured statistics and recall routes tell, in the order of the tables."""
    known = {*statistics, *USER_STATISTICS}
    every = (*_BEHAVIOUR, *_USERS, *route_metrics(routes), *_TRUTH)
    return tuple(metric for metric in every if {metric.numerator, metric.denominator} <= known)


USER_SHARES = {
    CTR: ("clicked_searches", "searches"),
    LPR: ("long_plays", "plays"),
    RQR: ("reformulated", "searches"),
}
"""Numerator and denominator of the shares that each user has of his own."""
USER_STATISTICS = tuple(f"{key}_{part}" for key in USER_SHARES for part in ("own", "has", "ever"))
"""Made of a user's sums: the own share (0 without a denominator), whether there is one, whether it is > 0."""
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
        for name, bit in self.routes.items():
            if not 0 <= bit <= MAX_ROUTES:
                raise CropsError(f"route {name}: bit {bit} is not within 0 and {MAX_ROUTES}")


def user_days(
    logs: Logs, reading: Reading, days: Collection[str] | None = None, truth: Sequence[Path] = ()
) -> pa.Table:
    """Return user_id, arm as logged (null: in none), day and the statistics, one row per user, arm and day.

    The statistics are BIGINT sums over the user's searches of the day: counts of behaviour, those of the
    routes, and with truth `senses`, `ambiguous` and `satisfied` (if the truth knows). A reformulation counts
    on the day of the search that it follows. Everybody in the logs is kept: who acts like a bot does so in
    every arm.

    Args:
        days: days to read (YYYY-MM-DD); all when None.
        truth: folders of a simulation's truth; a file is taken from the first that has it.

    Raises:
        CropsError: no search on the days, unusable truth, or the scorer broke its contract.
    """
    with DuckDBBackend(reading.memory) as backend:
        load_events(backend, logs, sorted(days) if days is not None else None, keep=False)
        backend.table("rewordings", later_searches_sql(reading.reformulation))
        keep_same_intent(
            backend, "rewordings", "same_intent", reading.reformulation.similarity, reading.similarity
        )
        found_by = _route_tests(reading.routes)
        backend.table("per_search", _per_search_sql(found_by))
        told = read_truth(backend, truth) if truth else ()
        return backend.arrow(_per_day_sql(tuple(found_by), told))


def creator_reach(
    logs: Logs, memory: str, days: Collection[str] | None = None, experiment: str | None = None
) -> dict[str | None, tuple[int, int, int]]:
    """Return by arm (None: in none): creators that were shown, creators of the catalogue, users looked at.

    More users see more creators, so every arm is looked at through as many users as the smallest has, drawn
    by a hash. Empty where items have no authors.

    Args:
        days: days to read (YYYY-MM-DD); all when None.
        experiment: whose arms, where `arm` names several experiments as "a=x;b=y".
    """
    arm_sql = "nullif(arm, '')"
    if experiment is not None:
        pattern = f"(?:^|;){re.escape(experiment)}=([^;]*)"
        arm_sql = f"nullif(regexp_extract(arm, {literal(pattern)}, 1), '')"
    with DuckDBBackend(memory) as backend:
        backend.read_logs("log_impressions", logs, "search_impressions", days)
        backend.read_logs("log_items", logs, "items", None)
        rows = backend.rows(_REACH.format(arm=arm_sql))
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


def _route_tests(routes: Mapping[str, int]) -> dict[str, str]:
    """Return when an impression counts, by numerator of `route_metrics`."""
    tests = [
        f"{stage} and {test}"
        for bit in routes.values()
        for test in (f"(routes & {1 << bit}) <> 0", f"routes = {1 << bit}")
        for stage in ("stage <> 'filtered'", "stage = 'exposed'")
    ]
    return {m.numerator: test for m, test in zip(route_metrics(tuple(routes)), tests, strict=True)}


def _per_search_sql(found_by: Mapping[str, str]) -> str:
    routes = "".join(f", count(*) filter ({test}) as {quoted(name)}" for name, test in found_by.items())
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


def _per_day_sql(routes: Sequence[str], told: Sequence[str]) -> str:
    sums = {name: f"p.{quoted(name)}" for name in (*_COUNTS, *routes)}
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


_NEEDED = {"items": ("item_id", "need_id"), "needs": ("need_id", "head", "sense")}
_MEANINGS = """
select n.need_id, t.query as head, n.sense from truth_needs n join head_texts t on t.raw = n.head
"""
"""The needs, their heads normalised as queries are."""
_SEARCH_SENSES = """
with ambiguous as (
    select s.search_id, h.head
    from searches s join queries q on q.query_id = s.query_id
    join (select head from meanings group by head having count(distinct sense) > 1) h
        on h.head = q.query
)
select a.search_id, count(distinct n.sense) as senses
from ambiguous a
left join log_impressions l on l.search_id = a.search_id and l.stage = 'exposed'
left join truth_items i on i.item_id = l.item_id
left join meanings n on n.need_id = i.need_id and n.head = a.head
group by a.search_id
"""


def read_truth(backend: DuckDBBackend, truth: Sequence[Path]) -> tuple[str, ...]:
    """Make `truth_per_search(search_id, senses, ambiguous[, satisfied])` and return its statistics.

    A query is ambiguous when it says nothing but a word that has several senses. `senses` are the different
    ones of them among the shown results of such a search.

    Args:
        backend: holds the events (see `crops.engine.events`).
        truth: folders with items.parquet, needs.parquet and, for `satisfied`, searches.parquet or
            searches/day=.../*.parquet; the first folder that has a file gives it.

    Raises:
        CropsError: a file is missing or lacks a column.
    """
    for name, columns in _NEEDED.items():
        file = next((path for folder in truth if (path := folder / f"{name}.parquet").is_file()), None)
        if file is None:
            raise CropsError(
                f"{name}.parquet is missing in {', '.join(map(str, truth))}: give the truth/ folder that the "
                "simulation wrote, or none"
            )
        if absent := set(columns) - set(pq.read_schema(file).names):
            raise CropsError(f"{file} lacks the columns {', '.join(sorted(absent))}")
        backend.view(f"truth_{name}", f"select {', '.join(columns)} from {parquet(file)}")
    add_texts(backend, "head_texts", "select distinct head as raw from truth_needs")
    backend.view("meanings", _MEANINGS)
    backend.table("search_senses", _SEARCH_SENSES)
    by_day = [file for folder in truth for file in sorted((folder / "searches").glob("**/*.parquet"))]
    told = by_day or [file for folder in truth if (file := folder / "searches.parquet").is_file()]
    column, join, statistics = "", "", ["senses", "ambiguous"]
    if told and "satisfied" in pq.read_schema(told[0]).names:
        backend.view("truth_satisfied", f"select search_id, satisfied from {parquet(*told)}")
        column = ", case when k.satisfied then 1 else 0 end as satisfied"
        join = "left join truth_satisfied k on k.search_id = s.search_id"
        statistics.append("satisfied")
    backend.table(
        "truth_per_search",
        f"""
        select s.search_id, coalesce(a.senses, 0) as senses,
            case when a.search_id is null then 0 else 1 end as ambiguous{column}
        from searches s left join search_senses a on a.search_id = s.search_id {join}
        """,
    )
    return tuple(statistics)
