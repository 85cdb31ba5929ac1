"""Softmax cross-entropy over lists of graded documents."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Unpack

import torch
from torch import Tensor

from crops.errors import CropsError
from crops.losses.batch import Options, Reduction, evaluate, prepare
from crops.losses.objectives import Objective, against_all, against_lower
from crops.losses.plan import Plan

MAX_LABEL = 50
"""Above it, neighbouring gains 2^label - 1 drown all lower ones in double precision."""
_OBJECTIVES: dict[str, Objective] = {"batch": against_all, "lower": against_lower}
"""By denominator: what a document with a target is told from."""


def softmax_ce(
    query_emb: Tensor,
    doc_emb: Tensor,
    query_index: Tensor,
    labels: Tensor,
    *,
    denominator: Literal["batch", "lower", "own"] = "batch",
    **options: Unpack[Options],
) -> Tensor:
    r"""Listwise softmax cross-entropy (ListNet, Cao et al. 2007; the Softmax-CE of CroPS, Table 4).

    $-\sum_i t_i \log \frac{e^{s_i}}{\sum_j e^{s_j}}$ per query, $s = \cos(q, d) / \tau$, with the target
    $t_i = (2^{l_i} - 1) / \sum_{group} (2^{l} - 1)$ and j over *all* documents of the batch: own documents of
    a higher label stand in the denominator too, which is the paper's criticism of it.

    Args:
        query_emb: [Q, d], see `h_infonce`.
        doc_emb: [N, d], see `h_infonce`.
        query_index: [N], see `h_infonce`.
        labels: [N] integers from 0 to 50, see `h_infonce`; here their size matters.
        denominator: "batch"; "lower": own documents of equal or higher label are left out, as in H-InfoNCE,
            and i itself stays (ours: the weights of Softmax-CE over the negatives of H-InfoNCE); or "own":
            j over the query's own documents only (no in-batch negatives, O(N d)); `margin` and `log_q` then
            have nothing to act on and are refused.
        **options: as of `h_infonce`, but: "mean" is over queries with an anchor; own documents below
            `min_anchor_label` have target 0; `label_weights` multiply the terms of the sum, not the targets
            before they are normalised.

    Returns:
        A scalar, or [N] for "none": the terms of the sum, one per document.

    Raises:
        CropsError: as `h_infonce`, or a label is above 50.
    """
    tau, plan = prepare(query_emb, doc_emb, query_index, labels, options)
    own_labels = labels.index_select(0, plan.doc)
    highest = int(own_labels.max())
    if highest > MAX_LABEL:
        raise CropsError(
            f"labels reach {highest}; gains 2^label - 1 need labels up to {MAX_LABEL}: map them to 0, 1, .."
        )
    plan, lists = _with_targets(plan, own_labels)
    reduction = options.get("reduction", "mean")
    if denominator in _OBJECTIVES:
        return evaluate(_OBJECTIVES[denominator], query_emb, doc_emb, tau, plan, reduction, lists)
    if denominator != "own":
        raise CropsError(f"unknown denominator '{denominator}'; known: {', '.join(_OBJECTIVES)}, own")
    if plan.margin is not None or plan.log_q is not None:
        raise CropsError("margin and log_q act on in-batch negatives; denominator='own' has none")
    return _own_lists(query_emb, doc_emb, tau[0], plan, reduction, lists)


def _with_targets(plan: Plan, own_labels: Tensor) -> tuple[Plan, int]:
    """Return the plan with each document's target in its factor, and the number of queries with one."""
    gain = torch.where(plan.anchor, torch.exp2(own_labels.double()) - 1, 0.0)
    total = gain.new_zeros(plan.queries).index_add_(0, plan.row, gain)
    lists = int((total > 0).sum())
    if lists == 0:
        raise CropsError("every label is 0 and so is every gain 2^label - 1: the batch has no target")
    return replace(plan, factor=plan.factor * gain / total[plan.row].clamp(min=1)), lists


def _own_lists(
    query_emb: Tensor, doc_emb: Tensor, temperature: Tensor, plan: Plan, reduction: Reduction, lists: int
) -> Tensor:
    """Return the cross-entropy inside each group, under autograd."""
    with torch.autocast(query_emb.device.type, enabled=False):
        cosines = (query_emb.float() if query_emb.element_size() < 4 else query_emb)[plan.row] * doc_emb[
            plan.doc
        ]
        scores = cosines.sum(dim=1).double() / temperature
        lowest = scores.new_full((plan.queries,), -torch.inf)
        shift = lowest.scatter_reduce(0, plan.row, scores.detach(), "amax")
        scores = scores - shift[plan.row]
        total = scores.new_zeros(plan.queries).index_add(0, plan.row, scores.exp())
        losses = ((total.log()[plan.row] - scores) * plan.factor).to(cosines.dtype)
    if reduction == "none":
        return losses.new_zeros(plan.documents).index_copy(0, plan.doc, losses)
    return losses.sum() / (lists if reduction == "mean" else 1)
