import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import Qwen2Tokenizer

from crops.encoders import distill, encode, only_used_tokens, tokenise, towers

TEXTS = ["the cat sits", "red", "a dog runs of the park s", "blue car", "the red tree house"]


@pytest.fixture(params=["static", "transformer padded right", "decoder padded left"])
def encoder(request, tiny_base, tiny_decoder):
    if request.param == "decoder padded left":
        model = SentenceTransformer(str(tiny_decoder), device="cpu")
        assert model.tokenizer.padding_side == "left"
        return model
    base = SentenceTransformer(str(tiny_base), device="cpu")
    return base if request.param == "transformer padded right" else distill(base, 8, 128)


@pytest.mark.parametrize("batch", [2, 64])
def test_encoding_tokenised_rows_equals_encoding_the_texts(encoder, monkeypatch, batch):
    monkeypatch.setattr(towers, "ENCODE_BATCH", batch)
    monkeypatch.setattr(towers, "TOKENISE_BATCH", batch)
    rows = np.array([4, 0, 2, 1, 3, 2])
    with torch.no_grad():
        ours = encode(encoder, tokenise(encoder, TEXTS), rows).numpy()
    # One text at a time needs no padding: the reference that no padding fault can reach.
    expected = np.stack([encoder.encode(TEXTS[row]) for row in rows])
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_gradients_reach_the_weights(encoder):
    encode(encoder, tokenise(encoder, TEXTS), np.array([0, 1]))[:, 0].sum().backward()
    assert any(p.grad is not None and (p.grad != 0).any() for p in encoder.parameters())


def test_tokens_are_kept_text_after_text(tiny_base):
    encoder = distill(SentenceTransformer(str(tiny_base), device="cpu"), 8, 128)
    pool = tokenise(encoder, ["red cat", "dog", "the blue mat"])
    ids = [encoder.tokenizer.token_to_id(word) for word in "red cat dog the blue mat".split()]
    assert pool.ids.tolist() == ids
    assert pool.offsets.tolist() == [0, 2, 3, 6]
    assert pool.gather(np.array([2, 0])).tolist() == ids[3:] + ids[:2]
    assert len(pool) == 3


def test_a_text_without_a_token_has_no_ids(encoder):
    """Neither those of the marks that a transformer puts around every text."""
    alone = tokenise(encoder, ["red cat", "dog"])
    first, second = alone.lengths(np.arange(2)).tolist()
    of_bytes = isinstance(encoder.tokenizer, Qwen2Tokenizer)  # it knows white space, too
    for nothing in ("",) if of_bytes else ("", "  ", "\u200b"):
        pool = tokenise(encoder, ["red cat", nothing, "dog"])
        assert pool.lengths(np.arange(3)).tolist() == [first, 0, second]
        assert pool.ids.tolist() == alone.ids.tolist()


def test_a_prompt_makes_no_token(encoder):
    encoder.prompts["query"] = "red "
    pool = tokenise(encoder, ["cat", "", "dog runs"], "query")
    assert pool.lengths(np.arange(3)).tolist()[1] == 0
    assert (pool.lengths(np.array([0, 2])) > 1).all()


def test_a_static_encoder_can_be_narrowed_to_the_used_tokens(tiny_base):
    encoder = distill(SentenceTransformer(str(tiny_base), device="cpu"), 8, 128)
    before = encoder[0].embedding.weight.detach().clone()
    pool = tokenise(encoder, ["red cat", "dog cat"])
    rows = np.array([1, 0])
    with only_used_tokens(encoder, pool) as narrowed:
        assert encoder[0].embedding.weight.shape == (3, 8)
        torch.testing.assert_close(
            encode(encoder, narrowed, rows), torch.tensor(encoder_output(before, pool, rows))
        )
        encoder[0].embedding.weight.data += 1
    changed = (encoder[0].embedding.weight != before).all(dim=1).nonzero().squeeze(1).tolist()
    assert changed == sorted(encoder.tokenizer.token_to_id(word) for word in ("red", "cat", "dog"))


def encoder_output(weights, pool, rows):
    means = [weights[pool.gather(np.array([row]))].mean(dim=0) for row in rows]
    return [(mean / mean.norm()).tolist() for mean in means]


def test_a_transformer_is_not_narrowed(tiny_base):
    encoder = SentenceTransformer(str(tiny_base), device="cpu")
    pool = tokenise(encoder, ["red cat"])
    with only_used_tokens(encoder, pool) as same:
        assert same is pool
