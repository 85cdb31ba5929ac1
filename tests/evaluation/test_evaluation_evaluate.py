import runpy
import sys
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.config import EvaluationConfig
from crops.errors import CropsError
from crops.evaluation import METRICS, TestSets, TruthSets, compare, evaluate, pool_evaluations
from crops.evaluation.evaluate import metric_values, summarise

CONFIG = EvaluationConfig(recall_k=3, ndcg_k=2, resamples=200)


def table(names, *rows):
    columns = zip(*rows, strict=True) if rows else [[]] * len(names.split())
    return pa.table(
        {
            name: pa.array(list(column), pa.int64())
            for name, column in zip(names.split(), columns, strict=True)
        }
    )


class FixedRetriever:
    """Answers from a table of rankings; scores fall with the rank, what is not ranked scores -100."""

    def __init__(self, rankings, item_ids=range(1, 10)):
        self.rankings = rankings
        self.item_ids = np.array(item_ids)

    def search(self, queries, k):
        ids = np.array([(self.rankings[query] + [-1] * k)[:k] for query in queries], dtype=np.int64)
        return ids.reshape(len(queries), k), np.where(ids == -1, -np.inf, 0).astype(np.float32)

    def scores(self, queries, candidates):
        scores = np.full(candidates.shape, -100, dtype=np.float32)
        for row, query in enumerate(queries):
            for rank, item in enumerate(self.rankings[query]):
                scores[row, candidates[row] == item] = -rank
        return np.where(candidates == -1, -np.inf, scores)


RETRIEVER = FixedRetriever({"pie": [1, 2, 3, 4], "tart": [6, 7, 8, 1], "cake": [9]})


def make_sets(**parts):
    queries = pa.table(
        {
            "query_id": pa.array([-5, 10, 20], pa.int64()),
            "query": ["pie", "tart", "cake"],
            "searches": pa.array([3, 1, 1], pa.int64()),
            "seen": pa.array(parts.pop("seen", [None] * 3), pa.bool_()),
        }
    )
    nothing = table("query_id search_id item_id")
    base = TestSets(
        days=("2026-01-05",),
        seed=0,
        queries=queries,
        candidates=table("item_id", *((item,) for item in range(1, 10))),
        ct=nothing,
        qr=nothing,
        truth=None,
        counts={},
    )
    return replace(base, **parts)


def truth_sets(**parts):
    base = TruthSets(
        qr=table("query_id search_id item_id"),
        needs=table("query_id need_id searches"),
        annotation=table("query_id need_id position item_id grade"),
        grades=table("need_id item_id grade"),
    )
    return replace(base, **parts)


def values(evaluation, metric):
    rows = evaluation.values.filter(pa.compute.field("metric") == metric)
    return dict(zip(rows["query_id"].to_pylist(), rows["value"].to_pylist(), strict=True))


CT = table(
    "query_id search_id item_id",
    (-5, 1, 1),  # event 1 of "pie": 1 found, 5 not
    (-5, 1, 5),
    (-5, 2, 1),  # event 2: found
    (-5, 3, 4),  # event 3: rank 4 is below the cut of 3
    (10, 4, 6),
)


def test_recall_over_queries_and_over_events():
    evaluation = evaluate(RETRIEVER, make_sets(ct=CT), CONFIG, seed=0)
    # Union of "pie": {1, 5, 4}, 1 of them in the top 3.
    assert values(evaluation, "recall@3/ct") == pytest.approx({-5: 1 / 3, 10: 1 / 1})
    assert evaluation.summary["recall@3/ct"].mean == pytest.approx((1 / 3 + 1) / 2)
    # Events: 1/2, 1, 0 and 1.
    assert values(evaluation, "recall@3/ct_events") == pytest.approx({-5: (1 / 2 + 1 + 0) / 3, 10: 1})
    assert evaluation.summary["recall@3/ct_events"].mean == pytest.approx((1 / 2 + 1 + 0 + 1) / 4)
    assert evaluation.summary["recall@3/ct_events"].n == 2
    # an empty set has a metric without queries
    assert np.isnan(evaluation.summary["recall@3/qr"].mean)
    assert (evaluation.summary["recall@3/qr"].n, evaluation.summary["recall@3/qr"].excluded) == (0, 0)
    assert not any("true_recall" in metric or "ndcg" in metric for metric in evaluation.summary)


