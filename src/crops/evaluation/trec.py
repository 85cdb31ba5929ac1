"""TREC files: runs (`query Q0 document rank score tag`) and qrels (`query 0 document grade`), in and out.

Ranks are 1-based. A run is read by its scores, as trec_eval does; equal scores keep the order of their ranks,
where trec_eval takes the larger document id first. So a run of ours has the metrics of the rankings that it
was written from.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Self

import numpy as np
import pyarrow as pa

from crops.config import EvaluationConfig
from crops.errors import CropsError, MissingExtraError
from crops.evaluation.evaluate import Evaluation, metric_values, summarise
from crops.evaluation.metrics import Ids, grades_of, ndcg_at_k, pad, recall_at_k, reciprocal_rank
from crops.ids import plain_number
from crops.text import content_id

Run = Mapping[str, Sequence[str]]
"""Documents, best first, by query."""
Qrels = Mapping[str, Mapping[str, int]]
"""Grade by document, by query."""


def write_run(
    path: Path,
    query_ids: Ids,
    ids: Ids,
    scores: Sequence[Sequence[float]],
    tag: str,
    own: Mapping[int, str] | None = None,
) -> None:
    """Write rankings as a run.

    Args:
        query_ids: [q].
        ids: item ids [q, k], best first; -1 pads.
        scores: [q, k], alike in shape; written so that float32 is read back unchanged.
        tag: name of the system; white space becomes `_`.
        own: the source's own ids of items, by number; one with white space stays a number.
    """
    name = "_".join(tag.split()) or "crops"
    with path.open("w") as file:
        for query, row, row_scores in zip(query_ids.tolist(), ids.tolist(), scores, strict=True):
            for rank, (item, score) in enumerate(zip(row, row_scores, strict=True), 1):
                if item >= 0:
                    file.write(f"{query} Q0 {_document(item, own)} {rank} {score:.9g} {name}\n")


def _document(item: int, own: Mapping[int, str] | None) -> str:
    text = (own or {}).get(item, "")
    return text if text and not re.search(r"\s", text) else str(item)


def write_qrels(path: Path, pairs: pa.Table, own: Mapping[int, str] | None = None) -> None:
    """Write the relevant items of test queries as qrels, of grade 1 unless there is a column `grade`.

    Args:
        pairs: query_id, item_id, grade?; repeated rows are written once.
        own: as in `write_run`.
    """
    graded = "grade" in pairs.column_names
    rows = pairs.select(["query_id", "item_id", *(["grade"] if graded else [])]).to_pylist()
    lines = {(row["query_id"], row["item_id"], row.get("grade", 1)) for row in rows}
    with path.open("w") as file:
        for query, item, grade in sorted(lines):
            file.write(f"{query} 0 {_document(item, own)} {grade}\n")


def read_run(path: Path) -> Run:
    """Read a run.

    Raises:
        CropsError: a line has not six parts, a rank or score is no finite number, or a document is in a list
            twice; a MissingExtraError names the extra.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    with _Lines(path, "query Q0 document rank score tag") as lines:
        for query, doc, score in _ir_measures().read_trec_run(lines):
            own = found.setdefault(query, {})
            if doc in own:
                raise CropsError(f"{lines.where}: document {doc} is in the list of {query} twice")
            rank = float(lines.line.split()[3])
            if not np.isfinite([score, rank]).all():
                raise ValueError("rank and score must be finite")
            own[doc] = (-score, rank)
    return {query: sorted(own, key=own.__getitem__) for query, own in found.items()}


def read_qrels(path: Path) -> Qrels:
    """Read qrels; a negative grade counts as 0, as in trec_eval.

    Raises:
        CropsError: a line has not four parts, a grade is no whole number, or a pair has two grades; a
            MissingExtraError names the extra.
    """
    found: dict[str, dict[str, int]] = {}
    with _Lines(path, "query 0 document grade, a whole number") as lines:
        for query, doc, grade, _ in _ir_measures().read_trec_qrels(lines):
            known = found.setdefault(query, {}).setdefault(doc, grade)
            if known != grade:
                raise CropsError(
                    f"{lines.where}: document {doc} of query {query} has grade {grade} here "
                    f"and {known} above; keep one of the lines"
                )
    return {query: {doc: max(0, grade) for doc, grade in own.items()} for query, own in found.items()}


class _Lines:
    """A text file as ir-measures reads it; errors inside the block name the line that it is at."""

    def __init__(self, path: Path, form: str) -> None:
        self._path, self._form, self.line, self.where = path, form, "", str(path)

    def read(self) -> str:
        """Return the text; ir-measures takes what has such a method for a file, and asks for its lines."""
        try:
            text = self._path.read_text("utf-8-sig")  # a byte-order mark is no part of the first id
        except (OSError, UnicodeDecodeError) as error:
            raise CropsError(f"{self._path}: cannot be read: {error}; save it as UTF-8") from error
        if not text.strip():
            raise CropsError(f"{self._path} is empty")
        return text

    def __iter__(self) -> Iterator[str]:
        for number, line in enumerate(self.read().split("\n"), 1):
            self.line, self.where = line, f"{self._path}, line {number}"
            yield line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError):
            raise CropsError(f"{self.where}: '{self.line.strip()}' is not {self._form} ({error})") from error


def _ir_measures() -> ModuleType:
    if importlib.util.find_spec("ir_measures") is None:
        raise MissingExtraError("ir-measures", "trec")
    return importlib.import_module("ir_measures")


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
    numbers = [plain_number(query) for query in queries]
    return np.array(list(map(content_id, queries)) if None in numbers else numbers, dtype=np.int64)
