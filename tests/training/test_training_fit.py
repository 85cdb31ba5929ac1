import json

import numpy as np
import pytest
import torch
import worker
from by_hand import first_groups, stored, with_column
from sentence_transformers import SentenceTransformer

from crops.config import TrainingConfig
from crops.encoders import load_encoder, tokenise
from crops.errors import CropsError
from crops.losses import LOSSES, h_infonce
from crops.outputs import read_manifest
from crops.training import fit, pool, train, trainer
from crops.training import pool as embedding
from crops.training.groups import Batch
from crops.training.model import Share, contrast_of, objective, step_inputs
from crops.training.pool import tokenise_pool


@pytest.fixture
def config(random_encoder):
    def make(**changes):
        settings = {"init": str(random_encoder), "batch_queries": 12, "steps": 40, "learning_rate": 0.02}
        return TrainingConfig(**{**settings, **changes})

    return make


def own_topic_hits(folder, toy):
    """Of six queries never seen in training (words 0 and 3 of a topic), how many find their topic."""
    model = SentenceTransformer(str(folder), device="cpu")
    found = (
        model.encode([f"q{t}_0 q{t}_3" for t in range(6)]) @ model.encode(toy.docs["text"].to_pylist()).T
    ).argmax(axis=1)
    return sum(toy.docs["text"][int(doc)].as_py().startswith(f"d{topic}_") for topic, doc in enumerate(found))


