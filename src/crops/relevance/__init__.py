"""theta: how likely a document is relevant to a query, or two queries mean the same."""

from crops.relevance.calibrate import (
    Calibration,
    Kind,
    Pairs,
    StoredCalibration,
    balanced_weights,
    fit,
    load_calibration,
    log_pairs,
    read_pairs,
    store_calibration,
)
from crops.relevance.encode import TextEncoder, local_folder, model_hash, text_encoder
from crops.relevance.score import CosineScorer, CrossScorer, fine_tune, pair_scorer, scorer_identity, scorers

__all__ = [
    "Calibration",
    "CosineScorer",
    "CrossScorer",
    "Kind",
    "Pairs",
    "StoredCalibration",
    "TextEncoder",
    "balanced_weights",
    "fine_tune",
    "fit",
    "load_calibration",
    "local_folder",
    "log_pairs",
    "model_hash",
    "pair_scorer",
    "read_pairs",
    "scorer_identity",
    "scorers",
    "store_calibration",
    "text_encoder",
]
