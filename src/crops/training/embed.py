"""Embeddings of a step's texts: little padding, and as little memory as is asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from crops.encoders import encode
from crops.encoders.towers import input_module, input_modules
from crops.errors import CropsError
from crops.training.distributed import ON_CPU
from crops.training.pool import Side, TextPool

TOKENS_PER_PASS = 512 if ON_CPU else 16_384
"""Tokens, padding included, that one pass through a transformer holds.

On a CPU small passes stay in the cache and need little padding: MiniLM took 1.86 s for a batch in one pass of
2,496 tokens, 1.41 s in four of 512 and 1.49 s in seven of 256. The value for other devices is not measured.
"""


def compile_transformers(encoder: SentenceTransformer) -> None:
    """Compile the transformers of an encoder in place, for passes of any shape.

    Raises:
        CropsError: it has none.
    """
    found = [module for module in input_modules(encoder) if isinstance(module, Transformer)]
    if not found:
        raise CropsError("compile: this encoder has no transformer to compile; leave the setting out")
    for module in found:
        module.model.compile(dynamic=True)


def embed(encoder: SentenceTransformer, pool: TextPool, rows: NDArray[np.int64], chunk: int | None) -> Tensor:
    """Return the embeddings [len(rows), d] of texts, with gradients if they are enabled.

    Texts of similar length share a pass. With `chunk`, activations are not kept: each chunk is computed
    again when its gradient is due, with the same dropout (the gradient cache of Gao et al. 2021,
    arXiv 2101.06983, by activation checkpointing), so that memory does not grow with the batch.

    Args:
        encoder: the model.
        pool: its texts.
        rows: which texts, ascending.
        chunk: most texts whose activations are held at a time; all of them when None.
    """
    return torch.cat([_embed_side(encoder, side, own, chunk) for side, own in pool.split(rows) if len(own)])


def _embed_side(
    encoder: SentenceTransformer, side: Side, rows: NDArray[np.int64], chunk: int | None
) -> Tensor:
    lengths = side.tokens.lengths(rows)
    order = np.argsort(lengths, kind="stable")
    unpadded = isinstance(input_module(encoder, side.role), StaticEmbedding)
    parts = []
    for part in _passes(lengths[order], chunk, None if unpadded else TOKENS_PER_PASS):
        chosen = rows[order[part]]
        if chunk is None or not torch.is_grad_enabled():
            parts.append(encode(encoder, side.tokens, chosen, side.role))
        else:
            parts.append(checkpoint(encode, encoder, side.tokens, chosen, side.role, use_reentrant=False))
    return torch.cat(parts)[torch.from_numpy(np.argsort(order))]


def _passes(lengths: NDArray[np.int64], chunk: int | None, budget: int | None) -> Iterator[slice]:
    """Cut texts of ascending lengths where a pass holds `chunk` texts, or `budget` tokens with padding."""
    start = 0
    while start < len(lengths):
        end = min(start + (chunk or len(lengths)), len(lengths))
        if budget is not None:
            padded = lengths[start:end] * np.arange(1, end - start + 1)
            end = start + max(1, int(np.searchsorted(padded, budget, side="right")))
        yield slice(start, end)
        start = end
