r"""The kernel of the graded contrast: exact, at the cost of its three matrix products.

With $e_{qj} = \exp(\cos(q, d_j) / \tau)$, an anchor $i$ of query $q$ has the loss
$\log(1 + (L_i + O_q) / e_{qi})$, where $L_i$ sums $e$ over the own documents of strictly lower label and
$O_q$ over the documents of other queries. $O_q$ is shared by all anchors of $q$ and $L_i$ by all anchors of
one label, so the N x N table of the definition never exists: a chunk of queries holds its scores [C, N] once,
own documents are summed in bins by label, and the gradient is made on the spot from the same exponentials.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_BYTES = 8 * 2**20
"""Scores held at a time: smaller chunks make thin, slow matrix products, larger ones gain almost nothing."""
MIN_CHUNK = 32
"""Rows of a chunk at least, however many documents there are."""
SAFE_EXPONENT = 60.0
"""exp(60), summed over millions of documents, fits single precision: no shift below it."""


@dataclass(frozen=True)
class Plan:
    """Who contrasts with whom in a batch: all that does not depend on embeddings.

    Own documents (M of the N) are in the order of their queries.
    """

    doc: Tensor
    """[M] column of each own document."""
    row: Tensor
    """[M] its query."""
    rank: Tensor
    """[M] its label, compressed to 0..levels-1."""
    anchor: Tensor
    """[M] whether it is an anchor."""
    hidden_row: Tensor
    """[K] query of a document that leaves the query's denominator, ascending."""
    hidden_doc: Tensor
    """[K] column of that document."""
    levels: int

    @classmethod
    def build(
        cls, query_index: Tensor, labels: Tensor, min_anchor_label: int, hidden: tuple[Tensor, Tensor]
    ) -> Plan:
        """Order the own documents by query and compress their labels."""
        row, doc = query_index.sort(stable=True)
        doc = doc[row >= 0]
        row = row[row >= 0]
        own_labels = labels[doc]
        levels, rank = torch.unique(own_labels, return_inverse=True)
        hidden_row, order = hidden[0].sort()
        return cls(doc, row, rank, own_labels >= min_anchor_label, hidden_row, hidden[1][order], len(levels))

    def chunks(self, queries: int, size: int) -> Iterator[tuple[slice, slice, slice]]:
        """Yield the slices of the queries, of their own documents and of their hidden pairs."""
        starts = [*range(0, queries, size), queries]
        bounds = torch.tensor(starts, device=self.row.device)
        own = torch.searchsorted(self.row, bounds).tolist()
        hidden = torch.searchsorted(self.hidden_row, bounds).tolist()
        for begin, end in itertools.pairwise(zip(starts, own, hidden, strict=True)):
            yield slice(begin[0], end[0]), slice(begin[1], end[1]), slice(begin[2], end[2])


class Contrast(NamedTuple):
    """Losses and gradients of one batch."""

    losses: Tensor
    """[M] in the plan's order, zero where no anchor."""
    query_grad: Tensor | None
    """[Q, d]"""
    doc_grad: Tensor | None
    """[N, d]"""
    temperature_grad: Tensor | None
    """Scalar."""


def contrast(
    query_emb: Tensor, doc_emb: Tensor, temperature: float, plan: Plan, weight: Tensor | None
) -> Contrast:
    """Return the anchors' losses and, given weights, the gradient of their weighted sum.

    Args:
        query_emb: [Q, d] unit rows.
        doc_emb: [N, d] unit rows.
        temperature: tau.
        plan: who contrasts with whom.
        weight: [M] double, of each anchor's loss in the sum; None = no gradient.
    """
    queries, size = len(query_emb), _chunk_rows(query_emb, doc_emb)
    losses = torch.zeros(len(plan.doc), dtype=torch.float64, device=query_emb.device)
    scaled = query_emb / temperature
    query_grad, doc_grad = (
        (None, None)
        if weight is None
        else (query_emb.new_empty(query_emb.shape), doc_emb.new_zeros(doc_emb.shape))
    )
    for rows, own, hidden in plan.chunks(queries, size):
        scores = scaled[rows] @ doc_emb.T
        losses[own] = _score_to_gradient(scores, plan, rows.start, own, hidden, 1 / temperature, weight)
        if query_grad is not None and doc_grad is not None:
            torch.mm(scores, doc_emb, out=query_grad[rows])
            doc_grad.addmm_(scores.T, scaled[rows])
    if query_grad is None:
        return Contrast(losses, None, None, None)
    query_grad /= temperature
    # The scores are homogeneous of degree -1 in tau, so Euler gives its gradient from the queries' one.
    return Contrast(losses, query_grad, doc_grad, -(query_emb * query_grad).sum() / temperature)


