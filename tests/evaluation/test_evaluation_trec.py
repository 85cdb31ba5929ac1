import importlib.util

import ir_measures
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from ir_measures import RR, R, nDCG

from crops.config import EvaluationConfig
from crops.errors import CropsError, MissingExtraError
from crops.evaluation.trec import evaluate_run, read_qrels, read_run, write_qrels, write_run

CONFIG = EvaluationConfig(recall_k=5, ndcg_k=4, resamples=100)


@pytest.fixture
def files(tmp_path):
    """Thirty queries over forty documents, with a query that found nothing and grades 0 to 3."""
    rng = np.random.default_rng(0)
    ids = np.array([rng.permutation(40)[:10] for _ in range(30)])
    scores = -np.sort(-rng.random((30, 10)).round(4), axis=1)
    ids[3] = -1
    queries = np.arange(100, 130)
    judged = [
        {"query_id": int(query), "item_id": int(item), "grade": int(rng.integers(0, 4))}
        for query in queries
        for item in rng.permutation(40)[:8]
    ]
    write_run(tmp_path / "a.run", queries, ids, scores.tolist(), "our model")
    write_qrels(tmp_path / "q.qrels", pa.Table.from_pylist(judged))
    return tmp_path


def test_means_are_those_of_ir_measures(files):
    """It reads our files and agrees on recall, reciprocal rank and NDCG with gain 2^grade - 1."""
    found = evaluate_run(read_run(files / "a.run"), read_qrels(files / "q.qrels"), CONFIG, seed=0)
    measures = {"recall@5": R @ 5, "mrr@5": RR @ 5, "ndcg_exp2@4": nDCG(gains={1: 1, 2: 3, 3: 7}) @ 4}
    expected = ir_measures.calc_aggregate(
        measures.values(),
        list(ir_measures.read_trec_qrels(str(files / "q.qrels"))),
        list(ir_measures.read_trec_run(str(files / "a.run"))),
    )
    assert found.summary["recall@5"].n == 30
    for name, measure in measures.items():
        assert found.summary[name].mean == pytest.approx(expected[measure])
    lines = (files / "a.run").read_text().splitlines()
    query, q0, _, rank, _, tag = lines[0].split()
    assert (query, q0, rank, tag) == ("100", "Q0", "1", "our_model")
    assert not any(line.startswith("103 ") for line in lines)
    assert len((files / "q.qrels").read_text().splitlines()) == 240


def test_items_are_called_as_their_source_calls_them_unless_a_space_would_part_the_name(tmp_path):
    own, pairs = {7: "sku-7", 8: "sku 8"}, pa.table({"query_id": [1, 1], "item_id": [7, 8]})
    write_run(tmp_path / "a.run", np.array([1]), np.array([[7, 8, 9]]), [[3.0, 2.0, 1.0]], "x", own)
    write_qrels(tmp_path / "q.qrels", pairs, own)
    assert read_run(tmp_path / "a.run") == {"1": ["sku-7", "8", "9"]}
    assert read_qrels(tmp_path / "q.qrels") == {"1": {"sku-7": 1, "8": 1}}


def test_scores_decide_and_equal_ones_keep_the_order_of_their_ranks(tmp_path):
    (tmp_path / "a.run").write_text("q Q0 b 1 0.1 x\nq Q0 a 3 0.5 x\nq Q0 c 2 0.5 x\n")
    (tmp_path / "q.qrels").write_text("q 0 a 1\nq 0 z -2\n")
    run, qrels = read_run(tmp_path / "a.run"), read_qrels(tmp_path / "q.qrels")
    assert run == {"q": ["c", "a", "b"]}
    assert qrels == {"q": {"a": 1, "z": 0}}
    assert evaluate_run(run, qrels, CONFIG, seed=0).summary["mrr@5"].mean == 0.5


def test_a_byte_order_mark_and_other_line_ends_change_nothing(tmp_path):
    run, qrels = "q Q0 a 1 0.5 x\r\nq2 Q0 b 1 0.5 x\r\n", "q 0 a 1\r\nq2 0 b 1\r\n"
    (tmp_path / "a.run").write_bytes(b"\xef\xbb\xbf" + run.encode())
    (tmp_path / "q.qrels").write_bytes(b"\xef\xbb\xbf" + qrels.encode())
    assert read_run(tmp_path / "a.run") == {"q": ["a"], "q2": ["b"]}
    assert read_qrels(tmp_path / "q.qrels") == {"q": {"a": 1}, "q2": {"b": 1}}
    (tmp_path / "q.qrels").write_bytes(qrels.encode("utf-16"))
    with pytest.raises(CropsError, match="save it as UTF-8"):
        read_qrels(tmp_path / "q.qrels")


