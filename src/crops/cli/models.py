"""From the name of a model to a retriever."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crops.config import TrainingConfig
from crops.evaluation import ScoringRetriever
from crops.outputs import cache_folder
from crops.retrieval import BM25Retriever, ExactRetriever

BM25 = "bm25"


def load_retriever(model: str | Path, ids: NDArray[np.int64], texts: Sequence[str]) -> ScoringRetriever:
    """Return a retriever over a catalogue: BM25, or exact search with a dual encoder.

    Args:
        model: `bm25`, an encoder preset, a model folder or a SentenceTransformer name.
        ids: item ids, [n].
        texts: their document texts, n.

    Raises:
        CropsError: there is no such model.
    """
    if str(model) == BM25:
        return BM25Retriever(ids, texts)
    from crops.encoders import load_encoder  # torch takes seconds to import: only when a model is needed

    return ExactRetriever(load_encoder(TrainingConfig(encoder=str(model)), cache_folder()), ids, texts)