@pytest.mark.parametrize("loss", LOSSES)
def test_training_learns_and_writes_a_plain_model(toy, config, random_encoder, tmp_path, loss):
    facts = train(toy, tmp_path / "model", config(loss=loss), seed=0)
    log = [json.loads(line) for line in (tmp_path / "model" / "training_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 41))
    assert log[0]["temperature"] == pytest.approx(0.05)
    assert facts["loss"] == pytest.approx(np.mean([line["loss"] for line in log[-4:]]))
    assert facts["loss"] < log[0]["loss"] / 3
    assert own_topic_hits(random_encoder, toy) < 4
    assert own_topic_hits(tmp_path / "model", toy) == 6
    manifest = read_manifest(tmp_path / "model", "train")
    assert manifest["temperature"] == facts["temperature"] != log[0]["temperature"]
    assert manifest["groups"] == 18


def test_an_anchor_counts_its_gain():
    wanted = objective(TrainingConfig(label_weights="gain"))
    index, labels = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([4, 1, 0, 5, 0])
    total = wanted.terms(labels.numpy(), index.numpy())
    assert total == 15 + 1 + 31
    random = torch.Generator().manual_seed(0)
    query, doc = (torch.nn.functional.normalize(torch.randn(n, 3, generator=random)) for n in (2, 5))
    each = h_infonce(query, doc, index, labels, temperature=0.1, reduction="none")
    weighted = wanted.loss(query, doc, index, labels, temperature=0.1, reduction="sum") / total
    assert float(weighted) == pytest.approx(float((15 * each[0] + each[1] + 31 * each[3]) / 47))
    with pytest.raises(CropsError, match="label_weights = 'gain' is not for the loss nce"):
        objective(TrainingConfig(label_weights="gain", loss="nce"))
    assert "label_weights" not in TrainingConfig().model_dump()  # what was trained without keeps its name


def test_the_same_seed_gives_the_same_weights_and_they_are_saved(toy, config, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(fit, "load_encoder", lambda *args: kept.append(load_encoder(*args)) or kept[-1])
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(toy, tmp_path / name, config(steps=5), seed=seed)
    a, b, c = (SentenceTransformer(str(tmp_path / name), device="cpu") for name in "abc")
    assert torch.equal(a[0].embedding.weight, b[0].embedding.weight)
    assert not torch.equal(a[0].embedding.weight, c[0].embedding.weight)
    texts = toy.docs["text"].to_pylist()
    np.testing.assert_array_equal(a.encode(texts), kept[0].encode(texts))


@pytest.mark.parametrize(("keep", "changes", "message"), [
    (0, {}, r"has 0 group\(s\); contrast needs at least two queries"),
    (1, {}, r"has 1 group\(s\)"),
    (18, {"min_anchor_label": 5}, "of 18 groups only 0 have a document of label 5 or more, which h_infonce"),
    (18, {"loss": "infonce_binary", "positive_label": 5}, "which infonce_binary needs as an anchor"),
])  # fmt: skip
def test_too_little_to_contrast_is_an_error(toy, config, tmp_path, keep, changes, message):
    with pytest.raises(CropsError, match=message):
        train(first_groups(toy, keep), tmp_path / "model", config(**changes), seed=0)
    assert list(tmp_path.iterdir()) == []


def test_groups_without_an_anchor_are_dropped_and_counted(toy, config, tmp_path):
    low = with_column(toy, "label", [1] * 8)
    facts = train(low, tmp_path / "model", config(steps=1, loss="infonce_binary"), seed=0)
    assert (facts["groups"], facts["dropped_groups"]) == (16, 2)


def test_a_gradient_that_is_not_finite_is_not_applied(toy, config, tmp_path, monkeypatch):
    steps = []

    def poisoned(parameters, *args, **kwargs):
        parameters = list(parameters)
        if len(steps) == 2:
            parameters[-1].grad[0, 0] = float("inf")
        steps.append([p.detach().clone() for p in parameters])
        return torch.nn.utils.clip_grad_norm_(parameters, *args, **kwargs)

    monkeypatch.setattr(trainer, "clip_grad_norm_", poisoned)
    with pytest.raises(CropsError, match="step 3: the gradient is not finite"):
        train(toy, tmp_path / "model", config(), seed=0)
    assert len(steps) == 3
    assert all(p.isfinite().all() for p in steps[-1])


@pytest.fixture
def inputs(toy, random_encoder, tmp_path):
    """A function from known pairs to the inputs of a batch of groups 0 and 1, whole."""
    source = stored(toy, tmp_path)
    pool = tokenise_pool(SentenceTransformer(str(random_encoder), device="cpu"), source, tmp_path)

    def of(known_index=(), known_pair=()):
        index, pair = (np.array(known, dtype=np.int64) for known in (known_index, known_pair))
        groups = source.read(np.array([0]))
        two, eight, rows = np.arange(2), np.arange(8), np.repeat([0, 1], 4)
        queries = groups.query_id[two], groups.query_text[two], rows
        docs = groups.doc_id[eight], groups.doc_text[eight], groups.label[eight]
        batch = Batch(*queries, *docs, index, groups.doc_id[pair])
        return step_inputs(batch, pool, objective(TrainingConfig()), Share())

    return of


def test_a_batch_by_hand(toy, inputs):
    # Groups 0 and 1 share the three documents of topic 0: 2 query texts, 3 shared and 2 own documents.
    named = inputs([1], [3])
    assert len(named["texts"]) == len(set(named["texts"].tolist())) == 7
    assert named["doc_text"].tolist()[:3] == named["doc_text"].tolist()[4:7]
    assert named["known_id"].tolist() == toy.pairs["item_id"].to_pylist()[3:4]
    assert named["encoded_here"].all()
    # two groups of 4 with 3 documents in common: of the other's 4, 3 are also mine, 1 is left
    counts = {"queries": 2, "documents": 8, "contrasted": 1.0, "duplicates": 3 / 8, "texts": 7}
    assert contrast_of(inputs()) == counts
    assert contrast_of(inputs([1], [3]))["contrasted"] == 0.5
    assert contrast_of(inputs(), in_batch=False)["contrasted"] == 0


def test_every_text_is_tokenised_once(toy, config, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        pool, "tokenise", lambda encoder, texts, role: seen.extend(texts) or tokenise(encoder, texts, role)
    )
    train(toy, tmp_path / "model", config(steps=3), seed=0)
    assert sorted(seen) == sorted({*toy.queries["query"].to_pylist(), *toy.docs["text"].to_pylist()})


@pytest.fixture
def transformer(tiny_transformer):
    return TrainingConfig(init=str(tiny_transformer), batch_queries=9, steps=1)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_the_gradient_in_chunks_equals_the_direct_one(toy, transformer, chunk):
    direct = worker.gradients(toy, transformer)
    chunked = worker.gradients(toy, transformer.model_copy(update={"encode_chunk": chunk}))
    torch.testing.assert_close(chunked["loss"], direct["loss"])
    assert chunked["gradients"].keys() == direct["gradients"].keys()
    for name, gradient in direct["gradients"].items():
        torch.testing.assert_close(chunked["gradients"][name], gradient, rtol=1e-8, atol=1e-12, msg=name)


def test_dropout_is_the_same_both_times(toy, tiny_dropout, tmp_path):
    """With other masks in the second pass the gradient would not be that of the differences."""
    transformer = TrainingConfig(init=str(tiny_dropout), batch_queries=9, steps=1, encode_chunk=3)
    encoder = load_encoder(transformer).double()
    pool = tokenise_pool(encoder, stored(toy, tmp_path), tmp_path)
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


def test_activations_of_one_chunk_are_held_at_a_time(toy, transformer, monkeypatch, tmp_path):
    """Between the forward and the backward pass nothing of the encoder is kept but its embeddings."""
    encoder = load_encoder(transformer)
    pool = tokenise_pool(encoder, stored(toy, tmp_path), tmp_path)

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


def test_embeddings_come_in_the_order_of_the_rows(toy, transformer, monkeypatch, tmp_path):
    encoder = load_encoder(transformer).eval()
    pool = tokenise_pool(encoder, stored(toy, tmp_path), tmp_path)
    rows = np.array([1, 4, 20, 30])
    with torch.no_grad():
        alone = torch.cat([embedding.embed(encoder, pool, rows[[i]], None) for i in range(4)])
        monkeypatch.setattr(embedding, "CPU_TOKENS", 7)
        together = embedding.embed(encoder, pool, rows, 2)
    torch.testing.assert_close(together, alone)
