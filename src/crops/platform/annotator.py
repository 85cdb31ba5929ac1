"""A simulated annotator: grades query and document as an editor would, who reads both and knows no searcher.

An editor's grade is the best over the needs that the query stands for; it is wrong now and then, and there is
a budget. What comes out is a file of judgements, which learning may read. It is no truth: that stays with the
platform and with evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from crops.database import open_database, parquet, read_columns
from crops.errors import CropsError
from crops.labels import ORIGINS
from crops.logs import open_logs
from crops.logs.sql import add_texts
from crops.outputs import whole_file
from crops.platform.world import TOP_GRADE
from crops.text import content_id

_GRADES = """
with needs as (
    select distinct t.query, n.need_id
    from {impressions} l join texts t on t.raw = l.query join {searches} n using (search_id)
    where l.day in (select unnest($days))
)
select n.query, g.item_id, cast(max(g.grade) as BIGINT) as grade
from needs n join {grades} g using (need_id) group by n.query, g.item_id order by all
"""


def query_grades(logs: str | Path, days: Sequence[str], truth: str | Path) -> pa.Table:
    """Return query_id, query, item_id, grade: the best grade for a need that the query's searches had.

    Pairs that are not there have grade 0.

    Args:
        logs: accepted logs of a world.
        days: the days whose searches count, YYYY-MM-DD.
        truth: the folder `truth` of that world.
    """
    opened, truth = open_logs(logs), Path(truth)
    impressions = f"({opened.sql('search_impressions')})"
    with open_database() as db:
        add_texts(db, f"select query from {impressions}")
        searches, grades = (parquet(truth / f"{name}.parquet") for name in ("searches", "grades"))
        sql = _GRADES.format(impressions=impressions, searches=searches, grades=grades)
        found: pa.Table = db.sql(sql, params={"days": list(days)}).to_arrow_table()
    coded = found["query"].combine_chunks().dictionary_encode()
    ids = np.array([content_id(text) for text in coded.dictionary.to_pylist()], np.int64)
    return found.add_column(0, "query_id", pa.array(ids[coded.indices.to_numpy()]))


def draw_pairs(samples: Path, budget: int, seed: int) -> pa.Table:
    """Draw query_id, item_id of mined pairs: as many of each origin, for all that are rare are telling.

    A pair of several origins counts for the rarest. Where an origin has fewer, the others have more.

    Args:
        samples: a mined folder.
        budget: pairs in all.
    """
    pairs = read_columns(samples / "samples.parquet", ["query_id", "item_id", "sources"])
    real = pairs.filter(pc.field("item_id") > 0)
    sources = real["sources"].to_numpy()
    bits = [int(row.bit) for row in ORIGINS]
    counts = {bit: int(((sources & bit) != 0).sum()) for bit in bits}
    rarest = np.zeros(len(sources), np.int64)
    for bit in sorted(bits, key=lambda one: -counts[one]):  # the rarest has the last word
        rarest[(sources & bit) != 0] = bit
    order = np.random.default_rng(seed).permutation(len(sources))
    turn = np.empty(len(sources), np.int64)  # each pair's place among those of its origin
    for bit in bits:
        own = order[rarest[order] == bit]
        turn[own] = np.arange(len(own))
    chosen = np.sort(order[np.argsort(turn[order], kind="stable")][:budget])
    return real.take(chosen).select(["query_id", "item_id"])


def annotate(
    samples: str | Path,
    logs: str | Path,
    days: Sequence[str],
    truth: str | Path,
    out: str | Path,
    *,
    budget: int,
    noise: float,
    seed: int,
) -> pa.Table:
    """Write the judgements of an editor as CSV: day, query, item_id, grade.

    Args:
        samples: a mined folder, of those days alone; its pairs are judged.
        logs: the accepted logs that it was mined from.
        days: the days mined; `day` is the last.
        truth: the folder `truth` of that world.
        budget: judgements in all.
        noise: P(another grade than the right one), each as likely.
        seed: of the draw and of the errors.

    Raises:
        CropsError: the file would lie in the truth.
    """
    samples, truth, out = Path(samples), Path(truth), Path(out)
    if out.resolve().is_relative_to(truth.resolve()):
        raise CropsError(f"{out}: judgements err, and are no truth; name a file outside {truth}")
    drawn = draw_pairs(samples, budget, seed)
    names = read_columns(samples / "queries.parquet", ["query_id", "query"])
    grades = query_grades(logs, days, truth).drop_columns(["query"])
    rows = (
        drawn.join(grades, ["query_id", "item_id"])
        .join(names, "query_id")
        .sort_by([("query", "ascending"), ("item_id", "ascending")])
    )
    right = rows["grade"].fill_null(0).to_numpy()
    rng = np.random.default_rng([seed, 1])
    other = (right + rng.integers(1, TOP_GRADE + 1, len(right))) % (TOP_GRADE + 1)
    said = np.where(rng.random(len(right)) < noise, other, right)
    judged = pa.table(
        {"day": [max(days)] * len(rows), "query": rows["query"], "item_id": rows["item_id"], "grade": said}
    )
    with whole_file(out) as staging:
        pa.csv.write_csv(judged, staging)
    return judged
