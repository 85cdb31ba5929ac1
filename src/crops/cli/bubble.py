"""How the bubble forms: what the platform's own logs show of it, day by day."""

from __future__ import annotations

from pathlib import Path

import duckdb

from crops.platform import ROUTES
from crops.report import Estimate, MetricColumn, ResultRow, ResultTable
from crops.retrieval import load_items

_COLUMNS = (
    MetricColumn(
        "dense", "found by the own model", "share of shown results that the deployed retriever found"
    ),
    MetricColumn(
        "again", "shown again", "share of shown results that this query had already been shown before"
    ),
    MetricColumn(
        "top", "shown from 1 % of items", "share of all exposures that goes to the most shown 1 % of items"
    ),
    MetricColumn(
        "unseen", "relevant, never shown", "share of what answers the query's needs that it was never shown"
    ),
)

_TABLES = """
create table shown as
    select day::varchar as day, lower(query) as query, item_id, count(*) as n,
           sum((routes >> {dense}) & 1) as dense
    from read_parquet('{logs}/search_impressions/*/*.parquet', hive_partitioning = true)
    where stage = 'exposed' group by all;
create table first_shown as select query, item_id, min(day) as first_day from shown group by all;
create table searches as
    select distinct day::varchar as day, lower(query) as query, search_id
    from read_parquet('{logs}/search_impressions/*/*.parquet', hive_partitioning = true);
create table wanted as
    select distinct day, query, item_id from searches
    join '{truth}/searches.parquet' using (search_id) join '{truth}/grades.parquet' using (need_id)
    where grade >= 2;
"""
_SHARES = {
    "dense": "select day, sum(dense) / sum(n), sum(n) from shown group by day",
    "again": """select day, sum(case when day > first_day then n else 0 end) / sum(n), sum(n)
                from shown join first_shown using (query, item_id) group by day""",
    "top": """select day, sum(case when place <= {items} / 100 then n else 0 end) / sum(n), sum(n)
              from (select day, n, row_number() over (partition by day order by n desc) as place
                    from (select day, item_id, sum(n) as n from shown group by all)) group by day""",
    "unseen": """select day, avg(case when first_day <= day then 0 else 1 end), count(*)
                 from wanted left join first_shown using (query, item_id) group by day""",
}
"""Share and its number of cases per day, by column."""


def bubble_table(logs: Path, truth: Path) -> ResultTable:
    """Return the observables of the bubble per simulated day, over that day's shown results.

    Args:
        logs: accepted logs of a simulation.
        truth: its truth; tells what the searchers needed.
    """
    with duckdb.connect() as db:
        db.execute(_TABLES.format(logs=logs, truth=truth, dense=ROUTES.index("dense")))
        items = load_items(logs)[0].size
        cells: dict[str, dict[str, Estimate]] = {}
        for key, sql in _SHARES.items():
            for day, share, n in db.execute(sql.format(items=items)).fetchall():
                cells.setdefault(day, {})[key] = Estimate(float(share), None, None, int(n))
    rows = [ResultRow(day, cells[day]) for day in sorted(cells)]
    note = "The first day has no own model; one is then trained on that day's clicks and deployed."
    return ResultTable("How the bubble forms", note, _COLUMNS, rows, subject="Day", contest=False)
