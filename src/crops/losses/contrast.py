r"""The kernel of the losses: exact, at the cost of its three matrix products.

A loss over all queries and documents of a batch needs the scores [Q, N], and their gradient gives those of
the queries and of the documents: three products. A chunk of queries at a time, the scores are made, turned
into their gradient in place by the loss's objective (`crops.losses.objectives`), multiplied on, and
forgotten: no N x N and no stored Q x N, and the backward pass has nothing left to do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from crops.losses.objectives import Objective, Weights
from crops.losses.plan import Part, Plan

CHUNK_BYTES = 12 * 2**20
"""Scores held at a time: smaller chunks make thin, slow matrix products, larger ones gain almost nothing."""
MIN_CHUNK = 32
"""Rows of a chunk at least, however many documents there are."""


class Contrast(NamedTuple):
    """Losses and gradients of one batch."""

    losses: Tensor
    """[M] of each own document as an anchor, in the plan's order."""
    query_grad: Tensor | None
    """[Q, d]"""
    doc_grad: Tensor | None
    """[N, d]"""
    temperature_grad: Tensor | None
    """Scalar."""


def contrast(
    query_emb: Tensor,
    doc_emb: Tensor,
    temperature: float,
    plan: Plan,
    objective: Objective,
    weights: Weights | None,
) -> Contrast:
    """Return the losses and, given weights, the gradient of their weighted sum.

    Args:
        query_emb: [Q, d] unit rows.
        doc_emb: [N, d] unit rows.
        temperature: tau.
        plan: who contrasts with whom.
        objective: which loss.
        weights: [M], of each loss in the sum; None = no gradient.
    """
    scaled = query_emb / temperature
    query_grad = doc_grad = None
    if weights is not None:
        query_grad, doc_grad = torch.empty_like(scaled), torch.empty_like(doc_emb)
    losses, begin = [], 0
    size = min(len(query_emb), _chunk_rows(query_emb, doc_emb))
    buffer = scaled.new_empty(size, len(doc_emb))
    for rows, part in plan.parts(size):
        scores = torch.mm(scaled[rows], doc_emb.T, out=buffer[: rows.stop - rows.start])
        own_score = _set_apart(scores, part, plan, 1 / temperature)
        own = slice(begin, begin + len(part.doc))
        begin = own.stop
        bound = 1 / temperature + plan.log_q_size
        some = None if weights is None else weights.part(own)
        values, factors = objective(scores, own_score, part, plan, bound, some)
        losses.append(values)
        if query_grad is not None and doc_grad is not None:
            chunk, chunk_grad = scaled[rows], torch.mm(scores, doc_emb, out=query_grad[rows])
            if factors is not None:
                chunk_grad *= factors
                chunk = chunk * factors
            # The first chunk overwrites: beta 0 spares the zeros.
            torch.addmm(doc_grad, scores.T, chunk, beta=int(rows.start > 0), out=doc_grad)
    joined = losses[0] if len(losses) == 1 else torch.cat(losses)
    if query_grad is None:
        return Contrast(joined, None, None, None)
    query_grad /= temperature
    # Cosines enter divided by tau only, so Euler gives tau's gradient from the queries' one.
    tau_grad = torch.dot(query_emb.reshape(-1), query_grad.view(-1)) / -temperature
    return Contrast(joined, query_grad, doc_grad, tau_grad)


def _chunk_rows(query_emb: Tensor, doc_emb: Tensor) -> int:
    return max(MIN_CHUNK, CHUNK_BYTES // (len(doc_emb) * query_emb.element_size()))


def _set_apart(scores: Tensor, part: Part, plan: Plan, scale: float) -> Tensor:
    """Return the own documents' scores [m] in double; leave in `scores` only what all anchors share.

    Own documents are few: in double precision exp(2 / tau) cannot overflow. Own and hidden entries become
    minus infinity.
    """
    flat = scores.view(-1)
    own_score = flat.index_select(0, part.cell).double()
    flat.index_fill_(0, part.cell, -torch.inf)
    if part.hidden is not None:
        flat.index_fill_(0, part.hidden, -torch.inf)
    if plan.margin is not None:
        best = own_score.new_full((len(scores),), torch.inf).scatter_reduce_(
            0, part.row[part.anchor], own_score[part.anchor], "amax", include_self=False
        )
        limit = best - plan.margin * scale
        scores.masked_fill_(scores > limit.to(scores.dtype).unsqueeze(1), -torch.inf)
    if plan.log_q is not None:
        scores -= plan.log_q
    return own_score


class ContrastFunction(torch.autograd.Function):
    """`contrast` under autograd: a sum's gradient is made in the forward pass, a vector's in the backward."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        query_emb: Tensor,
        doc_emb: Tensor,
        temperature: Tensor,
        tau: float,
        plan: Plan,
        objective: Objective,
        scale: float | None,
        trains: bool,
    ) -> Tensor:
        """Return scale x the sum of the losses, or the losses [N] when scale is None.

        `trains`: whether autograd was on around the call, which a forward pass cannot tell.
        """
        ctx.reduced = scale is not None
        if scale is None:
            ctx.call = tau, plan, objective
            ctx.save_for_backward(query_emb, doc_emb)
            losses = contrast(query_emb, doc_emb, tau, plan, objective, None).losses * plan.factor
            return query_emb.new_zeros(len(doc_emb)).index_copy_(0, plan.doc, losses.to(query_emb.dtype))
        weight = plan.factor * scale
        needed = Weights(weight, signed=False) if trains and any(ctx.needs_input_grad) else None
        losses, *gradients = contrast(query_emb, doc_emb, tau, plan, objective, needed)
        ctx.save_for_backward(*gradients)
        return torch.dot(losses, weight).to(query_emb.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of the embeddings and of tau."""
        if ctx.reduced:
            gradients = ctx.saved_tensors
            # Mostly it is 1: multiplying by it would be a pass over gradients as large as the documents.
            if upstream.item() != 1:
                gradients = [gradient * upstream for gradient in gradients]
        else:
            query_emb, doc_emb = ctx.saved_tensors
            tau, plan, objective = ctx.call
            weight = upstream.index_select(0, plan.doc).double() * plan.factor
            weights = Weights(weight, signed=True)
            _, *gradients = contrast(query_emb, doc_emb, tau, plan, objective, weights)
        return *gradients, None, None, None, None, None
