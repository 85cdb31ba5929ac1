"""Weights, margins and frequencies by hand, and what they must not cost."""

import math

import pytest
import torch
from loss_oracles import QUERY, axis

from crops.losses import h_infonce, infonce_graded, kernel, nce, softmax_ce


@pytest.mark.parametrize("loss", [h_infonce, softmax_ce, nce])
def test_a_label_weight_multiplies_the_anchors_loss_and_keeps_the_count(loss):
    batch = QUERY, axis([0.8, 0.6, 0.0]), torch.zeros(3).long(), torch.tensor([2, 1, 0])
    plain = loss(*batch, temperature=1.0, reduction="none")
    weights = {2: 3.0, 7: 9.0}
    weighted = loss(*batch, temperature=1.0, reduction="none", label_weights=weights)
    assert weighted.tolist() == pytest.approx([3 * float(plain[0]), float(plain[1]), 0])
    mean = loss(*batch, temperature=1.0, label_weights=weights)
    assert float(mean) == pytest.approx(float(weighted.sum()) / (1 if loss is softmax_ce else 2))
    # a weight of zero takes the anchor out, but not as a negative
    weightless = loss(*batch, temperature=1.0, reduction="none", label_weights={1: 0.0})
    assert weightless.tolist() == pytest.approx([float(plain[0]), 0, 0])


MARGIN_CASES = {
    # Foreign cosines 0.9, 0.7, 0.1; the best anchor has 0.8: what is above 0.8 - margin goes.
    0.0: [0.7, 0.1],
    0.2: [0.1],
    -0.2: [0.9, 0.7, 0.1],
    2.0: [],
}


@pytest.mark.parametrize("margin", MARGIN_CASES)
def test_margin_spares_foreign_documents_above_the_best_anchor(margin):
    """The own document at 0.95 is no anchor and sets no bound; own documents are never spared."""
    doc_emb = axis([0.8, 0.2, 0.95, 0.9, 0.7, 0.1])
    index, labels = torch.tensor([0, 0, 0, -1, -1, -1]), torch.tensor([5, 3, 0, 0, 0, 0])
    losses = h_infonce(QUERY, doc_emb, index, labels, temperature=1.0, reduction="none", margin=margin)
    foreign = sum(math.exp(c) for c in MARGIN_CASES[margin])
    a, b, c = math.exp(0.8), math.exp(0.2), math.exp(0.95)
    expected = [math.log((a + b + c + foreign) / a), math.log((b + c + foreign) / b), 0, 0, 0, 0]
    assert losses.tolist() == pytest.approx(expected)


def test_log_q_is_taken_off_foreign_scores_only():
    """A document expected 4 times per batch counts a quarter, one expected half a time counts twice."""
    doc_emb = axis([0.8, 0.6, 0.5, 0.1])
    index, labels = torch.tensor([0, 0, -1, -1]), torch.tensor([5, 1, 0, 0])
    log_q = torch.tensor([9.0, -9.0, math.log(4), math.log(0.5)], dtype=torch.float64)
    losses = h_infonce(QUERY, doc_emb, index, labels, temperature=1.0, reduction="none", log_q=log_q)
    a, b = math.exp(0.8), math.exp(0.6)
    foreign = math.exp(0.5) / 4 + math.exp(0.1) * 2
    assert losses.tolist() == pytest.approx(
        [math.log((a + b + foreign) / a), math.log((b + foreign) / b), 0, 0]
    )
    # the margin is measured before frequencies are taken off
    batch = QUERY, axis([0.8, 0.7]), torch.tensor([0, -1]), torch.tensor([5, 0])
    log_q = torch.tensor([0.0, -3.0], dtype=torch.float64)
    loss = h_infonce(*batch, temperature=1.0, margin=0.0, log_q=log_q)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(0.7 + 3 - 0.8)))


