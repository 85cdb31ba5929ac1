"""Judged pairs to calibrate theta or fine-tune it: from a file of judgements, or from confident log pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.labels import Source
from crops.logs.files import refuse_lake_tables
from crops.logs.sources import parquet_schema
from crops.logs.tables import rows_of
from crops.text import document_text_sql, has_text

_READERS = {
    ".csv": "read_csv($path, all_varchar = true, header = true)",
    ".jsonl": "read_json($path, format = 'newline_delimited')",
}
_JUDGED = {"1": True, "true": True, "0": False, "false": False}

_LOG_SQL = f"""
with clicks as (
    select query_id, item_id, count(distinct search_id) as searches from read_parquet($evidence)
    where source = $clicked group by query_id, item_id
), confident as (
    select query_id, item_id, row_number() over (
        order by md5(concat_ws(' ', $seed, query_id, item_id))
    ) as place from clicks where searches >= $min_searches and item_id > 0
), dropped as (
    select query_id, item_id, row_number() over (
        partition by query_id order by md5(concat_ws(' ', $seed, 'dropped', query_id, item_id))
    ) as turn
    from read_parquet($samples)
    where sources = $filtered and query_id in (select query_id from confident)
), foreign_items as (
    select c.query_id, d.item_id from confident c, (select count(*) as n from confident) total
    join confident d on d.place = (c.place - 1 + n // 2) % n + 1
    where (c.query_id, d.item_id) not in (select (query_id, item_id) from read_parquet($samples))
), judged as (
    select query_id, item_id, true as relevant from confident
    union all select query_id, item_id, false from dropped where turn = 1
    union all select distinct query_id, item_id, false from foreign_items
)
select q.query, {document_text_sql("i")}, j.relevant
from judged j join read_parquet($queries) q using (query_id) join read_parquet($items) i using (item_id)
order by q.query, j.item_id
"""


@dataclass(frozen=True)
class Pairs:
    """Judged pairs of texts, n of each."""

    left: Sequence[str]
    """Queries."""
    right: Sequence[str]
    """Documents, or queries for similarity."""
    relevant: NDArray[np.bool_]

    def part(self, chosen: NDArray[np.bool_]) -> Pairs:
        """Return the chosen pairs."""
        rows = np.flatnonzero(chosen).tolist()
        return Pairs([self.left[row] for row in rows], [self.right[row] for row in rows], self.relevant[rows])


def read_pairs(path: str | Path) -> Pairs:
    """Read judgements.

    Args:
        path: `.csv`, `.jsonl` or `.parquet` with the columns `query`, `text` and `relevant` (1 or 0).

    Raises:
        CropsError: the file is of another kind, unreadable or empty, lacks a column, a text is missing, a
            judgement is neither 1 nor 0, or it lies in a simulator's truth.
    """
    path = Path(path)
    if path.resolve().parent.name == "truth":
        raise CropsError(
            f"{path} is a simulator's truth; theta is fitted on pairs from outside the evaluated world"
        )
    refuse_lake_tables([path])
    if path.suffix == ".parquet":
        schema = parquet_schema(path)
        columns = {name: name for name in ("query", "text", "relevant") if name in schema.names}
        source, given = rows_of([path], [schema], columns), {}
    elif path.suffix in _READERS:
        source, given = _READERS[path.suffix], {"path": str(path)}
    else:
        raise CropsError(
            f"{path}: name a file of judged pairs that ends in {', '.join(_READERS)} or .parquet"
        )
    try:
        with duckdb.connect() as connection:
            rows = connection.execute(f"select query, text, relevant from {source}", given).fetchall()
    except duckdb.Error as error:
        raise CropsError(
            f"{path}: cannot read the pairs, which need the columns query, text, relevant: {error}"
        ) from error
    if not rows:
        raise CropsError(f"{path}: no pairs; give a few hundred, relevant and irrelevant ones")
    judged = [_judged(path, number, row) for number, row in enumerate(rows, 1)]
    return Pairs([row[0] for row in rows], [row[1] for row in rows], np.array(judged, np.bool_))


def _judged(path: Path, number: int, row: tuple[Any, ...]) -> bool:
    query, text, relevant = row
    for name, value in (("query", query), ("text", text)):
        if not isinstance(value, str) or not has_text(value):
            raise CropsError(f"{path}, pair {number}: no text in column '{name}'; drop the pair")
    judgement = _JUDGED.get(str(relevant).strip().casefold())
    if judgement is None:
        raise CropsError(f"{path}, pair {number}: relevant is '{relevant}'; write 1 or 0")
    return judgement


def log_pairs(samples: str | Path, *, min_searches: int = 2, seed: int = 0) -> Pairs:
    """Return confident pairs of a mining, to fine-tune on where nobody judged anything.

    Relevant: clicked in at least `min_searches` searches of the query. Irrelevant: per query one document
    that the system only ever dropped before ranking, and per relevant pair the clicked document of another
    query that no source connects with this one. Clicks follow what the system shows: a model trained on them
    learns its taste too.

    Raises:
        CropsError: `samples` is no output of a mining, or it has no such pairs.
    """
    samples = Path(samples)
    names = ("evidence", "samples", "queries", "items")
    values: dict[str, object] = {name: str(samples / f"{name}.parquet") for name in names}
    values |= {
        "clicked": int(Source.CLICKED),
        "filtered": int(Source.FILTERED),
        "min_searches": min_searches,
        "seed": seed,
    }
    try:
        with duckdb.connect() as connection:
            rows = connection.execute(_LOG_SQL, values).fetchall()
    except duckdb.Error as error:
        raise CropsError(f"{samples} is not an output of `crops mine`: {error}") from error
    relevant = np.array([row[-1] for row in rows], np.bool_)
    if not relevant.any() or relevant.all():
        raise CropsError(f"{samples}: no pair clicked in {min_searches} searches; lower min_searches")
    return Pairs([row[0] for row in rows], [row[1] for row in rows], relevant)


def held_out(pairs: Pairs, seed: int = 0) -> NDArray[np.bool_]:
    """Return which pairs are held out, [n]: about half of the queries, whole, chosen by their hash."""
    return np.array(
        [hashlib.sha256(f"{seed} {query}".encode()).digest()[0] % 2 == 1 for query in pairs.left], np.bool_
    )
