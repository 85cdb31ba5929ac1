"""What a loss may be given; each fault is named with its remedy."""

from __future__ import annotations

import torch
from torch import Tensor

from crops.errors import CropsError

MIN_TEMPERATURE = 1 / 300
"""Smaller ones overflow double precision: exp(2 / tau)."""
NORM_TOLERANCE = 1e-2
"""Distance of an embedding's length from 1; bfloat16 needs this much."""


def check_embeddings(query_emb: Tensor, doc_emb: Tensor) -> None:
    """Raise CropsError unless both are non-empty matrices of unit rows, alike in width, type and device."""
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
    for name, emb in (("query_emb", query_emb), ("doc_emb", doc_emb)):
        _check_unit_rows(name, emb.detach())


def _check_unit_rows(name: str, emb: Tensor) -> None:
    norms = torch.linalg.vector_norm(emb, dim=1)
    bad = ~((norms - 1).abs() <= NORM_TOLERANCE)
    if not bad.any():
        return
    row = int(bad.nonzero()[0])
    if not norms[row].isfinite():
        raise CropsError(
            f"{name} row {row} holds NaN or infinity; lower the learning rate or check the encoder"
        )
    raise CropsError(
        f"{name} row {row} has length {float(norms[row]):.4g}; "
        "normalise the rows (torch.nn.functional.normalize)"
    )


def check_groups(queries: int, documents: int, query_index: Tensor, labels: Tensor) -> None:
    """Raise CropsError unless every document names a row of `queries` (or -1) and its label is >= 0."""
    for name, values in (("query_index", query_index), ("labels", labels)):
        check_ids(name, values, documents)
    if int(query_index.min()) < -1 or int(query_index.max()) >= queries:
        raise CropsError(
            f"query_index holds {int(query_index.min())}..{int(query_index.max())} for {queries} queries; "
            "give rows of query_emb, or -1 for a document of no query here"
        )
    if (labels[query_index >= 0] < 0).any():
        raise CropsError("labels holds a negative label; labels start at 0 (a negative, never an anchor)")


def check_ids(name: str, values: Tensor, length: int) -> None:
    """Raise CropsError unless `values` is a vector of `length` integers."""
    if values.shape != (length,):
        raise CropsError(f"{name} has shape {list(values.shape)}; give [{length}]")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise CropsError(f"{name} is {values.dtype}; give integers")


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
        raise CropsError("known positives are told by id: give doc_id as well")
    rows, ids = known
    check_ids("known rows", rows, len(rows))
    check_ids("known ids", ids, len(rows))
    outside = rows[(rows < 0) | (rows >= queries)]
    if len(outside):
        raise CropsError(f"known rows hold {int(outside[0])} for {queries} queries; give rows of query_emb")


def check_temperature(temperature: Tensor) -> None:
    """Raise CropsError unless tau is one finite number of at least `MIN_TEMPERATURE`."""
    if temperature.numel() != 1 or temperature.ndim:
        raise CropsError(f"temperature has shape {list(temperature.shape)}; give one number")
    value = temperature.item()
    if not MIN_TEMPERATURE <= value < float("inf"):
        raise CropsError(
            f"temperature is {value:.4g}; it must be finite and at least {MIN_TEMPERATURE:.4g}. "
            "If training drove it there, lower the learning rate"
        )
