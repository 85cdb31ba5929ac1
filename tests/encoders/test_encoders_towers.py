import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router

from crops.config import TrainingConfig
from crops.encoders import (
    asymmetric,
    distill,
    encode,
    load_encoder,
    only_used_tokens,
    rendering_for,
    save_encoder,
    tokenise,
)
from crops.encoders.towers import input_module, separate_towers
from crops.errors import CropsError
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
    np.testing.assert_allclose(encoder.encode_query(TEXTS), encoder.encode_document(TEXTS), atol=1e-6)
    with torch.no_grad():
        for weight in encoder[0].sub_modules["query"].parameters():
            weight += 0.1 * torch.randn_like(weight)
    assert np.abs(encoder.encode_query(TEXTS) - encoder.encode_document(TEXTS)).max() > 0.01
    assert_same_paths(encoder)
    save_encoder(encoder, tmp_path / "model")
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


def test_one_encoder_without_prompts_is_symmetric(tiny_base):
    assert not asymmetric(load_encoder(settings(tiny_base)))
    assert asymmetric(load_encoder(settings(tiny_base, towers="separate")))


def test_towers_of_other_routes_are_refused(tiny_base):
    modules = list(SentenceTransformer(str(tiny_base), device="cpu"))
    encoder = SentenceTransformer(modules=[Router({"text": modules})], device="cpu")
    with pytest.raises(CropsError, match="towers = separate: the model has the routes text"):
        separate_towers(encoder)


def test_towers_need_a_module_that_reads_texts():
    encoder = SentenceTransformer(modules=[torch.nn.Identity()], device="cpu")
    with pytest.raises(CropsError, match="begins with Identity, which reads no texts"):
        separate_towers(encoder)


def test_the_router_file_names_only_modules_of_sentence_transformers(tiny_base, tmp_path):
    save_encoder(load_encoder(settings(tiny_base, towers="separate")), tmp_path / "model")
    types = json.loads((tmp_path / "model" / "router_config.json").read_text())["types"]
    assert all(name.startswith("sentence_transformers.") for name in types.values())
