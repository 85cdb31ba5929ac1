"""Which documents must not be contrasted with which query, told by ids alone.

A similar text may be a true negative, an equal id never is: masks come from ids, never from similarity.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hidden_pairs(
    query_index: Tensor,
    query_id: Tensor | None = None,
    doc_id: Tensor | None = None,
    known: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the (row, document) pairs that leave the denominators; a pair may come twice.

    Args:
        query_index: [N] row of each document's query, -1 = of none.
        query_id: [Q] id of each row's query.
        doc_id: [N] id of each document.
        known: rows and ids, [K] each, of positives that are not in the batch; needs `doc_id`.

    Returns:
        Two index tensors of equal length.
    """
    pairs = [(query_index[:0], query_index[:0])]
    if query_id is not None:
        pairs.append(same_query_pairs(query_index, query_id))
    if doc_id is not None:
        pairs.append(same_doc_pairs(query_index, doc_id, known))
    rows, docs = zip(*pairs, strict=True)
    return torch.cat(rows), torch.cat(docs)


def same_query_pairs(query_index: Tensor, query_id: Tensor) -> tuple[Tensor, Tensor]:
    """Return (row, document) pairs whose document belongs to another row of the same query."""
    _, inverse, counts = torch.unique(query_id, return_inverse=True, return_counts=True)
    repeated = counts[inverse] > 1
    rows = repeated.nonzero().squeeze(1)
    owned = (query_index >= 0).nonzero().squeeze(1)
    docs = owned[repeated[query_index[owned]]]
    row, doc = _join(rows, query_id[rows], docs, query_id[query_index[docs]])
    foreign = query_index[doc] != row
    return row[foreign], doc[foreign]


def same_doc_pairs(
    query_index: Tensor, doc_id: Tensor, known: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Return (row, document) pairs whose document is of another group, its id also in the row's group."""
    _, inverse, counts = torch.unique(doc_id, return_inverse=True, return_counts=True)
    repeated = (counts[inverse] > 1).nonzero().squeeze(1)
    members = repeated[query_index[repeated] >= 0]
    row, doc = _join(query_index[members], doc_id[members], repeated, doc_id[repeated])
    if known is not None:
        known_row, known_doc = _join(*known, torch.arange(len(doc_id), device=doc_id.device), doc_id)
        row, doc = torch.cat([row, known_row]), torch.cat([doc, known_doc])
    foreign = query_index[doc] != row
    return row[foreign], doc[foreign]


def _join(left: Tensor, left_key: Tensor, right: Tensor, right_key: Tensor) -> tuple[Tensor, Tensor]:
    """Return all (left, right) pairs with equal keys: a sorted equi-join, never left x right."""
    sorted_key, order = right_key.sort()
    first = torch.searchsorted(sorted_key, left_key)
    matches = torch.searchsorted(sorted_key, left_key, right=True) - first
    pair_left = torch.repeat_interleave(left, matches)
    start = matches.cumsum(0) - matches
    within = torch.arange(len(pair_left), device=left.device) - torch.repeat_interleave(start, matches)
    return pair_left, right[order[torch.repeat_interleave(first, matches) + within]]
