"""infonce_graded, softmax_ce and nce: by hand, against literal loops, and on the shared signature."""

import math

import pytest
import torch
import torch.nn.functional as F
from loss_oracles import QUERY, appendix, axis, eq3_loop, listwise_loop, logistic_loop

from crops.errors import CropsError
from crops.losses import h_infonce, infonce_graded, nce, softmax_ce


def leaves(batch, tau):
    query_emb, doc_emb, index, labels = batch
    temperature = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    return query_emb.requires_grad_(), doc_emb.requires_grad_(), index, labels, temperature


def assert_same(ours, theirs, *wrt):
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    for mine, other in zip(torch.autograd.grad(ours, wrt), torch.autograd.grad(theirs, wrt), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tau", [0.5, 0.05, 0.01])
def test_h_infonce_equals_the_papers_n_by_n_form(ragged, tau):
    q, d, index, labels, temperature = leaves(ragged(11, strays=0, levels=9), tau)
    ours = h_infonce(q, d, index, labels, temperature=temperature, min_anchor_label=0, reduction="sum")
    assert_same(ours, appendix(q, d, index, labels, temperature).sum(), q, d, temperature)


# infonce_graded


@pytest.mark.parametrize("positives", ["each", "all"])
@pytest.mark.parametrize("seed", range(3))
def test_graded_infonce_equals_one_example_per_anchor(ragged, seed, positives):
    q, d, index, labels, tau = leaves(ragged(seed), 0.1)
    ours = infonce_graded(q, d, index, labels, temperature=tau, positives=positives, reduction="sum")
    assert_same(ours, eq3_loop(q, d, index, labels, tau).sum(), q, d, tau)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_graded_infonce_passes_add_up_with_every_option(ragged, reduction):
    batch = ragged(4)
    options = {
        "temperature": 0.1,
        "reduction": reduction,
        "query_id": torch.tensor([0, 1, 2, 1, 3]),
        "doc_id": torch.arange(len(batch[2])) % 9,
        "min_anchor_label": 2,
        "label_weights": {5: 2.0},
        "margin": 0.1,
        "log_q": torch.linspace(-2, 1, len(batch[2])),
    }
    each = infonce_graded(*batch, positives="each", **options)
    torch.testing.assert_close(each, infonce_graded(*batch, positives="all", **options))
    torch.testing.assert_close(each, h_infonce(*batch, **options))


def test_a_pass_takes_each_querys_next_best_anchor():
    """Labels 2, 5, 0 and 3: pass 0 trains the 5 and the 3, pass 1 the 2; there is no pass 2."""
    query_emb, doc_emb = QUERY.expand(2, 2), axis([0.8, 0.6, 0.0, 0.5])
    index, labels = torch.tensor([0, 0, 0, 1]), torch.tensor([2, 5, 0, 3])
    a, b, c, d = (math.exp(x) for x in (0.8, 0.6, 0.0, 0.5))
    first, second = (
        infonce_graded(query_emb, doc_emb, index, labels, temperature=1.0, positives=k, reduction="none")
        for k in (0, 1)
    )
    # The 5 has 2 and 0 below it and the other query's d; the 3 has the other query's three.
    expected = [0, math.log((a + b + c + d) / b), 0, math.log((a + b + c + d) / d)]
    assert first.tolist() == pytest.approx(expected)
    assert second.tolist() == pytest.approx([math.log((a + c + d) / a), 0, 0, 0])
    mean = infonce_graded(query_emb, doc_emb, index, labels, temperature=1.0, positives=0)
    assert float(mean) == pytest.approx(sum(expected) / 2)
    with pytest.raises(CropsError, match="no query has 3 anchors; the batch has 2 passes"):
        infonce_graded(query_emb, doc_emb, index, labels, temperature=1.0, positives=2)
    with pytest.raises(CropsError, match="unknown positives 'some'"):
        infonce_graded(query_emb, doc_emb, index, labels, temperature=1.0, positives="some")


# softmax_ce


def test_listwise_by_hand():
    """Labels 2, 1, 0: gains 3, 1, 0, targets 3/4, 1/4, 0; a stray stands in the denominator."""
    doc_emb, index, labels = (
        axis([0.8, 0.6, 0.0, 0.5]),
        torch.tensor([0, 0, 0, -1]),
        torch.tensor([2, 1, 0, 9]),
    )
    terms = softmax_ce(QUERY, doc_emb, index, labels, temperature=1.0, reduction="none")
    z = math.exp(0.8) + math.exp(0.6) + 1 + math.exp(0.5)
    assert terms.tolist() == pytest.approx([0.75 * (math.log(z) - 0.8), 0.25 * (math.log(z) - 0.6), 0, 0])
    own = softmax_ce(QUERY, doc_emb, index, labels, temperature=1.0, reduction="none", denominator="own")
    z -= math.exp(0.5)
    assert own.tolist() == pytest.approx([0.75 * (math.log(z) - 0.8), 0.25 * (math.log(z) - 0.6), 0, 0])
    total = softmax_ce(QUERY, doc_emb, index, labels, temperature=1.0, reduction="sum", denominator="own")
    assert float(total) == pytest.approx(float(own.sum()))


def test_listwise_keeps_a_higher_own_label_in_the_denominator():
    """The paper's criticism: d2 (label 1) is pushed away from d1 (label 2), which H-InfoNCE masks."""
    doc_emb, index, labels = axis([0.8, 0.6]), torch.zeros(2).long(), torch.tensor([2, 1])
    a, b = math.exp(0.8), math.exp(0.6)
    listwise = softmax_ce(QUERY, doc_emb, index, labels, temperature=1.0, reduction="none")
    assert float(listwise[1]) == pytest.approx(0.25 * math.log((a + b) / b))
    assert float(h_infonce(QUERY, doc_emb, index, labels, temperature=1.0, reduction="none")[1]) == 0
    lower = softmax_ce(QUERY, doc_emb, index, labels, temperature=1.0, reduction="none", denominator="lower")
    assert lower.tolist() == pytest.approx([0.75 * math.log((a + b) / a), 0])


@pytest.mark.parametrize("denominator", ["batch", "lower", "own"])
@pytest.mark.parametrize("tau", [0.5, 0.05, 0.01])
@pytest.mark.parametrize("seed", range(3))
def test_listwise_equals_the_loop(ragged, seed, tau, denominator):
    q, d, index, labels, temperature = leaves(ragged(seed), tau)
    ours = softmax_ce(q, d, index, labels, temperature=temperature, denominator=denominator)
    theirs = listwise_loop(q, d, index, labels, temperature, denominator).mean()
    assert_same(ours, theirs, q, d, temperature)


def test_listwise_min_anchor_label_takes_lower_gains_out_of_the_target():
    index, labels = torch.zeros(3).long(), torch.tensor([3, 2, 1])
    terms = softmax_ce(
        QUERY, axis([0.8, 0.6, 0.0]), index, labels, temperature=1.0, reduction="none", min_anchor_label=2
    )
    log_z = math.log(math.exp(0.8) + math.exp(0.6) + 1)
    assert terms.tolist() == pytest.approx([0.7 * (log_z - 0.8), 0.3 * (log_z - 0.6), 0])


@pytest.mark.parametrize(
    ("message", "fault"),
    {
        "labels reach 51": {"labels": torch.tensor([51, 0])},
        "every label is 0": {"labels": torch.tensor([0, 0]), "min_anchor_label": 0},
        "unknown denominator 'all'": {"denominator": "all"},
        "denominator='own' has none": {"denominator": "own", "margin": 0.1},
    }.items(),
)
def test_listwise_faults(message, fault):
    good = {"labels": torch.tensor([5, 0]), "query_index": torch.arange(2), "temperature": 1.0}
    with pytest.raises(CropsError, match=message):
        softmax_ce(QUERY.expand(2, 2), axis([0.8, 0.6]), **(good | fault))


# nce


def test_noise_by_hand():
    """One anchor, noise: an own document at label 0 and a stray, so k = 2."""
    doc_emb, index, labels = axis([0.8, 0.6, 0.0]), torch.tensor([0, 0, -1]), torch.tensor([4, 0, 0])
    losses = nce(QUERY, doc_emb, index, labels, temperature=1.0, reduction="none")
    anchor = math.log(1 + 2 * math.exp(-0.8))  # -log sigmoid(0.8 - log 2)
    noise = math.log(1 + math.exp(0.6) / 2) + math.log(1 + 1 / 2)
    assert losses.tolist() == pytest.approx([anchor + noise, 0, 0])


def test_noise_is_shared_by_all_anchors_and_frequency_is_taken_off_both():
    doc_emb, index, labels = axis([0.8, 0.6, 0.0]), torch.tensor([0, 0, -1]), torch.tensor([4, 2, 0])
    log_q = torch.tensor([0.5, 0.0, -1.0], dtype=torch.float64)
    losses = nce(QUERY, doc_emb, index, labels, temperature=1.0, reduction="none", log_q=log_q)
    noise = math.log(1 + math.exp(0 + 1))
    expected = [math.log(1 + math.exp(-0.3)) + noise, math.log(1 + math.exp(-0.6)) + noise, 0]
    assert losses.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("tau", [0.5, 0.05])
@pytest.mark.parametrize("lowest", [1, 4])
def test_noise_equals_the_loop(ragged, tau, lowest):
    q, d, index, labels, temperature = leaves(ragged(2), tau)
    options = {"temperature": temperature, "min_anchor_label": lowest}
    theirs = logistic_loop(q, d, index, labels, temperature, lowest)
    ours = nce(q, d, index, labels, reduction="none", **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    ours, anchors = nce(q, d, index, labels, **options), int((labels[index >= 0] >= lowest).sum())
    assert_same(ours, theirs.sum() / anchors, q, d, temperature)


# the shared signature


@pytest.mark.parametrize("loss", [h_infonce, infonce_graded, softmax_ce, nce])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck_with_every_option(ragged, loss, reduction):
    query_emb, doc_emb, index, labels = ragged(1, queries=3, dim=4, most=3)
    options = {
        "query_id": torch.tensor([7, 8, 7]),
        "doc_id": torch.arange(len(index)) % 4,
        "label_weights": {4: 0.5, 5: 2.0},
        "margin": 0.2,
        "log_q": torch.linspace(-1, 1, len(index), dtype=torch.float64),
    }

    def run(q, d, tau):
        q, d = F.normalize(q, dim=1), F.normalize(d, dim=1)
        return loss(q, d, index, labels, temperature=tau, reduction=reduction, **options)

    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (query_emb.requires_grad_(), doc_emb.requires_grad_(), tau))


@pytest.mark.parametrize("loss", [h_infonce, infonce_graded, softmax_ce, nce])
def test_mean_is_over_anchors_and_sum_is_their_sum(ragged, loss):
    batch = ragged(3)
    none = loss(*batch, temperature=0.1, reduction="none")
    total = loss(*batch, temperature=0.1, reduction="sum")
    index, labels = batch[2:]
    trained = index[(index >= 0) & (labels >= 1)]
    terms = len(trained.unique()) if loss is softmax_ce else len(trained)
    assert float(total) == pytest.approx(float(none.sum()))
    assert float(loss(*batch, temperature=0.1)) == pytest.approx(float(total) / terms)


@pytest.mark.filterwarnings("ignore:the batch is one query")
@pytest.mark.parametrize("loss", [softmax_ce, nce])
def test_ids_leave_the_denominator_of_every_loss(loss):
    """Row 1 is row 0's query again, and the stray is row 0's document: nothing foreign is left for either."""
    query_emb, doc_emb = QUERY.expand(2, 2), axis([0.8, 0.6, 0.1])
    index, labels = torch.tensor([0, 1, -1]), torch.tensor([1, 1, 0])
    ids = {"query_id": torch.tensor([5, 5]), "doc_id": torch.tensor([1, 1, 1])}
    masked = loss(query_emb, doc_emb, index, labels, temperature=1.0, reduction="none", **ids)
    alone = [loss(QUERY, doc_emb[i : i + 1], index[:1], labels[:1], temperature=1.0).item() for i in (0, 1)]
    assert masked.tolist() == pytest.approx([*alone, 0])
    known = {"doc_id": torch.tensor([1, 2, 3]), "known": (torch.tensor([0, 0]), torch.tensor([2, 3]))}
    masked = loss(query_emb, doc_emb, index, labels, temperature=1.0, reduction="none", **known)
    assert float(masked[0]) == pytest.approx(alone[0])
