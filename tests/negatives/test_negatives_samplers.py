import numpy as np
import pytest

from crops.negatives import BASELINES, ance
from crops.negatives.adore import adore_negatives
from crops.negatives.base import nearest_negatives, noise, take_first, take_random, without
from crops.negatives.dpr import dpr_negatives
from crops.negatives.trisampler import in_region, tri_negatives
from crops.retrieval import BM25Retriever, FlatIndex

NONE = -1


def ids(*values):
    return np.array(values, dtype=np.int64)


def at(*degrees):
    """Unit vectors of the plane by their angles."""
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def circle():
    """Documents 10, 20, 30, 40, 50 at 10, 20, 30, 40 and 50 degrees."""
    return FlatIndex(ids(10, 20, 30, 40, 50), at(10, 20, 30, 40, 50))


def test_known_positives_are_no_negatives_even_if_they_are_no_candidates():
    candidates = np.array([[7, 8, 9], [7, NONE, 9]])
    assert without(candidates, [ids(8, 999), ids()]).tolist() == [[7, NONE, 9], [7, NONE, 9]]


def test_the_first_ones_keep_their_order_and_blanks_pad():
    candidates = np.array([[NONE, 5, 3, NONE, 4], [NONE] * 5])
    assert take_first(candidates, 2).tolist() == [[5, 3], [NONE, NONE]]
    assert take_first(candidates, 7)[0].tolist() == [5, 3, 4, NONE, NONE, NONE, NONE]


def test_random_ones_differ_from_each_other_and_follow_the_odds(random):
    candidates = np.tile([1, 2, 3, NONE], (4000, 1))
    drawn = take_random(random, candidates, 2, np.tile([3.0, 1.0, 0.0, 9.0], (4000, 1)))
    assert (np.sort(drawn, axis=1) == [1, 2]).all()
    first = take_random(random, candidates, 1, np.tile([3.0, 1.0, 0.0, 9.0], (4000, 1)))
    # 3 of 4 by the odds; the standard error of the share is sqrt(.75 * .25 / 4000) = 0.007.
    assert (first == 1).mean() == pytest.approx(0.75, abs=0.03)
    assert set(np.unique(take_random(random, candidates, 4))) == {NONE, 1, 2, 3}


def test_noise_is_of_the_whole_catalogue_without_the_querys_positives(random):
    catalogue = np.arange(100, 110)
    drawn = noise(random, catalogue, [ids(100, 101)] * 300, 4)
    assert set(np.unique(drawn)) == set(range(102, 110))
    assert all(len(set(row)) == 4 for row in drawn.tolist())
    # a catalogue that is too small is padded
    drawn = noise(random, ids(1, 2, 3), [ids(2), ids(), ids(1, 2, 3, 77)], 5)
    expected = [[NONE, NONE, NONE, 1, 3], [NONE, NONE, 1, 2, 3], [NONE] * 5]
    assert [sorted(row) for row in drawn.tolist()] == expected


def test_dprs_hard_negative_is_the_best_of_bm25_that_is_no_positive():
    texts = ["ficus water ficus", "ficus water", "ficus", "cat"]
    found, _ = BM25Retriever([1, 2, 3, 4], texts).search(["ficus water", "umbrella"], 3)
    first = found[0].tolist()
    assert sorted(first) == [1, 2, 3]
    negatives = dpr_negatives(found, [ids(first[0]), ids()], 1)
    assert negatives.tolist() == [[first[1]], [NONE]]


def test_ance_draws_evenly_from_the_top_without_positives(random, circle):
    # The three nearest to 30 degrees are 30, 20 and 40; 30 is the positive.
    drawn = nearest_negatives(random, circle, np.repeat(at(30), 1000, axis=0), [ids(30)] * 1000, 1, depth=3)
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [20, 40]
    assert counts[0] == pytest.approx(500, abs=80)
    drawn = nearest_negatives(random, circle, at(30, 10), [ids(30), ids(10, 20, 30)], 2, depth=3)
    assert sorted(drawn[0].tolist()) == [20, 40]
    assert drawn[1].tolist() == [NONE, NONE]  # all of its list are positives
    # the index is renewed every m steps after the warm-up
    assert [step for step in range(40) if ance.due(step, 10, 8)] == [10, 18, 26, 34]


