"""Neural scores of distinct pairs: SQL rows out as Arrow batches, through a scorer, and kept on disk.

A score is known by (scorer, query, text of the other side): a pair that any earlier run has scored is looked
up, and a run that was killed resumes after the last file that it wrote.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops.engine.backend import Backend, id_sql
from crops.errors import CropsError
from crops.outputs import progress, unique
from crops.protocols import PairScorer
from crops.text import content_id

FILE_ROWS = 50_000
"""Pairs that are scored again when the process is killed, at most."""
_SCORE_SCHEMA = pa.schema([("left_key", pa.int64()), ("right_key", pa.int64()), ("score", pa.float64())])
_KEY_SCHEMA = pa.schema([("item_id", pa.int64()), ("key", pa.int64())])


@dataclass(frozen=True)
class CachedScorer:
    """A scorer and the folder of its scores: `part-*.parquet` with left_key, right_key, score.

    The keys are `crops.text.content_id` of the two texts. The folder must belong to this scorer alone: name
    it by the hash of its model and calibration. A file appears whole or not at all; processes may share the
    folder.
    """

    scorer: PairScorer
    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))  # text will do

    @property
    def by_item(self) -> bool:
        """Whether `right_key` is the id of the item: for a scorer that reads more of it than its text."""
        return bool(getattr(self.scorer, "by_item", False))


def cached(scorer: PairScorer | CachedScorer | None, folder: Path) -> CachedScorer | None:
    """Return the scorer with a cache: its own, or one in `folder` for the time of a job."""
    return (
        CachedScorer(scorer, folder)
        if scorer is not None and not isinstance(scorer, CachedScorer)
        else scorer
    )


def scorer_names(
    relevance: PairScorer | CachedScorer | None, similarity: PairScorer | CachedScorer | None
) -> dict[str, str]:
    """Return what tells one pair of scorers from another: the names of their caches, `none` for none."""
    given = {"relevance": relevance, "similarity": similarity}
    known = {kind: cached(scorer, Path(kind)) for kind, scorer in given.items()}
    return {kind: scorer.folder.name if scorer else "none" for kind, scorer in known.items()}


def key_documents(backend: Backend, items: str, *, by_item: bool = False) -> None:
    """Make `document_keys(item_id, key)`: the hash of each item's text, or its id.

    Args:
        backend: holds `documents`.
        items: SELECT of distinct `item_id`; those without a document are left out.
        by_item: whether the key is the id.
    """
    if by_item:
        own = f"select d.item_id, d.item_id as key from documents d join ({items}) i on i.item_id = d.item_id"
        backend.table("document_keys", own)
        return
    texts = f"select d.item_id, d.text from documents d join ({items}) i on i.item_id = d.item_id"
    backend.map_batches("document_keys", texts, _keys, _KEY_SCHEMA)


def score_pairs(
    backend: Backend, name: str, pairs: str, right: str, scorer: CachedScorer, also: str = ""
) -> None:
    """Make `name(left_id, right_id, score)`: every distinct pair, scored once ever.

    Args:
        backend: holds the tables that `pairs` reads.
        name: the new table, also shown next to the progress.
        pairs: SELECT of distinct left_id (a query), right_id and right_key (hash of the right text).
        right: `documents`, `queries` or `wordings`: where the texts of the right side are, by right_id.
        scorer: scores (left text, right text).
        also: a column of `pairs` that `name` has too.

    Raises:
        CropsError: the scorer lost rows or gave a score outside [0, 1], or the cache cannot be read.
    """
    scored = functools.partial(_scored_sql, backend, name, pairs, right, scorer, also)
    backend.stage(name, scored, f"{pairs} {scorer.folder.name}")
    backend.drop_tables(f"{name}_found", f"{name}_missing", f"{name}_new")


def _scored_sql(backend: Backend, name: str, pairs: str, right: str, scorer: CachedScorer, also: str) -> str:
    """Return the SELECT of the scores of all pairs, after the unknown ones were scored."""
    known, found, missing = f"{name}_known", f"{name}_found", f"{name}_missing"
    asked = backend.rows(f"select count(*) as n, min(left_id) as low, max(left_id) as high from ({pairs}) p")[
        0
    ]
    backend.read_parquet(known, _score_files(scorer.folder), _SCORE_SCHEMA)
    columns = "left_id, right_id, right_key" + (f", {also}" if also else "")
    backend.table(
        found,
        f"select {', '.join(f'p.{column}' for column in columns.split(', '))}, k.score from ({pairs}) p "
        f"left join (select * from {known} where left_key between {id_sql(asked['low'] or 0)} and "
        f"{id_sql(asked['high'] or 0)}) k on k.left_key = p.left_id and k.right_key = p.right_key",
    )
    if backend.count(found) > asked["n"]:  # two processes scored one pair at a time
        backend.table(found, f"select {columns}, min(score) as score from {found} group by {columns}")
    backend.table(
        missing,
        f"select left_id, min(right_id) as right_id, right_key from {found} "
        "where score is null group by left_id, right_key",
    )
    scored = f"select {columns}, score from {found} where score is not null"
    total = backend.count(missing)
    if total:
        score = functools.partial(_score, scorer=scorer, name=name, total=total)
        backend.map_batches(f"{name}_new", _texts(missing, right), score, _SCORE_SCHEMA)
        _complain(name, backend.count(f"{name}_new"), total)
        scored += (
            f" union all select {', '.join(f'f.{column}' for column in columns.split(', '))}, n.score "
            f"from {found} f join {name}_new n "
            "on n.left_key = f.left_id and n.right_key = f.right_key where f.score is null"
        )
    return scored


def _texts(missing: str, right: str) -> str:
    texts = (
        "select item_id as id, text from documents"
        if right == "documents"
        else f"select query_id as id, query as text from {right}"
    )
    return (
        "select p.left_id, p.right_key, l.query as left_text, r.text as right_text "
        f"from {missing} p join queries l on l.query_id = p.left_id "
        f"join ({texts}) r on r.id = p.right_id order by p.left_id, p.right_key"
    )


def _keys(batches: Iterator[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
    for batch in batches:
        keys = [content_id(text) for text in batch.column("text").to_pylist()]
        yield pa.RecordBatch.from_arrays(
            [batch.column("item_id"), pa.array(keys, pa.int64())], schema=_KEY_SCHEMA
        )


def _score(
    batches: Iterator[pa.RecordBatch], *, scorer: CachedScorer, name: str, total: int
) -> Iterable[pa.RecordBatch]:
    """Score batches of (left_id, right_key, left_text, right_text), writing them to the cache."""
    # `left` and `right` are reserved in Spark, so the scorer's names are given here and not in SQL.
    named = (batch.rename_columns(["left_key", "right_key", "left", "right"]) for batch in batches)
    unsaved: list[pa.RecordBatch] = []
    with progress() as display:
        task = display.add_task(name, total=total)
        try:
            for batch in scorer.scorer(named):
                scored = batch.select(_SCORE_SCHEMA.names).cast(_SCORE_SCHEMA)
                _check_range(scored, name)
                unsaved.append(scored)
                if sum(batch.num_rows for batch in unsaved) >= FILE_ROWS:
                    _save(scorer.folder, unsaved)
                    unsaved = []
                yield scored
                display.advance(task, batch.num_rows)
        finally:
            _save(scorer.folder, unsaved)


def _check_range(scored: pa.RecordBatch, name: str) -> None:
    score = scored.column("score")
    good = pc.sum(pc.and_(pc.greater_equal(score, 0.0), pc.less_equal(score, 1.0))).as_py() or 0
    _complain(name, good, scored.num_rows)


def _complain(name: str, good: int, total: int) -> None:
    if good != total:
        raise CropsError(
            f"the scorer of {name} gave {good} probabilities for {total} pairs; "
            "it must return every row once with a score in [0, 1]"
        )


def _score_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("part-*.parquet"))
    for file in files:
        try:
            pq.read_schema(file)
        except (OSError, pa.ArrowException) as error:
            raise CropsError(
                f"{file}: not a readable score cache ({error}). Delete it: it is made again."
            ) from error
    return files


def _save(folder: Path, batches: list[pa.RecordBatch]) -> None:
    if not batches:
        return
    table = pa.Table.from_batches(batches, _SCORE_SCHEMA)
    name = hashlib.sha256(
        b"".join(column.to_numpy().tobytes() for column in table.itercolumns())
    ).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    staging = unique(folder / name, "tmp")
    try:
        pq.write_table(table, staging)
        staging.replace(folder / f"part-{name}.parquet")
    finally:
        staging.unlink(missing_ok=True)
