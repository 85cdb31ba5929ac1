"""Embeddings whose first numbers are embeddings too (Kusupati et al. 2022, Matryoshka representations)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from crops.errors import CropsError

Loss = Callable[..., Tensor]


def over_dims(loss: Loss, dims: Sequence[int]) -> Loss:
    """Return the sum of `loss` on the full embeddings and on their first `dims` numbers, made unit length.

    Args:
        loss: called as loss(query_emb [Q, d], doc_emb [N, d], *args, **options), like `h_infonce`.
        dims: widths below the full one; the loss is returned as it is when there are none.

    Returns:
        A loss of the same signature, which raises CropsError for a width that is not below d.
    """
    if not dims:
        return loss

    def summed(query_emb: Tensor, doc_emb: Tensor, *args: Any, **options: Any) -> Tensor:  # noqa: ANN401
        width = query_emb.shape[1]
        if max(dims) >= width:
            raise CropsError(
                f"matryoshka_dims: {max(dims)} is not below the {width} dimensions of the encoder"
            )
        total = loss(query_emb, doc_emb, *args, **options)
        for dim in dims:
            query, doc = (normalize(embeddings[:, :dim], dim=1) for embeddings in (query_emb, doc_emb))
            total = total + loss(query, doc, *args, **options)
        return total

    return summed
