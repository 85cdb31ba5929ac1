"""The platform's sparse route: an ID-feature model of query terms and items, from its own clicks.

Latent semantic analysis (Deerwester et al. 1990) of the term x item click table: it knows items by their ids
alone, so it cannot find what was never clicked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import randomized_svd

from crops.platform.memory import Memory
from crops.platform.world import Ints

DIM = 64


@dataclass(frozen=True)
class IdModel:
    """Vectors of terms and of clicked items."""

    words: CountVectorizer
    term_vectors: NDArray[np.float32]
    """[terms, d]"""
    item_rows: Ints
    """[n] rows of the items that were clicked."""
    item_vectors: NDArray[np.float32]
    """[n, d] unit rows."""

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Return unit vectors [texts, d]; zero where no term is known."""
        vectors: NDArray[np.float32] = normalize(self.words.transform(texts) @ self.term_vectors)
        return vectors


def fit_id_model(memory: Memory, seed: int) -> IdModel:
    """Learn from the clicks so far."""
    words = CountVectorizer(token_pattern=r"\S+")
    clicks = memory.click_counts()
    clicks.data = np.log1p(clicks.data)
    terms = sparse.csr_array(words.fit_transform(list(memory.queries)))
    table = sparse.csr_array(TfidfTransformer(norm=None).fit_transform((terms.T @ clicks).T).T)
    item_rows = np.unique(table.indices).astype(np.int64)
    clicked = sparse.csc_array(table)[:, item_rows]
    dim = min(DIM, min(clicked.shape) - 1)
    left, values, right = randomized_svd(clicked, n_components=dim, random_state=seed)
    scale = np.sqrt(values)
    return IdModel(
        words, (left * scale).astype(np.float32), item_rows, normalize(right.T * scale).astype(np.float32)
    )
