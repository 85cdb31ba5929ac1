"""The scorer contract, on a fake model."""

import numpy as np
import pyarrow as pa
import pytest

from crops.errors import CropsError
from crops.relevance import Calibration, CosineScorer, TextEncoder
from crops.relevance.encode import VectorStore

VECTORS = {"x": (1.0, 0.0), "y": (0.0, 1.0), "d": (0.6, 0.8)}


class FakeModel:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts):
        self.asked += texts
        return np.array([VECTORS[text] for text in texts], np.float32)


def batch(left, right, **others):
    columns = {"left": pa.array(left, pa.string()), "right": pa.array(right, pa.string()), **others}
    return pa.RecordBatch.from_pydict(columns)


def scorer(model, store=None):
    return CosineScorer(TextEncoder(model, store), Calibration(a=5.0, b=-3.0))


def test_scores_by_hand():
    # cos(x, d) = .6: 5 * .6 - 3 = 0 -> .5; cos(y, d) = .8: 1 -> 1/(1 + e^-1) = .731059 (six decimals);
    # cos(x, y) = 0: -3 -> 1/(1 + e^3) = .047426.
    (out,) = scorer(FakeModel())(iter([batch(["x", "y", "x"], ["d", "d", "y"])]))
    assert out.column("score").to_pylist() == [0.5, 0.731059, 0.047426]
    assert out.schema.field("score").type == pa.float64()


def test_batches_and_other_columns_pass_through():
    first = batch(["x", "y"], ["d", "d"], left_id=pa.array([7, 8]), note=pa.array([None, "n"]))
    second = batch(["x"], ["x"], left_id=pa.array([9]), note=pa.array(["m"]))
    out = list(scorer(FakeModel())(iter([first, second])))
    assert [part.num_rows for part in out] == [2, 1]
    assert out[0].schema.names == ["left", "right", "left_id", "note", "score"]
    assert out[0].drop_columns("score").equals(first)
    assert out[1].drop_columns("score").equals(second)


def test_distinct_texts_are_encoded_once_over_batches_and_kinds():
    model = FakeModel()
    encoder = TextEncoder(model)
    relevance = CosineScorer(encoder, Calibration(5.0, -3.0))
    similarity = CosineScorer(encoder, Calibration(9.0, -4.0))
    list(relevance(iter([batch(["x", "x", "y"], ["d", "d", "d"]), batch(["y"], ["d"])])))
    list(similarity(iter([batch(["x"], ["y"])])))
    assert sorted(model.asked) == ["d", "x", "y"]


def test_an_encoder_with_a_bound_forgets_between_batches_and_scores_the_same():
    model = FakeModel()
    bounded = CosineScorer(TextEncoder(model, most=2), Calibration(5.0, -3.0))
    pairs = [batch(["x"], ["d"]), batch(["x"], ["y"]), batch(["x"], ["d"]), batch(["y"], ["d"])]
    (free,) = scorer(FakeModel())(iter([batch(["x", "x", "x", "y"], ["d", "y", "d", "d"])]))
    out = [part["score"][0].as_py() for part in bounded(iter(pairs))]
    assert out == free["score"].to_pylist()
    assert model.asked == ["x", "d", "y", "x", "d", "y"]


def test_scores_do_not_depend_on_the_batches():
    rows = [("x", "d"), ("y", "d"), ("d", "d"), ("x", "y")] * 5000  # more than are gathered at once
    whole = batch(*zip(*rows, strict=True))
    parts = [whole.slice(start, 777) for start in range(0, whole.num_rows, 777)]
    score = scorer(FakeModel())
    joined = pa.concat_arrays([out.column("score") for out in score(iter(parts))])
    assert next(iter(score(iter([whole])))).column("score").equals(joined)


def test_empty_batches():
    model = FakeModel()
    assert list(scorer(model)(iter([]))) == []
    (out,) = scorer(model)(iter([batch([], [])]))
    assert (out.num_rows, out.schema.names) == (0, ["left", "right", "score"])
    assert model.asked == []
    large = {side: pa.array([text], pa.large_string()) for side, text in (("left", "x"), ("right", "d"))}
    (out,) = scorer(model)(iter([pa.RecordBatch.from_pydict(large)]))
    assert out.column("score").to_pylist() == [0.5]


def test_vectors_are_saved_even_when_the_reader_stops(tmp_path):
    stream = scorer(FakeModel(), VectorStore(tmp_path))(iter([batch(["x"], ["d"]), batch(["y"], ["d"])]))
    next(stream)
    stream.close()
    assert len(VectorStore(tmp_path).load()[0]) == 2


@pytest.mark.parametrize(("bad", "message"), [
    (pa.RecordBatch.from_pydict({"left": ["x"]}), "'left' and 'right'"),
    (pa.RecordBatch.from_pydict({"left": ["x"], "right": [1]}), "'right' is int64, not text"),
    (batch(["x", None], ["d", "d"]), r"'left' has 1 nulls \(first in row 1\)"),
    (batch(["x"], ["d"], score=pa.array([0.5])), "column 'score' already"),
])  # fmt: skip
def test_bad_batches(bad: pa.RecordBatch, message: str):
    with pytest.raises(CropsError, match=message):
        list(scorer(FakeModel())(iter([bad])))
