import ir_measures
import numpy as np
import pytest
from ir_measures import RR, Qrel, R, ScoredDoc, nDCG

from crops.evaluation import grades_of, ndcg_at_k, recall_at_k, reciprocal_rank
from crops.evaluation.metrics import pad


def ids(*values):
    return np.array(values, dtype=np.int64)


RANKED = np.array([[1, 2, 3, 4], [9, 8, 7, -1], [5, 6, 1, 2]])


@pytest.mark.parametrize(
    ("relevant", "k", "expected"),
    [
        # query 1 finds 1 and 3 of {1, 3, 50}; query 2 finds nothing of {1}; query 3 finds 2 of {2, 6}
        ([ids(1, 3, 50), ids(1), ids(2, 6)], 4, [2 / 3, 0, 2 / 2]),
        ([ids(1, 3, 50), ids(1), ids(2, 6)], 2, [1 / 3, 0, 1 / 2]),
        ([ids(), ids(9), ids()], 4, [np.nan, 1 / 1, np.nan]),
        ([ids(), ids(), ids()], 4, [np.nan, np.nan, np.nan]),
    ],
)
def test_recall_by_hand(relevant, k, expected):
    assert recall_at_k(RANKED, relevant, k) == pytest.approx(expected, nan_ok=True)


def test_capped_recall_can_reach_one():
    relevant = [ids(1, 2, 3), ids(9), ids(5, 1, 70)]
    assert recall_at_k(RANKED, relevant, 2) == pytest.approx([2 / 3, 1 / 1, 1 / 3])
    assert recall_at_k(RANKED, relevant, 2, capped=True) == pytest.approx([2 / 2, 1 / 1, 1 / 2])


def test_reciprocal_rank_by_hand():
    assert reciprocal_rank(RANKED, [ids(4, 3), ids(1), ids(5)]) == pytest.approx([1 / 3, 0, 1])
    assert np.isnan(reciprocal_rank(RANKED, [ids(), ids(9), ids()])[[0, 2]]).all()


def test_grades_belong_to_their_own_query():
    graded = grades_of(RANKED, [ids(2, 1), ids(), ids(2, 5, 99)], [ids(3, 1), ids(), ids(2, 4, 9)])
    assert graded.tolist() == [[1, 3, 0, 0], [0, 0, 0, 0], [4, 0, 0, 2]]
    ranked = np.array([[-1, -1]])  # the padding is no item
    assert grades_of(ranked, [ids(3)], [ids(2)]).tolist() == [[0, 0]]
    assert recall_at_k(ranked, [ids(3)], 2) == pytest.approx([0])
    assert recall_at_k(np.array([[4]]), [ids(4, 5)], 100) == pytest.approx([1 / 2])
    assert pad([ids(1, 2), ids(), ids(3)], -1).tolist() == [[1, 2], [-1, -1], [3, -1]]
    assert pad([], -1).shape == (0, 0)


def test_ndcg_by_hand():
    # Ranked 3, 0, 1, 2: DCG@3 = 7/log2(2) + 0 + 1/log2(4) = 7.5; ideal 3, 2, 1: 7 + 3/log2(3) + 1/2.
    grades = np.array([[3, 0, 1, 2]])
    assert ndcg_at_k(grades, 3) == pytest.approx([7.5 / (7.5 + 3 / np.log2(3))])
    assert ndcg_at_k(np.array([[2, 1]]), 10) == pytest.approx([1])
    # One document of grade 1 ranked first; a document of grade 2 was never ranked: 1 / (3 + 1/log2(3)).
    values = ndcg_at_k(np.array([[1, 0]]), 2, ideal=np.array([[0, 1, 2]]))
    assert values == pytest.approx([1 / (3 + 1 / np.log2(3))])


def test_ndcg_is_undefined_without_a_grade_and_one_in_the_ideal_order():
    values = ndcg_at_k(np.array([[0, 0, 0], [3, 2, 2], [0, 0, 1]]), 2)
    assert np.isnan(values[0])
    assert values[1:].tolist() == [1, 0]


def random_world(seed, queries=40, catalogue=200, k=50):
    """Rankings and graded judgements; each query has at least one judgement above 0."""
    rng = np.random.default_rng(seed)
    ranked = np.stack([rng.permutation(catalogue)[:k] + 1 for _ in range(queries)])
    judged = [rng.choice(catalogue, size=rng.integers(1, 30), replace=False) + 1 for _ in range(queries)]
    grades = [np.append(rng.integers(0, 4, size=len(own) - 1), 1) for own in judged]
    return ranked, judged, grades


def oracle(ranked, judged, grades, measure):
    """One measure a call: ir_measures 0.4.3 lets `gains` of one nDCG leak into another of the same call."""
    qrels = [
        Qrel(str(query), str(item), int(grade))
        for query, (own, levels) in enumerate(zip(judged, grades, strict=True))
        for item, grade in zip(own, levels, strict=True)
    ]
    run = [
        ScoredDoc(str(query), str(item), -float(rank))
        for query, row in enumerate(ranked)
        for rank, item in enumerate(row)
    ]
    values = np.full(len(ranked), np.nan)
    for metric in ir_measures.iter_calc([measure], qrels, run):
        values[int(metric.query_id)] = metric.value
    return values


@pytest.mark.parametrize("seed", range(3))
def test_all_metrics_agree_with_ir_measures(seed):
    ranked, judged, grades = random_world(seed)
    positives = [own[levels >= 2] for own, levels in zip(judged, grades, strict=True)]
    answerable = np.array([len(own) > 0 for own in positives])
    in_order, ideal = grades_of(ranked, judged, grades), pad(grades, 0)
    exp2 = nDCG(gains={0: 0, 1: 1, 2: 3, 3: 7}) @ 4
    expected = {m: oracle(ranked, judged, grades, m) for m in (R(rel=2) @ 20, RR(rel=2), exp2)}

    recall, first = recall_at_k(ranked, positives, 20), reciprocal_rank(ranked, positives)
    assert answerable.sum() > 20
    assert np.isnan(recall[~answerable]).all()
    assert np.isnan(first[~answerable]).all()
    assert recall[answerable] == pytest.approx(expected[R(rel=2) @ 20][answerable])
    assert first[answerable] == pytest.approx(expected[RR(rel=2)][answerable])
    assert ndcg_at_k(in_order, 4, ideal=ideal) == pytest.approx(expected[exp2])
