import importlib.util
import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from torch.nn.functional import normalize

from crops.config import TrainingConfig
from crops.encoders import (
    asymmetric,
    distill,
    encode,
    load_encoder,
    only_used_tokens,
    over_dims,
    rendering_for,
    save_encoder,
    tokenise,
)
from crops.encoders.towers import input_module, separate_towers
from crops.errors import CropsError, MissingExtraError
from crops.losses import h_infonce
from crops.text import PLAIN

TEXTS = ["the red cat", "dog", "a blue car runs of the park"]
ROWS = np.arange(len(TEXTS))


def settings(folder, **options):
    return TrainingConfig(encoder=str(folder), **options)


def assert_same_paths(encoder, atol=1e-6):
    """The training path gives what plain `encode_query` and `encode_document` give."""
    with torch.no_grad():
        for role, plain in (("query", encoder.encode_query), ("document", encoder.encode_document)):
            encoder.eval()
            ours = encode(encoder, tokenise(encoder, TEXTS, role), ROWS, role).numpy()
            np.testing.assert_allclose(ours, plain(TEXTS), atol=atol)


@pytest.mark.parametrize("base", ["tiny_base", "tiny_decoder"])
def test_separate_towers_start_equal_and_learn_apart(request, base, tmp_path):
    encoder = load_encoder(settings(request.getfixturevalue(base), towers="separate"))
    assert asymmetric(encoder)
    assert not asymmetric(load_encoder(settings(request.getfixturevalue(base))))
    np.testing.assert_allclose(encoder.encode_query(TEXTS), encoder.encode_document(TEXTS), atol=1e-6)
    with torch.no_grad():
        for weight in encoder[0].sub_modules["query"].parameters():
            weight += 0.1 * torch.randn_like(weight)
    assert np.abs(encoder.encode_query(TEXTS) - encoder.encode_document(TEXTS)).max() > 0.01
    assert_same_paths(encoder)
    save_encoder(encoder, tmp_path / "model")
    types = json.loads((tmp_path / "model" / "router_config.json").read_text())["types"]
    assert all(name.startswith("sentence_transformers.") for name in types.values())
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert isinstance(plain[0], Router)
    np.testing.assert_allclose(plain.encode_query(TEXTS), encoder.encode_query(TEXTS), atol=1e-6)
    np.testing.assert_allclose(plain.encode_document(TEXTS), encoder.encode_document(TEXTS), atol=1e-6)


def test_a_model_with_two_towers_goes_on_with_them(tiny_base, tmp_path):
    save_encoder(load_encoder(settings(tiny_base, towers="separate")), tmp_path / "model")
    for towers in ("shared", "separate"):
        config = TrainingConfig(init=str(tmp_path / "model"), max_tokens=5, towers=towers)
        encoder = load_encoder(config)
        assert isinstance(encoder[0], Router)
        assert input_module(encoder, "query").max_seq_length == 5
        assert input_module(encoder, "document").max_seq_length == 5
        assert rendering_for(config) is PLAIN


def test_static_towers_shrink_to_the_tokens_of_their_own_texts(tiny_base):
    encoder = separate_towers(distill(SentenceTransformer(str(tiny_base), device="cpu"), 8, 128))
    query, document = (
        tokenise(encoder, texts, role) for texts, role in ((["cat"], "query"), (TEXTS, "document"))
    )
    whole = input_module(encoder, "document").embedding
    with (
        only_used_tokens(encoder, query, "query") as few,
        only_used_tokens(encoder, document, "document") as more,
    ):
        assert input_module(encoder, "query").embedding.num_embeddings == 1
        assert input_module(encoder, "document").embedding.num_embeddings == len(np.unique(document.ids))
        ours = encode(encoder, few, np.array([0]), "query"), encode(encoder, more, ROWS, "document")
    np.testing.assert_allclose(ours[0].detach().numpy(), encoder.encode_query(["cat"]), atol=1e-6)
    np.testing.assert_allclose(ours[1].detach().numpy(), encoder.encode_document(TEXTS), atol=1e-6)
    assert input_module(encoder, "document").embedding is whole


