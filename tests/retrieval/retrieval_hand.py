"""Indexes small enough to check, without any model."""

import hashlib

import numpy as np
import pyarrow as pa

from crops.config import IndexConfig
from crops.retrieval import Model
from crops.retrieval.catalogue import item_rows
from crops.retrieval.folder import publish_catalogue, writing
from crops.retrieval.index import Catalogue
from crops.text import PLAIN


def unit(count, dim, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def catalogue(vectors, ids=None, **columns):
    """Items 10, 20, ... with the vectors and columns given."""
    ids = np.arange(10, 10 * len(vectors) + 10, 10) if ids is None else np.asarray(ids)
    items = item_rows(pa.table({"item_id": ids, **columns}))
    return Catalogue(items, [vectors], "a model", "f" * 64, vectors.shape[1], vectors[:50], "documents")


def publish(root, vectors, ids=None, columns=None, **config):
    """Write a version of a folder index, without any model."""
    settings = IndexConfig(**{"target_recall": 1.0, **config})
    with writing(root):
        return publish_catalogue(root, catalogue(vectors, ids, **(columns or {})), settings)


class WordEncoder:
    """A text's vector is drawn from a hash of the text; counts what it encodes."""

    def __init__(self, dim=16, fail_after=None):
        self.dim, self.fail_after, self.encoded = dim, fail_after, []

    def encode(self, texts, *, batch_size, normalize_embeddings, show_progress_bar):
        if self.fail_after is not None and len(self.encoded) + len(texts) > self.fail_after:
            raise KeyboardInterrupt
        self.encoded += texts
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) for text in texts]
        return np.concatenate([unit(1, self.dim, seed) for seed in seeds])


def word_model(fingerprint="a", **options):
    return Model("words", WordEncoder(**options), PLAIN, fingerprint * 64)
