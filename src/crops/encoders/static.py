"""The static encoder: a text is the mean of its tokens' vectors, trained in seconds on a CPU.

Its first weights are distilled the model2vec way (Tulkens & van Dongen 2024): every token of the vocabulary
goes through a transformer on its own, principal components reduce the width, and frequent tokens are weighted
down.
"""

from __future__ import annotations

import re

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from crops.errors import CropsError
from crops.outputs import progress

SIF_COEFFICIENT = 1e-4
"""a of the smooth inverse frequency weight a / (a + p) (Arora et al. 2017)."""
BATCH = 1024
"""Tokens per pass of the base: large, as each is a short pass."""
_UNUSED = re.compile(r"\[unused\d+\]")


def distill(base: SentenceTransformer, dim: int, max_tokens: int) -> SentenceTransformer:
    """Return a static encoder of width `dim` with the vocabulary of `base`.

    Args:
        base: a transformer encoder with a fast tokenizer, its vocabulary in order of frequency.
        dim: output width, at most that of `base`.
        max_tokens: longer texts are cut; kept in the tokenizer, so that the saved model does the same.

    Raises:
        CropsError: `dim` exceeds the width of `base`, or its tokenizer is not a fast one.
    """
    tokenizer = base.tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CropsError(f"the tokenizer of the base model ({type(tokenizer).__name__}) is not a fast one")
    width = base.get_embedding_dimension() or 0
    if dim > width:
        raise CropsError(f"dim = {dim} exceeds the {width} dimensions of the base model; lower training.dim")
    used = _used_tokens(tokenizer)
    vectors = _principal_components(_embed_tokens(base, used), dim) * _inverse_frequency(len(used))[:, None]
    weights = torch.zeros(len(tokenizer), dim)
    weights[used] = vectors / vectors.norm(dim=1).mean()
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.enable_truncation(max_tokens)
    return SentenceTransformer(modules=[StaticEmbedding(backend, weights), Normalize()], device="cpu")


def _used_tokens(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return the ids that texts can hold, in the order of the vocabulary."""
    framing = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return torch.tensor(
        [i for i, name in enumerate(names) if i not in framing and not _UNUSED.fullmatch(name)]
    )


def _embed_tokens(base: SentenceTransformer, used: Tensor) -> Tensor:
    """Return the pooled output [len(used), width] of each token alone between the framing tokens."""
    frame = base.tokenizer(base.tokenizer.unk_token)["input_ids"]
    inputs = torch.tensor(frame).repeat(len(used), 1)
    inputs[:, frame.index(base.tokenizer.unk_token_id)] = used
    parts = []
    with torch.inference_mode(), progress() as display:
        for batch in display.track(torch.split(inputs, BATCH), description="distilling the vocabulary"):
            features = {
                "input_ids": batch.to(base.device),
                "attention_mask": torch.ones_like(batch).to(base.device),
            }
            parts.append(base(features)["sentence_embedding"].float().cpu())
    return torch.cat(parts).clone()


def _principal_components(vectors: Tensor, dim: int) -> Tensor:
    """Return the centred vectors on their `dim` main axes; the largest entry of an axis is positive."""
    centred = (vectors - vectors.mean(dim=0)).double()
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :dim]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    components: Tensor = centred @ (axes * largest.sign())
    return components.float()


def _inverse_frequency(tokens: int) -> Tensor:
    """Return the weight of each token: frequencies follow Zipf's law in the order of the vocabulary."""
    frequency = 1 / torch.arange(2, tokens + 2)
    weight: Tensor = SIF_COEFFICIENT / (SIF_COEFFICIENT + frequency / frequency.sum())
    return weight
