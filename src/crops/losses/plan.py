"""Who contrasts with whom in a batch: all of a loss that does not depend on embeddings."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from crops.errors import CropsError
from crops.losses.checks import Facts, refuse_empty_query

OWN_RANKS = 64
"""Labels below it are their own ranks; larger ones are compressed, which takes a sort."""


class Part(NamedTuple):
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
class Plan:
    """Own documents (M of the N) in the order of their queries, and the options on their contrast."""

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

    def parts(self, size: int) -> Iterator[tuple[slice, Part]]:
        """Yield chunks of at most `size` queries: their rows and their own documents."""
        chunks = -(-self.queries // size)
        starts = [self.queries * chunk // chunks for chunk in range(chunks + 1)]
        own, hidden = self._bounds(self.row, starts), [0] * len(starts)
        if self.hidden is not None:
            hidden = self._bounds(self.hidden[0], starts)
        for (first, m, k), (last, m_end, k_end) in itertools.pairwise(zip(starts, own, hidden, strict=True)):
            yield slice(first, last), self._part(first, slice(m, m_end), slice(k, k_end))

    def _bounds(self, rows: Tensor, starts: list[int]) -> list[int]:
        if len(starts) == 2:
            return [0, len(rows)]
        return torch.searchsorted(rows, torch.tensor(starts, device=rows.device)).tolist()

    def _part(self, first: int, own: slice, hidden: slice) -> Part:
        row, doc = self.row[own], self.doc[own]
        if first:
            row = row - first
        return Part(
            row,
            doc,
            doc + row * self.documents,
            self.rank[own],
            self.anchor[own],
            None
            if self.hidden is None
            else (self.hidden[0][hidden] - first) * self.documents + self.hidden[1][hidden],
        )


def build_plan(
    queries: int,
    query_index: Tensor,
    labels: Tensor,
    min_anchor_label: int,
    facts: Facts,
    label_weights: Mapping[int, float] | None,
) -> Plan:
    """Order the own documents by query, rank their labels and mark the anchors.

    Args:
        queries: Q.
        query_index: [N].
        labels: [N].
        min_anchor_label: lowest label of an anchor.
        facts: what `crops.losses.checks.check_values` learned of them.
        label_weights: factor of an anchor's loss by its label, 1 where not named.

    Warns:
        UserWarning: the batch is one query with one label.

    Raises:
        CropsError: a query has no document, no document is an anchor, or a weight is negative.
    """
    row, doc, own_labels = query_index, torch.arange(len(query_index), device=query_index.device), labels
    if not facts.ordered:
        row, doc = row.sort(stable=True)
        own_labels = labels.index_select(0, doc)
    if facts.strays:
        owned = row >= 0
        row, doc, own_labels = row[owned], doc[owned], own_labels[owned]
    rank, levels = own_labels, facts.highest + 1
    if not 0 <= facts.highest < OWN_RANKS:
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
    if queries == 1 and not facts.strays and bool((own_labels == own_labels[0]).all()):
        warnings.warn(
            "the batch is one query whose documents all have one label: none is told from a worse one. "
            "Put more queries in a batch",
            stacklevel=4,
        )
    factor = anchor.double()
    for label, weight in (label_weights or {}).items():
        if not 0 <= weight < float("inf"):
            raise CropsError(f"label_weights gives label {label} the weight {weight}; give a number >= 0")
        factor = factor.masked_fill(anchor & (own_labels == label), weight)
    return Plan(queries, len(query_index), doc, row, rank, anchor, factor, anchors, levels)