def test_recall_stands_at_shallower_cuts_too_and_qr_by_theta_comes_last(monkeypatch):
    monkeypatch.setattr(sys.modules[evaluate.__module__], "CUTOFFS", (1, 3))
    one = table("query_id search_id item_id", (-5, 1, 3))
    sets = make_sets(ct=CT, qr=one, truth=truth_sets(qr=one, qr_editor=one))
    evaluation = evaluate(RETRIEVER, sets, CONFIG, seed=0)
    assert values(evaluation, "recall@1/ct") == pytest.approx({-5: 1 / 3, 10: 1})
    assert (values(evaluation, "recall@1/qr_truth"), values(evaluation, "recall@3/qr_truth")) == (
        {-5: 0},
        {-5: 1},
    )
    shown = [name for name in evaluation.summary if name.startswith("recall@3") and "events" not in name]
    assert shown == ["recall@3/ct", "recall@3/qr_truth", "recall@3/qr_editor", "recall@3/qr"]


def test_qr_by_an_independent_theta_stands_beside_qr():
    first, second = (table("query_id search_id item_id", (-5, 1, item)) for item in (1, 5))
    summary = evaluate(RETRIEVER, make_sets(qr=first, qr_independent=second), CONFIG, seed=0).summary
    assert (summary["recall@3/qr"].mean, summary["recall@3/qr_independent"].mean) == (1, 0)
    assert summary["recall@3/qr_independent_events"].n == 1
    assert not any(
        "independent" in metric for metric in evaluate(RETRIEVER, make_sets(qr=first), CONFIG, 0).summary
    )


def test_true_recall_is_per_search_then_per_query():
    truth = truth_sets(
        # "pie": two searches with need 1, one with need 2; "tart": a need that no item meets.
        needs=table("query_id need_id searches", (-5, 1, 2), (-5, 2, 1), (10, 3, 1)),
        grades=table(
            "need_id item_id grade",
            # Need 1 has 5 relevant items, 2 of them in 1, 2, 3: 2 / min(3, 5). Item 3 has grade 1 only.
            *((1, item, 2) for item in (1, 2, 5, 6, 7)),
            (1, 3, 1),
            (2, 8, 3),  # need 2: 0 of 1
            (3, 6, 1),
        ),
    )
    evaluation = evaluate(RETRIEVER, make_sets(truth=truth), CONFIG, seed=0)
    assert values(evaluation, "true_recall@3") == {-5: pytest.approx((2 * 2 / 3 + 0) / 3), 10: None}
    summary = evaluation.summary["true_recall@3"]
    assert (summary.n, summary.excluded) == (1, 1)


def test_ndcg_over_the_annotated_list_and_over_the_catalogue():
    truth = truth_sets(
        annotation=table(
            "query_id need_id position item_id grade",
            (-5, 1, 1, 7, 3),  # not among the retriever's results: last by score
            (-5, 1, 2, 3, 2),
            (-5, 1, 3, 2, 0),
            (10, 3, 1, 6, 0),  # nothing in this list meets the need
        ),
        grades=table("need_id item_id grade", (1, 7, 3), (1, 3, 2), (1, 9, 3), (3, 8, 1)),
    )
    evaluation = evaluate(RETRIEVER, make_sets(truth=truth), CONFIG, seed=0)
    half = 1 / np.log2(3)
    # Order by score 2, 3, 7: grades 0, 2, 3; ideal 3, 2.
    assert values(evaluation, "ndcg_exp2@2/pool") == {-5: pytest.approx(3 * half / (7 + 3 * half)), 10: None}
    # Catalogue: "pie" ranks 1, 2 (grade 0); "tart" ranks 6, 7 and its only graded item 8 third.
    assert values(evaluation, "ndcg_exp2@2/catalogue") == {-5: 0, 10: 0}
    top = FixedRetriever({**RETRIEVER.rankings, "pie": [7, 9, 3, 2]})
    assert values(evaluate(top, make_sets(truth=truth), CONFIG, 0), "ndcg_exp2@2/catalogue")[-5] == 1


def test_equal_scores_in_a_pool_are_ordered_by_item_not_by_the_old_rank():
    truth = truth_sets(
        annotation=table("query_id need_id position item_id grade", (20, 1, 1, 5, 0), (20, 1, 2, 4, 3)),
        grades=table("need_id item_id grade", (1, 4, 3)),
    )
    evaluation = evaluate(RETRIEVER, make_sets(truth=truth), CONFIG, seed=0)
    assert values(evaluation, "ndcg_exp2@2/pool") == {20: 1}


def test_seen_and_unseen_queries_are_summed_up_apart():
    evaluation = evaluate(RETRIEVER, make_sets(ct=CT, seen=[True, False, False]), CONFIG, seed=0)
    assert evaluation.summary["recall@3/ct/seen"].mean == pytest.approx(1 / 3)
    assert evaluation.summary["recall@3/ct/unseen"].mean == 1
    assert "recall@3/ct/seen" not in evaluate(RETRIEVER, make_sets(ct=CT), CONFIG, seed=0).summary


