r"""The losses over ragged groups of graded documents: H-InfoNCE, InfoNCE, softmax cross-entropy and NCE.

The first three are sums over anchors of $-\log \frac{e^{s_i}}{e^{s_i} + \sum_{j \in N_i} e^{s_j}}$ with
$s = \cos(q, d) / \tau$; they differ in who is an anchor, in the negatives $N_i$ and in what they cost. All
take the arguments of `h_infonce`, but for what their own list names, and return and refuse what it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal, Unpack

import torch
from torch import Tensor

from crops.errors import CropsError
from crops.losses.kernel import (
    Layout,
    Objective,
    Options,
    Reduction,
    against_all,
    against_lower,
    against_noise,
    beside,
    evaluate,
    prepare,
)


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
    label_weights: Mapping[int, float] | None = None,
    margin: float | None = None,
    log_q: Tensor | None = None,
) -> Tensor:
    r"""H-InfoNCE (CroPS, arXiv 2511.15443, Eq. 3): each graded document contrasted with all that is worse.

    $N_i$ of an anchor $d_i$ of query $q$ = the documents of $q$ with a strictly lower label, and all of other
    queries. Documents of $q$ with an equal or higher label are left out. With $q$'s documents as one list and
    the others at label -1 it is the unique softmax loss (Zhu & Klabjan 2020).

    Args:
        query_emb: [Q, d], L2-normalised.
        doc_emb: [N, d], L2-normalised.
        query_index: [N] integers, the row of each document's query, in any order; -1 = of no query here
            (gathered or random): a negative for all, never an anchor. Every query has a document.
        labels: [N] integers >= 0; only their order matters. Ignored where `query_index` is -1.
        temperature: tau, a number or a scalar tensor (which then gets its gradient).
        query_id: [Q] integers; documents of another row with the same id are no negatives.
        doc_id: [N] integers; a document of another row whose id is also in a query's own group is no negative
            of that query.
        min_anchor_label: own documents below it are negatives only.
        reduction: "mean" over anchors, "sum", or "none": one entry per document, zero where it is no anchor
            (its gradient takes a fourth matrix product).
        known: two [K] tensors, rows and document ids: positives of the batch's queries that are not in the
            batch; needs `doc_id`. Another query's document with such an id is no negative.
        label_weights: factor of an anchor's loss by its label, >= 0, 1 where not named; "mean" still divides
            by the number of anchors.
        margin: false-negative margin: a document of another query whose cosine with q exceeds that of q's
            best-scored anchor less `margin` is taken for an unlabelled positive and leaves q's denominator
            (as GISTEmbed, arXiv 2402.16829, does with a guide's scores; negative margins spare fewer).
            Similarity is a guess: prefer ids.
        log_q: [N] natural logarithm of each document's expected number of copies in a batch, taken off its
            score where it is another query's negative (Yi et al., RecSys 2019), so that the in-batch sum
            estimates the catalogue's. Own documents are in every denominator of their query and need none.

    Returns:
        A scalar, or [N] for "none".

    Raises:
        CropsError: an argument has a wrong shape, type or range, an embedding is not finite and of unit
            length, a query has no document, or no document is an anchor.
    """
    options = Options(
        temperature=temperature,
        query_id=query_id,
        doc_id=doc_id,
        min_anchor_label=min_anchor_label,
        reduction=reduction,
        known=known,
        label_weights=label_weights,
        margin=margin,
        log_q=log_q,
    )
    tau, layout = prepare(query_emb, doc_emb, query_index, labels, options)
    return evaluate(against_lower, query_emb, doc_emb, tau, layout, reduction)


def infonce_binary(
    query_emb: Tensor,
    doc_emb: Tensor,
    query_index: Tensor,
    labels: Tensor,
    *,
    positive_label: int = 4,
    **options: Unpack[Options],
) -> Tensor:
    r"""InfoNCE on binary labels (CroPS, Table 3): positives, and everything else is a negative.

    Anchors are the documents with a label of at least `positive_label`; $N_i$ = every other own document that
    is no positive, and all documents of other queries. That is H-InfoNCE on the labels 1 and 0.

    Args:
        positive_label: lowest label of a positive; it stands in place of `min_anchor_label`.
        **options: as of `h_infonce`; `label_weights` name the labels 1 and 0.
    """
    # A negative label stays one, to be refused by name.
    binary = torch.where(labels < 0, labels, (labels >= positive_label).to(labels.dtype))
    return h_infonce(query_emb, doc_emb, query_index, binary, **options)


def infonce_graded(
    query_emb: Tensor,
    doc_emb: Tensor,
    query_index: Tensor,
    labels: Tensor,
    *,
    positives: Literal["each", "all"] | int = "each",
    **options: Unpack[Options],
) -> Tensor:
    r"""InfoNCE on graded labels (CroPS, Table 4, our reading): one positive of each query at a time.

    Each anchor is an example of its own: $N_i$ = the documents of its query with a strictly lower label and
    the in-batch documents, all those of other queries. The paper's InfoNCE takes one positive of a query per
    pass, which is what makes it slow; nothing forces that. On one batch the passes add up to the value and
    gradient of `h_infonce`: what H-InfoNCE saves is the passes.

    Args:
        positives: "each" = a pass over the batch per positive, summed: pass k takes every query's k-th
            anchor, by falling label; "all" = batched, all anchors in one pass; a number k = pass k alone
            (from 0), the loss of a training step that sees one positive per query ("mean": over its anchors).
        **options: as of `h_infonce`.

    Raises:
        CropsError: as `h_infonce`, or no query has a k-th anchor.
    """
    tau, layout = prepare(query_emb, doc_emb, query_index, labels, options)
    reduction = options.get("reduction", "mean")
    if positives == "all":
        return evaluate(against_lower, query_emb, doc_emb, tau, layout, reduction)
    if positives == "each":
        terms = [
            evaluate(against_lower, query_emb, doc_emb, tau, one, reduction, layout.anchors)
            for one in _passes(layout)
        ]
        return torch.stack(terms).sum(dim=0)
    if isinstance(positives, int) and positives >= 0:
        for k, one in enumerate(_passes(layout)):
            if k == positives:
                return evaluate(against_lower, query_emb, doc_emb, tau, one, reduction)
        raise CropsError(f"no query has {positives + 1} anchors; the batch has {k + 1} passes")
    raise CropsError(f"unknown positives '{positives}'; give 'each', 'all' or a number from 0")


def _passes(layout: Layout) -> Iterator[Layout]:
    """Yield the layout with one anchor per query at a time, by falling label."""
    falling = torch.where(layout.anchor, layout.levels - layout.rank, layout.levels + 1)
    order = falling.sort(stable=True).indices
    order = order[layout.row[order].sort(stable=True).indices]
    first = torch.searchsorted(layout.row, layout.row)
    turn = torch.empty_like(order)
    turn[order] = torch.arange(len(order), device=order.device) - first
    for k in range(int(turn[layout.anchor].max()) + 1):
        now = layout.anchor & (turn == k)
        yield replace(layout, factor=layout.factor.where(now, 0.0), anchors=int(now.sum()))


MAX_LABEL = 50
"""Above it, neighbouring gains 2^label - 1 drown all lower ones in double precision."""
_OBJECTIVES: dict[str, Objective] = {"batch": against_all, "lower": against_lower}
"""By denominator: what a document with a target is contrasted with."""


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
        labels: [N] integers from 0 to 50, see `h_infonce`; here their size matters.
        denominator: "batch"; "lower": own documents of equal or higher label are left out, as in H-InfoNCE,
            and i itself stays (ours: the weights of Softmax-CE over the negatives of H-InfoNCE); or "own":
            j over the query's own documents only (no in-batch negatives, O(N d)); `margin` and `log_q` then
            have nothing to act on and are refused.
        **options: as of `h_infonce`, but: "mean" is over queries with an anchor; own documents below
            `min_anchor_label` have target 0; `label_weights` multiply the terms of the sum, not the targets
            before they are normalised.

    Raises:
        CropsError: as `h_infonce`, or a label is above 50.
    """
    tau, layout = prepare(query_emb, doc_emb, query_index, labels, options)
    own_labels = labels.cpu().index_select(0, layout.doc)
    highest = int(own_labels.max())
    if highest > MAX_LABEL:
        raise CropsError(
            f"labels reach {highest}; gains 2^label - 1 need labels up to {MAX_LABEL}: map them to 0, 1, .."
        )
    # Each document's target is its factor; lists are the queries with one.
    gain = torch.where(layout.anchor, torch.exp2(own_labels.double()) - 1, 0.0)
    total = gain.new_zeros(layout.queries).index_add_(0, layout.row, gain)
    lists = int((total > 0).sum())
    if lists == 0:
        raise CropsError("every label is 0 and so is every gain 2^label - 1: the batch has no target")
    layout = replace(layout, factor=layout.factor * gain / total[layout.row].clamp(min=1))
    reduction = options.get("reduction", "mean")
    if denominator in _OBJECTIVES:
        return evaluate(_OBJECTIVES[denominator], query_emb, doc_emb, tau, layout, reduction, lists)
    if denominator != "own":
        raise CropsError(f"unknown denominator '{denominator}'; known: {', '.join(_OBJECTIVES)}, own")
    if layout.margin is not None or layout.log_q is not None:
        raise CropsError("margin and log_q act on in-batch negatives; denominator='own' has none")
    return _own_lists(query_emb, doc_emb, tau[0], layout, reduction, lists)


def _own_lists(
    query_emb: Tensor, doc_emb: Tensor, temperature: Tensor, layout: Layout, reduction: Reduction, lists: int
) -> Tensor:
    """Return the cross-entropy inside each group, under autograd."""
    with torch.autocast(query_emb.device.type, enabled=False):
        queries = query_emb.float() if query_emb.element_size() < 4 else query_emb
        row, doc, factor = beside(query_emb, layout.row, layout.doc, layout.factor)
        cosines = queries[row] * doc_emb[doc]
        scores = cosines.sum(dim=1).double() / temperature
        lowest = scores.new_full((layout.queries,), -torch.inf)
        shift = lowest.scatter_reduce(0, row, scores.detach(), "amax")
        scores = scores - shift[row]
        total = scores.new_zeros(layout.queries).index_add(0, row, scores.exp())
        losses = ((total.log()[row] - scores) * factor).to(cosines.dtype)
    if reduction == "none":
        return losses.new_zeros(layout.documents).index_copy(0, doc, losses)
    return losses.sum() / (lists if reduction == "mean" else 1)


def nce(
    query_emb: Tensor, doc_emb: Tensor, query_index: Tensor, labels: Tensor, **options: Unpack[Options]
) -> Tensor:
    r"""Noise-contrastive estimation (Gutmann & Hyvärinen 2010; the NCE baseline of CroPS, Table 2).

    Anchors are contrasted with noise one by one, as binary logistic regression:
    $-\log \sigma(\Delta_i) - \sum_{j=1}^{k} \log \sigma(-\Delta_j)$ per anchor, with
    $\Delta_j = \cos(q, d_j) / \tau - \log k - \log q_j$. Noise = the documents of other queries and the own
    ones that are no anchors; k counts it after all masks. The score is the logarithm of how much likelier the
    document is as a match than as noise; given `log_q`, of its likelihood itself. The order of labels above
    `min_anchor_label` is not used: give it the lowest positive label.

    Args:
        **options: as of `h_infonce`, but `log_q` is taken off the scores of own documents as well.
    """
    tau, layout = prepare(query_emb, doc_emb, query_index, labels, options)
    return evaluate(against_noise, query_emb, doc_emb, tau, layout, options.get("reduction", "mean"))
