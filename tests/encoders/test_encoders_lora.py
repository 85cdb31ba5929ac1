import importlib.util

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from crops.config import TrainingConfig
from crops.encoders import encode, load_encoder, save_encoder, tokenise
from crops.errors import CropsError, MissingExtraError

TEXTS = ["the red cat", "dog", "blue car"]


@pytest.fixture
def adapted(tiny_decoder):
    return load_encoder(TrainingConfig(encoder=str(tiny_decoder), lora_rank=2))


def test_only_the_adapters_train_and_they_start_at_zero(adapted, tiny_decoder):
    plain = load_encoder(TrainingConfig(encoder=str(tiny_decoder)))
    np.testing.assert_allclose(adapted.encode(TEXTS), plain.encode(TEXTS), atol=1e-6)
    trainable = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    # Rank 2 on the seven linear layers of the block: q 8x8, k 8x4, v 8x4, o 8x8, three of 8x16.
    assert sum(w.numel() for w in adapted.parameters() if w.requires_grad) == 2 * (16 + 12 + 12 + 16 + 3 * 24)


def test_the_same_adapters_on_each_call(adapted, tiny_decoder):
    again = load_encoder(TrainingConfig(encoder=str(tiny_decoder), lora_rank=2))
    for ours, theirs in zip(adapted.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("towers", ["shared", "separate"])
def test_a_saved_model_has_the_adapters_merged_in(tiny_decoder, tmp_path, towers):
    encoder = load_encoder(TrainingConfig(encoder=str(tiny_decoder), lora_rank=2, towers=towers))
    before = encoder.encode_query(TEXTS)
    optimizer = torch.optim.SGD([w for w in encoder.parameters() if w.requires_grad], lr=1.0)
    for _ in range(5):
        optimizer.zero_grad()
        encode(encoder, tokenise(encoder, TEXTS, "query"), np.arange(3), "query")[:, 0].sum().backward()
        optimizer.step()
    learned = encoder.encode_query(TEXTS)
    assert np.abs(learned - before).max() > 1e-3
    save_encoder(encoder, tmp_path / "model")
    assert not list((tmp_path / "model").rglob("adapter*"))
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert not [name for name, _ in plain.named_parameters() if "lora" in name]
    np.testing.assert_allclose(plain.encode_query(TEXTS), learned, atol=1e-5)


def test_without_peft_the_extra_is_named(tiny_decoder, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else found(name, *rest)
    )
    with pytest.raises(MissingExtraError, match=r"peft is not installed.*crops-retrieval\[lora\]"):
        load_encoder(TrainingConfig(encoder=str(tiny_decoder), lora_rank=2))


def test_an_encoder_without_a_transformer_has_nothing_to_adapt(hub, tmp_path):
    with pytest.raises(CropsError, match="lora_rank: this encoder has no transformer"):
        load_encoder(TrainingConfig(dim=8, lora_rank=2), tmp_path)
