"""What must hold for every loss of the package, and what each refuses."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from crops.errors import CropsError
from crops.losses import h_infonce, infonce_binary, infonce_graded, nce, softmax_ce

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


@pytest.mark.parametrize("tau", [1.0, 0.05, 0.01, 1 / 300 + 1e-6])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", LOSSES)
def test_finite_and_not_negative_with_finite_gradients(loss, reduction, name, tau):
    value, gradients = run(loss, CASES[name], tau, reduction=reduction)
    assert value.isfinite().all()
    assert (value >= 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients)


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


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_embeddings_are_taken(loss):
    query_emb, doc_emb, index, labels = CASES["unsorted"]
    query_emb = query_emb.bfloat16().requires_grad_()
    value = loss(query_emb, doc_emb.bfloat16(), torch.tensor(index), torch.tensor(labels), temperature=0.05)
    value.backward()
    assert value.dtype == torch.float32
    assert query_emb.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("loss", LOSSES)
def test_without_gradients_the_value_is_the_same(loss):
    with torch.no_grad():
        quiet = loss(*_tensors("unsorted"), temperature=0.05)
    assert quiet.item() == pytest.approx(run(loss, CASES["unsorted"], 0.05)[0].item())


def _tensors(name):
    query_emb, doc_emb, index, labels = CASES[name]
    return query_emb, doc_emb, torch.tensor(index), torch.tensor(labels)


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
    "known rows hold 5 for 2 queries": {
        "doc_id": torch.arange(3),
        "known": (torch.tensor([5]), torch.tensor([1])),
    },
    "log_q is torch.int64": {"log_q": torch.arange(3)},
    "log_q is torch.float32 \\[2\\]": {"log_q": torch.zeros(2)},
    "log_q reaches inf": {"log_q": torch.tensor([0.0, -float("inf"), 0.0])},
    "margin is nan": {"margin": float("nan")},
    "label_weights gives label 1 the weight -1": {"label_weights": {1: -1}},
    "unknown reduction 'avg'": {"reduction": "avg"},
}


@pytest.mark.parametrize("message", FAULTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_bad_input_is_named(loss, message):
    good = {"query_emb": Q, "doc_emb": D, "query_index": INDEX, "labels": LABELS, "temperature": 0.05}
    loss(**good)
    with pytest.raises(CropsError, match=message):
        loss(**(good | FAULTS[message]))
