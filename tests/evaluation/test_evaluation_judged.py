import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.config import EvaluationConfig
from crops.errors import CropsError
from crops.evaluation import evaluate_judged, folds
from crops.logs import load_judged
from crops.retrieval import BM25Retriever

DOCS = {
    "doc_id": ["d1", "d2", "d3"],
    "title": ["red shoe", "blue shoe", "hat"],
    "text": ["leather", None, "wool"],
}
QUERIES = {"query_id": [7, 8], "text": ["Red  Shoe", "hat"]}
QRELS = {"query_id": [7, 7, 8, 8], "doc_id": ["d1", "d2", "d3", "d1"], "grade": [3, 1, 3, 0]}


def write(folder, docs=DOCS, queries=QUERIES, qrels=QRELS):
    for name, columns in (("docs", docs), ("queries", queries), ("qrels", qrels)):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


def test_a_collection_gets_integer_ids_and_keeps_its_own(tmp_path):
    judged = load_judged(write(tmp_path))
    assert judged.doc_ids == ("d1", "d2", "d3")
    assert judged.source_query_ids == ("7", "8")
    assert judged.texts == ("red shoe leather", "blue shoe", "hat wool")
    assert judged.queries == ("red shoe", "hat")
    assert judged.text_columns == ("title", "text")
    assert judged.judgements.to_pylist() == [
        {"query_id": 1, "item_id": 1, "grade": 3},
        {"query_id": 1, "item_id": 2, "grade": 1},
        {"query_id": 2, "item_id": 1, "grade": 0},
        {"query_id": 2, "item_id": 3, "grade": 3},
    ]
    assert judged.positive_label == 3
    assert judged.rejects == {}
    assert load_judged(tmp_path, positive_label=1).positive_label == 1


def test_without_text_all_string_columns_make_the_document(tmp_path):
    docs = {
        "brand": pa.array(["acme", "", None], pa.large_string()),
        "doc_id": ["d1", "d2", "d3"],
        "price": [1.0, 2.0, 3.0],
        "tags": [["x"], [], ["y"]],
        "title": ["red shoe", "blue shoe", " hat "],
    }
    judged = load_judged(write(tmp_path, docs=docs))
    assert judged.text_columns == ("brand", "title")
    assert judged.texts == ("acme red shoe", "blue shoe", "hat")


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path):
    docs = {"doc_id": ["d1", "d1", "d2", None], "title": ["one", "again", "\ufeff\x00", "nameless"]}
    queries = {"query_id": ["a", "b", "a"], "text": ["first", "\u3000", "second"]}
    qrels = {
        "query_id": ["a", "a", "b", "a", "z", "a"],
        "doc_id": ["d1", "d1", "d1", "d2", "d1", "d9"],
        "grade": [2, 0, 1, 1, 1, 1],
    }
    judged = load_judged(write(tmp_path, docs, queries, qrels))
    assert judged.rejects == {"docs.duplicate_id": 1, "docs.empty_text": 1, "docs.missing_id": 1,
                              "qrels.duplicate_pair": 1, "qrels.unknown_doc": 2, "qrels.unknown_query": 2,
                              "queries.duplicate_id": 1, "queries.empty_text": 1}  # fmt: skip
    assert judged.judgements.to_pylist() == [{"query_id": 1, "item_id": 1, "grade": 2}]


def test_a_column_that_is_there_twice_is_named(tmp_path):
    folder = write(tmp_path)
    queries = pq.read_table(folder / "queries.parquet")
    pq.write_table(queries.append_column("text", queries["text"]), folder / "queries.parquet")
    with pytest.raises(CropsError, match="queries.parquet: column text is there 2 times; keep one"):
        load_judged(folder)


def test_grades_must_be_integers_from_0(tmp_path):
    judged = load_judged(write(tmp_path, qrels={**QRELS, "grade": pa.array([3, None, -1, 0], pa.int8())}))
    assert judged.rejects == {"qrels.missing_or_negative_grade": 2}
    with pytest.raises(CropsError, match="column grade is double"):
        load_judged(write(tmp_path, qrels={**QRELS, "grade": [1.0, 2.0, 0.5, 0.0]}))


def test_a_collection_that_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(CropsError, match=r"docs\.parquet is missing"):
        load_judged(tmp_path)
    with pytest.raises(CropsError, match="lacks the column text"):
        load_judged(write(tmp_path, queries={"query_id": [1], "query": ["x"]}))
    with pytest.raises(CropsError, match="has no text column"):
        load_judged(write(tmp_path, docs={"doc_id": ["d1"], "price": [1.0]}))
    with pytest.raises(CropsError, match="no judgement joins"):
        load_judged(write(tmp_path, qrels={"query_id": [1], "doc_id": ["x"], "grade": [1]}))


def test_folds_cover_every_query_once():
    query_ids = np.arange(1, 12)
    parts, again, other = (folds(query_ids, 3, seed=seed) for seed in (0, 0, 1))
    assert sorted(len(part.test) for part in parts) == [3, 4, 4]
    assert np.sort(np.concatenate([part.test for part in parts])).tolist() == query_ids.tolist()
    for part in parts:
        assert sorted([*part.train, *part.test]) == query_ids.tolist()
    tests = [[part.test.tolist() for part in one] for one in (parts, again, other)]
    assert tests[0] == tests[1] != tests[2]
    for count in (0, 1, 4):
        with pytest.raises(CropsError, match="give 2 to 3 folds"):
            folds(np.arange(3), count, seed=0)


class Reversed:
    """Ranks documents by falling id, except that d1 (item 1) is never found."""

    item_ids = np.array([1, 2, 3])

    def search(self, queries, k):
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        ids[:, :2] = [3, 2]
        return ids, np.zeros(ids.shape, dtype=np.float32)

    def scores(self, queries, candidates):
        return np.where(candidates == -1, -np.inf, candidates).astype(np.float32)


def test_metrics_of_a_judged_collection(tmp_path):
    judged = load_judged(write(tmp_path))
    evaluation = evaluate_judged(Reversed(), judged, judged.query_ids(), EvaluationConfig(), seed=0)
    found = {
        metric: evaluation.values.filter(pa.compute.field("metric") == metric)["value"].to_pylist()
        for metric in evaluation.summary
    }
    half = 1 / np.log2(3)
    # "red shoe" judges d1: 3, d2: 1. Ranked 3, 2: 0 + 1/log2(3); judged ones alone 2, 1: 1 + 7/log2(3).
    assert found["ndcg_exp2@4/catalogue"] == pytest.approx([half / (7 + half), 1])
    assert found["ndcg_exp2@4/judged"] == pytest.approx([(1 + 7 * half) / (7 + half), 1])
    assert found["ndcg_exp2@10/catalogue"] == pytest.approx(found["ndcg_exp2@4/catalogue"])
    # Only grade 3 is positive: d1 is not found, d3 is.
    assert found["recall@100"] == [0, 1]


def test_a_query_without_positives_is_excluded_and_only_the_asked_ones_count(tmp_path):
    judged = load_judged(write(tmp_path, qrels={**QRELS, "grade": [1, 1, 3, 0]}))
    retriever = BM25Retriever(judged.item_ids(), judged.texts)
    summary = evaluate_judged(retriever, judged, judged.query_ids(), EvaluationConfig(), seed=0).summary
    assert (summary["recall@100"].n, summary["recall@100"].excluded) == (1, 1)
    assert summary["ndcg_exp2@4/judged"].n == 2
    alone = evaluate_judged(retriever, judged, np.array([2]), EvaluationConfig(), seed=0)
    assert alone.values["query_id"].unique().to_pylist() == [2]
