import ir_measures
import numpy as np
import pyarrow as pa
import pytest
from ir_measures import RR, R, nDCG

from crops.config import EvaluationConfig
from crops.errors import CropsError
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


def test_lines_are_as_trec_has_them(files):
    line = (files / "a.run").read_text().splitlines()[0].split()
    assert line[:2] == ["100", "Q0"]
    assert line[3] == "1"
    assert line[5] == "our_model"
    assert not any(line.startswith("103 ") for line in (files / "a.run").read_text().splitlines())
    assert len((files / "q.qrels").read_text().splitlines()) == 240


def test_scores_decide_not_ranks_and_ties_go_to_the_smaller_id(tmp_path):
    (tmp_path / "a.run").write_text("q Q0 b 1 0.1 x\nq Q0 c 2 0.5 x\nq Q0 a 3 0.5 x\n")
    (tmp_path / "q.qrels").write_text("q 0 c 1\nq 0 z -2\n")
    run, qrels = read_run(tmp_path / "a.run"), read_qrels(tmp_path / "q.qrels")
    assert qrels == {"q": {"c": 1, "z": 0}}
    # a, c, b: the answer is second
    assert evaluate_run(run, qrels, CONFIG, seed=0).summary["mrr@5"].mean == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 a 1 0.5\n", "line 1: 5 parts, not 6"),
        ("q Q0 a 1 high x\n", "line 1: 'high' is no finite number"),
        ("q Q0 a 1 nan x\n", "no finite number"),
        ("q Q0 a 1 0.5 x\n\nq Q0 a 2 0.4 x\n", "line 3: document a is in the list of q twice"),
        ("", "is empty"),
    ],
)
def test_bad_runs_are_named_by_line(tmp_path, text, message):
    (tmp_path / "bad.run").write_text(text)
    with pytest.raises(CropsError, match=message):
        read_run(tmp_path / "bad.run")


def test_bad_qrels_and_strangers(tmp_path):
    with pytest.raises(CropsError, match="cannot be read"):
        read_qrels(tmp_path / "none")
    (tmp_path / "q").write_text("q 0 a 1.5\n")
    with pytest.raises(CropsError, match="1.5 is no whole number"):
        read_qrels(tmp_path / "q")
    with pytest.raises(CropsError, match="no query of the qrels"):
        evaluate_run({"other": {"a": 1.0}}, {"q": {"a": 1}}, CONFIG, seed=0)
    with pytest.raises(CropsError, match="no document with a grade above 0"):
        evaluate_run({"q": {"a": 1.0}}, {"q": {"a": 0}}, CONFIG, seed=0)
