"""Encoding in chunks: the same gradient in less memory, and little padding."""

import numpy as np
import pytest
import torch
import worker
from by_hand import stored

from crops.config import TrainingConfig
from crops.encoders import load_encoder
from crops.training import texts as embedding
from crops.training.texts import tokenise_pool


@pytest.fixture
def config(tiny_transformer):
    return TrainingConfig(init=str(tiny_transformer), batch_queries=9, steps=1)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_the_gradient_in_chunks_equals_the_direct_one(toy, config, chunk, tmp_path):
    direct = worker.gradients(toy, config, tmp_path)
    chunked = worker.gradients(toy, config.model_copy(update={"encode_chunk": chunk}), tmp_path)
    torch.testing.assert_close(chunked["loss"], direct["loss"])
    assert chunked["gradients"].keys() == direct["gradients"].keys()
    for name, gradient in direct["gradients"].items():
        torch.testing.assert_close(chunked["gradients"][name], gradient, rtol=1e-8, atol=1e-12, msg=name)


def test_dropout_is_the_same_both_times(toy, tiny_dropout, tmp_path):
    """With other masks in the second pass the gradient would not be that of the differences."""
    config = TrainingConfig(init=str(tiny_dropout), batch_queries=9, steps=1, encode_chunk=3)
    encoder = load_encoder(config).double()
    pool = tokenise_pool(encoder, stored(toy, tmp_path))
    rows = np.arange(8)

    def total():
        torch.manual_seed(0)
        encoder.train()
        return embedding.embed(encoder, pool, rows, 3)[:, 0].sum()

    weight = encoder.get_parameter("0.model.embeddings.word_embeddings.weight")
    total().backward()
    row = int(pool.sides[0].tokens.ids[1])
    gradient = weight.grad[row, 0].item()
    step = 1e-6
    with torch.no_grad():
        weight[row, 0] += step
        above = total().item()
        weight[row, 0] -= 2 * step
        below = total().item()
    assert gradient == pytest.approx((above - below) / (2 * step), rel=1e-4)
    assert gradient != 0


def test_activations_of_one_chunk_are_held_at_a_time(toy, config, monkeypatch, tmp_path):
    """Between the forward and the backward pass nothing of the encoder is kept but its embeddings."""
    encoder = load_encoder(config)
    pool = tokenise_pool(encoder, stored(toy, tmp_path))

    def kept(chunk):
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        )
        with hooks:
            embedding.embed(encoder, pool, np.arange(12), chunk)
        return sum(sizes)

    assert kept(3) < kept(None) / 20


def test_passes_hold_texts_of_like_length_within_the_budget():
    """Lengths 2, 3, 4, 5, 9 at 10 tokens: 2 x 3 = 6 fit, three would be 3 x 4; 4, 5 are 2 x 5; 9 is alone."""
    lengths = np.array([2, 3, 4, 5, 9])
    assert [(p.start, p.stop) for p in embedding._passes(lengths, None, 10)] == [(0, 2), (2, 4), (4, 5)]
    assert [(p.start, p.stop) for p in embedding._passes(lengths, 1, 10)] == [(i, i + 1) for i in range(5)]
    assert [(p.start, p.stop) for p in embedding._passes(lengths, None, None)] == [(0, 5)]
    # A text longer than the budget still gets its pass.
    assert [(p.start, p.stop) for p in embedding._passes(np.array([30]), None, 10)] == [(0, 1)]


def test_embeddings_come_in_the_order_of_the_rows(toy, config, monkeypatch, tmp_path):
    encoder = load_encoder(config).eval()
    pool = tokenise_pool(encoder, stored(toy, tmp_path))
    rows = np.array([1, 4, 20, 30])
    with torch.no_grad():
        alone = torch.cat([embedding.embed(encoder, pool, rows[[i]], None) for i in range(4)])
        monkeypatch.setattr(embedding, "TOKENS_PER_PASS", 7)
        together = embedding.embed(encoder, pool, rows, 2)
    torch.testing.assert_close(together, alone)
