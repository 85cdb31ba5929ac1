import itertools
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loss_oracles import QUERY, axis, eq3_loop

from crops.errors import CropsError
from crops.losses import h_infonce, infonce_binary, infonce_graded, kernel, nce, softmax_ce


def grads(loss, *leaves):
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("tau", [0.5, 0.05, 0.01])
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_literal_loop_of_eq_3_with_gradients(ragged, seed, tau):
    query_emb, doc_emb, index, labels = ragged(seed)
    leaves = (
        query_emb.requires_grad_(),
        doc_emb.requires_grad_(),
        torch.tensor(tau, dtype=torch.float64).requires_grad_(),
    )
    ours = h_infonce(query_emb, doc_emb, index, labels, temperature=leaves[2], reduction="sum")
    theirs = eq3_loop(query_emb, doc_emb, index, labels, leaves[2]).sum()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for mine, other in zip(grads(ours, *leaves), grads(theirs, *leaves), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tau", [0.5, 0.05, 0.01])
def test_single_precision_is_close_to_double(ragged, tau):
    double = ragged(3, queries=40, dim=32, most=20)
    single = [part.float() if part.is_floating_point() else part for part in double]
    single[0].requires_grad_(), double[0].requires_grad_()
    mine, other = h_infonce(*single, temperature=tau), h_infonce(*double, temperature=tau)
    torch.testing.assert_close(mine.double(), other, rtol=1e-5, atol=1e-6)
    mine, other = grads(mine, single[0])[0], grads(other, double[0])[0]
    torch.testing.assert_close(mine.double(), other, rtol=1e-3, atol=1e-6)


def test_equals_rax_unique_softmax(ragged):
    import jax  # takes seconds, and each worker collects each file
    import rax

    query_emb, doc_emb, index, labels = ragged(0, strays=0)
    tau = 0.1
    scores = (query_emb @ doc_emb.T / tau).numpy()
    # One list per query; documents of other queries stand below every own label.
    lists = np.where(index.numpy() == np.arange(len(query_emb))[:, None], labels.numpy(), -1)
    with jax.enable_x64(True):
        expected = rax.unique_softmax_loss(
            jax.numpy.asarray(scores),
            jax.numpy.asarray(lists),
            # Items at -1 see nothing below them and lose 0; own items at 0 are no anchors of ours.
            weights=jax.numpy.asarray((lists >= 1).astype(np.float64)),
            gain_fn=None,
            reduce_fn=jax.numpy.sum,
        )
    ours = h_infonce(query_emb, doc_emb, index, labels, temperature=tau, reduction="sum")
    assert float(ours) == pytest.approx(float(expected), rel=1e-9)


def test_figure_4():
    """q1 with d1 (label 5), d2 (4), d3 (1); q2 with d4 (4), d5 (2): who stands in whose denominator."""
    mask = torch.tensor(
        [  # d1 d2 d3 d4 d5
            [1, 1, 1, 1, 1],  # anchor d1 of q1: all are worse or another query's
            [0, 1, 1, 1, 1],  # anchor d2 of q1: d1 is better, so left out
            [0, 0, 1, 1, 1],  # anchor d3 of q1
            [1, 1, 1, 1, 1],  # anchor d4 of q2
            [1, 1, 1, 0, 1],  # anchor d5 of q2: d4 is better, so left out
        ],
        dtype=torch.bool,
    )
    torch.manual_seed(0)
    query_emb, doc_emb = (F.normalize(torch.randn(n, 3, dtype=torch.float64), dim=1) for n in (2, 5))
    index, labels = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([5, 4, 1, 4, 2])
    scores = (query_emb @ doc_emb.T / 0.3)[index]
    expected = torch.logsumexp(scores.masked_fill(~mask, -torch.inf), dim=1) - scores.diagonal()
    ours = h_infonce(query_emb, doc_emb, index, labels, temperature=0.3, reduction="none")
    torch.testing.assert_close(ours, expected)


A, B, C, D = (math.exp(x) for x in (0.8, 0.6, 0.5, 0.1))
BY_HAND = {
    # label 0 is a negative, no anchor
    "a group": ([0, 0, 0], [2, 1, 0], {}, [(A + B + C) / A, (B + C) / B, 1]),
    # queries 0 and 1 are one query: each has only the document of the third as a negative
    "a query twice": ([0, 1, 2], [1, 1, 1], {"query_id": [9, 9, 4]},
                      [(A + C) / A, (B + C) / B, (A + B + C) / C]),
    # documents 1 and 2 are one item, 0 and 3 another. d0: own lower b; d1: nothing; d2: a and the stray d
    "a document twice": ([0, 0, 1, -1], [2, 1, 1, 0], {"doc_id": [10, 11, 11, 10]},
                         [(A + B) / A, 1, (C + A + D) / C, 1]),
    "a known positive of query 0": ([0, 1, 1], [1, 1, 1], {"doc_id": [10, 11, 12], "known": [[0], [12]]},
                                    [(A + B) / A, (B + A) / B, (C + A) / C]),
    "no anchors below label 3": ([0, 0], [3, 2], {"min_anchor_label": 3}, [(A + B) / A, 1]),
    "anchors of label 0": ([0, 1], [1, 0], {"min_anchor_label": 0}, [(A + B) / A, (A + B) / B]),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_groups_by_hand(name):
    """Documents at cosines 0.8, 0.6, 0.5, 0.1 to every query, at temperature 1."""
    index, labels, options, ratios = BY_HAND[name]
    tensors = {
        key: torch.tensor(value) if isinstance(value, list) else value for key, value in options.items()
    }
    batch = QUERY.expand(max(index) + 1, 2), axis([0.8, 0.6, 0.5, 0.1][: len(index)])
    losses = h_infonce(
        *batch, torch.tensor(index), torch.tensor(labels), temperature=1.0, reduction="none", **tensors
    )
    assert losses.exp().tolist() == pytest.approx(ratios)


@pytest.mark.parametrize("seed", range(5))
def test_id_masks_equal_the_loop_on_crowded_ids(ragged, seed):
    query_emb, doc_emb, index, labels = ragged(seed, queries=8)
    query_id = torch.randint(0, 4, (8,), generator=torch.Generator().manual_seed(seed))
    ids = {"query_id": query_id, "doc_id": torch.arange(len(index)) % 9}
    known = torch.tensor([[0, 3, 3], [4, 4, 7]])
    options = {"temperature": 0.1, "reduction": "none", "known": tuple(known), **ids}
    ours = h_infonce(query_emb, doc_emb, index, labels, **options)
    theirs = eq3_loop(query_emb, doc_emb, index, labels, 0.1, known=known.T.tolist(), **ids)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_only_the_order_of_labels_matters_and_not_that_of_documents(ragged):
    query_emb, doc_emb, index, labels = ragged(6)
    args = {"temperature": 0.1, "reduction": "none"}
    straight = h_infonce(query_emb, doc_emb, index, labels, **args)
    stretched = torch.tensor([0, 3, 50, 51, 900, 10**9])[labels]
    torch.testing.assert_close(h_infonce(query_emb, doc_emb, index, stretched, **args), straight)
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    shuffled = h_infonce(query_emb, doc_emb[order], index[order], labels[order], **args)
    torch.testing.assert_close(shuffled, straight[order])


def test_binary_form_is_infonce_over_positives(ragged):
    """Each positive against all own non-positives and all other queries' documents, as a cross-entropy."""
    query_emb, doc_emb, index, labels = ragged(8)
    ours = infonce_binary(
        query_emb, doc_emb, index, labels, temperature=0.2, positive_label=4, reduction="none"
    )
    scores = query_emb @ doc_emb.T / 0.2
    for i, (q, label) in enumerate(zip(index.tolist(), labels.tolist(), strict=True)):
        if q < 0 or label < 4:
            assert ours[i] == 0
            continue
        keep = [i] + [j for j in range(len(index)) if index[j] != q or labels[j] < 4]
        assert float(ours[i]) == pytest.approx(
            float(F.cross_entropy(scores[q, keep], torch.tensor(0))), rel=1e-9
        )


def test_memory_is_a_chunk_of_scores_never_all_of_them(ragged):
    query_emb, doc_emb, index, labels = ragged(9, queries=400, dim=8, most=40, dtype=torch.float32)
    scores = len(query_emb) * len(doc_emb)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes() // 4)
            return result

    with Watch(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "CHUNK_BYTES", 2**18)
        ids = torch.arange(len(doc_emb))
        h_infonce(query_emb.requires_grad_(), doc_emb, index, labels, temperature=0.05, doc_id=ids).backward()
    assert len(doc_emb) > 5000
    assert 0 < largest <= kernel.MIN_CHUNK * len(doc_emb) < scores / 10


LOSSES = [h_infonce, infonce_binary, infonce_graded, softmax_ce, nce]
UNIT = F.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), dim=1)
EYE = torch.eye(4)

