r"""InfoNCE over ragged groups of graded documents: H-InfoNCE and its binary form.

Both are sums over anchors of $-\log \frac{e^{s_i}}{e^{s_i} + \sum_{j \in N_i} e^{s_j}}$ with
$s = \cos(q, d) / \tau$; they differ in who is an anchor and in the negatives $N_i$.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from crops.errors import CropsError
from crops.losses.checks import check_embeddings, check_groups, check_identity, check_temperature
from crops.losses.contrast import ContrastFunction, Plan
from crops.losses.identity import hidden_pairs

Reduction = Literal["mean", "sum", "none"]


def h_infonce(
    query_emb: Tensor,
    doc_emb: Tensor,
    query_index: Tensor,
    labels: Tensor,
    *,
    temperature: Tensor | float,
    query_id: Tensor | None = None,
    doc_id: Tensor | None = None,
    min_anchor_label: int = 1,
    reduction: Reduction = "mean",
    known: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    r"""H-InfoNCE (CroPS, arXiv 2511.15443, Eq. 3): every graded document is told from all that is worse.

    $N_i$ of an anchor $d_i$ of query $q$ = the documents of $q$ with a strictly lower label, and all of other
    queries. Documents of $q$ with an equal or higher label are left out. With $q$'s documents as one list and
    the others at label -1 it is the unique softmax loss (Zhu & Klabjan 2020).

    Args:
        query_emb: [Q, d], L2-normalised.
        doc_emb: [N, d], L2-normalised.
        query_index: [N] integers, the row of each document's query, in any order; -1 = of no query here
            (gathered or random): a negative for all, never an anchor.
        labels: [N] integers >= 0; only their order matters. Ignored where `query_index` is -1.
        temperature: tau, a number or a scalar tensor (which then gets its gradient).
        query_id: [Q] integers; documents of another row with the same id are no negatives.
        doc_id: [N] integers; a document of another row whose id is also in a query's own group is no negative
            of that query.
        min_anchor_label: own documents below it are negatives only.
        reduction: "mean" over anchors, "sum", or "none": one entry per document, zero where it is no anchor.
        known: two [K] tensors, rows and document ids: positives of the batch's queries that are not in the
            batch; needs `doc_id`. Another query's document with such an id is no negative.

    Returns:
        A scalar, or [N] for "none".

    Raises:
        CropsError: an argument has a wrong shape, type or range, an embedding is not finite and of unit
            length, or no document is an anchor.
    """
    check_embeddings(query_emb, doc_emb)
    check_groups(len(query_emb), len(doc_emb), query_index, labels)
    tau = temperature
    if not isinstance(tau, Tensor):
        tau = torch.tensor(tau, dtype=torch.float64, device=query_emb.device)
    check_temperature(tau)
    if reduction not in ("mean", "sum", "none"):
        raise CropsError(f"unknown reduction '{reduction}'; known: mean, sum, none")
    check_identity(len(query_emb), len(doc_emb), query_id, doc_id, known)
    hidden = hidden_pairs(query_index, query_id, doc_id, known)
    plan = Plan.build(query_index, labels, min_anchor_label, hidden)
    anchors = int(plan.anchor.sum())
    if anchors == 0:
        raise CropsError(
            f"the batch has no anchor: no document of a query has a label of {min_anchor_label} or more. "
            "Draw groups with positives or lower the bound"
        )
    scale = {"mean": 1 / anchors, "sum": 1.0, "none": None}[reduction]
    if query_emb.dtype in (torch.float16, torch.bfloat16):
        query_emb, doc_emb = query_emb.float(), doc_emb.float()
    with torch.autocast(query_emb.device.type, enabled=False):
        result: Tensor = ContrastFunction.apply(query_emb, doc_emb, tau, plan, scale)  # type: ignore[no-untyped-call]
    return result


def infonce_binary(
    query_emb: Tensor,
    doc_emb: Tensor,
    query_index: Tensor,
    labels: Tensor,
    *,
    temperature: Tensor | float,
    query_id: Tensor | None = None,
    doc_id: Tensor | None = None,
    positive_label: int = 4,
    reduction: Reduction = "mean",
    known: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    r"""InfoNCE on binary labels (CroPS, Table 3): positives, and everything else is a negative.

    Anchors are the documents with a label of at least `positive_label`; $N_i$ = every other own document that
    is no positive, and all documents of other queries. That is H-InfoNCE on the labels 1 and 0.

    Args:
        query_emb: see `h_infonce`.
        doc_emb: see `h_infonce`.
        query_index: see `h_infonce`.
        labels: see `h_infonce`.
        temperature: see `h_infonce`.
        query_id: see `h_infonce`.
        doc_id: see `h_infonce`.
        positive_label: lowest label of a positive.
        reduction: see `h_infonce`.
        known: see `h_infonce`.

    Raises:
        CropsError: as `h_infonce`.
    """
    # A negative label stays one, to be refused by name.
    binary = torch.where(labels < 0, labels, (labels >= positive_label).to(labels.dtype))
    return h_infonce(
        query_emb,
        doc_emb,
        query_index,
        binary,
        temperature=temperature,
        query_id=query_id,
        doc_id=doc_id,
        reduction=reduction,
        known=known,
    )
