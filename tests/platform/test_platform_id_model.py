"""The ID-feature model on a click table small enough to know what it must find."""

import numpy as np
import pytest
from platform_hand import memory_of

from crops.pipeline import IdRetriever
from crops.platform import fit_id_model

CLICKS = {
    "oak table": {1: 9, 2: 1},
    "glass table": {2: 9},
    "red boots": {4: 9},
    "winter boots": {5: 9, 4: 2},
    "vase": {6: 1},
}
"""Items 0 and 3 were never clicked. Four dimensions for five items: the faintest, 6, is what gets lost."""


@pytest.fixture(scope="module")
def model():
    return fit_id_model(memory_of(7, CLICKS), seed=0)


def test_it_knows_what_was_clicked_and_nothing_else(model):
    assert model.item_rows.tolist() == [1, 2, 4, 5, 6]
    assert np.linalg.norm(model.item_vectors[:4], axis=1) == pytest.approx(np.ones(4))


def test_terms_find_the_items_that_were_clicked_for_them(model):
    ids, scores = IdRetriever(model).search(["oak", "glass", "red", "winter"], 7)
    assert ids[:, 0].tolist() == [2, 3, 5, 6]  # ids are rows + 1
    assert (ids[:, 5:] == -1).all()
    assert not np.isin(ids, [1, 4]).any()
    assert (np.diff(scores[:, :5], axis=1) <= 0).all()


def test_shared_terms_find_both(model):
    ids, _ = IdRetriever(model).search(["table", "BOOTS"], 2)
    assert set(ids[0].tolist()) == {2, 3}
    assert set(ids[1].tolist()) == {5, 6}


def test_unknown_terms_are_zero_and_find_nothing(model):
    vectors = model.encode(["sourdough", "oak sourdough", "oak"])
    assert not vectors[0].any()
    assert vectors[1] == pytest.approx(vectors[2])
    assert np.linalg.norm(vectors[2]) == pytest.approx(1)
    ids, scores = IdRetriever(model).search(["sourdough"], 3)
    assert ids.tolist() == [[-1, -1, -1]]
    assert np.isneginf(scores).all()


def test_it_is_the_same_for_the_same_seed(model):
    again = fit_id_model(memory_of(7, CLICKS), seed=0)
    assert np.array_equal(again.item_vectors, model.item_vectors)
    assert np.array_equal(again.term_vectors, model.term_vectors)