@pytest.mark.parametrize(("item_ids", "message"), [
    (range(1, 11), "searches 1 items that are not candidates .* lacks 0 .* item_id 10"),
    (range(2, 9), "searches 0 items .* lacks 2 that are .* item_id 1"),
])  # fmt: skip
def test_a_retriever_of_another_catalogue_is_refused(item_ids, message):
    with pytest.raises(CropsError, match=message):
        evaluate(FixedRetriever(RETRIEVER.rankings, item_ids), make_sets(ct=CT), CONFIG, seed=0)


def test_blocks_of_rankings_do_not_change_the_values(monkeypatch):
    whole = evaluate(RETRIEVER, make_sets(ct=CT), CONFIG, seed=0)
    monkeypatch.setattr(sys.modules[evaluate.__module__], "_BLOCK", 1)
    assert evaluate(RETRIEVER, make_sets(ct=CT), CONFIG, seed=0).values.equals(whole.values)


def test_metrics_that_only_one_evaluation_has_are_not_compared():
    a = evaluate(RETRIEVER, make_sets(ct=CT, truth=truth_sets()), CONFIG, seed=0)
    b = evaluate(RETRIEVER, make_sets(ct=CT), CONFIG, seed=0)
    assert set(compare(a, b, 200, 0)) == {"recall@3/ct", "recall@3/ct_events"}
    truth = truth_sets(qr=CT)
    a = evaluate(RETRIEVER, make_sets(ct=CT, truth=truth), CONFIG, seed=0)
    assert set(compare(a, b, 200, 0)) == {"recall@3/ct", "recall@3/ct_events"}


def test_comparison_is_paired_over_queries():
    a = evaluate(RETRIEVER, make_sets(ct=CT), CONFIG, seed=0)
    b = evaluate(FixedRetriever({**RETRIEVER.rankings, "pie": [8]}), make_sets(ct=CT), CONFIG, seed=0)
    differences = compare(a, b, resamples=200, seed=0)
    assert differences["recall@3/ct"].mean == pytest.approx((1 / 3 - 0) / 2)
    assert differences["recall@3/ct_events"].mean == pytest.approx((1 / 2 + 1 + 0) / 4)
    assert np.isnan(compare(a, a, 200, 0)["recall@3/ct"].p)  # a test on two queries would say nothing
    other = evaluate(RETRIEVER, make_sets(ct=CT.slice(0, 4)), CONFIG, seed=0)
    with pytest.raises(CropsError, match="recall@3/ct: the two evaluations have different queries"):
        compare(a, other, 200, 0)


def test_disjoint_evaluations_pool_into_the_whole():
    whole = evaluate(RETRIEVER, make_sets(ct=CT), CONFIG, seed=0)
    parts = [
        evaluate(RETRIEVER, make_sets(ct=part), CONFIG, seed=0) for part in (CT.slice(4), CT.slice(0, 4))
    ]
    pooled = pool_evaluations(parts, CONFIG.resamples, seed=0)
    assert values(pooled, "recall@3/ct") == values(whole, "recall@3/ct")
    assert astuple(pooled.summary["recall@3/ct"]) == pytest.approx(
        astuple(whole.summary["recall@3/ct"]), nan_ok=True
    )
    with pytest.raises(CropsError, match="in two of the pooled evaluations"):
        pool_evaluations([whole, whole], CONFIG.resamples, seed=0)


def test_a_metric_of_ones_own_is_one_file(tmp_path):
    """Of pie's top 3 two are by one author, cake has one result: 2 and 1 authors in 3 places."""
    authors = pa.table({"item_id": list(range(1, 10)), "author_id": [1, 1, 2, 3, 4, 5, 6, 7, 8]})
    pq.write_table(authors, tmp_path / "items.parquet")
    own = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "extending" / "metric.py"))
    own["authors"](tmp_path / "items.parquet")
    try:
        found = evaluate(RETRIEVER, make_sets(ct=CT), CONFIG, seed=0)
    finally:
        METRICS.pop("authors")
    assert values(found, "authors@3") == pytest.approx({-5: 2 / 3, 10: 1, 20: 1 / 3})


def test_queries_that_only_one_of_two_has_a_value_for_are_left_out_of_their_difference():
    ids = np.arange(3)
    full, gap = (
        summarise({"m": metric_values("m", ids, np.array(values))}, 200, 0)
        for values in ([0.5, 0.5, 0.5], [0.1, np.nan, 0.3])
    )
    assert compare(full, gap, 200, 0)["m"].mean == pytest.approx((0.4 + 0.2) / 2)
    assert compare(full, gap, 200, 0)["m"].n == 2
