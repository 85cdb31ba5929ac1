"""What only a simulator knows of a search: whether it satisfied, and how many meanings it covered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from crops.engine.backend import DuckDBBackend
from crops.engine.events import add_texts
from crops.errors import CropsError
from crops.logs.tables import literal

_NEEDED = {"items": ("item_id", "need_id"), "needs": ("need_id", "head", "sense")}


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
        backend.view(f"truth_{name}", f"select {', '.join(columns)} from read_parquet({literal(str(file))})")
    add_texts(backend, "head_texts", "select distinct head as raw from truth_needs")
    backend.view("meanings", _MEANINGS)
    backend.table("search_senses", _SENSES)
    told = _search_files(truth)
    satisfied = bool(told) and "satisfied" in pq.read_schema(told[0]).names
    if satisfied:
        names = ", ".join(literal(str(file)) for file in told)
        backend.view(
            "truth_satisfied",
            f"select search_id, satisfied from read_parquet([{names}], hive_partitioning=false)",
        )
    backend.table("truth_per_search", _per_search_sql(satisfied))
    return ("senses", "ambiguous", *(("satisfied",) if satisfied else ()))


def _search_files(truth: Sequence[Path]) -> list[Path]:
    """Return the files of searches, those by day first: they are what an experiment writes."""
    by_day = [file for folder in truth for file in sorted((folder / "searches").glob("**/*.parquet"))]
    return by_day or [file for folder in truth if (file := folder / "searches.parquet").is_file()]


_MEANINGS = """
select n.need_id, t.query as head, n.sense from truth_needs n join head_texts t on t.raw = n.head
"""
"""The needs, their heads normalised as queries are."""

_SENSES = """
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


def _per_search_sql(satisfied: bool) -> str:
    column = ", case when k.satisfied then 1 else 0 end as satisfied" if satisfied else ""
    join = "left join truth_satisfied k on k.search_id = s.search_id" if satisfied else ""
    return f"""
    select s.search_id, coalesce(a.senses, 0) as senses,
        case when a.search_id is null then 0 else 1 end as ambiguous{column}
    from searches s left join search_senses a on a.search_id = s.search_id {join}
    """
