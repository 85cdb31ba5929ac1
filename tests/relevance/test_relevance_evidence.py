"""An evidence theta on logs small enough to count by hand."""

import numpy as np
import pytest

from crops.errors import CropsError
from crops.logs import open_logs
from crops.relevance import TextEncoder
from crops.relevance.evidence import (
    FEATURES,
    Evidence,
    EvidenceScorer,
    fitted,
    models,
    neighbours,
    out_of_fold,
    read_judgements,
    recall_at_precision,
    save_judged,
)
from crops.text import query_id

DAY, NOON = "2026-01-05", 1_767_614_400_000_000
VECTORS = {"cat": (1.0, 0.0), "cats": (0.8, 0.6), "car": (0.0, 1.0), "x": (0.6, 0.8), "y": (0.0, 1.0)}
LN2, LN3 = np.log(2), np.log(3)


@pytest.fixture
def evidence(tmp_path, write_logs):
    """Cat saw item 1 (zoo), not 3 (road); cats clicked 1 and saw 2 (zoo); the next day does not count."""
    rows = [
        {"search_id": 1, "query": "Cat", "item_id": 1},
        {"search_id": 1, "query": "Cat", "item_id": 3, "stage": "unexposed"},
        {"search_id": 2, "query": "cats", "item_id": 1, "clicked": True},
        {"search_id": 2, "query": "cats", "item_id": 2},
        {"search_id": 3, "query": "car", "item_id": 3, "stage": "filtered"},
        {"search_id": 4, "query": "cat", "item_id": 2, "clicked": True, "searched_at": NOON + 86_400_000_000},
    ]
    items = [{"item_id": item, "category": place} for item, place in ((1, "zoo"), (2, "zoo"), (3, "road"))]
    logs = open_logs(write_logs(tmp_path / "logs", items, rows))
    encoder = TextEncoder(lambda texts: np.array([VECTORS[text] for text in texts], np.float32))

    def words(queries, candidates):
        return np.full(candidates.shape, len(queries[0]), np.float32)

    return Evidence(logs, [DAY], (np.array([1, 2, 3]), ["x", "x", "y"]), encoder, words)


def test_features_by_hand(evidence):
    """Cats is cat's only neighbour (.8; cat and car: 0), so .8 of its clicks and shows count."""
    found = evidence.features(np.full(3, query_id("cat")), np.array([1, 2, 3]))
    rows = [dict(zip(FEATURES, row.tolist(), strict=True)) for row in found]
    assert [row["cosine"] for row in rows] == pytest.approx([0.6, 0.6, 0.0])
    assert [row["bm25"] for row in rows] == [3, 3, 3]
    assert [row["stage"] for row in rows] == [3, 0, 2]
    assert [row["shows"] for row in rows] == pytest.approx([LN2, 0, 0])
    assert [row["clicks"] for row in rows] == [0, 0, 0]
    assert [row["neighbour_shows"] for row in rows] == pytest.approx([np.log(1.8), np.log(1.8), 0])
    assert [row["neighbour_clicks"] for row in rows] == pytest.approx([np.log(1.8), 0, 0])
    assert [row["neighbour_ctr"] for row in rows] == pytest.approx([0.8 / 1.8, 0, 0])
    assert [row["category_of_clicks"] for row in rows] == pytest.approx([1, 1, 0])
    assert [row["category_of_shows"] for row in rows] == pytest.approx([1, 1, 0])  # 3 was not shown
    assert [row["item_shows"] for row in rows] == pytest.approx([LN3, LN2, 0])
    assert [row["item_clicks"] for row in rows] == pytest.approx([LN2, 0, 0])
    with pytest.raises(CropsError, match="was not searched on the days"):
        evidence.features(np.array([query_id("dog")]), np.array([1]))
    with pytest.raises(CropsError, match="item_id 9 has no text"):
        evidence.features(np.array([query_id("cat")]), np.array([9]))


def test_neighbours_are_the_most_alike_and_never_the_query_itself(monkeypatch):
    monkeypatch.setattr("crops.relevance.evidence.NEIGHBOURS", 1)
    monkeypatch.setattr("crops.relevance.evidence._BLOCK", 2)
    vectors = np.array([(1, 0), (0.8, 0.6), (0.6, 0.8), (-1, 0)], np.float32)
    weights, (rows, columns) = neighbours(vectors)
    # 0 to 1: .8; 1 to 2: .96; 2 to 1: .96; the last is like none.
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 1), (1, 2), (2, 1)]
    assert weights == pytest.approx([0.8, 0.96, 0.96])


