"""Evaluation on a judged collection: cross-validation over queries, recall and NDCG against human grades."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crops.config import EvaluationConfig
from crops.errors import CropsError
from crops.evaluation.evaluate import (
    Evaluation,
    Rankings,
    ScoringRetriever,
    check_catalogue,
    grades_by_score,
    metric_values,
    summarise,
)
from crops.evaluation.metrics import Ids, grades_of, ndcg_at_k, pad, recall_at_k
from crops.evaluation.testsets import grouped
from crops.logs import Judged

_NDCG_K = 10
"""NDCG is also reported at this cut-off, beside the configured one."""


@dataclass(frozen=True)
class Fold:
    """One split of a cross-validation: disjoint query ids, ascending."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


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
