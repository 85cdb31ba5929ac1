"""Neural scores of distinct pairs: SQL rows out as Arrow batches, through a scorer, back in as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from crops.engine.backend import DuckDBBackend
from crops.errors import CropsError
from crops.outputs import progress
from crops.protocols import PairScorer

QUERY_TEXTS = "select query_id as id, query as text from queries"
DOCUMENT_TEXTS = "select item_id as id, text from documents"

_SCORE_SCHEMA = pa.schema([("left_id", pa.int64()), ("right_id", pa.int64()), ("score", pa.float64())])


def score_pairs(backend: DuckDBBackend, name: str, pairs: str, right_texts: str, scorer: PairScorer) -> None:
    """Make the table `name(left_id, right_id, score)`: every distinct pair scored once.

    Args:
        backend: holds the tables that `pairs` reads.
        name: the new table, also shown beside the progress.
        pairs: SELECT of distinct `left_id` (a query) and `right_id`.
        right_texts: SELECT of `id`, `text` for the right side; the left side is the query's text.
        scorer: scores (left text, right text).

    Raises:
        CropsError: the scorer lost rows or gave a score outside [0, 1].
    """
    backend.table(
        f"{name}_pairs",
        f"select p.left_id, p.right_id from ({pairs}) p join ({right_texts}) r on r.id = p.right_id",
    )
    total = backend.count(f"{name}_pairs")
    texts = (
        "select p.left_id, p.right_id, l.text as left_text, r.text as right_text "
        f"from {name}_pairs p join ({QUERY_TEXTS}) l on l.id = p.left_id "
        f"join ({right_texts}) r on r.id = p.right_id order by p.left_id, p.right_id"
    )

    def scored(batches: Iterator[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        # `left` and `right` are reserved in Spark, so the scorer's names are given here and not in SQL.
        named = (batch.rename_columns(["left_id", "right_id", "left", "right"]) for batch in batches)
        with progress() as display:
            task = display.add_task(name, total=total)
            for batch in scorer(named):
                yield batch
                display.advance(task, batch.num_rows)

    backend.map_batches(name, texts, scored, _SCORE_SCHEMA)
    good = backend.count(f"(select score from {name} where score >= 0 and score <= 1) s")
    if good != total:
        raise CropsError(
            f"the scorer of {name} gave {good} probabilities for {total} pairs; "
            "it must return every row once with a score in [0, 1]"
        )