def test_a_pair_with_two_grades_is_refused_and_a_repeated_line_is_not(tmp_path):
    (tmp_path / "q").write_text("q 0 a 1\nq 0 b 2\nq 0 a 1\n")
    assert read_qrels(tmp_path / "q") == {"q": {"a": 1, "b": 2}}
    (tmp_path / "q").write_text("q 0 a 1\nq 0 b 2\nq 0 a 0\n")
    with pytest.raises(CropsError, match="line 3: document a of query q has grade 0 here and 1 above"):
        read_qrels(tmp_path / "q")


def test_a_run_of_ours_is_read_back_as_it_was_with_equal_scores_and_ids_of_all_lengths(tmp_path):
    """As text 10 comes before 9, and scores that differ in their last bit print alike with six decimals."""
    ids = np.array([[9, 10, 100, 11, -1], [7, 5, 30, 4, 2]])
    near = np.float32(0.3)
    scores = np.array(
        [[0.5, 0.5, 0.5, 0.25, -np.inf], [np.nextafter(near, 1), near, near, 0.1, 0.1]], np.float32
    )
    write_run(tmp_path / "a.run", np.array([-(2**63), 2**63 - 1]), ids, scores.tolist(), "ours")
    assert read_run(tmp_path / "a.run") == {
        str(-(2**63)): ["9", "10", "100", "11"],
        str(2**63 - 1): ["7", "5", "30", "4", "2"],
    }
    written = [float(line.split()[4]) for line in (tmp_path / "a.run").read_text().splitlines()]
    assert np.array_equal(np.array(written, np.float32), scores[scores > 0])


def test_queries_keep_their_numbers_or_are_hashed_alike():
    qrels = {"3": {"a": 1}, "-20": {"a": 1}}
    run = {"3": ["a"]}
    found = evaluate_run(run, qrels, CONFIG, seed=0).values
    assert found.filter(pc.field("metric") == "mrr@5")["query_id"].to_pylist() == [-20, 3]
    named = evaluate_run(run, {**qrels, "003": {"a": 1}}, CONFIG, seed=0).values["query_id"].to_pylist()
    assert not {-20, 3} & set(named)


@pytest.mark.parametrize(("text", "message"), [
    ("q Q0 a 1 0.5\n", "line 1: 'q Q0 a 1 0.5' is not query Q0 document rank score tag"),
    ("q Q0 a 1 high x\n", "line 1: .* is not query Q0 document rank score tag .*'high'"),
    ("q Q0 a 1 nan x\n", "line 1: .*rank and score must be finite"),
    ("q Q0 a first 0.5 x\n", "line 1: .*'first'"),
    ("q Q0 a 1 0.5 x\n\nq Q0 a 2 0.4 x\n", "line 3: document a is in the list of q twice"),
    ("", "is empty"),
])  # fmt: skip
def test_bad_runs_are_named_by_line(tmp_path, text, message):
    (tmp_path / "bad.run").write_text(text)
    with pytest.raises(CropsError, match=message):
        read_run(tmp_path / "bad.run")


def test_bad_qrels_strangers_and_a_missing_extra(tmp_path, monkeypatch):
    (tmp_path / "q").write_text("q 0 a 1.5\n")
    bad = "line 1: 'q 0 a 1.5' is not query 0 document grade, a whole number"
    for message, call in (
        ("cannot be read", lambda: read_qrels(tmp_path / "none")),
        (bad, lambda: read_qrels(tmp_path / "q")),
        ("no query of the qrels", lambda: evaluate_run({"other": ["a"]}, {"q": {"a": 1}}, CONFIG, seed=0)),
        ("no document with a grade", lambda: evaluate_run({"q": ["a"]}, {"q": {"a": 0}}, CONFIG, seed=0)),
    ):
        with pytest.raises(CropsError, match=message):
            call()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"ir-measures is not installed. .*\[trec\]"):
        read_run(tmp_path / "a.run")