def test_adore_takes_the_nearest_and_a_positive_costs_none_of_them(circle):
    # From 11 degrees: 10, 20, 30, 40, 50 in this order.
    assert adore_negatives(circle, at(11), [ids()], 2).tolist() == [[10, 20]]
    assert adore_negatives(circle, at(11), [ids(10)], 2).tolist() == [[20, 30]]
    assert adore_negatives(circle, at(11), [ids(10)], 9)[0].tolist() == [20, 30, 40, 50, *[NONE] * 5]


def test_the_bound_is_sixty_degrees_between_the_two_angles():
    # The positive is 20 degrees from the query, the candidates 0, 79, 81 and 100.
    cosines = np.cos(np.radians([[0.0, 79.0, 81.0, 100.0]]))
    assert in_region(np.cos(np.radians([20.0])), cosines).tolist() == [[True, True, False, False]]


def tri(random, query, positive, candidates, n, temperature=0.5):
    """TriSampler's draw for one query, in the plane: ids are the candidates' angles."""
    vectors = at(*candidates).astype(np.float64)
    return tri_negatives(
        random,
        np.array([candidates]),
        (at(query) @ at(positive).T)[0].astype(np.float64),
        (at(query) @ vectors.T).astype(np.float64),
        (at(positive) @ vectors.T).astype(np.float64),
        n,
        temperature,
    )[0].tolist()


def test_trisamplers_negatives_are_nearer_to_the_positive_than_to_the_query(random):
    # Query at 0, positive at 30. Beyond the bisector, 15 degrees, are 20, 40 and 70. 10 and 355 are nearer to
    # the query (weight 0); 100 is 70 degrees further from it than the positive is: out of bounds.
    drawn = tri(random, 0, 30, [10, 20, 40, 70, 100, 355], 6)
    assert sorted(drawn) == [NONE, NONE, NONE, 20, 40, 70]


def test_trisampler_prefers_scores_like_the_positives_and_a_strong_pull(random):
    # Query at 0, positive at 40, candidates at 30 and 60: the pool takes 4 for a negative, here both, though
    # their weights are e^-1 and e^-7. Then cos 10 - cos 30 = .119 stands against cos 20 - cos 60 = .440.
    draws = [tri(random, 0, 40, [30, 60], 1, 0.05)[0] for _ in range(1500)]
    assert np.mean(np.array(draws) == 60) == pytest.approx(0.440 / 0.559, abs=0.04)


def test_trisamplers_pool_is_of_documents_that_score_like_the_positive(random):
    # Query at 0, positive at 30 (.866). 31 to 34 score .857 to .829: with temperature .02 their weights are
    # e^-.05 to e^-.9; 75 scores .259: e^-230. The pool of 4 for one negative is the first four.
    draws = {tri(random, 0, 30, [31, 32, 33, 34, 75], 1, 0.02)[0] for _ in range(300)}
    assert draws == {31, 32, 33, 34}


def test_trisampler_without_a_positive_or_with_an_empty_region_draws_nothing(random):
    assert tri(random, 0, 30, [10, 355], 2) == [NONE, NONE]
    nothing = tri_negatives(
        random, np.array([[1, 2]]), np.array([np.nan]), np.ones((1, 2)), np.ones((1, 2)), 2, 0.05
    )
    assert nothing.tolist() == [[NONE, NONE]]
    blank = np.array([[NONE, 7]])
    scores = np.array([[np.nan, 0.5]])
    assert tri_negatives(random, blank, np.array([0.5]), scores, scores + 0.2, 2, 0.05).tolist() == [
        [7, NONE]
    ]


def test_every_module_with_a_method_is_a_baseline():
    assert sorted(BASELINES) == ["adore", "ance", "dpr", "nce", "star", "trisampler"]
    assert all(method.keep == BASELINES["dpr"].keep for method in BASELINES.values())
