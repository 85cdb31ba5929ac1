"""What the logs and the truth of simulated days show of the filter bubble, day by day."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crops.config import ReformulationConfig
from crops.database import literal, open_database
from crops.logs.tables import add_texts
from crops.online.userdays import SEARCHES
from crops.schema import within_sql

_SOON = within_sql("searched_at", "next_at", ReformulationConfig().window_s)
"""The next search is soon enough to be a rewording (the engine's window, 90 s)."""

_TABLES = """
create view impressions as
    select l.* replace (day::varchar as day, t.query as query)
    from read_parquet({impressions}, hive_partitioning = true) l join texts t on t.raw = l.query;
create table shown as
    select day, query, item_id, count(*) as n, sum((routes >> {route}) & 1) as own
    from impressions where stage = 'exposed' group by all;
create table first_shown as select query, item_id, min(day) as first_day from shown group by all;
create table asked as
    select distinct day, query, search_id from impressions;
create table needs_behind as
    select search_id, need_id from read_parquet({searches}, hive_partitioning = false);
create table meant as
    select need_id, t.query as head, sense from {needs} n join texts t on t.raw = n.head;
create table wanted as
    select distinct day, query, item_id from asked
    join needs_behind using (search_id) join {grades} using (need_id) where grade >= 2;
"""
SHARES = {
    "own": "select day, sum(own) / sum(n), sum(n) from shown group by day",
    "again": """select day, sum(case when day > first_day then n else 0 end) / sum(n), sum(n)
                from shown join first_shown using (query, item_id) group by day""",
    "top": """select day, sum(case when place <= {items} / 100 then n else 0 end) / sum(n), sum(n)
              from (select day, n, row_number() over (partition by day order by n desc) as place
                    from (select day, item_id, sum(n) as n from shown group by all)) group by day""",
    "unseen": """select day, avg(case when first_day <= day then 0 else 1 end), count(*)
                 from wanted left join first_shown using (query, item_id) group by day""",
    "catalogue": """select day, (select count(*) from (select item_id, min(first_day) as first_day
                                 from first_shown group by item_id) f where f.first_day <= d.day)
                          / {items}, {items}
                    from (select distinct day from shown) d""",
    "senses": """select day, avg(senses), count(*) from (
                     select day, query, exp(-sum(p * ln(p))) as senses from (
                         select day, query, sum(n) / sum(sum(n)) over (partition by day, query) as p
                         from shown join {item_needs} using (item_id) join meant s using (need_id)
                         where s.head = query group by day, query, sense)
                     group by day, query) group by day""",
    "satisfied": """select day, avg(satisfied::int), count(*) from {outcomes} group by day""",
    "reformulated": """
        select day,
               avg(coalesce(need_id = next_need and query <> next_query and {soon}, false)::int),
               count(*)
        from (select day, query, need_id, lead(query) over w as next_query,
                     lead(need_id) over w as next_need,
                     searched_at, lead(searched_at) over w as next_at
              from {outcomes} join asked using (search_id, day)
              window w as (partition by user_id, day order by searched_at, search_id)) group by day""",
}
"""SQL of (day, value, number of cases) by observable; the last two need an experiment's truth.

own: share of shown results that the route found. again: of those that their query had been shown on an
earlier day. top: share of exposures that goes to the most shown 1 % of the catalogue. unseen: of what answers
the needs behind the day's queries, the share never shown for its query so far. catalogue: share of the
catalogue ever shown. senses: exp of the entropy of exposures over an ambiguous query's senses: as many senses
of equal weight. satisfied: share of searches, by truth. reformulated: share of searches whose next one
by the same user, within 90 s, has another text for the same need, by truth.
"""


@dataclass(frozen=True)
class Measured:
    """An observable on one day."""

    value: float | None
    """None where there is no case."""
    n: int
    """Cases behind it."""


@dataclass(frozen=True)
class Evidence:
    """Where the days are."""

    logs: Sequence[Path]
    """Logs folders; the days of all are read as one history."""
    searches: Sequence[str]
    """Globs of search_id and need_id by truth."""
    truth: Path
    """Folder of the needs, items and grades."""
    items: int
    """Size of the catalogue."""
    route: int
    """Bit of the route whose share is measured."""
    arm: Path | None = None
    """Folder of simulated days with satisfaction by truth, for the observables that need it."""


def measure_days(evidence: Evidence, observables: Iterable[str]) -> dict[str, dict[str, Measured]]:
    """Return observables by day (YYYY-MM-DD) and name.

    Args:
        evidence: where the days are.
        observables: names in `SHARES`.
    """
    settings = _settings(evidence)
    measured: dict[str, dict[str, Measured]] = {}
    with open_database() as db:
        typed = "select query from read_parquet({impressions}) union all select head from {needs}"
        add_texts(db, typed.format(**settings))
        db.execute(_TABLES.format(**settings))
        for name in observables:
            for day, value, n in db.execute(SHARES[name].format(**settings)).fetchall():
                # The order of a parallel sum decides its last bits.
                known = None if value is None else round(float(value), 9)
                measured.setdefault(str(day), {})[name] = Measured(known, int(n))
    return measured


def _settings(evidence: Evidence) -> dict[str, object]:
    truth = evidence.truth
    outcomes = f"{evidence.arm}/{SEARCHES}/*/*.parquet"
    return {
        "impressions": _list(f"{logs}/search_impressions/*/*.parquet" for logs in evidence.logs),
        "searches": _list(evidence.searches),
        "grades": literal(f"{truth}/grades.parquet"),
        "needs": literal(f"{truth}/needs.parquet"),
        "item_needs": literal(f"{truth}/items.parquet"),
        "outcomes": f"(select * replace (day::varchar as day) from read_parquet({literal(outcomes)}, "
        "hive_partitioning = true))",
        "items": evidence.items,
        "route": evidence.route,
        "soon": _SOON,
    }


def _list(paths: Iterable[str]) -> str:
    return f"[{', '.join(literal(path) for path in paths)}]"
