"""Evaluates a retriever on the test sets of a day (definitions: `crops.evaluation.testsets`)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops.config import EvaluationConfig
from crops.evaluation.detail import detail
from crops.evaluation.facts import Facts
from crops.evaluation.metrics import Ids, Values, grades_of, ndcg_at_k, pad, recall_at_k
from crops.evaluation.ranking import Rankings, ScoringRetriever, check_catalogue, grades_by_score
from crops.evaluation.results import Evaluation, metric_values, summarise
from crops.evaluation.tables import grouped
from crops.evaluation.testsets import TestSets
from crops.evaluation.truth import RELEVANT_GRADE, TruthSets

Measured = tuple[Ids, Values, Values | None]
"""Query ids [n], values [n], weights [n] (None: all 1) of one metric."""
_BLOCK = 10_000
"""Rankings compared at a time: a busy day has many more events than queries."""


def evaluate(
    retriever: ScoringRetriever,
    testsets: TestSets,
    config: EvaluationConfig,
    seed: int,
    facts: Facts | None = None,
) -> Evaluation:
    """Evaluate a retriever on the test sets of a day.

    Metrics, for k = `recall_k` and m = `ndcg_k`:

    - `recall@k/ct`, `recall@k/qr`: over queries; relevant = union over the events of the query;
    - `recall@k/ct_events`, `recall@k/qr_events`: over events; relevant = that event's own items.

    Where the test sets have an independent theta, also `recall@k/qr_independent` and
    `recall@k/qr_independent_events`. Where they have truth, also:

    - `recall@k/qr_truth`, `recall@k/qr_truth_events`: QR by truth;
    - `true_recall@k`: per search |top k with grade >= 2 for its need| / min(k, |R|), mean over the searches
      of a query, then over queries;
    - `ndcg_exp2@m/pool`: the annotated list of the old system in the order of the retriever's scores;
    - `ndcg_exp2@m/catalogue`: the retriever's own ranking of the whole catalogue.

    With `facts`, also the metrics of `crops.evaluation.detail`.

    Args:
        retriever: indexes exactly `testsets.candidate_ids()`.
        testsets: the test sets.
        config: cut-offs and the number of resamples.
        seed: seed of the bootstrap.
        facts: what is known of the queries and items beside their answers.

    Raises:
        CropsError: the retriever searches another catalogue.
    """
    query_ids = testsets.queries["query_id"].to_numpy()
    texts = dict(zip(query_ids.tolist(), testsets.queries["query"].to_pylist(), strict=True))
    check_catalogue(retriever, testsets.candidate_ids())
    rankings = Rankings(retriever, query_ids, list(texts.values()), max(config.recall_k, config.ndcg_k))
    k, m = config.recall_k, config.ndcg_k
    measured = _recalls("ct", testsets.ct, rankings, k) | _recalls("qr", testsets.qr, rankings, k)
    if testsets.qr_independent is not None:
        measured |= _recalls("qr_independent", testsets.qr_independent, rankings, k)
    if (truth := testsets.truth) is not None:
        measured |= _recalls("qr_truth", truth.qr, rankings, k)
        measured[f"true_recall@{k}"] = _true_recall(truth, rankings, k)
        measured[f"ndcg_exp2@{m}/pool"] = _pool_ndcg(truth, retriever, texts, m)
        measured[f"ndcg_exp2@{m}/catalogue"] = _catalogue_ndcg(truth, rankings, m)
    if facts is not None:
        parts = detail(rankings, testsets, facts, k)
        measured |= {metric: (ids, values, None) for metric, (ids, values) in parts.items()}
    seen = dict(zip(query_ids.tolist(), testsets.queries["seen"].to_pylist(), strict=True))
    tables = {
        metric: metric_values(
            metric, ids, values, weights=weights, seen=[seen[query] for query in ids.tolist()]
        )
        for metric, (ids, values, weights) in measured.items()
    }
    return summarise(tables, config.resamples, seed)


def _recalls(name: str, pairs: pa.Table, rankings: Rankings, k: int) -> dict[str, Measured]:
    """Return recall over queries and, weighted by their number, over events."""
    queries, events, items = (pairs[column].to_numpy() for column in ("query_id", "search_id", "item_id"))
    query_ids, (relevant,) = grouped(queries, items)
    union = [np.unique(ids) for ids in relevant]
    _, (event_queries, event_items) = grouped(events, queries, items)
    owners = np.array([owner[0] for owner in event_queries], dtype=np.int64)
    by_event = _recall(rankings, owners, event_items, k)
    means, counts = _mean_by_query(query_ids, owners, by_event, np.ones(len(owners)))
    return {
        f"recall@{k}/{name}": (query_ids, _recall(rankings, query_ids, union, k), None),
        f"recall@{k}/{name}_events": (query_ids, means, counts),
    }


def _recall(
    rankings: Rankings, query_ids: Ids, relevant: list[Ids], k: int, *, capped: bool = False
) -> Values:
    """Return `recall_at_k` [n] of known queries [n] (repeated at will), block by block."""
    blocks = [
        recall_at_k(
            rankings.of(query_ids[start : start + _BLOCK]), relevant[start : start + _BLOCK], k, capped=capped
        )
        for start in range(0, len(query_ids), _BLOCK)
    ]
    return np.concatenate([np.empty(0), *blocks])


def _true_recall(truth: TruthSets, rankings: Rankings, k: int) -> Measured:
    grades = truth.grades.filter(pc.field("grade") >= RELEVANT_GRADE)
    needs, (items,) = grouped(grades["need_id"].to_numpy(), grades["item_id"].to_numpy())
    relevant = dict(zip(needs.tolist(), items, strict=True))
    nothing = np.empty(0, dtype=np.int64)
    owners = truth.needs["query_id"].to_numpy()
    sought = [relevant.get(need, nothing) for need in truth.needs["need_id"].to_pylist()]
    values = _recall(rankings, owners, sought, k, capped=True)
    query_ids = np.unique(owners)
    means, _ = _mean_by_query(
        query_ids, owners, values, truth.needs["searches"].to_numpy().astype(np.float64)
    )
    return query_ids, means, None


def _pool_ndcg(truth: TruthSets, retriever: ScoringRetriever, texts: dict[int, str], m: int) -> Measured:
    annotation = truth.annotation
    query_ids, (items, grades) = grouped(
        *(annotation[name].to_numpy() for name in ("query_id", "item_id", "grade"))
    )
    ordered = grades_by_score(retriever, [texts[query] for query in query_ids.tolist()], items, grades)
    return query_ids, ndcg_at_k(ordered, m), None


def _catalogue_ndcg(truth: TruthSets, rankings: Rankings, m: int) -> Measured:
    query_ids, (needs,) = grouped(
        truth.annotation["query_id"].to_numpy(), truth.annotation["need_id"].to_numpy()
    )
    known, (items, grades) = grouped(
        *(truth.grades[name].to_numpy() for name in ("need_id", "item_id", "grade"))
    )
    nothing = np.empty(0, dtype=np.int64)
    by_need = {need: pair for need, *pair in zip(known.tolist(), items, grades, strict=True)}
    judged = [by_need.get(int(own[0]), [nothing, nothing]) for own in needs]
    judged_items, judged_grades = [pair[0] for pair in judged], [pair[1] for pair in judged]
    ranked = grades_of(rankings.of(query_ids)[:, :m], judged_items, judged_grades)
    return query_ids, ndcg_at_k(ranked, m, ideal=pad(judged_grades, 0)), None


def _mean_by_query(query_ids: Ids, owners: Ids, values: Values, weights: Values) -> tuple[Values, Values]:
    """Return each query's weighted mean of its defined values (NaN if there is none) and their weight."""
    rows = np.searchsorted(query_ids, owners)
    counted = np.where(np.isnan(values), 0.0, weights)
    total = np.bincount(rows, counted, minlength=len(query_ids))
    weighted = np.bincount(rows, counted * np.nan_to_num(values), minlength=len(query_ids))
    return weighted / np.where(total > 0, total, np.nan), total.astype(np.float64)
