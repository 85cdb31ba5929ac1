"""What all losses share: from their arguments to the value and its gradient, in three matrix products.

`prepare` checks the arguments and lays out who contrasts with whom, all that does not depend on embeddings,
on the host, while a GPU still encodes: sorting ids there would make the host wait at each step. `evaluate`
takes the scores [Q, N] of a batch a chunk of queries at a time: they are made, turned into their gradient in
place by the loss's objective (`against_...`), multiplied on, and forgotten. The scores and their gradient's
products with queries and documents are the three; there is no N x N and no stored Q x N, and the
backward pass has nothing left to do.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Required, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from crops.errors import CropsError
from crops.losses.checks import (
    Checked,
    check_embeddings,
    check_identity,
    check_ids,
    check_log_frequency,
    check_rows,
    check_values,
    hidden_pairs,
    refuse_empty_query,
)

Reduction = Literal["mean", "sum", "none"]


class Options(TypedDict, total=False):
    """The keyword arguments that all losses share; `crops.losses.h_infonce` documents each."""

    temperature: Required[Tensor | float]
    query_id: Tensor | None
    doc_id: Tensor | None
    min_anchor_label: int
    reduction: Reduction
    known: tuple[Tensor, Tensor] | None
    label_weights: Mapping[int, float] | None
    margin: float | None
    log_q: Tensor | None


def prepare(
    query_emb: Tensor, doc_emb: Tensor, query_index: Tensor, labels: Tensor, options: Options
) -> tuple[tuple[Tensor, float], Layout]:
    """Check the arguments; return the temperature as a tensor and as a number, and the layout.

    Raises:
        CropsError: see `crops.losses.h_infonce`.
    """
    check_embeddings(query_emb, doc_emb)
    for name, values in (("query_index", query_index), ("labels", labels)):
        check_ids(name, values, len(doc_emb))
    reduction = options.get("reduction", "mean")
    if reduction not in ("mean", "sum", "none"):
        raise CropsError(f"unknown reduction '{reduction}'; known: mean, sum, none")
    temperature = options["temperature"]
    if not isinstance(temperature, Tensor):
        temperature = torch.tensor(temperature, dtype=torch.float64)
        temperature = temperature.to(query_emb.device, non_blocking=True)
    query_index, labels = query_index.cpu(), labels.cpu()
    checked = check_rows(len(query_emb), query_index, labels)
    lowest, weights = options.get("min_anchor_label", 1), options.get("label_weights")
    layout = build_layout(len(query_emb), query_index, labels, lowest, checked, weights)
    query_id, doc_id, known = options.get("query_id"), options.get("doc_id"), options.get("known")
    if query_id is not None or doc_id is not None or known is not None:
        query_id, doc_id = (None if ids is None else ids.cpu() for ids in (query_id, doc_id))
        known = None if known is None else (known[0].cpu(), known[1].cpu())
        check_identity(layout.queries, layout.documents, query_id, doc_id, known)
        row, doc = hidden_pairs(query_index, query_id, doc_id, known)
        row, order = row.sort()
        layout = replace(layout, hidden=(row, doc[order]))
    margin = options.get("margin")
    if margin is not None:
        if not -2 <= margin <= 2:
            raise CropsError(f"margin is {margin}; give a difference of cosines, from -2 to 2")
        layout = replace(layout, margin=margin)
    log_q = options.get("log_q")
    if log_q is not None:
        layout = replace(layout, log_q=log_q, log_q_size=check_log_frequency(log_q, layout.documents))
    # Last: this is where the host waits for the embeddings.
    return (temperature, check_values(query_emb, doc_emb, temperature)), layout


def evaluate(
    objective: Objective,
    query_emb: Tensor,
    doc_emb: Tensor,
    temperature: tuple[Tensor, float],
    layout: Layout,
    reduction: Reduction = "mean",
    count: int | None = None,
) -> Tensor:
    """Return the reduced loss of [Q, d] and [N, d] embeddings, with its gradient.

    The temperature comes as a tensor and as a number; `count` is what "mean" divides by, None = the anchors.
    """
    scale = {"mean": 1 / (count or layout.anchors), "sum": 1.0, "none": None}[reduction]
    if query_emb.dtype in (torch.float16, torch.bfloat16):
        query_emb, doc_emb = query_emb.float(), doc_emb.float()
    if layout.log_q is not None:
        layout = replace(layout, log_q=layout.log_q.detach().to(query_emb))
    with torch.autocast(query_emb.device.type, enabled=False):
        result: Tensor = ContrastFunction.apply(  # type: ignore[no-untyped-call]
            query_emb, doc_emb, *temperature, layout, objective, scale, torch.is_grad_enabled()
        )
    return result


OWN_RANKS = 64
"""Labels below it are their own ranks; larger ones are compressed, which takes a sort."""


class Chunk(NamedTuple):
    """The own documents of some consecutive queries (C of the Q), [m] each; rows count from the first."""

    row: Tensor
    """Query of the document."""
    doc: Tensor
    """Column of the document."""
    cell: Tensor
    """Place of (row, doc) in the flat scores."""
    rank: Tensor
    """Label, compressed to 0..levels-1."""
    anchor: Tensor
    """Whether it is an anchor."""
    hidden: Tensor | None
    """Places in the flat scores of the documents that leave the denominators."""


@dataclass(frozen=True)
class Layout:
    """Own documents (M of the N) in the order of their queries, and the options on their contrast.

    All but `log_q` is on the host.
    """

    queries: int
    documents: int
    doc: Tensor
    """[M] column of each own document."""
    row: Tensor
    """[M] its query, ascending."""
    rank: Tensor
    """[M] its label, compressed to 0..levels-1."""
    anchor: Tensor
    """[M] whether it is an anchor."""
    factor: Tensor
    """[M] double: what its loss is multiplied by, zero where it is no anchor."""
    anchors: int
    levels: int
    hidden: tuple[Tensor, Tensor] | None = None
    """Rows, ascending, and columns, [K] each, that leave the denominators."""
    margin: float | None = None
    """Foreign documents with a cosine above the query's best anchor's less this leave its denominator."""
    log_q: Tensor | None = None
    """[N] what is taken off the scores of foreign documents."""
    log_q_size: float = 0.0
    """The largest magnitude in it."""

    def chunks(self, size: int, device: torch.device) -> Iterator[tuple[slice, Chunk]]:
        """Yield chunks of at most `size` queries: their rows and, on the device, their own documents."""
        chunks = -(-self.queries // size)
        starts = [self.queries * chunk // chunks for chunk in range(chunks + 1)]

        def bounds(rows: Tensor) -> list[int]:
            if chunks == 1:
                return [0, len(rows)]
            return torch.searchsorted(rows, torch.tensor(starts)).tolist()

        own = bounds(self.row)
        hidden = bounds(self.hidden[0]) if self.hidden is not None else [0] * len(starts)
        for (first, m, k), (last, m_end, k_end) in itertools.pairwise(zip(starts, own, hidden, strict=True)):
            row, doc = self.row[m:m_end], self.doc[m:m_end]
            if first:
                row = row - first
            cell, masked = doc + row * self.documents, None
            if self.hidden is not None:
                masked = (self.hidden[0][k:k_end] - first) * self.documents + self.hidden[1][k:k_end]
                masked = masked.to(device, non_blocking=True)
            parts = (row, doc, cell, self.rank[m:m_end], self.anchor[m:m_end])
            row, doc, cell, rank, anchor = (part.to(device, non_blocking=True) for part in parts)
            yield slice(first, last), Chunk(row, doc, cell, rank, anchor, masked)


def build_layout(
    queries: int,
    query_index: Tensor,
    labels: Tensor,
    min_anchor_label: int,
    checked: Checked,
    label_weights: Mapping[int, float] | None,
) -> Layout:
    """Order the own documents by query, rank their labels and mark the anchors.

    `checked` is what `crops.losses.checks.check_rows` learned of the batch.

    Warns:
        UserWarning: the batch is one query with one label.

    Raises:
        CropsError: a query has no document, no document is an anchor, or a weight is negative.
    """
    row, doc, own_labels = query_index, torch.arange(len(query_index), device=query_index.device), labels
    if not checked.ordered:
        row, doc = row.sort(stable=True)
        own_labels = labels.index_select(0, doc)
    if checked.strays:
        owned = row >= 0
        row, doc, own_labels = row[owned], doc[owned], own_labels[owned]
    rank, levels = own_labels, checked.highest + 1
    if not 0 <= checked.highest < OWN_RANKS:
        distinct, rank = torch.unique(own_labels, return_inverse=True)
        levels = len(distinct)
    anchor = own_labels >= min_anchor_label
    smallest = torch.bincount(row, minlength=queries).min()
    anchors, fewest = torch.stack([anchor.sum(), smallest]).tolist()
    if fewest == 0:
        refuse_empty_query(row, queries)
    if anchors == 0:
        raise CropsError(
            f"the batch has no anchor: no document of a query has a label of {min_anchor_label} or more. "
            "Draw groups with positives or lower the bound"
        )
    if queries == 1 and not checked.strays and bool((own_labels == own_labels[0]).all()):
        warnings.warn(
            "the batch is one query whose documents all have one label: none is contrasted with a worse one. "
            "Put more queries in a batch",
            stacklevel=4,
        )
    factor = anchor.double()
    for label, weight in (label_weights or {}).items():
        if not 0 <= weight < float("inf"):
            raise CropsError(f"label_weights gives label {label} the weight {weight}; give a number >= 0")
        factor = factor.masked_fill(anchor & (own_labels == label), weight)
    return Layout(queries, len(query_index), doc, row, rank, anchor, factor, anchors, levels)


CHUNK_BYTES = 12 * 2**20
"""Scores held at a time: smaller chunks make thin, slow matrix products, larger ones gain almost nothing."""
CHUNKS_OF_DEVICE = 64
"""A GPU holds scores of a share 1 / this of its memory at a time: fewer chunks wait less for their launch."""
MIN_CHUNK = 32
"""Rows of a chunk at least, however many documents there are."""


def chunk_bytes(device: torch.device) -> int:
    """Return how many bytes of scores are held at a time."""
    if device.type != "cuda":
        return CHUNK_BYTES
    return max(CHUNK_BYTES, torch.cuda.get_device_properties(device).total_memory // CHUNKS_OF_DEVICE)


class Contrast(NamedTuple):
    """Losses and gradients of one batch."""

    losses: Tensor
    """[M] of each own document as an anchor, in the layout's order."""
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
    layout: Layout,
    objective: Objective,
    weights: Weights | None,
) -> Contrast:
    """Return the losses of unit rows [Q, d] and [N, d] and, given weights [M], the gradient of their sum."""
    scaled = query_emb / temperature
    query_grad = doc_grad = None
    if weights is not None:
        query_grad, doc_grad = torch.empty_like(scaled), torch.empty_like(doc_emb)
    losses, begin = [], 0
    fitting = chunk_bytes(doc_emb.device) // (len(doc_emb) * query_emb.element_size())
    size = min(len(query_emb), max(MIN_CHUNK, fitting))
    buffer = scaled.new_empty(size, len(doc_emb))
    for rows, chunk in layout.chunks(size, doc_emb.device):
        scores = torch.mm(scaled[rows], doc_emb.T, out=buffer[: rows.stop - rows.start])
        own_score = _set_apart(scores, chunk, layout, 1 / temperature)
        own = slice(begin, begin + len(chunk.doc))
        begin = own.stop
        bound = 1 / temperature + layout.log_q_size
        weighted = None if weights is None else weights.of(own)
        values, factors = objective(scores, own_score, chunk, layout, bound, weighted)
        losses.append(values)
        if query_grad is not None and doc_grad is not None:
            queries, own_grad = scaled[rows], torch.mm(scores, doc_emb, out=query_grad[rows])
            if factors is not None:
                own_grad *= factors
                queries = queries * factors
            # The first chunk overwrites: beta 0 spares the zeros.
            torch.addmm(doc_grad, scores.T, queries, beta=int(rows.start > 0), out=doc_grad)
    joined = losses[0] if len(losses) == 1 else torch.cat(losses)
    if query_grad is None:
        return Contrast(joined, None, None, None)
    query_grad /= temperature
    # Cosines enter divided by tau only, so Euler gives tau's gradient from the queries' one.
    tau_grad = torch.dot(query_emb.reshape(-1), query_grad.view(-1)) / -temperature
    return Contrast(joined, query_grad, doc_grad, tau_grad)


