"""TREC files: runs (`query Q0 document rank score tag`) and qrels (`query 0 document grade`), in and out.

Ranks are 1-based. A run is read by its scores, as trec_eval does; equal scores keep the order of their ranks,
where trec_eval takes the larger document id first. So a run of ours has the metrics of the rankings that it
was written from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from crops.config import EvaluationConfig
from crops.errors import CropsError
from crops.evaluation.evaluate import Evaluation, metric_values, summarise
from crops.evaluation.metrics import Ids, grades_of, ndcg_at_k, pad, recall_at_k, reciprocal_rank
from crops.text import content_id

Run = Mapping[str, Sequence[str]]
"""Documents, best first, by query."""
Qrels = Mapping[str, Mapping[str, int]]
"""Grade by document, by query."""


def write_run(path: Path, query_ids: Ids, ids: Ids, scores: Sequence[Sequence[float]], tag: str) -> None:
    """Write rankings as a run.

    Args:
        path: the file.
        query_ids: [q].
        ids: item ids [q, k], best first; -1 pads.
        scores: [q, k], alike in shape; written so that float32 is read back unchanged.
        tag: name of the system; white space becomes `_`.
    """
    name = "_".join(tag.split()) or "crops"
    with path.open("w") as file:
        for query, row, row_scores in zip(query_ids.tolist(), ids.tolist(), scores, strict=True):
            for rank, (item, score) in enumerate(zip(row, row_scores, strict=True), 1):
                if item >= 0:
                    file.write(f"{query} Q0 {item} {rank} {score:.9g} {name}\n")


def write_qrels(path: Path, pairs: pa.Table) -> None:
    """Write the relevant items of test queries as qrels, of grade 1 unless there is a column `grade`.

    Args:
        path: the file.
        pairs: query_id, item_id, grade?; repeated rows are written once.
    """
    graded = "grade" in pairs.column_names
    rows = pairs.select(["query_id", "item_id", *(["grade"] if graded else [])]).to_pylist()
    lines = {(row["query_id"], row["item_id"], row.get("grade", 1)) for row in rows}
    with path.open("w") as file:
        for query, item, grade in sorted(lines):
            file.write(f"{query} 0 {item} {grade}\n")


def read_run(path: Path) -> Run:
    """Read a run.

    Raises:
        CropsError: a line has not six parts, a rank or score is no finite number, or a document is in a list
            twice.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for number, parts in _lines(path, 6, "query Q0 document rank score tag"):
        own = found.setdefault(parts[0], {})
        if parts[2] in own:
            raise CropsError(f"{path}, line {number}: document {parts[2]} is in the list of {parts[0]} twice")
        own[parts[2]] = (-_number(path, number, parts[4]), _number(path, number, parts[3]))
    return {query: sorted(own, key=own.__getitem__) for query, own in found.items()}


def read_qrels(path: Path) -> Qrels:
    """Read qrels; a negative grade counts as 0, as in trec_eval.

    Raises:
        CropsError: a line has not four parts, a grade is no whole number, or a pair has two grades.
    """
    found: dict[str, dict[str, int]] = {}
    for number, parts in _lines(path, 4, "query 0 document grade"):
        grade = _number(path, number, parts[3])
        if grade != int(grade):
            raise CropsError(f"{path}, line {number}: the grade {parts[3]} is no whole number")
        own = found.setdefault(parts[0], {})
        if own.setdefault(parts[2], int(grade)) != int(grade):
            raise CropsError(
                f"{path}, line {number}: document {parts[2]} of query {parts[0]} has grade {parts[3]} here "
                f"and {own[parts[2]]} above; keep one of the lines"
            )
    return {query: {doc: max(0, grade) for doc, grade in own.items()} for query, own in found.items()}


def evaluate_run(run: Run, qrels: Qrels, config: EvaluationConfig, seed: int) -> Evaluation:
    """Evaluate a run against qrels; a query without a list has found nothing.

    Metrics, for k = `recall_k` and m = `ndcg_k`: `recall@k` and `mrr@k`, relevant = grade above 0, and
    `ndcg_exp2@m`. Query ids are those of the qrels where all are whole numbers, as in our own files, else
    their hashes.

    Raises:
        CropsError: the qrels name no relevant document, or none of the run's queries.
    """
    queries = sorted(query for query, own in qrels.items() if any(own.values()))
    if not queries:
        raise CropsError("the qrels name no document with a grade above 0")
    if not set(queries) & set(run):
        raise CropsError(f"no query of the qrels (e.g. {queries[0]}) is in the run; are the ids the same?")
    depth = max(config.recall_k, config.ndcg_k)
    documents = {doc for own in (*qrels.values(), *run.values()) for doc in own}
    names = {doc: place for place, doc in enumerate(sorted(documents))}
    lists = [[names[doc] for doc in run.get(query, ())[:depth]] for query in queries]
    ranked = pad([np.array(own, dtype=np.int64) for own in lists], -1)
    items = [np.array([names[doc] for doc in qrels[query]], dtype=np.int64) for query in queries]
    grades = [np.array(list(qrels[query].values()), dtype=np.int64) for query in queries]
    relevant = [own[grade > 0] for own, grade in zip(items, grades, strict=True)]
    k, m = config.recall_k, config.ndcg_k
    measured = {
        f"recall@{k}": recall_at_k(ranked, relevant, k),
        f"mrr@{k}": reciprocal_rank(ranked[:, :k], relevant),
        f"ndcg_exp2@{m}": ndcg_at_k(grades_of(ranked[:, :m], items, grades), m, ideal=pad(grades, 0)),
    }
    ids = _query_ids(queries)
    tables = {metric: metric_values(metric, ids, values) for metric, values in measured.items()}
    return summarise(tables, config.resamples, seed)


def _query_ids(queries: Sequence[str]) -> Ids:
    own = all(
        re.fullmatch(r"0|-?[1-9][0-9]{0,18}", query) and -(2**63) <= int(query) < 2**63 for query in queries
    )
    return np.array([int(query) if own else content_id(query) for query in queries], dtype=np.int64)


def _lines(path: Path, width: int, form: str) -> list[tuple[int, list[str]]]:
    try:
        text = path.read_text("utf-8-sig")  # a byte-order mark is no part of the first id
    except (OSError, UnicodeDecodeError) as error:
        raise CropsError(f"{path}: cannot be read: {error}; save it as UTF-8") from error
    rows = [(number, line.split()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, parts in rows:
        if len(parts) != width:
            raise CropsError(f"{path}, line {number}: {len(parts)} parts, not {width}; a line is: {form}")
    if not rows:
        raise CropsError(f"{path} is empty")
    return rows


def _number(path: Path, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise CropsError(f"{path}, line {line}: '{text}' is no finite number")
    return value