def test_a_model_is_judged_on_other_queries_and_read_back_as_it_was(tmp_path, evidence):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(600, len(FEATURES)))
    relevant = features[:, 0] + features[:, 5] > 0
    queries = [f"q{row // 4}" for row in range(600)]
    for model in models().values():
        score = out_of_fold(model, features, relevant, queries, seed=0)
        assert recall_at_precision(score, relevant) > 0.9
    # A label by query alone cannot be learnt from other queries.
    own = np.array([hash_ % 2 == 0 for hash_ in np.repeat(rng.permutation(150), 4)])
    noise = np.column_stack([np.repeat(rng.normal(size=150), 4)] * len(FEATURES))
    chance = out_of_fold(models()["trees"], noise, own, queries, seed=0)
    assert abs(np.corrcoef(chance, own)[0, 1]) < 0.25
    save_judged(tmp_path, np.arange(600), np.arange(600), relevant, features)
    read = fitted(tmp_path, "trees").predict_proba(features)
    assert np.array_equal(read, models()["trees"]().fit(features, relevant).predict_proba(features))
    with pytest.raises(CropsError, match="no output of this crops theta fit"):
        fitted(tmp_path / "none", "trees")
    with pytest.raises(CropsError, match="it takes relevant and irrelevant ones"):
        out_of_fold(models()["trees"], features[:4], relevant[:4], queries[:4], seed=0)


def test_recall_at_precision_by_hand():
    """In order of score: right, right, wrong, right. Two of three at 1.0, all three at 3/4."""
    score, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True])
    assert recall_at_precision(score, right) == pytest.approx(2 / 3)
    assert recall_at_precision(score, right, 0.75) == 1
    assert recall_at_precision(-score, ~right) == 0


def test_the_scorer_reads_ids(evidence):
    import pyarrow as pa

    class Stage:
        def predict_proba(self, features):
            stage = features[:, FEATURES.index("stage")] / 4
            return np.column_stack([1 - stage, stage])

    batch = pa.RecordBatch.from_pydict({"left_key": [query_id("cat")] * 2, "right_key": [1, 3]})
    (scored,) = EvidenceScorer(Stage(), evidence)(iter([batch]))
    assert scored["score"].to_pylist() == [0.75, 0.5]


@pytest.mark.parametrize(("line", "said"), [
    ("2026-01-08,cat,1,3", "row 3, column day: 2026-01-08 is not what was mined .2026-01-05."),
    ("2026-01-05,cat,1,4", "row 3, column grade: '4'"),
    ("2026-01-05,cat,one,3", "row 3: query 'cat', item_id 'one'"),
    ("2026-01-05,cat,²,3", "row 3: query 'cat', item_id '²'"),
    (f"2026-01-05,cat,{2**63},3", f"row 3: query 'cat', item_id '{2**63}'"),
])  # fmt: skip
def test_judgements_that_cannot_be_are_refused_by_name(tmp_path, line, said):
    path = tmp_path / "judged.csv"
    path.write_text(f"day,query,item_id,grade\n2026-01-05,cat,1,1\n{line}\n")
    with pytest.raises(CropsError, match=said):
        read_judgements(path, [DAY])


def test_judgements_are_read_and_a_truth_is_none(tmp_path):
    path = tmp_path / "judged.csv"
    path.write_text("grade,day,query,item_id\n2,2026-01-05,cat,-7\n1,2026-01-05,car,8\n")
    queries, items, relevant = read_judgements(path, [DAY])
    assert (queries, items.tolist(), relevant.tolist()) == (["cat", "car"], [-7, 8], [True, False])
    (tmp_path / "truth").mkdir()
    with pytest.raises(CropsError, match="is a simulator's truth"):
        read_judgements(tmp_path / "truth" / "grades.csv", [DAY])
    path.write_text("day,query\n")
    with pytest.raises(CropsError, match="CSV with the columns day, query, item_id, grade"):
        read_judgements(path, [DAY])
