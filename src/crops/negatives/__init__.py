"""Negatives of the published baselines: from candidate lists and positives to documents, as pure functions.

Each module is one paper's sampler and says what is kept of it and what differs. When an index is built and
with which weights is the training's business (`crops.training.mining`).
"""

from crops.negatives.adore import adore_negatives
from crops.negatives.ann import ance_due
from crops.negatives.bm25 import bm25_candidates, dpr_negatives
from crops.negatives.lists import nearest_negatives
from crops.negatives.noise import nce_noise, shared_noise
from crops.negatives.star import star_due
from crops.negatives.tri import tri_negatives

__all__ = [
    "adore_negatives",
    "ance_due",
    "bm25_candidates",
    "dpr_negatives",
    "nce_noise",
    "nearest_negatives",
    "shared_noise",
    "star_due",
    "tri_negatives",
]