def _set_apart(scores: Tensor, chunk: Chunk, layout: Layout, scale: float) -> Tensor:
    """Return the own documents' scores [m] in double; leave in `scores` only what all anchors share.

    Own documents are few: in double precision exp(2 / tau) cannot overflow. Own and hidden entries become
    minus infinity.
    """
    flat = scores.view(-1)
    own_score = flat.index_select(0, chunk.cell).double()
    flat.index_fill_(0, chunk.cell, -torch.inf)
    if chunk.hidden is not None:
        flat.index_fill_(0, chunk.hidden, -torch.inf)
    if layout.margin is not None:
        best = own_score.new_full((len(scores),), torch.inf).scatter_reduce_(
            0, chunk.row[chunk.anchor], own_score[chunk.anchor], "amax", include_self=False
        )
        limit = best - layout.margin * scale
        scores.masked_fill_(scores > limit.to(scores.dtype).unsqueeze(1), -torch.inf)
    if layout.log_q is not None:
        scores -= layout.log_q
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
        layout: Layout,
        objective: Objective,
        scale: float | None,
        trains: bool,
    ) -> Tensor:
        """Return scale x the sum of the losses, or the losses [N] when scale is None.

        `trains`: whether autograd was on around the call, which a forward pass cannot tell.
        """
        ctx.reduced = scale is not None
        if scale is None:
            ctx.call = tau, layout, objective
            ctx.save_for_backward(query_emb, doc_emb)
            factor, doc = beside(query_emb, layout.factor, layout.doc)
            losses = contrast(query_emb, doc_emb, tau, layout, objective, None).losses * factor
            return query_emb.new_zeros(len(doc_emb)).index_copy_(0, doc, losses.to(query_emb.dtype))
        (weight,) = beside(query_emb, layout.factor * scale)
        needed = Weights(weight, signed=False) if trains and any(ctx.needs_input_grad) else None
        losses, *gradients = contrast(query_emb, doc_emb, tau, layout, objective, needed)
        ctx.save_for_backward(*gradients)
        return torch.dot(losses, weight).to(query_emb.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of the embeddings and of tau."""
        if ctx.reduced:
            gradients = ctx.saved_tensors
            # Mostly it is 1: multiplying by it would be a pass over gradients as large as the documents.
            # A GPU makes that pass sooner than the host can look.
            if not upstream.is_cpu or upstream.item() != 1:
                gradients = [gradient * upstream for gradient in gradients]
        else:
            query_emb, doc_emb = ctx.saved_tensors
            tau, layout, objective = ctx.call
            factor, doc = beside(upstream, layout.factor, layout.doc)
            weight = upstream.index_select(0, doc).double() * factor
            weights = Weights(weight, signed=True)
            _, *gradients = contrast(query_emb, doc_emb, tau, layout, objective, weights)
        return *gradients, None, None, None, None, None


def beside(tensor: Tensor, *of_layout: Tensor) -> list[Tensor]:
    """Return tensors of a layout on the device of `tensor`."""
    return [part.to(tensor.device, non_blocking=True) for part in of_layout]


Objective = Callable[[Tensor, Tensor, Chunk, Layout, float, "Weights | None"], tuple[Tensor, Tensor | None]]
"""What a loss makes of a chunk of scores: (scores, own_score, chunk, layout, bound of the scores' magnitude,
weights) -> losses, factors of the rows.

It gets the scores [C, N] of the documents that all anchors of a query share (own and hidden ones are minus
infinity) and, in double precision, those of the own documents [m]. It returns what each own document's loss
is as an anchor [m] and, given weights, overwrites the scores with the gradient of the weighted sum, save for
factors of its rows [C, 1] that it may return: they cost less on the embeddings."""
SAFE_EXPONENT = 45.0
"""exp(45), summed over millions of documents, and its inverse fit single precision: no shift below it."""
TINY = torch.finfo(torch.float64).tiny


class Weights(NamedTuple):
    """What the losses of some own documents are multiplied by in the sum whose gradient is wanted."""

    each: Tensor
    """[m] double, zero where no anchor."""
    signed: bool
    """Whether some may be negative."""

    def of(self, own: slice) -> Weights:
        """Return those of consecutive documents."""
        return Weights(self.each[own], self.signed)


def against_lower(
    scores: Tensor, own_score: Tensor, chunk: Chunk, layout: Layout, bound: float, weights: Weights | None
) -> tuple[Tensor, Tensor | None]:
    r"""Graded InfoNCE: $\log(1 + (L_i + O_q) / e_i)$.

    $L_i$ sums $e$ over the own documents of strictly lower label: bins by label, cumulated inside a query.
    $O_q$ sums it over the documents that all anchors of the query share.
    """
    others, own = _exponentials(scores, own_score, chunk, bound)
    stride = layout.levels + 1
    base = chunk.row * stride
    below = base + chunk.rank
    bins = own.new_zeros(len(scores), stride)
    bins[:, 0] = others
    bins.view(-1)[1:].index_add_(0, below, own)
    rest = bins.cumsum_(1).view(-1).index_select(0, below)
    factors = None
    if weights is not None:
        pull = weights.each / (own + rest)
        above = base.add_(layout.levels - 1).sub_(chunk.rank)
        higher = bins.zero_()
        higher.view(-1)[1:].index_add_(0, above, pull)
        higher.cumsum_(1)
        gradient = higher.view(-1).index_select(0, above).mul_(own).sub_(pull * rest)
        factors = _write(scores, chunk, gradient, higher[:, -1], bound, weights)
    return rest.div_(own).log1p_(), factors


def against_all(
    scores: Tensor, own_score: Tensor, chunk: Chunk, layout: Layout, bound: float, weights: Weights | None
) -> tuple[Tensor, Tensor | None]:
    r"""Cross-entropy: $\log((\sum_{own} e + O_q) / e_i)$, the own documents of higher label included."""
    others, own = _exponentials(scores, own_score, chunk, bound)
    total = others.index_add(0, chunk.row, own)
    share = own / total.index_select(0, chunk.row)
    factors = None
    if weights is not None:
        pull = torch.zeros_like(total).index_add_(0, chunk.row, weights.each)
        gradient = share * pull.index_select(0, chunk.row) - weights.each
        factors = _write(scores, chunk, gradient, pull / total, bound, weights)
    return share.log().neg_(), factors


def against_noise(
    scores: Tensor, own_score: Tensor, chunk: Chunk, layout: Layout, bound: float, weights: Weights | None
) -> tuple[Tensor, Tensor | None]:
    r"""Binary logistic: $-\log\sigma(\Delta_i) - \sum_{noise} \log\sigma(-\Delta_j)$, $\Delta = s - \log k$.

    The noise of a query: the shared documents and its own that are no anchors; k counts it.
    """
    if layout.log_q is not None:
        own_score = own_score - layout.log_q.index_select(0, chunk.doc)
    negative = (~chunk.anchor).double()
    count = scores.isfinite().sum(1).double().index_add_(0, chunk.row, negative)
    log_k = count.clamp_(min=1).log_()
    scores -= log_k.to(scores.dtype).unsqueeze(1)
    own = own_score - log_k.index_select(0, chunk.row)
    noise = F.logsigmoid(-scores).sum(1).double().neg_()
    noise.index_add_(0, chunk.row, F.logsigmoid(-own) * -negative)
    if weights is not None:
        pull = torch.zeros_like(noise).index_add_(0, chunk.row, weights.each)
        scores.sigmoid_().mul_(pull.to(scores.dtype).unsqueeze(1))
        drawn = own.sigmoid() * pull.index_select(0, chunk.row)
        gradient = torch.where(chunk.anchor, (own.sigmoid() - 1) * weights.each, drawn)
        scores.view(-1).index_copy_(0, chunk.cell, gradient.to(scores.dtype))
    return noise.index_select(0, chunk.row) - F.logsigmoid(own), None


def _write(
    scores: Tensor, chunk: Chunk, gradient: Tensor, pull: Tensor, bound: float, weights: Weights
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
        gradient = gradient / pull.clamp(min=TINY).index_select(0, chunk.row)
    scores.view(-1).index_copy_(0, chunk.cell, gradient.to(scores.dtype))
    return factors


def _exponentials(scores: Tensor, own_score: Tensor, chunk: Chunk, bound: float) -> tuple[Tensor, Tensor]:
    """Exponentiate the scores in place; return their row sums [C] and exp(own_score) [m], in double.

    Where exponentials could overflow, both are of scores less their row's largest shared one.
    """
    if bound > SAFE_EXPONENT:
        shift = scores.amax(dim=1, keepdim=True).clamp_(min=-bound)
        scores -= shift
        own_score = own_score - shift.view(-1).index_select(0, chunk.row)
    return scores.exp_().sum(dim=1).double(), own_score.exp()