@pytest.mark.parametrize("loss", [h_infonce, softmax_ce])
@pytest.mark.parametrize("size", [50.0, -50.0])
def test_extreme_frequencies_and_temperatures_stay_exact(loss, size):
    """Cosine -1 for the anchor, 1 for the stray, tau 1/250: the loss is 500 less log_q."""
    doc_emb, index, labels = axis([-1.0, 1.0]).float(), torch.tensor([0, -1]), torch.tensor([4, 0])
    query_emb = QUERY.float().requires_grad_()
    value = loss(query_emb, doc_emb, index, labels, temperature=1 / 250, log_q=torch.tensor([0.0, size]))
    value.backward()
    assert value.item() == pytest.approx(500 - size)
    assert query_emb.grad[0].tolist() == pytest.approx([500, 0])


@pytest.mark.parametrize("loss", [h_infonce, softmax_ce, nce])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_chunks_do_not_change_options(ragged, monkeypatch, loss, reduction):
    query_emb, doc_emb, index, labels = ragged(4, queries=9)
    query_emb.requires_grad_()
    options = {
        "doc_id": torch.arange(len(index)) % 11,
        "query_id": torch.arange(9) % 5,
        "reduction": reduction,
        "margin": 0.1,
        "log_q": torch.linspace(-1, 1, len(index)),
        "label_weights": {3: 2.0},
    }
    values = []
    for rows in (32, 2):
        monkeypatch.setattr(kernel, "MIN_CHUNK", rows)
        monkeypatch.setattr(kernel, "CHUNK_BYTES", 1)
        value = loss(query_emb, doc_emb, index, labels, temperature=0.1, **options).sum()
        values.append((value, *torch.autograd.grad(value, query_emb)))
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)


class Count(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the large operations: matrix products and passes of exp over at least `size` elements."""

    def __init__(self, size):
        super().__init__()
        self.size, self.products, self.exps = size, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.products += name in ("mm", "addmm", "addmm_", "bmm")
        if name in ("exp", "exp_", "sigmoid_", "log_sigmoid_forward", "log1p", "logsumexp"):
            self.exps += args[0].numel() >= self.size
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options", [{}, {"margin": 0.1, "log_q": True, "label_weights": {3: 2.0}, "doc_id": True}]
)
@pytest.mark.parametrize("loss", [h_infonce, softmax_ce])
def test_three_products_and_one_pass_of_exp_whatever_the_options(ragged, loss, options):
    query_emb, doc_emb, index, labels = ragged(1, queries=20, dim=16, dtype=torch.float32)
    options = dict(options)
    if options:
        options |= {"log_q": torch.zeros(len(index)), "doc_id": torch.arange(len(index)) % 50}
    tau = torch.tensor(0.05, requires_grad=True)
    query_emb.requires_grad_(), doc_emb.requires_grad_()
    with Count(len(query_emb) * len(doc_emb)) as count:
        loss(query_emb, doc_emb, index, labels, temperature=tau, **options).backward()
    assert (count.products, count.exps) == (3, 1)
    with Count(len(query_emb) * len(doc_emb)) as count, torch.no_grad():
        loss(query_emb, doc_emb, index, labels, temperature=tau, **options)
    assert (count.products, count.exps) == (1, 1)


def test_a_pass_per_positive_costs_its_products_each(ragged):
    """What the paper's InfoNCE pays: three products for each anchor of the query that has most."""
    query_emb, doc_emb, index, labels = ragged(1, queries=20, dim=16, dtype=torch.float32)
    anchors = torch.bincount(index[(index >= 0) & (labels >= 1)])
    with Count(10**9) as count:
        infonce_graded(query_emb.requires_grad_(), doc_emb, index, labels, temperature=0.05).backward()
    assert count.products == 3 * int(anchors.max())


def test_the_upstream_gradient_is_applied_and_a_second_backward_is_the_same(ragged):
    query_emb, doc_emb, index, labels = ragged(1)
    query_emb.requires_grad_(), doc_emb.requires_grad_()
    loss = h_infonce(query_emb, doc_emb, index, labels, temperature=0.1)
    loss.backward(retain_graph=True)
    once = query_emb.grad.clone(), doc_emb.grad.clone()
    (2 * loss).backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close((query_emb.grad, doc_emb.grad), (4 * once[0], 4 * once[1]))
