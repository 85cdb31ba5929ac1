import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

from crops.config import TrainingConfig
from crops.encoders import load, load_encoder
from crops.errors import CropsError


@pytest.fixture
def tiny_minilm(monkeypatch, tiny_base):
    """`minilm` is the tiny base; counts distillations."""
    found = load.local_folder
    monkeypatch.setattr(load, "local_folder", lambda name: tiny_base if name == "minilm" else found(name))
    calls = []
    real = load.distill
    monkeypatch.setattr(load, "distill", lambda *args: calls.append(args) or real(*args))
    return calls


def test_static_is_distilled_once_per_width(tiny_minilm, tmp_path):
    first = load_encoder(TrainingConfig(dim=8), tmp_path)
    again = load_encoder(TrainingConfig(dim=8), tmp_path)
    assert isinstance(first[0], StaticEmbedding)
    assert len(tiny_minilm) == 1
    np.testing.assert_array_equal(first.encode("red cat"), again.encode("red cat"))
    load_encoder(TrainingConfig(dim=8, max_tokens=5), tmp_path)
    assert len(tiny_minilm) == 2


def test_an_interrupted_distillation_leaves_no_cache_entry(tiny_minilm, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(load, "distill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_encoder(TrainingConfig(dim=8), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_transformer_gets_unit_length_and_the_token_limit(tiny_minilm, tiny_base):
    encoder = load_encoder(TrainingConfig(encoder="minilm", max_tokens=6))
    assert isinstance(encoder[-1], Normalize)
    assert encoder.max_seq_length == 6
    assert np.linalg.norm(encoder.encode("the red cat")) == pytest.approx(1)
    assert load_encoder(TrainingConfig(encoder=str(tiny_base))).max_seq_length == 32


def test_init_continues_from_a_folder(tiny_minilm, tmp_path):
    encoder = load_encoder(TrainingConfig(dim=8), tmp_path / "cache")
    encoder[0].embedding.weight.data += 1
    encoder.save(str(tmp_path / "model"))
    continued = load_encoder(TrainingConfig(init=str(tmp_path / "model")), tmp_path / "cache")
    np.testing.assert_array_equal(continued.encode("red cat"), encoder.encode("red cat"))
    assert sum(isinstance(module, Normalize) for module in continued) == 1


def test_a_folder_that_is_no_model_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CropsError, match=f"{tmp_path} is not a model that sentence-transformers can load"):
        load_encoder(TrainingConfig(encoder=str(tmp_path)))


def test_an_encoder_without_pooling_is_refused(tiny_base, tmp_path):
    SentenceTransformer(modules=[SentenceTransformer(str(tiny_base))[0]]).save(str(tmp_path / "raw"))
    with pytest.raises(CropsError, match="no pooling layer"):
        load_encoder(TrainingConfig(encoder=str(tmp_path / "raw")))
