"""The oracles' samples, by hand."""

import pyarrow as pa

from crops.labels import Source
from crops.reproduce.make import RightScorer, add_right
from crops.schema import SAMPLES


def samples(*rows):
    columns = zip(*((*row, 1.0) for row in rows), strict=True)
    return pa.table(dict(zip(SAMPLES.names(), columns, strict=True))).cast(SAMPLES.arrow())


def pairs(*rows):
    return pa.table(dict(zip(("query_id", "item_id"), zip(*rows, strict=True), strict=True)))


def test_right_pairs_become_positives_up_to_a_number_and_keep_what_they_were():
    mined = samples((1, 10, 4, 8), (1, 11, 1, 1), (2, 10, 3, 4))
    right = pairs((1, 10), (1, 11), (2, 20), (2, 21), (2, 22))
    found = add_right(mined, right, 2, seed=0).to_pylist()
    own = {(row["query_id"], row["item_id"]): (row["label"], row["sources"]) for row in found}
    assert own[1, 10] == (4, Source.CLICKED | Source.PROMOTED)
    assert own[1, 11] == (4, Source.FILTERED | Source.PROMOTED)  # was a negative
    assert own[2, 10] == (3, Source.EXPOSED)
    new = {item for query, item in own if query == 2} - {10}
    assert len(new) == 2
    assert new < {20, 21, 22}
    assert all(own[2, item] == (4, Source.PROMOTED) for item in new)
    assert found == add_right(mined, right, 2, seed=0).to_pylist()
    assert [(row["query_id"], row["item_id"]) for row in found] == sorted(own)


def test_the_oracle_theta_is_one_for_right_pairs_alone():
    batch = pa.RecordBatch.from_pydict({"left_key": [1, 1, 2], "right_key": [10, 11, 10]})
    (scored,) = RightScorer(pairs((1, 10), (2, 11)))(iter([batch]))
    assert scored["score"].to_pylist() == [1.0, 0.0, 0.0]
