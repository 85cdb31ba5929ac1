"""The test sets of a day of logs: CT, QR, and by a simulator's truth annotation and true recall.

One set of relevant items per distinct normalised query of the test day: the union over its events.

- CT: clicked items.
- QR: items consumed after a reformulation, credited to the first query and kept by the training theta (CroPS,
  section on evaluation), beside it by an independent theta; by truth in `crops.evaluation.truth`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.config import EvaluationConfig, ReformulationConfig
from crops.engine import reformulation_positives
from crops.engine.backend import DuckDBBackend
from crops.engine.events import load_events
from crops.errors import CropsError
from crops.evaluation.tables import sample_queries
from crops.evaluation.truth import TruthSets, build_truth_sets
from crops.logs import Logs
from crops.protocols import PairScorer

_FACTS = "testsets.json"
_TABLES = ("queries", "candidates", "ct", "qr")
_INDEPENDENT = "qr_independent"
_TRUTH_TABLES = ("qr", "needs", "annotation", "grades")


@dataclass(frozen=True)
class TestSets:
    """The test sets of one day; every table is sorted by its columns, in order."""

    __test__ = False  # pytest would collect a class of this name

    day: str
    """The test day, YYYY-MM-DD."""
    seed: int
    """Seed of the samples of queries."""
    queries: pa.Table
    """The queries of all sets: query_id, query (normalised), searches, seen (null if not known)."""
    candidates: pa.Table
    """The catalogue to search, item_id: uploaded before the day ended, or at an unknown time."""
    ct: pa.Table
    """query_id, search_id, item_id: clicked in that event."""
    qr: pa.Table
    """query_id, search_id, item_id: consumed after that event under another query, kept by theta."""
    truth: TruthSets | None
    """What needs the truth; None where it is not known."""
    counts: dict[str, int]
    """Sizes before sampling, and what was left out."""
    qr_independent: pa.Table | None = None
    """QR by another theta than the training's, relevance and similarity alike; None where none was given."""

    def candidate_ids(self) -> NDArray[np.int64]:
        """Return the ids of the catalogue [n], ascending: build the retriever with these."""
        ids: NDArray[np.int64] = self.candidates["item_id"].to_numpy()
        return ids


def build_testsets(
    logs: Logs,
    day: str,
    config: EvaluationConfig,
    reformulation: ReformulationConfig,
    *,
    relevance: PairScorer | None,
    similarity: PairScorer | None,
    truth: str | Path | None,
    seed: int,
    independent: tuple[PairScorer, PairScorer] | None = None,
    seen: Collection[int] | None = None,
    memory: str = "2GB",
) -> TestSets:
    """Build the test sets of a day.

    Args:
        logs: the logs; only `day` and the items are read.
        day: the test day, YYYY-MM-DD.
        config: sizes of the sets and of the annotated lists.
        reformulation: settings of QR, the same as of P1.
        relevance: theta; None keeps every candidate of QR.
        similarity: P(same intent) of two queries; None lets every later query count.
        truth: the simulator's `truth/` folder; None where there is no truth.
        seed: seed of the samples of queries.
        independent: relevance and similarity by a theta that training does not use, for a second QR.
        seen: ids of the queries in the training data; None if not known.
        memory: memory limit of DuckDB.

    Raises:
        CropsError: the day holds no search, or a truth file is missing or lacks a column.
    """
    truth = None if truth is None else Path(truth)
    find = partial(reformulation_positives, logs, [day], reformulation, memory=memory)
    # Each search for reformulations opens a database of its own: before ours, not beside it.
    later = find(relevance=relevance, similarity=similarity)
    later_any = None if truth is None else find(relevance=None, similarity=similarity)
    later_independent = independent and find(relevance=independent[0], similarity=independent[1])
    with DuckDBBackend(memory) as backend:
        load_events(backend, logs, [day])
        backend.table("candidates", _candidates_sql(day))
        backend.load("later", later.schema, later.to_batches())
        counts = {name: backend.count(f"({query})") for name, query in _COUNTS.items()}
        ct, qr = (backend.arrow(f"{_in_catalogue(pairs)} order by all") for pairs in (_CLICKED, _LATER))
        ct, qr = sample_queries(ct, config.max_ct, seed), sample_queries(qr, config.max_qr, seed)
        used, sets, other = [ct, qr], None, None
        if later_independent is not None:
            other, other_counts = _independent_qr(backend, later_independent, config.max_qr, seed)
            counts |= other_counts
            used.append(other)
        if truth is not None and later_any is not None:
            backend.load("later_any", later_any.schema, later_any.to_batches())
            sets, truth_counts = build_truth_sets(backend, truth, config, seed)
            counts |= truth_counts
            used += [sets.qr, sets.needs, sets.annotation]
        queries = _queries(backend, used, seen)
        candidates = backend.arrow("select item_id from candidates order by item_id")
    return TestSets(day, seed, queries, candidates, ct, qr, sets, counts, other)


