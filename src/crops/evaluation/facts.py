"""What is known of a test day beside its answers: frequency and senses of queries, age and exposure of items.

Breakdowns and diversity need it; nothing of it is shown to a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from crops.errors import CropsError
from crops.evaluation.testsets import TestSets
from crops.logs import open_logs
from crops.logs.tables import literal
from crops.logs.texts import add_texts

FREQUENCIES = ("head", "torso", "tail", "unseen")
"""A third of the training searches each: the most frequent queries, the next, the rest; never searched."""
AGES = ("new", "recent", "old")
"""Uploaded after the training day ended; within `RECENT_DAYS` before that; earlier."""
RECENT_DAYS = 7
_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Facts:
    """Tables beside the test sets of a day; every table is sorted by its columns, in order."""

    queries: pa.Table
    """query_id, frequency (of `FREQUENCIES`), senses (how many its test searches meant; null: unknown)."""
    shown: pa.Table
    """query_id, item_id: shown for that query up to the training day."""
    ages: pa.Table
    """item_id, age (one of `AGES`, null if the upload time is not known) of the candidates."""
    senses: pa.Table | None
    """query_id, sense, item_id: candidates of each sense that the query's test searches meant."""


def build_facts(
    logs: str | Path, train_day: str, testsets: TestSets, truth: str | Path | None, memory: str
) -> Facts:
    """Look the facts of a test day up.

    Args:
        logs: accepted logs with the days up to the training day.
        train_day: the training day, YYYY-MM-DD.
        testsets: the test sets; their queries and candidates are described.
        truth: the simulator's `truth/` folder; None where there is no truth.
        memory: memory limit of DuckDB.

    Raises:
        CropsError: the logs or the truth cannot be read.
    """
    truth = None if truth is None else Path(truth)
    logs = Path(logs)
    end = int(datetime.strptime(train_day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * 1_000_000 + _DAY_US
    opened = open_logs(logs)
    searched, items = f"({opened.sql('search_impressions')})", f"({opened.sql('items')})"
    try:
        with duckdb.connect(config={"memory_limit": memory}) as db:
            add_texts(db, f"select query from {searched}")
            db.register("wanted", testsets.queries)
            db.register("candidates", testsets.candidates)
            db.execute(_TABLES.format(searched=searched, train=train_day, test=testsets.day))
            ages = _arrow(db, _AGES.format(items=items, end=end, recent=end - RECENT_DAYS * _DAY_US))
            senses = None if truth is None else _arrow(db, _senses_sql(truth))
            counted = "select null::BIGINT as query_id, null::BIGINT as senses where false"
            if senses is not None:
                db.register("senses", senses)
                counted = "select query_id, count(distinct sense) as senses from senses group by query_id"
            return Facts(_arrow(db, _QUERIES.format(senses=counted)), _arrow(db, _SHOWN), ages, senses)
    except duckdb.Error as error:
        raise CropsError(f"{logs}: cannot read what the breakdowns need: {error}") from error


def save_facts(facts: Facts, folder: str | Path) -> None:
    """Write the tables as Parquet files into an existing folder."""
    folder = Path(folder)
    for name in ("queries", "shown", "ages", "senses"):
        if (table := getattr(facts, name)) is not None:
            pq.write_table(table, folder / f"facts_{name}.parquet")


def load_facts(folder: str | Path) -> Facts:
    """Read what `save_facts` wrote.

    Raises:
        CropsError: a file is missing or damaged.
    """
    folder = Path(folder)
    try:
        tables = {
            name: pq.read_table(folder / f"facts_{name}.parquet") for name in ("queries", "shown", "ages")
        }
        senses = folder / "facts_senses.parquet"
        return Facts(**tables, senses=pq.read_table(senses) if senses.exists() else None)
    except (OSError, ValueError) as error:
        raise CropsError(
            f"{folder} does not hold the facts of test sets: {error}; build them again"
        ) from error


_TABLES = """
create table events as
    select distinct day, search_id, t.query from {searched} f join texts t on t.raw = f.query;
create table trained as
    select query, count(*) as n from events where day = '{train}' group by query;
create table placed as
    select query, (sum(n) over (order by n desc, query) - n) / sum(n) over () as before from trained;
create table exposed as
    select distinct t.query, item_id from {searched} f join texts t on t.raw = f.query
    where stage = 'exposed' and day <= '{train}';
create table tested as select * from events where day = '{test}';
"""
_QUERIES = """
select w.query_id,
    case when p.before is null then 'unseen' when p.before < 1 / 3 then 'head'
         when p.before < 2 / 3 then 'torso' else 'tail' end as frequency, s.senses
from wanted w left join placed p using (query) left join ({senses}) s on s.query_id = w.query_id
order by w.query_id
"""
_SHOWN = """
select w.query_id, e.item_id from exposed e join wanted w using (query)
join candidates using (item_id) order by all
"""
_AGES = """
select item_id, case when uploaded_at is null then null when uploaded_at >= {end} then 'new'
                     when uploaded_at >= {recent} then 'recent' else 'old' end as age
from {items} join candidates using (item_id) order by item_id
"""


def _senses_sql(truth: Path) -> str:
    searches, needs, grades = (
        f"read_parquet({literal(str(truth / f'{name}.parquet'))})" for name in ("searches", "needs", "grades")
    )
    return f"""
    with meant as (
        select distinct w.query_id, n.head, n.sense from tested e join wanted w using (query)
        join {searches} using (search_id) join {needs} n using (need_id)
    ), about as (
        select distinct n.head, n.sense, g.item_id from {grades} g join {needs} n using (need_id)
        join candidates using (item_id) where g.grade >= 2
    )
    select m.query_id, m.head || ' / ' || m.sense as sense, a.item_id
    from meant m join about a using (head, sense) order by all
    """


def _arrow(db: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    table: pa.Table = db.sql(sql).to_arrow_table()
    return table
