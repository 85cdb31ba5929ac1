"""What a loss may be given, each fault named with its remedy, and which pairs ids alone exclude.

Shapes and types cost nothing to check, and ids are read on the host. Embeddings and temperature are read in
one pass and one transfer: on a GPU each separate look would wait for the device.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from crops.errors import CropsError

MIN_TEMPERATURE = 1 / 300
"""Smaller ones overflow double precision: exp(2 / tau)."""
MAX_LOG_FREQUENCY = 50.0
"""Keeps exp(2 / tau + |log_q|) within double precision."""
NORM_TOLERANCE = 1e-2
"""Distance of an embedding's length from 1; bfloat16 needs this much."""


class Checked(NamedTuple):
    """What the check of rows and labels learns on the way."""

    strays: bool
    """Whether a document is of no query."""
    ordered: bool
    """Whether the documents stand in the order of their queries."""
    highest: int
    """The highest label if none is negative, else -1 (documents of no query may carry any)."""


def check_embeddings(query_emb: Tensor, doc_emb: Tensor) -> None:
    """Raise CropsError unless both are non-empty floating matrices, alike in width, type and device."""
    for name, emb in (("query_emb", query_emb), ("doc_emb", doc_emb)):
        if emb.ndim != 2 or 0 in emb.shape:
            raise CropsError(
                f"{name} has shape {list(emb.shape)}; give a non-empty matrix, one embedding per row"
            )
        if not emb.is_floating_point():
            raise CropsError(f"{name} is {emb.dtype}; give floating-point embeddings")
    if query_emb.shape[1] != doc_emb.shape[1]:
        raise CropsError(
            f"embeddings differ in width: query_emb {query_emb.shape[1]}, doc_emb {doc_emb.shape[1]}"
        )
    if (query_emb.dtype, query_emb.device) != (doc_emb.dtype, doc_emb.device):
        raise CropsError(
            f"query_emb is {query_emb.dtype} on {query_emb.device}, "
            f"doc_emb {doc_emb.dtype} on {doc_emb.device}; bring them to one type and device"
        )


def check_ids(name: str, values: Tensor, length: int) -> None:
    """Raise CropsError unless `values` is a vector of `length` integers."""
    if values.shape != (length,):
        raise CropsError(f"{name} has shape {list(values.shape)}; give [{length}]")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise CropsError(f"{name} is {values.dtype}; give integers")


def check_values(query_emb: Tensor, doc_emb: Tensor, temperature: Tensor) -> float:
    """Check what only the values tell: unit rows and a usable tau, which is returned.

    Raises:
        CropsError: a value is out of its range.
    """
    if temperature.numel() != 1 or temperature.ndim:
        raise CropsError(f"temperature has shape {list(temperature.shape)}; give one number")
    norms = [torch.linalg.vector_norm(emb.detach(), dim=1) for emb in (query_emb, doc_emb)]
    # One double among them makes all double.
    values = torch.stack([*torch.cat(norms).aminmax(), temperature.detach().to(query_emb.device).double()])
    short, long, tau = values.tolist()
    if not (abs(short - 1) <= NORM_TOLERANCE and abs(long - 1) <= NORM_TOLERANCE):
        for name, lengths in zip(("query_emb", "doc_emb"), norms, strict=True):
            for row in (~((lengths - 1).abs() <= NORM_TOLERANCE)).nonzero()[:1, 0].tolist():
                length = float(lengths[row])
                fault = f"has length {length:.4g}; normalise the rows (torch.nn.functional.normalize)"
                if not lengths[row].isfinite():
                    fault = "holds NaN or infinity; lower the learning rate or check the encoder"
                raise CropsError(f"{name} row {row} {fault}")
    if not MIN_TEMPERATURE <= tau < float("inf"):
        raise CropsError(
            f"temperature is {tau:.4g}; it must be finite and at least {MIN_TEMPERATURE:.4g}. "
            "If training drove it there, lower the learning rate"
        )
    return float(tau)