CASES = {
    "equal labels": (UNIT[:2], UNIT[2:7], [0, 0, 1, 1, 1], [4, 4, 4, 4, 4]),
    "one document per query": (UNIT[:2], UNIT[2:4], [0, 1], [4, 5]),
    "one query": (UNIT[:1], UNIT[2:5], [0, 0, 0], [5, 4, 1]),
    "one query, one document": (UNIT[:1], UNIT[2:4], [0, -1], [5, 0]),
    "a query of label 0 only": (UNIT[:2], UNIT[2:6], [0, 0, 1, 1], [0, 0, 5, 0]),
    "unsorted": (UNIT[:3], UNIT[3:9], [2, 0, 1, 0, 2, 1], [4, 5, 4, 1, 2, 0]),
    "strays": (UNIT[:1], UNIT[2:6], [-1, 0, -1, 0], [5, 4, 0, 0]),
    "perfect match": (EYE[:2], EYE[:2], [0, 1], [4, 4]),
    "perfect mismatch": (EYE[:2], -EYE[:2], [0, 1], [4, 4]),
    "all hidden": (UNIT[:2], UNIT[2:4], [0, 1], [4, 4], {"query_id": [1, 1]}),
}


def run(loss, case, tau, **options):
    query_emb, doc_emb, index, labels, *ids = case
    query_emb, doc_emb = query_emb.clone().requires_grad_(), doc_emb.clone().requires_grad_()
    temperature = torch.tensor(tau, requires_grad=True)
    for name, values in (ids[0] if ids else {}).items():
        options[name] = torch.tensor(values)
    value = loss(
        query_emb, doc_emb, torch.tensor(index), torch.tensor(labels), temperature=temperature, **options
    )
    return value, torch.autograd.grad(value.sum(), [query_emb, doc_emb, temperature])


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_and_no_gradients_change_no_value(loss):
    query_emb, doc_emb, *rest = CASES["unsorted"]
    index, labels = map(torch.tensor, rest)
    with torch.no_grad():
        quiet = loss(query_emb, doc_emb, index, labels, temperature=0.05)
    assert quiet.item() == pytest.approx(run(loss, CASES["unsorted"], 0.05)[0].item())
    query_emb = query_emb.bfloat16().requires_grad_()
    value = loss(query_emb, doc_emb.bfloat16(), index, labels, temperature=0.05)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(quiet.item(), rel=0.05)
    assert query_emb.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loss", LOSSES)
