"""The judged world: any collection of documents, queries and human grades in three Parquet files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.config import EvaluationConfig
from crops.errors import CropsError
from crops.evaluation.metrics import Ids, grades_of, ndcg_at_k, pad, recall_at_k
from crops.evaluation.ranking import Rankings, ScoringRetriever, check_catalogue, grades_by_score
from crops.evaluation.results import Evaluation, metric_values, summarise
from crops.evaluation.tables import grouped
from crops.text import normalise_query

_NDCG_K = 10
"""NDCG is also reported at this cut-off, beside the configured one."""


@dataclass(frozen=True)
class Judged:
    """A judged collection with integer ids: 1, 2, ... in the order of the files."""

    doc_ids: tuple[str, ...]
    """The collection's own id of item_id i is `doc_ids[i - 1]`."""
    texts: tuple[str, ...]
    """Document texts, in the order of `doc_ids`."""
    source_query_ids: tuple[str, ...]
    """The collection's own id of query_id i is `source_query_ids[i - 1]`."""
    queries: tuple[str, ...]
    """Normalised query texts, in the order of `source_query_ids`."""
    judgements: pa.Table
    """query_id, item_id, grade; sorted, one row per pair."""
    positive_label: int
    """Lowest grade that counts as relevant."""
    text_columns: tuple[str, ...]
    """The columns of docs that make up a document's text, joined in this order."""
    rejects: dict[str, int]
    """Rows left out, by `<table>.<reason>`."""

    def item_ids(self) -> NDArray[np.int64]:
        """Return the ids of the documents [n]."""
        return np.arange(1, len(self.texts) + 1)

    def query_ids(self) -> NDArray[np.int64]:
        """Return the ids of the queries [q]."""
        return np.arange(1, len(self.queries) + 1)