def check_rows(queries: int, query_index: Tensor, labels: Tensor) -> Checked:
    """Check rows and labels [N], on the host.

    Raises:
        CropsError: a row or label is out of its range.
    """
    ordered = bool((query_index[1:] >= query_index[:-1]).all())
    (first, last), (lowest, highest) = (
        (int(least), int(most)) for least, most in (query_index.aminmax(), labels.aminmax())
    )
    if first < -1 or last >= queries:
        raise CropsError(
            f"query_index holds {first}..{last} for {queries} queries; "
            "give rows of query_emb, or -1 for a document of no query here"
        )
    if lowest < 0 and (labels[query_index >= 0] < 0).any():
        raise CropsError("labels holds a negative label; labels start at 0 (a negative, never an anchor)")
    return Checked(first < 0, ordered, highest if lowest >= 0 else -1)


def check_identity(
    queries: int,
    documents: int,
    query_id: Tensor | None,
    doc_id: Tensor | None,
    known: tuple[Tensor, Tensor] | None,
) -> None:
    """Raise CropsError unless the ids fit the batch and known positives name its rows."""
    if query_id is not None:
        check_ids("query_id", query_id, queries)
    if doc_id is not None:
        check_ids("doc_id", doc_id, documents)
    if known is None:
        return
    if doc_id is None:
        raise CropsError("known positives are recognised by their ids: give doc_id as well")
    rows, ids = known
    check_ids("known rows", rows, len(rows))
    check_ids("known ids", ids, len(rows))
    outside = rows[(rows < 0) | (rows >= queries)]
    if len(outside):
        raise CropsError(f"known rows hold {int(outside[0])} for {queries} queries; give rows of query_emb")


def check_log_frequency(log_q: Tensor, documents: int) -> float:
    """Return the largest magnitude in `log_q`; raise CropsError unless it is [N], finite and not absurd."""
    if log_q.shape != (documents,) or not log_q.is_floating_point():
        raise CropsError(f"log_q is {log_q.dtype} {list(log_q.shape)}; give floating-point [{documents}]")
    largest = log_q.abs().max().item()
    if not largest <= MAX_LOG_FREQUENCY:
        raise CropsError(
            f"log_q reaches {largest:.4g}; give finite natural logarithms of frequencies, "
            f"within {MAX_LOG_FREQUENCY:g} of 0 (a frequency of 0 has none: give it a floor)"
        )
    return float(largest)


def refuse_empty_query(row: Tensor, queries: int) -> NoReturn:
    """Raise CropsError naming the first query that has no document."""
    present = torch.zeros(queries, dtype=torch.bool, device=row.device)
    present[row] = True
    missing = int((~present).nonzero()[0])
    raise CropsError(
        f"query_emb row {missing} has no document; leave out queries whose group is empty and number the rest"
    )


def hidden_pairs(
    query_index: Tensor,
    query_id: Tensor | None = None,
    doc_id: Tensor | None = None,
    known: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the (row, document) pairs that leave the denominators; a pair may come twice.

    A similar text may be a true negative, an equal id never is: ids alone decide, never similarity. The
    arguments are those of `crops.losses.h_infonce`; `known` needs `doc_id`.
    """
    pairs = [(query_index[:0], query_index[:0])]
    if query_id is not None:
        pairs.append(_same_query_pairs(query_index, query_id))
    if doc_id is not None:
        pairs.append(_same_doc_pairs(query_index, doc_id, known))
    rows, docs = zip(*pairs, strict=True)
    return torch.cat(rows), torch.cat(docs)


def _same_query_pairs(query_index: Tensor, query_id: Tensor) -> tuple[Tensor, Tensor]:
    """Return (row, document) pairs whose document belongs to another row of the same query."""
    _, inverse, counts = torch.unique(query_id, return_inverse=True, return_counts=True)
    repeated = counts[inverse] > 1
    rows = repeated.nonzero().squeeze(1)
    owned = (query_index >= 0).nonzero().squeeze(1)
    docs = owned[repeated[query_index[owned]]]
    row, doc = _join(rows, query_id[rows], docs, query_id[query_index[docs]])
    foreign = query_index[doc] != row
    return row[foreign], doc[foreign]


def _same_doc_pairs(
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
