"""How often a source of positives is right, by the truth of a simulation: before theta and after.

Only evaluation reads the truth. The mining must have kept what theta would reject, with its score: mine with
`engine.reformulation.relevance = 0` and `engine.feed.relevance = 0`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.database import Connection, failing_as, open_database, pattern
from crops.errors import CropsError
from crops.evaluation.raters import SOURCES
from crops.evaluation.testsets import RELEVANT_GRADE
from crops.labels import Source
from crops.protocols import PairScorer, Retriever
from crops.text import document_text

_LOGGED = """
with needs as (
    select distinct e.query_id, s.need_id
    from read_parquet($evidence) e join read_parquet($searches) s using (search_id)
), answers as (
    select distinct n.query_id, g.item_id from needs n join read_parquet($grades) g using (need_id)
    where g.grade >= $relevant
)
select e.source, e.query_id, e.item_id, max(e.theta) as theta,
    bool_or(coalesce(g.grade, 0) >= $relevant) as relevant, bool_or(a.item_id is not null) as for_query
from read_parquet($evidence) e
left join read_parquet($searches) s using (search_id)
left join read_parquet($grades) g on g.need_id = s.need_id and g.item_id = e.item_id
left join answers a on a.query_id = e.query_id and a.item_id = e.item_id
where e.source in (select unnest($bits)) and e.search_id is not null
group by e.source, e.query_id, e.item_id
"""
_WRITTEN = """
select q.query, q.query_id, i.item_id, i.ocr_cover, i.photo_caption, i.keyword
from read_parquet($samples) p join read_parquet($synthetic) i using (item_id)
join read_parquet($queries) q using (query_id) order by q.query_id, i.item_id
"""
_MEETS = """
select p.place, bool_or(coalesce(g.grade, 0) >= $relevant) as relevant
from pairs p join read_parquet($evidence) e using (query_id)
join read_parquet($searches) s using (search_id)
left join read_parquet($grades) g on g.need_id = s.need_id and g.item_id = p.nearest
group by p.place order by p.place
"""


@dataclass(frozen=True)
class Precision:
    """The distinct (query, item) pairs of a source above a threshold of theta, and how many are right."""

    source: str
    alpha: float | None
    """None: before theta."""
    pairs: int
    right: int
    """For the need behind a search that they are credited to."""
    right_for_query: int
    """For the need behind any search of the query with evidence: what an editor could know."""

    @property
    def share(self) -> float | None:
        """Share of the pairs that are right; None without pairs."""
        return self.right / self.pairs if self.pairs else None

    @property
    def share_for_query(self) -> float | None:
        """Share of the pairs that are right for the query; None without pairs."""
        return self.right_for_query / self.pairs if self.pairs else None


def source_precision(
    samples: Path,
    truth: Path,
    alphas: Sequence[float],
    *,
    catalogue: Retriever | None = None,
    theta: PairScorer | None = None,
) -> list[Precision]:
    """Return the precision of clicks, P1, P2 and P3 by truth, before theta and above each of `alphas`.

    A logged pair is right when the item has grade >= 2 for the need behind a search it is credited to, and
    right for the query when it has that for the need of any search of the query with evidence. A generated
    document has no grade: it counts as the real item nearest to its text, and is right when that one has
    grade >= 2 for a need behind a search of the query. That measures where P3 points, not whether what it
    says is true. Clicks have no theta, so they have no precision after it.

    Args:
        samples: output of `crops mine`; see above on its settings.
        truth: the folder `truth` of `crops simulate`.
        alphas: thresholds; a pair passes when its theta is greater.
        catalogue: finds the real item nearest to a text; without it P3 is left out.
        theta: scores the generated documents, which the mining does not; without it P3 has no row after.

    Raises:
        CropsError: a table is missing, or a candidate of P1 or P2 has no theta.
    """
    files = {name: pattern(samples / f"{name}.parquet") for name in ("evidence", "samples", "queries")}
    files |= {name: pattern(truth / f"{name}.parquet") for name in ("searches", "grades")}
    files["synthetic"] = pattern(samples / "synthetic_items.parquet")
    fault = f"{samples} or {truth} is no output of a mining or a simulation"
    with failing_as(fault), open_database() as connection:
        found = _logged(connection, files, alphas, samples)
        if catalogue is not None:
            found += _written(connection, files, alphas, catalogue, theta)
    return found


def _logged(
    connection: Connection, files: dict[str, str], alphas: Sequence[float], samples: Path
) -> list[Precision]:
    logged = {name: source for name, source in SOURCES.items() if source is not Source.KNOWLEDGE}
    values = {name: files[name] for name in ("evidence", "searches", "grades")}
    bits = [int(source) for source in logged.values()]
    rows = connection.execute(_LOGGED, {**values, "relevant": RELEVANT_GRADE, "bits": bits}).fetchnumpy()
    found = []
    for name, source in logged.items():
        own = rows["source"] == int(source)
        if source is Source.PROMOTED and not own.any():
            continue  # nobody asked for it
        right, for_query = (np.asarray(rows[column][own], np.bool_) for column in ("relevant", "for_query"))
        scores = np.ma.filled(np.ma.asarray(rows["theta"][own], np.float64), np.nan)
        if source is Source.CLICKED:
            found += _by_alpha(name, right, for_query, None, alphas)
        elif np.isnan(scores).any():
            raise CropsError(f"{samples}: {name} was mined without theta; mine with a relevance model")
        else:
            found += _by_alpha(name, right, for_query, scores, alphas)
    return found


def _by_alpha(
    name: str,
    right: NDArray[np.bool_],
    for_query: NDArray[np.bool_],
    scores: NDArray[np.float64] | None,
    alphas: Sequence[float],
) -> list[Precision]:
    passing: dict[float | None, NDArray[np.bool_]] = {None: np.ones(len(right), np.bool_)}
    if scores is not None:
        passing |= {alpha: scores > alpha for alpha in alphas}
    return [
        Precision(name, alpha, *(int(one.sum()) for one in (kept, right[kept], for_query[kept])))
        for alpha, kept in passing.items()
    ]


def _written(
    connection: Connection,
    files: dict[str, str],
    alphas: Sequence[float],
    catalogue: Retriever,
    theta: PairScorer | None,
) -> list[Precision]:
    values = {name: files[name] for name in ("samples", "synthetic", "queries")}
    table: pa.Table = connection.sql(_WRITTEN, params=values).to_arrow_table()
    rows = table.to_pylist()
    if not rows:
        return []
    texts = [document_text(row) for row in rows]
    nearest, _ = catalogue.search(texts, 1)
    pairs = pa.table(
        {
            "place": np.arange(len(rows)),
            "query_id": [row["query_id"] for row in rows],
            "nearest": nearest[:, 0],
        }
    )
    connection.register("pairs", pairs)
    values = {name: files[name] for name in ("evidence", "searches", "grades")}
    met = connection.execute(_MEETS, {**values, "relevant": RELEVANT_GRADE}).fetchnumpy()
    judged = met["place"]
    scores = None
    if theta is not None:
        batch = pa.RecordBatch.from_pydict({"left": [row["query"] for row in rows], "right": texts})
        (scored,) = theta(iter([batch]))
        scores = scored.column("score").to_numpy()[judged]
    right = np.asarray(met["relevant"], np.bool_)
    return _by_alpha("P3", right, right, scores, alphas)
