"""The test sets that need a simulator's truth: which need was behind a search, and which items meet it.

- QR by truth: consumed after a reformulation, grade >= 2 for the need of the first search; no theta.
- Needs: what true recall asks for, the needs behind the searches of each query.
- Annotation: for each query its most frequent need of the day (ties: the smaller need_id) and the list that
  the old system ranked at the first event with that need: exposed by rank, then unexposed by pre_score.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops.config import EvaluationConfig
from crops.engine.backend import DuckDBBackend
from crops.errors import CropsError
from crops.evaluation.tables import sample_queries
from crops.logs.tables import literal

RELEVANT_GRADE = 2
"""From this grade on an item meets a need (grades are 0 to 3)."""
_COLUMNS = {"searches": ("search_id", "need_id"), "grades": ("need_id", "item_id", "grade")}


@dataclass(frozen=True)
class TruthSets:
    """Test sets by truth; every table is sorted by its columns, in order."""

    qr: pa.Table
    """query_id, search_id, item_id: consumed after that event under another query, relevant to its need."""
    needs: pa.Table
    """query_id, need_id, searches: how many searches of the query had the need."""
    annotation: pa.Table
    """query_id, need_id, position (1-based in the old system's list), item_id, grade."""
    grades: pa.Table
    """need_id, item_id, grade: all candidates with a grade above 0 for the needs of the tables above."""


def build_truth_sets(
    backend: DuckDBBackend, truth: Path, config: EvaluationConfig, seed: int
) -> tuple[TruthSets, dict[str, int]]:
    """Build the test sets by truth, and count what they were drawn from.

    Args:
        backend: holds the events of the test day, `candidates` and `later_any` (QR without theta).
        truth: folder of searches.parquet and grades.parquet.
        config: sizes.
        seed: seed of the samples.

    Raises:
        CropsError: a truth file is missing or lacks a column.
    """
    for name, columns in _COLUMNS.items():
        backend.view(f"truth_{name}", f"select {', '.join(columns)} from {_scan(truth, name, columns)}")
    backend.table("event_needs", _EVENT_NEEDS)
    backend.table("need_grades", _NEED_GRADES)
    backend.table("query_needs", _QUERY_NEEDS)
    backend.table("annotated", _annotated_sql(config.ndcg_pool))
    counts = {
        "searches_without_need": backend.count("searches") - backend.count("event_needs"),
        "qr_truth_queries": backend.count(f"(select distinct query_id from ({_QR}))"),
        "needs_queries": backend.count("(select distinct query_id from query_needs)"),
        "annotated_queries": backend.count("(select distinct query_id from annotated)"),
    }
    needs = sample_queries(_sorted(backend, "query_needs"), config.max_ct, seed)
    annotation = sample_queries(_sorted(backend, "annotated"), config.max_annotated, seed)
    grades = _sorted(backend, "need_grades")
    used = pa.chunked_array([*needs["need_id"].chunks, *annotation["need_id"].chunks], pa.int64())
    sets = TruthSets(
        qr=sample_queries(_sorted(backend, f"({_QR})"), config.max_qr, seed),
        needs=needs,
        annotation=annotation,
        grades=grades.filter(pc.is_in(grades["need_id"], used.unique())),
    )
    return sets, counts


_EVENT_NEEDS = """
select s.search_id, s.query_id, s.searched_at, t.need_id
from searches s join truth_searches t on t.search_id = s.search_id
"""

_NEED_GRADES = """
select g.need_id, g.item_id, cast(g.grade as BIGINT) as grade
from truth_grades g join candidates c on c.item_id = g.item_id
where g.grade > 0 and g.need_id in (select need_id from event_needs)
"""

_QUERY_NEEDS = "select query_id, need_id, count(*) as searches from event_needs group by query_id, need_id"

_QR = f"""
select distinct l.query_id, l.search_id, l.item_id
from later_any l
join event_needs e on e.search_id = l.search_id
join need_grades g on g.need_id = e.need_id and g.item_id = l.item_id
where g.grade >= {RELEVANT_GRADE}
"""


def _annotated_sql(pool: int) -> str:
    return f"""
    with majority as (
        select query_id, need_id from query_needs
        qualify row_number() over (partition by query_id order by searches desc, need_id) = 1
    ), first_event as (
        select e.query_id, e.need_id, e.search_id
        from event_needs e join majority m on m.query_id = e.query_id and m.need_id = e.need_id
        qualify row_number() over (partition by e.query_id order by e.searched_at, e.search_id) = 1
    ), ranked as (
        select f.query_id, f.need_id, l.item_id,
            row_number() over (
                partition by f.query_id
                order by l.stage = 'unexposed', l.rank nulls last, l.pre_score desc nulls last, l.item_id
            ) as position
        from first_event f
        join log_impressions l on l.search_id = f.search_id and l.stage in ('exposed', 'unexposed')
        join candidates c on c.item_id = l.item_id
    )
    select r.query_id, r.need_id, r.position, r.item_id, coalesce(g.grade, 0) as grade
    from ranked r left join need_grades g on g.need_id = r.need_id and g.item_id = r.item_id
    where r.position <= {pool}
    """


def _sorted(backend: DuckDBBackend, relation: str) -> pa.Table:
    return backend.arrow(f"select * from {relation} order by all")


def _scan(truth: Path, name: str, columns: tuple[str, ...]) -> str:
    file = truth / f"{name}.parquet"
    if not file.is_file():
        raise CropsError(f"{file} is missing: give the truth/ folder that `crops simulate` wrote, or none")
    if absent := set(columns) - set(pq.read_schema(file).names):
        raise CropsError(f"{file} lacks the columns {', '.join(sorted(absent))}")
    return f"read_parquet({literal(str(file))})"