def test_prompts_live_in_the_model_and_are_used_in_training(tiny_base, tmp_path):
    encoder = load_encoder(settings(tiny_base, query_prompt="the dog ", doc_prompt="blue "))
    assert asymmetric(encoder)
    assert_same_paths(encoder)
    save_encoder(encoder, tmp_path / "model")
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(
        plain.encode_query(TEXTS), plain.encode([f"the dog {t}" for t in TEXTS]), atol=1e-6
    )
    np.testing.assert_allclose(
        plain.encode_document(TEXTS), plain.encode([f"blue {t}" for t in TEXTS]), atol=1e-6
    )
    assert_same_paths(load_encoder(settings(tmp_path / "model")))
    none = load_encoder(settings(tmp_path / "model", query_prompt="", doc_prompt=""))
    assert not asymmetric(none)
    np.testing.assert_allclose(none.encode_query(TEXTS), none.encode(TEXTS), atol=1e-6)


def test_a_pooling_that_leaves_the_prompt_out_does_so_in_training(tiny_base):
    encoder = load_encoder(settings(tiny_base, query_prompt="the dog "))
    with_prompt = encoder.encode_query(TEXTS)
    encoder.set_pooling_include_prompt(False)
    assert np.abs(encoder.encode_query(TEXTS) - with_prompt).max() > 1e-3
    assert_same_paths(encoder)


def test_towers_of_other_routes_are_refused(tiny_base):
    modules = list(SentenceTransformer(str(tiny_base), device="cpu"))
    encoder = SentenceTransformer(modules=[Router({"text": modules})], device="cpu")
    with pytest.raises(CropsError, match="towers = separate: the model has the routes text"):
        separate_towers(encoder)
    encoder = SentenceTransformer(modules=[torch.nn.Identity()], device="cpu")
    with pytest.raises(CropsError, match="begins with Identity, which reads no texts"):
        separate_towers(encoder)


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
    again = load_encoder(TrainingConfig(encoder=str(tiny_decoder), lora_rank=2))
    for ours, theirs in zip(adapted.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)  # the same adapters on each call


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


def test_without_peft_or_a_transformer_there_are_no_adapters(tiny_decoder, hub, tmp_path, monkeypatch):
    with pytest.raises(CropsError, match="lora_rank: this encoder has no transformer"):
        load_encoder(TrainingConfig(dim=8, lora_rank=2), tmp_path)
    found = importlib.util.find_spec
    absent = lambda name, *rest: None if name == "peft" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    with pytest.raises(MissingExtraError, match=r"peft is not installed.*crops-retrieval\[lora\]"):
        load_encoder(TrainingConfig(encoder=str(tiny_decoder), lora_rank=2))


def cosines(query_emb, doc_emb, *, scale=1.0):
    return scale * (query_emb @ doc_emb.T).sum()


def test_widths_add_up_by_hand():
    """Full: (.6, .8).(1, 0) = 0.6. First number: .6 and 1 become 1 and 1, product 1. Sum 1.6, doubled 3.2."""
    query, doc = torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0]])
    assert over_dims(cosines, (1,))(query, doc, scale=2.0).item() == pytest.approx(3.2)
    assert over_dims(cosines, ()) is cosines
    for dim in (2, 3):
        message = f"matryoshka_dims: {dim} is not below the 2 dimensions of the encoder"
        with pytest.raises(CropsError, match=message):
            over_dims(cosines, (1, dim))(torch.ones(1, 2), torch.ones(1, 2))


def test_h_infonce_over_widths_is_the_sum_of_its_parts():
    torch.manual_seed(0)
    query = normalize(torch.randn(3, 8), dim=1).requires_grad_()
    doc = normalize(torch.randn(6, 8), dim=1)
    given = {"temperature": torch.tensor(0.1)}
    index, labels = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([4, 1, 5, 2, 4, 0])
    total = over_dims(h_infonce, (2, 4))(query, doc, index, labels, **given)
    parts = [
        h_infonce(normalize(query[:, :d], dim=1), normalize(doc[:, :d], dim=1), index, labels, **given)
        for d in (2, 4)
    ]
    parts.append(h_infonce(query, doc, index, labels, **given))
    assert total.item() == pytest.approx(sum(part.item() for part in parts))
    (ours,) = torch.autograd.grad(total, query)
    (theirs,) = torch.autograd.grad(sum(parts), query)
    torch.testing.assert_close(ours, theirs)