def _chunk_rows(query_emb: Tensor, doc_emb: Tensor) -> int:
    return max(MIN_CHUNK, CHUNK_BYTES // (len(doc_emb) * query_emb.element_size()))


def _score_to_gradient(
    scores: Tensor, plan: Plan, first_row: int, own: slice, hidden: slice, scale: float, weight: Tensor | None
) -> Tensor:
    """Return the losses of a chunk's own documents; turn its scores [C, N] into gradients in place.

    Own documents are few: they are kept in double precision, where exp(2 / tau) cannot overflow.
    """
    row, doc, rank, anchor = plan.row[own] - first_row, plan.doc[own], plan.rank[own], plan.anchor[own]
    own_score = scores[row, doc].double()
    scores[row, doc] = -torch.inf
    scores[plan.hidden_row[hidden] - first_row, plan.hidden_doc[hidden]] = -torch.inf
    if scale > SAFE_EXPONENT:
        shift = scores.amax(dim=1, keepdim=True).clamp_(min=-scale)
        scores -= shift
        own_score -= shift[row, 0]
    others = scores.exp_().sum(dim=1).double()
    own_exp = own_score.exp()
    bins = own_exp.new_zeros(len(scores), plan.levels + 1)
    lower = bins.index_put((row, rank + 1), own_exp, accumulate=True).cumsum(dim=1)[row, rank]
    rest = lower + others[row]
    if weight is not None:
        pull = weight[own] / (own_exp + rest)
        higher = bins.index_put((row, plan.levels - rank), pull, accumulate=True).cumsum(dim=1)
        scores *= higher[:, -1:].to(scores.dtype)
        scores[row, doc] = (own_exp * higher[row, plan.levels - rank - 1] - pull * rest).to(scores.dtype)
    return torch.log1p(rest / own_exp).where(anchor, 0.0)


class ContrastFunction(torch.autograd.Function):
    """`contrast` under autograd: a sum's gradient is made in the forward pass, a vector's in the backward."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        query_emb: Tensor,
        doc_emb: Tensor,
        temperature: Tensor,
        plan: Plan,
        scale: float | None,
    ) -> Tensor:
        """Return scale x the sum of the losses, or the losses [N] when scale is None."""
        ctx.plan, ctx.reduced = plan, scale is not None
        tau = temperature.item()
        if scale is None:
            ctx.save_for_backward(query_emb, doc_emb, temperature)
            losses = contrast(query_emb, doc_emb, tau, plan, None).losses
            return query_emb.new_zeros(len(doc_emb)).index_put_((plan.doc,), losses.to(query_emb.dtype))
        weight = plan.anchor.double() * scale if any(ctx.needs_input_grad) else None
        losses, *gradients = contrast(query_emb, doc_emb, tau, plan, weight)
        ctx.save_for_backward(*gradients)
        return (losses.sum() * scale).to(query_emb.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of the embeddings and of tau."""
        if ctx.reduced:
            query_grad, doc_grad, tau_grad = ctx.saved_tensors
            return query_grad * upstream, doc_grad * upstream, tau_grad * upstream, None, None
        query_emb, doc_emb, temperature = ctx.saved_tensors
        plan = ctx.plan
        weight = upstream[plan.doc].double().where(plan.anchor, 0.0)
        _, query_grad, doc_grad, tau_grad = contrast(query_emb, doc_emb, temperature.item(), plan, weight)
        return query_grad, doc_grad, tau_grad, None, None
