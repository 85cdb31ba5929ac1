import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding
from transformers import AutoTokenizer, Qwen2Model

from crops.config import RunConfig, TrainingConfig, load_config
from crops.encoders import encode, load, load_encoder, longest, save_encoder, tokenise
from crops.errors import CropsError
from crops.outputs import publish


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
    short = load_encoder(TrainingConfig(dim=8, max_tokens=5), tmp_path)
    assert len(tiny_minilm) == 2
    assert (longest(first), longest(short)) == (128, 5)


def test_who_comes_second_waits_for_the_distillation(tiny_minilm, tmp_path, monkeypatch):
    config = TrainingConfig(dim=8)
    other = load.encoder_folder(config, tmp_path / "other")
    waited = []

    def wait(seconds):
        """The other process ends meanwhile."""
        waited.append(seconds)
        shutil.copytree(other, tmp_path / other.name)

    monkeypatch.setattr(load.time, "sleep", wait)
    with publish(tmp_path / other.name, "distill") as staging:
        load_encoder(config, tmp_path)
        shutil.copytree(other, staging, dirs_exist_ok=True)
    assert len(waited) == 1
    assert len(tiny_minilm) == 1  # nothing was distilled a second time


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
    assert longest(encoder) == encoder.max_seq_length == 6
    assert np.linalg.norm(encoder.encode("the red cat")) == pytest.approx(1)
    assert load_encoder(TrainingConfig(encoder=str(tiny_base))).max_seq_length == 32


def test_init_continues_from_a_folder(tiny_minilm, tmp_path):
    encoder = load_encoder(TrainingConfig(dim=8), tmp_path / "cache")
    encoder[0].embedding.weight.data += 1
    encoder.save(str(tmp_path / "model"))
    continued = load_encoder(TrainingConfig(init=str(tmp_path / "model")), tmp_path / "cache")
    np.testing.assert_array_equal(continued.encode("red cat"), encoder.encode("red cat"))
    assert sum(isinstance(module, Normalize) for module in continued) == 1


TEXTS = ["the red cat sits of the mat", "dog", "blue car park"]


@pytest.fixture
def qwen(hub, tiny_qwen):
    hub["Qwen/Qwen2.5-0.5B"] = tiny_qwen
    return tiny_qwen


def test_qwen_pools_the_last_token_whatever_the_side_of_the_padding(qwen):
    """The reference runs the language model on one text at a time, without any padding."""
    encoder = load_encoder(TrainingConfig(encoder="qwen2.5-0.5b"))
    tokenizer, model = AutoTokenizer.from_pretrained(qwen), Qwen2Model.from_pretrained(qwen).float()
    with torch.no_grad():
        last = [
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1].numpy() for text in TEXTS
        ]
        ours = encode(encoder, tokenise(encoder, TEXTS), np.arange(3)).numpy()
    expected = np.stack([vector / np.linalg.norm(vector) for vector in last])
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)


def test_qwen_is_a_plain_sentence_transformer_in_single_precision(qwen, tmp_path):
    """Half precision, as it is on the Hub, would lose updates of 2e-5."""
    encoder = load_encoder(TrainingConfig(encoder="qwen2.5-0.5b"))
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
    assert [type(module) for module in encoder][1:] == [Pooling, Normalize]
    assert encoder[1].pooling_mode == "lasttoken"
    assert encoder.max_seq_length == 128
    save_encoder(encoder, tmp_path / "model")
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(plain.encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)


def test_qwen_trains_with_separate_towers(qwen):
    encoder = load_encoder(TrainingConfig(encoder="qwen2.5-0.5b", towers="separate"))
    assert isinstance(encoder[0], Router)
    np.testing.assert_allclose(encoder.encode_query(TEXTS), encoder.encode_document(TEXTS), atol=1e-6)
    encode(encoder, tokenise(encoder, TEXTS, "query"), np.arange(3), "query").sum().backward()
    trained = {name for name, weight in encoder.named_parameters() if weight.grad is not None}
    assert trained
    assert all("sub_modules.query" in name for name in trained)


def test_presets_have_their_values_which_the_run_may_change():
    settings = TrainingConfig(encoder="qwen2.5-0.5b")
    assert (settings.learning_rate, settings.weight_decay, settings.max_tokens) == (2e-5, 1e-4, 128)
    rates = {"static": 2e-3, "two_tower": 5e-3, "minilm": 2e-5, "some/transformer": 2e-5}
    assert {name: load_config(training__encoder=name).training.learning_rate for name in rates} == rates
    chosen = load_config(training__encoder="minilm", training__learning_rate=1e-4).training
    assert chosen.learning_rate == 1e-4
    assert RunConfig(training=chosen).training.learning_rate == 1e-4


def test_what_is_no_encoder_is_named(tiny_base, tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    (tmp_path / "config.json").write_text("{}")
    SentenceTransformer(modules=[SentenceTransformer(str(tiny_base))[0]]).save(str(tmp_path / "raw"))
    for name, message in (
        ("qwen2.5-0.5", "model 'qwen2.5-0.5' is neither .* Did you mean 'qwen2.5-0.5b'"),
        (str(tmp_path / "no/such/model"), ".*/no/such/model is no folder of this machine"),
        (str(tmp_path), f"{tmp_path} is not a model that sentence-transformers can load"),
        (str(tmp_path / "raw"), "no pooling layer"),
    ):
        with pytest.raises(CropsError, match=message):
            load_encoder(TrainingConfig(encoder=name))


def test_an_index_given_as_a_model_is_told_as_one(tmp_path):
    (tmp_path / "current").write_text("v1")
    with pytest.raises(CropsError, match=f"{tmp_path} is an index and no model; `crops serve"):
        load_encoder(TrainingConfig(encoder=str(tmp_path)), None)