def save_testsets(testsets: TestSets, folder: str | Path) -> None:
    """Write the tables of the test sets as Parquet files and their facts as JSON into an existing folder."""
    folder = Path(folder)
    for name in _TABLES:
        pq.write_table(getattr(testsets, name), folder / f"{name}.parquet")
    if testsets.truth is not None:
        for name in _TRUTH_TABLES:
            pq.write_table(getattr(testsets.truth, name), folder / f"truth_{name}.parquet")
    if testsets.qr_independent is not None:
        pq.write_table(testsets.qr_independent, folder / f"{_INDEPENDENT}.parquet")
    facts = {
        "day": testsets.day,
        "seed": testsets.seed,
        "truth": testsets.truth is not None,
        "independent": testsets.qr_independent is not None,
        "counts": testsets.counts,
    }
    (folder / _FACTS).write_text(json.dumps(facts, indent=2) + "\n")


def load_testsets(folder: str | Path) -> TestSets:
    """Read what `save_testsets` wrote.

    Raises:
        CropsError: the folder or one of its files is missing or damaged.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / _FACTS).read_text())
        tables = {name: pq.read_table(folder / f"{name}.parquet") for name in _TABLES}
        other = pq.read_table(folder / f"{_INDEPENDENT}.parquet") if facts.get("independent") else None
        truth = None
        if facts["truth"]:
            truth = TruthSets(
                **{name: pq.read_table(folder / f"truth_{name}.parquet") for name in _TRUTH_TABLES}
            )
    except (OSError, ValueError, KeyError) as error:
        raise CropsError(f"{folder} does not hold test sets: {error}; build them again") from error
    return TestSets(
        facts["day"], facts["seed"], **tables, truth=truth, counts=facts["counts"], qr_independent=other
    )


_CLICKED = """
select t.query_id, l.search_id, l.item_id
from log_impressions l join texts t on t.raw = l.query where l.clicked
"""
_LATER = "select distinct query_id, search_id, item_id from later"


def _in_catalogue(pairs: str) -> str:
    return f"select * from ({pairs}) semi join candidates using (item_id)"


def _outside(pairs: str) -> str:
    return f"select * from ({pairs}) anti join candidates using (item_id)"


_COUNTS = {
    "searches": "select 1 from searches",
    "queries": "select 1 from queries",
    "ct_queries": f"select distinct query_id from ({_in_catalogue(_CLICKED)})",
    "ct_pairs": _in_catalogue(_CLICKED),
    "ct_pairs_outside_catalogue": _outside(_CLICKED),
    "qr_queries": f"select distinct query_id from ({_in_catalogue(_LATER)})",
    "qr_pairs": _in_catalogue(_LATER),
    "qr_pairs_outside_catalogue": _outside(_LATER),
}


def _independent_qr(
    backend: DuckDBBackend, later: pa.Table, limit: int, seed: int
) -> tuple[pa.Table, dict[str, int]]:
    """Return QR by the independent theta, and count its pairs before sampling and those in QR too."""
    backend.load("later_independent", later.schema, later.to_batches())
    pairs = _in_catalogue("select distinct query_id, search_id, item_id from later_independent")
    counts = {
        "qr_independent_queries": backend.count(f"(select distinct query_id from ({pairs}))"),
        "qr_independent_pairs": backend.count(f"({pairs})"),
        "qr_pairs_of_both": backend.count(f"({_in_catalogue(_LATER)} intersect {pairs})"),
    }
    return sample_queries(backend.arrow(f"{pairs} order by all"), limit, seed), counts


def _candidates_sql(day: str) -> str:
    end = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC) + timedelta(days=1)
    return f"""
    select item_id from log_items
    where uploaded_at is null or uploaded_at < {int(end.timestamp()) * 1_000_000}
    """


def _queries(backend: DuckDBBackend, used: list[pa.Table], seen: Collection[int] | None) -> pa.Table:
    ids = pa.concat_tables([table.select(["query_id"]) for table in used])
    backend.load("used", ids.schema, ids.to_batches())
    queries = backend.arrow(
        "select query_id, query, searches from queries semi join used using (query_id) order by query_id"
    )
    flags = pa.nulls(len(queries), pa.bool_())
    if seen is not None:
        flags = pc.is_in(queries["query_id"], pa.array(sorted(seen), pa.int64()))
    return queries.append_column("seen", flags)