def test_finite_and_not_negative_with_finite_gradients(loss, name):
    for tau, reduction in itertools.product((1.0, 0.05, 0.01, 1 / 300 + 1e-6), ("mean", "none")):
        value, gradients = run(loss, CASES[name], tau, reduction=reduction)
        assert value.isfinite().all(), (tau, reduction)
        assert (value >= 0).all(), (tau, reduction)
        assert all(gradient.isfinite().all() for gradient in gradients), (tau, reduction)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss is not nce])
def test_nothing_to_contrast_with_is_zero_loss_and_zero_gradient(loss):
    value, gradients = run(loss, CASES["all hidden"], 0.05)
    assert value.item() == 0
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("loss", LOSSES)
def test_huge_scores_keep_their_exact_loss(loss):
    """Cosines -1 and 1 at tau 0.01: the loss is 200, which a plain exponential cannot hold."""
    value, (query_grad, _, _) = run(loss, (EYE[:1], torch.stack([-EYE[0], EYE[0]]), [0, -1], [4, 0]), 0.01)
    assert value.item() == pytest.approx(200.0)  # nce: 100 for the anchor, 100 for the noise
    # dL/dq = (d_negative - d_positive) / tau
    assert query_grad[0].tolist() == pytest.approx([200.0, 0, 0, 0])


