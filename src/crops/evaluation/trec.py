"""TREC files: runs (`query Q0 document rank score tag`) and qrels (`query 0 document grade`), in and out.

Ranks are 1-based. A run is read by its scores, as trec_eval does; ties go to the smaller document id, as in
our own rankings, where trec_eval takes the larger one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from crops.config import EvaluationConfig
from crops.errors import CropsError
from crops.evaluation.metrics import Ids, grades_of, ndcg_at_k, pad, recall_at_k, reciprocal_rank
from crops.evaluation.results import Evaluation, metric_values, summarise
from crops.text import content_id

Run = Mapping[str, Mapping[str, float]]
"""Score by document, by query."""
Qrels = Mapping[str, Mapping[str, int]]
"""Grade by document, by query."""


def write_run(path: Path, query_ids: Ids, ids: Ids, scores: Sequence[Sequence[float]], tag: str) -> None:
    """Write rankings as a run.

    Args:
        path: the file.
        query_ids: [q].
        ids: item ids [q, k], best first; -1 pads.
        scores: [q, k], alike in shape.
        tag: name of the system; white space becomes `_`.
    """
    name = "_".join(tag.split()) or "crops"
    with path.open("w") as file:
        for query, row, row_scores in zip(query_ids.tolist(), ids.tolist(), scores, strict=True):
            for rank, (item, score) in enumerate(zip(row, row_scores, strict=True), 1):
                if item >= 0:
                    file.write(f"{query} Q0 {item} {rank} {score:.6f} {name}\n")


def write_qrels(path: Path, pairs: pa.Table) -> None:
    """Write the relevant items of test queries as qrels, of grade 1 unless there is a column `grade`.

    Args:
        path: the file.
        pairs: query_id, item_id, grade?; repeated pairs are written once.
    """
    graded = "grade" in pairs.column_names
    rows = pairs.select(["query_id", "item_id", *(["grade"] if graded else [])]).to_pylist()
    lines = {(row["query_id"], row["item_id"]): row.get("grade", 1) for row in rows}
    with path.open("w") as file:
        for (query, item), grade in sorted(lines.items()):
            file.write(f"{query} 0 {item} {grade}\n")


def read_run(path: Path) -> Run:
    """Read a run.

    Raises:
        CropsError: a line has not six parts, a score is no finite number, or a document is named twice.
    """
    found: dict[str, dict[str, float]] = {}
    for number, parts in _lines(path, 6, "query Q0 document rank score tag"):
        own = found.setdefault(parts[0], {})
        if parts[2] in own:
            raise CropsError(f"{path}, line {number}: document {parts[2]} is in the list of {parts[0]} twice")
        own[parts[2]] = _number(path, number, parts[4])
    return found


def read_qrels(path: Path) -> Qrels:
    """Read qrels; a negative grade counts as 0, as in trec_eval.

    Raises:
        CropsError: a line has not four parts, or a grade is no whole number.
    """
    found: dict[str, dict[str, int]] = {}
    for number, parts in _lines(path, 4, "query 0 document grade"):
        grade = _number(path, number, parts[3])
        if grade != int(grade):
            raise CropsError(f"{path}, line {number}: the grade {parts[3]} is no whole number")
        found.setdefault(parts[0], {})[parts[2]] = max(0, int(grade))
    return found


def evaluate_run(run: Run, qrels: Qrels, config: EvaluationConfig, seed: int) -> Evaluation:
    """Evaluate a run against qrels; a query without a list has found nothing.

    Metrics, for k = `recall_k` and m = `ndcg_k`: `recall@k` and `mrr@k`, relevant = grade above 0, and
    `ndcg_exp2@m`. Query ids are hashes of the file's own.

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
    ranked = pad([_ranked(run.get(query, {}), names, depth) for query in queries], -1)
    items = [np.array([names[doc] for doc in qrels[query]], dtype=np.int64) for query in queries]
    grades = [np.array(list(qrels[query].values()), dtype=np.int64) for query in queries]
    relevant = [own[grade > 0] for own, grade in zip(items, grades, strict=True)]
    k, m = config.recall_k, config.ndcg_k
    measured = {
        f"recall@{k}": recall_at_k(ranked, relevant, k),
        f"mrr@{k}": reciprocal_rank(ranked[:, :k], relevant),
        f"ndcg_exp2@{m}": ndcg_at_k(grades_of(ranked[:, :m], items, grades), m, ideal=pad(grades, 0)),
    }
    ids = np.array([content_id(query) for query in queries], dtype=np.int64)
    tables = {metric: metric_values(metric, ids, values) for metric, values in measured.items()}
    return summarise(tables, config.resamples, seed)


def _ranked(scores: Mapping[str, float], places: Mapping[str, int], k: int) -> Ids:
    """Return the places of the k best documents; places are in the order of the ids."""
    best = sorted(scores, key=lambda doc: (-scores[doc], places[doc]))[:k]
    return np.array([places[doc] for doc in best], dtype=np.int64)


def _lines(path: Path, width: int, form: str) -> list[tuple[int, list[str]]]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CropsError(f"{path}: cannot be read: {error}") from error
    rows = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
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
