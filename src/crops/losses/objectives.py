r"""What each loss makes of a chunk of scores.

An objective gets the scores [C, N] of the documents that all anchors of a query share (own and hidden ones
are minus infinity) and, in double precision, those of the own documents [m]. It returns what each own
document's loss is as an anchor [m] and, given weights, overwrites the scores with the gradient of the
weighted sum, save for factors of its rows [C, 1] that it may return: they cost less on the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crops.losses.plan import Part, Plan

Objective = Callable[[Tensor, Tensor, Part, Plan, float, "Weights | None"], tuple[Tensor, Tensor | None]]
"""(scores, own_score, part, plan, bound of the scores' magnitude, weights) -> losses, factors of the rows"""
SAFE_EXPONENT = 45.0
"""exp(45), summed over millions of documents, and its inverse fit single precision: no shift below it."""
TINY = torch.finfo(torch.float64).tiny


class Weights(NamedTuple):
    """What the losses of some own documents are multiplied by in the sum whose gradient is wanted."""

    each: Tensor
    """[m] double, zero where no anchor."""
    signed: bool
    """Whether some may be negative."""

    def part(self, own: slice) -> Weights:
        """Return those of consecutive documents."""
        return Weights(self.each[own], self.signed)


def against_lower(
    scores: Tensor, own_score: Tensor, part: Part, plan: Plan, bound: float, weights: Weights | None
) -> tuple[Tensor, Tensor | None]:
    r"""Graded InfoNCE: $\log(1 + (L_i + O_q) / e_i)$.

    $L_i$ sums $e$ over the own documents of strictly lower label: bins by label, cumulated inside a query.
    $O_q$ sums it over the documents that all anchors of the query share.
    """
    others, own = _exponentials(scores, own_score, part, bound)
    stride = plan.levels + 1
    base = part.row * stride
    below = base + part.rank
    bins = own.new_zeros(len(scores), stride)
    bins[:, 0] = others
    bins.view(-1)[1:].index_add_(0, below, own)
    rest = bins.cumsum_(1).view(-1).index_select(0, below)
    factors = None
    if weights is not None:
        pull = weights.each / (own + rest)
        above = base.add_(plan.levels - 1).sub_(part.rank)
        higher = bins.zero_()
        higher.view(-1)[1:].index_add_(0, above, pull)
        higher.cumsum_(1)
        gradient = higher.view(-1).index_select(0, above).mul_(own).sub_(pull * rest)
        factors = _write(scores, part, gradient, higher[:, -1], bound, weights)
    return rest.div_(own).log1p_(), factors


def against_all(
    scores: Tensor, own_score: Tensor, part: Part, plan: Plan, bound: float, weights: Weights | None
) -> tuple[Tensor, Tensor | None]:
    r"""Cross-entropy: $\log((\sum_{own} e + O_q) / e_i)$, the own documents of higher label included."""
    others, own = _exponentials(scores, own_score, part, bound)
    total = others.index_add(0, part.row, own)
    share = own / total.index_select(0, part.row)
    factors = None
    if weights is not None:
        pull = torch.zeros_like(total).index_add_(0, part.row, weights.each)
        gradient = share * pull.index_select(0, part.row) - weights.each
        factors = _write(scores, part, gradient, pull / total, bound, weights)
    return share.log().neg_(), factors


def against_noise(
    scores: Tensor, own_score: Tensor, part: Part, plan: Plan, bound: float, weights: Weights | None
) -> tuple[Tensor, Tensor | None]:
    r"""Binary logistic: $-\log\sigma(\Delta_i) - \sum_{noise} \log\sigma(-\Delta_j)$, $\Delta = s - \log k$.

    The noise of a query: the shared documents and its own that are no anchors; k counts it.
    """
    if plan.log_q is not None:
        own_score = own_score - plan.log_q.index_select(0, part.doc)
    negative = (~part.anchor).double()
    count = scores.isfinite().sum(1).double().index_add_(0, part.row, negative)
    log_k = count.clamp_(min=1).log_()
    scores -= log_k.to(scores.dtype).unsqueeze(1)
    own = own_score - log_k.index_select(0, part.row)
    noise = F.logsigmoid(-scores).sum(1).double().neg_()
    noise.index_add_(0, part.row, F.logsigmoid(-own) * -negative)
    if weights is not None:
        pull = torch.zeros_like(noise).index_add_(0, part.row, weights.each)
        scores.sigmoid_().mul_(pull.to(scores.dtype).unsqueeze(1))
        drawn = own.sigmoid() * pull.index_select(0, part.row)
        gradient = torch.where(part.anchor, (own.sigmoid() - 1) * weights.each, drawn)
        scores.view(-1).index_copy_(0, part.cell, gradient.to(scores.dtype))
    return noise.index_select(0, part.row) - F.logsigmoid(own), None


def _write(
    scores: Tensor, part: Part, gradient: Tensor, pull: Tensor, bound: float, weights: Weights
) -> Tensor | None:
    """Put the own documents' gradient [m] into the scores; return the factors [C, 1] that rows still lack.

    The others' gradient is pull x exponential. Sparing the scores that pass leaves the own entries divided by
    the pull, which is safe while it cannot cancel to zero and exponentials are not shifted.
    """
    factors = None
    if weights.signed or bound > SAFE_EXPONENT:
        scores *= pull.to(scores.dtype).unsqueeze(1)
    else:
        factors = pull.to(scores.dtype).unsqueeze(1)
        gradient = gradient / pull.clamp(min=TINY).index_select(0, part.row)
    scores.view(-1).index_copy_(0, part.cell, gradient.to(scores.dtype))
    return factors


def _exponentials(scores: Tensor, own_score: Tensor, part: Part, bound: float) -> tuple[Tensor, Tensor]:
    """Exponentiate the scores in place; return their row sums [C] and exp(own_score) [m], in double.

    Where exponentials could overflow, both are of scores less their row's largest shared one.
    """
    if bound > SAFE_EXPONENT:
        shift = scores.amax(dim=1, keepdim=True).clamp_(min=-bound)
        scores -= shift
        own_score = own_score - shift.view(-1).index_select(0, part.row)
    return scores.exp_().sum(dim=1).double(), own_score.exp()