@pytest.mark.parametrize("loss", LOSSES)
def test_a_group_of_label_0_still_gives_negatives_but_no_pull(loss):
    value, (query_grad, doc_grad, _) = run(loss, CASES["a query of label 0 only"], 0.5, reduction="none")
    assert value[[0, 1, 3]].tolist() == [0, 0, 0]
    assert (query_grad[0] == 0).all()
    assert (doc_grad[:2] != 0).any()


@pytest.mark.parametrize("loss", LOSSES)
def test_one_query_with_one_label_is_told(loss):
    lone = UNIT[:1], UNIT[2:5], torch.zeros(3).long()
    with pytest.warns(UserWarning, match="none is contrasted with a worse one"):
        loss(*lone, torch.tensor([4, 4, 4]), temperature=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(*lone, torch.tensor([4, 4, 1]), temperature=0.05)
        loss(*lone[:2], torch.tensor([0, 0, -1]), torch.tensor([4, 4, 4]), temperature=0.05)


Q, D, INDEX, LABELS = UNIT[:2], UNIT[2:5], torch.tensor([0, 0, 1]), torch.tensor([5, 1, 4])
NAN, LONG = D.clone(), D.clone()
NAN[1, 2], LONG[2] = float("nan"), LONG[2] * 3
FAULTS = {
    "doc_emb row 1 holds NaN": {"doc_emb": NAN},
    "doc_emb row 2 has length 3; normalise": {"doc_emb": LONG},
    "query_emb row 0 has length 0": {"query_emb": torch.zeros(2, 4)},
    "non-empty matrix": {"query_emb": torch.zeros(0, 4)},
    "differ in width: query_emb 4, doc_emb 3": {"doc_emb": F.normalize(D[:, :3], dim=1)},
    "one type and device": {"doc_emb": D.double()},
    "floating-point": {"query_emb": torch.ones(2, 4).long()},
    "query_index has shape \\[2\\]": {"query_index": INDEX[:2]},
    "query_index is torch.float32; give integers": {"query_index": INDEX.float()},
    "query_index holds 0..2 for 2 queries": {"query_index": INDEX + torch.tensor([0, 0, 1])},
    "query_emb row 0 has no document": {"query_index": INDEX * 0 + 1},
    "labels has shape": {"labels": LABELS[:, None]},
    "negative label": {"labels": LABELS - 2},
    "temperature is 0;": {"temperature": 0.0},
    "temperature is nan": {"temperature": float("nan")},
    "temperature has shape \\[2\\]": {"temperature": torch.ones(2)},
    "the batch has no anchor": {"labels": LABELS * 0},
    "query_id has shape \\[3\\]; give \\[2\\]": {"query_id": torch.arange(3)},
    "doc_id has shape \\[2\\]; give \\[3\\]": {"doc_id": torch.arange(2)},
    "give doc_id as well": {"known": (torch.tensor([0]), torch.tensor([1]))},
    "known rows hold 5 for 2 queries": {"doc_id": torch.arange(3),
                                        "known": (torch.tensor([5]), torch.tensor([1]))},
    "log_q is torch.int64": {"log_q": torch.arange(3)},
    "log_q is torch.float32 \\[2\\]": {"log_q": torch.zeros(2)},
    "log_q reaches inf": {"log_q": torch.tensor([0.0, -float("inf"), 0.0])},
    "margin is nan": {"margin": float("nan")},
    "label_weights gives label 1 the weight -1": {"label_weights": {1: -1}},
    "unknown reduction 'avg'": {"reduction": "avg"},
}  # fmt: skip


@pytest.mark.parametrize("message", FAULTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_bad_input_is_named(loss, message):
    good = {"query_emb": Q, "doc_emb": D, "query_index": INDEX, "labels": LABELS, "temperature": 0.05}
    loss(**good)
    with pytest.raises(CropsError, match=message):
        loss(**(good | FAULTS[message]))
