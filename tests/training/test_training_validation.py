import json

import numpy as np
import pytest

from crops.errors import CropsError
from crops.labels import Source
from crops.text import PLAIN, query_id
from crops.training.methods import is_validation, load_catalogue, validate, validation_sets
from crops.training.samples import FOLDS


@pytest.fixture
def mined(write_mined):
    """Queries 10, 20 and 30 are held out, 11 is not."""
    rows = [
        (10, 1, Source.CLICKED),
        (10, 2, Source.CLICKED | Source.REFORMULATION),
        (10, 3, Source.EXPOSED),
        (20, 4, Source.REFORMULATION),
        (20, -9, Source.KNOWLEDGE),
        (30, 5, Source.EXPOSED),
        (11, 1, Source.CLICKED),
    ]
    folder = write_mined(rows, {**{i: f"item {i}" for i in range(1, 7)}, -9: "written", 6: " "})
    (folder / "report.json").write_text(json.dumps({"days": ["2026-01-06"]}))
    return folder


class Fixed:
    """A retriever that finds items 2 and 9 for everyone."""

    def search(self, queries, k):
        return np.tile([2, 9], (len(queries), 1)), np.zeros((len(queries), 2), dtype=np.float32)


def test_one_query_in_ten_is_held_out_by_its_hash():
    ids = np.array([query_id(f"query {n}") for n in range(5000)])
    assert is_validation(ids).mean() == pytest.approx(0.1, abs=0.015)
    assert is_validation(np.array([-10, -9, 0, 7, 10])).tolist() == [True, False, True, False, True]
    # folds share no query and leave none out
    ids = np.arange(-50, 50)
    assert np.array_equal(sum(is_validation(ids, fold) for fold in range(FOLDS)), np.ones(100))


def test_the_lists_of_held_out_queries(mined):
    sets = validation_sets(mined, np.arange(1, 7))
    assert sets.queries == ["query 10", "query 20"]
    assert [ids.tolist() for ids in sets.clicked] == [[1, 2], []]
    assert [ids.tolist() for ids in sets.reworded] == [[2], [4]]
    sets = validation_sets(mined, np.array([1]))  # what is not in the catalogue is not sought
    assert sets.queries == ["query 10"]
    assert sets.reworded[0].tolist() == []
    with pytest.raises(CropsError, match="no held-out query has a clicked item"):
        validation_sets(mined, np.array([6]))


def test_recall_by_hand(mined):
    found = validate(Fixed(), validation_sets(mined, np.arange(1, 7)), k=2)
    # CT: query 10 finds 2 of {1, 2}; 20 has no click. QR: 10 finds {2}, 20 does not find {4}.
    assert found == {"recall@2/ct": 0.5, "recall@2/qr": 0.5, "score": 0.5}
    assert validate(Fixed(), validation_sets(mined, np.array([1])), k=2)["score"] == 0


def test_the_catalogue_holds_real_items_with_a_text(mined):
    assert load_catalogue(mined, PLAIN).ids.tolist() == [1, 2, 3, 4, 5]
    (mined / "report.json").unlink()
    with pytest.raises(CropsError, match="cannot tell the mined days"):
        load_catalogue(mined, PLAIN)
