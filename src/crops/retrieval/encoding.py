"""From texts to unit vectors: which model, which one exactly, and what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from crops.config import TrainingConfig
from crops.errors import CropsError
from crops.outputs import cache_folder, console, progress
from crops.text import Rendering, has_text

_PROBE = "?"
"""Encoded where no text has anything to read, to learn how wide a vector is."""
_CHUNK = 4096
"""Texts encoded between two steps of the progress display; the encoder batches by length inside a chunk."""


class Encoder(Protocol):
    """What turns texts into vectors; every SentenceTransformer does."""

    def encode(
        self, texts: list[str], /, *, batch_size: int, normalize_embeddings: bool, show_progress_bar: bool
    ) -> Any:  # noqa: ANN401  (an array or a tensor, [len(texts), d])
        """Return one vector for each text."""
        ...


class Model(NamedTuple):
    """An encoder and what an index must know of it."""

    name: str
    encoder: Encoder
    rendering: Rendering
    """What the encoder reads in place of queries and documents."""
    hash: str
    """`crops.relevance.encode.model_hash` of its folder."""


def load_model(name: str) -> Model:
    """Load the encoder that an index is built or searched with.

    Args:
        name: an encoder preset, a model folder or a SentenceTransformer name.

    Raises:
        CropsError: there is no such model.
    """
    from crops.encoders import encoder_folder, load_encoder, rendering_of  # torch takes seconds to import
    from crops.relevance.encode import model_hash

    config = TrainingConfig(encoder=name)
    identity = model_hash(encoder_folder(config, cache_folder()))
    encoder = load_encoder(config, cache_folder())
    return Model(name, encoder, rendering_of(encoder), identity)


def encode_texts(
    encoder: Encoder, texts: Sequence[str], *, role: str = "document", batch_size: int = 64
) -> NDArray[np.float32]:
    """Encode texts to unit vectors, with a progress display if there are many.

    Args:
        encoder: its `encode_query` or `encode_document` is used if it has one (SentenceTransformer: prompts).
        texts: n texts.
        role: `query` or `document`.
        batch_size: texts per forward pass.

    Returns:
        Unit vectors [n, d]; zero for a text with nothing to read or of which the encoder knows no part, and
        for a query without a token of its vocabulary: all of these would have one vector and find the same.

    Raises:
        CropsError: a vector holds NaN or infinity.
    """
    encode = getattr(encoder, f"encode_{role}", encoder.encode)
    told = np.array([has_text(text) for text in texts], dtype=np.bool_)
    readable = [text for text, has in zip(texts, told, strict=True) if has] or [_PROBE]
    parts: list[NDArray[np.float32]] = []
    with progress() as display:
        task = display.add_task(f"encode {role} texts", total=len(readable), visible=len(readable) > _CHUNK)
        for start in range(0, len(readable), _CHUNK):
            chunk = readable[start : start + _CHUNK]
            part = encode(chunk, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)
            parts.append(np.asarray(part, dtype=np.float32))
            display.advance(task, len(chunk))
    found = np.concatenate(parts)
    _refuse_not_finite(found, readable)
    if role == "query":
        found[~_known(encoder, readable)] = 0
    if told.all():
        return found
    vectors = np.zeros((len(texts), found.shape[1]), dtype=np.float32)
    if told.any():
        vectors[told] = found
    return vectors


def say_zero(blocks: Sequence[NDArray[np.float32]], what: str) -> int:
    """Say how many vectors are zero: their texts have no token for the encoder.

    Args:
        blocks: the vectors, [n_i, d] each.
        what: whose they are, e.g. "documents".

    Returns:
        How many.
    """
    zero = sum(int((~block.any(axis=1)).sum()) for block in blocks)
    if zero:
        total = sum(map(len, blocks))
        console.print(
            f"[yellow]{zero:,} of {total:,} {what} have no token for this model:[/yellow] "
            "their vectors are zero"
        )
    return zero


def _known(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.bool_]:
    """Return which texts hold a token of the vocabulary; all where there is no token for unknown ones."""
    tokenizer = getattr(encoder, "tokenizer", None)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)  # transformers wrap the one of `tokenizers`
    unknown = getattr(tokenizer, "unk_token_id", None)
    if isinstance(tokenizer, Tokenizer) and (name := getattr(tokenizer.model, "unk_token", None)):
        unknown = tokenizer.token_to_id(name)
    if unknown is None or not isinstance(backend, Tokenizer):
        return np.ones(len(texts), dtype=np.bool_)
    found = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return np.array([any(token != unknown for token in one.ids) for one in found], dtype=np.bool_)


def _refuse_not_finite(vectors: NDArray[np.float32], texts: Sequence[str]) -> None:
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if broken.size:
        raise CropsError(
            f"the encoder gave NaN or infinity for {broken.size} of {len(texts)} texts, the first is "
            f"{texts[broken[0]][:80]!r}; the model did not train well or its files are damaged"
        )


def narrowed(vectors: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Return the first `dim` numbers of unit vectors [n, d >= dim], made unit length (Matryoshka).

    Raises:
        CropsError: the vectors are narrower than `dim`.
    """
    width = vectors.shape[1]
    if width < dim:
        raise CropsError(f"vectors of {width} numbers cannot be searched in an index of {dim}")
    if width == dim:
        return np.ascontiguousarray(vectors, dtype=np.float32)
    cut = vectors[:, :dim].astype(np.float32)
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    np.divide(cut, norms, out=cut, where=norms > 0)
    return cut
