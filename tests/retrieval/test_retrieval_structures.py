import faiss
import numpy as np
import pytest
from retrieval_hand import unit

from crops.config import IndexConfig
from crops.retrieval import structures
from crops.retrieval.dense import FlatIndex
from crops.retrieval.index import gather, last_scores, least_effort, recalls, scored


def build(config, vectors):
    return structures.build(IndexConfig(**config), FlatIndex(np.arange(len(vectors)), vectors).faiss)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"kind": "exact"}, "Flat"),
        ({"kind": "exact", "int8": True}, "SQ8"),
        ({"kind": "hnsw"}, "HNSW32,Flat"),
        ({"kind": "hnsw", "int8": True}, "HNSW32,SQ8"),
        ({"kind": "ivf"}, "IVF1024,Flat"),
        ({"kind": "ivf", "int8": True}, "IVF1024,SQ8"),
        ({"kind": "ivfpq"}, "RR64,IVF1024,PQ32x4fs"),
    ],
)
def test_recipes(config, expected):
    """sqrt(10^6) = 1000: 1,024 clusters; two of 64 numbers share a code."""
    assert structures.recipe(IndexConfig(**config), 1_000_000, 64) == expected
    # 2^8 = 256 for 317, as log2(317) = 8.31; 2^12 for 3,163 (11.63); one cluster for one vector
    assert [structures.clusters(count) for count in (1, 100_000, 10_000_000)] == [1, 256, 4096]
    assert structures.efforts("ivf", 24) == [2, 3, 4, 6, 8, 12, 16, 24]
    assert structures.efforts("ivfpq", 1) == [1]
    assert structures.efforts("exact", 24) == [0]


def test_the_same_seed_builds_the_same_clusters():
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    vectors = unit(500, 16)
    first, second = (faiss.serialize_index(build({"kind": "ivfpq"}, vectors).stored) for _ in range(2))
    faiss.omp_set_num_threads(threads)
    assert (first == second).all()


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf", "ivfpq"])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 100])
def test_every_kind_holds_few_vectors(kind, count, capfd):
    """A 4-bit code is learned from at least 16 points."""
    vectors = unit(count, 8)
    structure = build({"kind": kind}, vectors)
    effort = structures.efforts(kind, structures.clusters(count))[-1]
    rows, scores = structures.search(structure, vectors, 1, effort)
    best = np.take_along_axis(rows, np.argmax(scores, axis=1)[:, None], axis=1)
    assert best[:, 0].tolist() == list(range(count))
    assert "WARNING" not in capfd.readouterr().err


def test_codes_are_scored_again_with_the_vectors():
    """4-bit codes alone misplace many of the best ten; ten candidates for each, scored again, few."""
    vectors, queries = unit(2000, 32), unit(30, 32, 1)
    structure = build({"kind": "ivfpq"}, vectors)
    best = np.argsort(-queries @ vectors.T, axis=1)[:, :10]
    alone, _ = structures.search(structure._replace(searched=structure.stored, refined=1), queries, 10, 64)
    rows, scores = structures.search(structure, queries, 10, 64)
    shares = [
        np.mean([len(np.intersect1d(a, b[:10])) / 10 for a, b in zip(best, found, strict=True)])
        for found in (alone, rows)
    ]
    assert shares[0] < 0.8
    assert shares[1] > 0.97
    assert scores == pytest.approx(np.einsum("qd,qcd->qc", queries, vectors[rows]), abs=1e-6)


def test_recall_counts_equal_scores_alike():
    """The hundredth of 3 documents is the third, 0.2: two found with at least that score are 2 of 3."""
    queries = np.eye(2, dtype=np.float32)[:1]
    vectors = np.array([[0.9, 0], [0.2, 0], [0.2, 0.1], [0.1, 0]], dtype=np.float32)
    last, depth = last_scores(queries, [vectors[:2], vectors[2:3]])
    assert (last.tolist(), depth) == (pytest.approx([0.2]), 3)
    assert recalls(np.array([[0.9, 0.2, -np.inf]], np.float32), last, depth) == pytest.approx([2 / 3])
    assert recalls(np.array([[0.2, 0.2, 0.9]], np.float32), last, depth) == [1]


def test_the_least_effort_that_reaches_the_target_is_chosen():
    found = {2: [0.1, 0.1], 4: [0.5, 0.1], 8: [0.5, 0.5]}
    truth = (np.array([0.4], np.float32), 2)

    def scores(effort):
        return np.array([found[effort]], np.float32)

    assert least_effort(scores, [2, 4, 8], truth, 0.5) == (4, 0.5)
    assert least_effort(scores, [2, 4, 8], truth, 0.9) == (8, 1.0)
    assert least_effort(scores, [2, 4], truth, 0.9) == (4, 0.5)
    # Passed by two standard errors. Recalls of 1, 1, 1, 0.5: mean 0.875, error 0.2165 / 2 = 0.108.
    truth = (np.full(4, 0.4, np.float32), 2)

    def varied(effort):
        return np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.1 * effort]], np.float32)

    assert least_effort(varied, [2, 4], truth, 0.65) == (2, 0.875)
    assert least_effort(varied, [2, 4], truth, 0.66) == (4, 1.0)


def test_rows_are_counted_through_all_blocks():
    """The last row is (2, 2): 2 in the direction (1, 0); cut to one number and made unit length, 1."""
    blocks = [np.full((2, 2), 1.0, np.float32), np.full((3, 2), 2.0, np.float32)]
    rows = np.array([[0, 1], [2, 4]])
    assert gather(blocks, rows)[..., 0].tolist() == [[1, 1], [2, 2]]
    scores = scored(blocks, np.array([[4, -1]]), np.array([[1, 0]], np.float32))
    assert scores.tolist() == [[2, -np.inf]]
    assert scored(blocks, np.array([[4]]), np.array([[1]], np.float32)).tolist() == [[1]]
