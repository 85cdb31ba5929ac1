"""theta: how likely a document is relevant to a query, or two queries mean the same."""

from crops.relevance.calibrate import (
    Calibration,
    Kind,
    StoredCalibration,
    balanced_weights,
    fit,
    load_calibration,
    store_calibration,
)
from crops.relevance.encode import TextEncoder, text_encoder
from crops.relevance.models import model_hash, resolve_model
from crops.relevance.score import CosineScorer, pair_scorer, scorers

__all__ = [
    "Calibration",
    "CosineScorer",
    "Kind",
    "StoredCalibration",
    "TextEncoder",
    "balanced_weights",
    "fit",
    "load_calibration",
    "model_hash",
    "pair_scorer",
    "resolve_model",
    "scorers",
    "store_calibration",
    "text_encoder",
]
