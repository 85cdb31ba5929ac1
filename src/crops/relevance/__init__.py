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
from crops.relevance.cross import CrossScorer
from crops.relevance.encode import TextEncoder, text_encoder
from crops.relevance.finetune import fine_tune
from crops.relevance.models import model_hash, resolve_model
from crops.relevance.pairs import Pairs, log_pairs, read_pairs
from crops.relevance.score import CosineScorer, pair_scorer, scorer_identity, scorers

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
    "log_pairs",
    "model_hash",
    "pair_scorer",
    "read_pairs",
    "resolve_model",
    "scorer_identity",
    "scorers",
    "store_calibration",
    "text_encoder",
]