@dataclass(frozen=True)
class Fold:
    """One split of a cross-validation: disjoint query ids, ascending."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


def load_judged(folder: Path, positive_label: int | None = None) -> Judged:
    """Read docs.parquet, queries.parquet and qrels.parquet.

    Columns: docs(doc_id, title, text), queries(query_id, text), qrels(query_id, doc_id, grade). Where docs
    has no `text`, all its string columns but doc_id, in their order, make up the document. Ids may be of any
    type. Rows that cannot be used are left out and counted in `rejects`.

    Args:
        folder: holds the three files.
        positive_label: lowest grade that counts as relevant; the collection's top grade when None.

    Raises:
        CropsError: a file or column is missing, grades are not integers, or nothing usable is left.
    """
    docs, queries, qrels = (_read(folder, *contract) for contract in _CONTRACT)
    columns = _text_columns(docs, folder)
    rejects: Counter[str] = Counter()
    joined = (
        " ".join(filter(None, (str(part or "").strip() for part in parts)))
        for parts in zip(*(docs[name].to_pylist() for name in columns), strict=True)
    )
    documents = _accepted("docs", docs["doc_id"].to_pylist(), joined, rejects)
    texts = (normalise_query(text or "") for text in queries["text"].to_pylist())
    asked = _accepted("queries", queries["query_id"].to_pylist(), texts, rejects)
    judgements = _judgements(qrels, list(asked), list(documents), rejects)
    if not len(judgements):
        raise CropsError(f"{folder}: no judgement joins a query to a document; left out: {dict(rejects)}")
    top = int(judgements["grade"].to_numpy().max())
    return Judged(
        tuple(documents),
        tuple(documents.values()),
        tuple(asked),
        tuple(asked.values()),
        judgements,
        top if positive_label is None else positive_label,
        columns,
        dict(sorted(rejects.items())),
    )


_CONTRACT = (
    ("docs", ("doc_id",)),
    ("queries", ("query_id", "text")),
    ("qrels", ("query_id", "doc_id", "grade")),
)


def _read(folder: Path, name: str, columns: tuple[str, ...]) -> pa.Table:
    file = folder / f"{name}.parquet"
    if not file.is_file():
        raise CropsError(
            f"{file} is missing; a judged collection is docs, queries and qrels as Parquet files"
        )
    table = pq.read_table(file)
    if absent := [column for column in columns if column not in table.column_names]:
        raise CropsError(
            f"{file} lacks the column {', '.join(absent)}; it has {', '.join(table.column_names)}"
        )
    return table


def _text_columns(docs: pa.Table, folder: Path) -> tuple[str, ...]:
    strings = [
        field.name
        for field in docs.schema
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    wanted = ("title", "text") if "text" in strings else docs.column_names
    columns = tuple(name for name in wanted if name in strings and name != "doc_id")
    if not columns:
        raise CropsError(f"{folder / 'docs.parquet'} has no text column; add title and text")
    return columns


def _accepted(
    table: str, ids: Iterable[object], texts: Iterable[str], rejects: Counter[str]
) -> dict[str, str]:
    """Return text by id (as a string) of the usable rows, in order."""
    accepted: dict[str, str] = {}
    for identity, text in zip(ids, texts, strict=True):
        if identity is None:
            rejects[f"{table}.missing_id"] += 1
        elif str(identity) in accepted:
            rejects[f"{table}.duplicate_id"] += 1
        elif not text:
            rejects[f"{table}.empty_text"] += 1
        else:
            accepted[str(identity)] = text
    return accepted


def _judgements(qrels: pa.Table, queries: list[str], docs: list[str], rejects: Counter[str]) -> pa.Table:
    if not pa.types.is_integer(qrels["grade"].type):
        raise CropsError(f"qrels, column grade is {qrels['grade'].type}; grades are integers from 0")
    query_number = {identity: number for number, identity in enumerate(queries, start=1)}
    item_number = {identity: number for number, identity in enumerate(docs, start=1)}
    grades: dict[tuple[int, int], int] = {}
    for row in zip(*(qrels[name].to_pylist() for name in ("query_id", "doc_id", "grade")), strict=True):
        query, item, grade = query_number.get(str(row[0])), item_number.get(str(row[1])), row[2]
        if query is None:
            rejects["qrels.unknown_query"] += 1
        elif item is None:
            rejects["qrels.unknown_doc"] += 1
        elif grade is None or grade < 0:
            rejects["qrels.missing_or_negative_grade"] += 1
        elif (query, item) in grades:
            rejects["qrels.duplicate_pair"] += 1
        else:
            grades[query, item] = grade
    rows = [(query, item, grade) for (query, item), grade in sorted(grades.items())]
    schema = pa.schema([("query_id", pa.int64()), ("item_id", pa.int64()), ("grade", pa.int64())])
    return pa.table(
        dict(zip(schema.names, zip(*rows, strict=True), strict=True)) if rows else [[]] * 3, schema=schema
    )


def folds(query_ids: NDArray[np.int64], count: int, seed: int) -> list[Fold]:
    """Split queries for a cross-validation: each is in one test part, whose sizes differ by one at most.

    Raises:
        CropsError: fewer than two folds, or more folds than queries.
    """
    if not 2 <= count <= len(query_ids):
        raise CropsError(f"{count} folds of {len(query_ids)} queries: give 2 to {len(query_ids)} folds")
    parts = np.array_split(np.random.default_rng(seed).permutation(query_ids), count)
    return [Fold(np.setdiff1d(query_ids, part), np.sort(part)) for part in parts]


def evaluate_judged(
    retriever: ScoringRetriever,
    judged: Judged,
    query_ids: NDArray[np.int64],
    config: EvaluationConfig,
    seed: int,
) -> Evaluation:
    """Evaluate a retriever over the documents of a judged collection.

    Metrics, for k = `recall_k` and m = `ndcg_k` and 10:

    - `recall@k`: relevant = grade >= `positive_label`;
    - `ndcg_exp2@m/catalogue`: own ranking of all documents; one without a judgement counts as grade 0;
    - `ndcg_exp2@m/judged`: the judged documents of the query in the order of the retriever's scores.

    Args:
        retriever: indexes exactly the collection's documents.
        judged: the collection.
        query_ids: the queries to evaluate, e.g. one fold's test part.
        config: cut-offs and the number of resamples.
        seed: seed of the bootstrap.

    Raises:
        CropsError: the retriever searches another catalogue.
    """
    query_ids = np.unique(query_ids)
    texts = [judged.queries[query - 1] for query in query_ids]
    check_catalogue(retriever, judged.item_ids())
    rankings = Rankings(retriever, query_ids, texts, max(config.recall_k, config.ndcg_k, _NDCG_K))
    items, grades = _of_queries(judged, query_ids)
    ranked = rankings.of(query_ids)
    positives = [own[grade >= judged.positive_label] for own, grade in zip(items, grades, strict=True)]
    in_catalogue, among_judged = (
        grades_of(ranked, items, grades),
        grades_by_score(retriever, texts, items, grades),
    )
    measured = {f"recall@{config.recall_k}": recall_at_k(ranked, positives, config.recall_k)}
    for m in sorted({config.ndcg_k, _NDCG_K}):
        measured[f"ndcg_exp2@{m}/catalogue"] = ndcg_at_k(in_catalogue, m, ideal=pad(grades, 0))
        measured[f"ndcg_exp2@{m}/judged"] = ndcg_at_k(among_judged, m)
    tables = {metric: metric_values(metric, query_ids, values) for metric, values in measured.items()}
    return summarise(tables, config.resamples, seed)


def _of_queries(judged: Judged, query_ids: Ids) -> tuple[list[Ids], list[Ids]]:
    """Return the judged items and grades of each query, empty where it has none."""
    known, (items, grades) = grouped(
        *(judged.judgements[name].to_numpy() for name in judged.judgements.column_names)
    )
    own = {query: pair for query, *pair in zip(known.tolist(), items, grades, strict=True)}
    nothing = np.empty(0, dtype=np.int64)
    pairs = [own.get(query, [nothing, nothing]) for query in query_ids.tolist()]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
