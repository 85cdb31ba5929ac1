"""Losses over ragged groups "a query and its graded documents": pure functions of embeddings and labels.

The modules for sentence-transformers are loaded on first use: the functions need torch alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from crops.losses.checks import hidden_pairs
from crops.losses.functions import h_infonce, infonce_binary, infonce_graded, nce, softmax_ce
from crops.losses.kernel import Options, Reduction

if TYPE_CHECKING:
    from crops.losses.sentence import GroupCollator, HInfoNCELoss

__all__ = [
    "GroupCollator",
    "HInfoNCELoss",
    "Options",
    "Reduction",
    "h_infonce",
    "hidden_pairs",
    "infonce_binary",
    "infonce_graded",
    "nce",
    "softmax_ce",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  (a module attribute can be anything)
    if name not in ("GroupCollator", "HInfoNCELoss"):
        raise AttributeError(f"module 'crops.losses' has no attribute '{name}'")
    return getattr(importlib.import_module("crops.losses.sentence"), name)
