"""theta as a cross-encoder: query and document read together by one transformer, a calibrated logit out.

Slower than the bi-encoder, whose vectors serve every pair of a text, and more exact once it is fine-tuned
(`crops.relevance.finetune`): before that its head is random, so it is never used without a calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.outputs import progress
from crops.relevance.batches import append_scores, text_column
from crops.relevance.calibrate import Calibration
from crops.relevance.models import MAX_TOKENS

Logits = Callable[[Sequence[tuple[str, str]]], NDArray[np.float64]]
"""Pairs of texts to their logits [n]."""
_CHUNK = 1024


@dataclass(frozen=True)
class CrossScorer:
    """Scores (left, right) by the calibrated logit of a cross-encoder; a `PairScorer`."""

    logits: Logits
    calibration: Calibration
    identity: Callable[[], str] | None = None
    """Returns the hash of the model on the machine that asks."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Append `score` to each batch.

        Raises:
            CropsError: `left` or `right` is missing, not text or null somewhere, or `score` is there already.
        """
        for batch in batches:
            left, right = (text_column(batch, name).to_pylist() for name in ("left", "right"))
            distinct = dict.fromkeys(zip(left, right, strict=True))
            known = dict(zip(distinct, self.logits(list(distinct)), strict=True))
            logits = np.array([known[pair] for pair in zip(left, right, strict=True)], np.float64)
            yield append_scores(batch, self.calibration.probability(logits))


def cross_logits(folder: Path, batch_size: int) -> Logits:
    """Return the logits of the cross-encoder in `folder`, which is loaded at the first call."""
    from sentence_transformers import CrossEncoder  # seconds to import

    loaded: list[CrossEncoder] = []

    def logits(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        if not loaded:
            loaded.append(CrossEncoder(str(folder), num_labels=1, max_length=MAX_TOKENS, device="cpu"))
        import torch

        values = np.empty(len(pairs), np.float64)
        with progress() as bar:
            task = bar.add_task("scoring pairs", total=len(pairs), visible=len(pairs) > _CHUNK)
            for start in range(0, len(pairs), _CHUNK):
                part = list(pairs[start : start + _CHUNK])
                # predict() sorts by length, so batches hold pairs of like length.
                values[start : start + len(part)] = loaded[0].predict(
                    part, batch_size=batch_size, activation_fn=torch.nn.Identity(), show_progress_bar=False
                )
                bar.advance(task, len(part))
        return values

    return logits
