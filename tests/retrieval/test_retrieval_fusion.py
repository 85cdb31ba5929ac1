import numpy as np
import pytest

from crops.errors import CropsError
from crops.retrieval import FusedRetriever, fuse


def test_reciprocal_ranks_add_up():
    """7 is first and third: 1/61 + 1/63; 5 second and first: 1/62 + 1/61, the best; 9 is third: 1/63."""
    ids, scores = fuse([np.array([[7, 5, 9]]), np.array([[5, 2, 7]])], k=5)
    assert ids.tolist() == [[5, 7, 2, 9, -1]]
    assert scores[0, :4] == pytest.approx([1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62, 1 / 63])
    assert np.isneginf(scores[0, 4])


def test_ties_go_to_the_smaller_id_and_padding_counts_for_nothing():
    ids, _ = fuse([np.array([[8, -1], [-1, -1]]), np.array([[3, -1], [4, 6]])], k=2)
    assert ids.tolist() == [[3, 8], [4, 6]]


def test_lists_that_do_not_belong_together_are_refused():
    for lists in ([np.zeros((1, 2), np.int64), np.zeros((2, 2), np.int64)], []):
        with pytest.raises(CropsError, match="fusion needs result lists of the same queries"):
            fuse(lists, 2)
    with pytest.raises(CropsError, match="k = 0"):
        fuse([np.zeros((1, 2), np.int64)], 0)


def test_a_fused_retriever_asks_deep_enough():
    """5 is second in both lists, 1 and 2 are first in one each: 2/62 > 1/61. Lists of 100 are asked for."""

    class Fixed:
        def __init__(self, ids):
            self.ids, self.asked = np.array([ids]), []

        def search(self, queries, k):
            self.asked.append(k)
            return self.ids[:, :k], np.zeros((1, min(k, self.ids.shape[1])), np.float32)

    first, second = Fixed([1, 5, *range(100, 198)]), Fixed([2, 5, *range(200, 298)])
    assert FusedRetriever([first, second]).search(["words"], 3)[0].tolist() == [[5, 1, 2]]
    assert first.asked == second.asked == [100]
    FusedRetriever([first]).search(["words"], 150)
    assert first.asked == [100, 150]
