"""Losses over ragged groups "a query and its graded documents": pure functions of embeddings and labels.

`functions` has all of them on one page, `table` their names for settings and commands, `kernel` what they
share, `sentence` the loss for sentence-transformers' own trainer. Each is loaded on first use: the table
needs nothing, the functions torch alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crops.losses.checks import hidden_pairs
    from crops.losses.functions import h_infonce, infonce_binary, infonce_graded, nce, softmax_ce
    from crops.losses.kernel import Options, Reduction
    from crops.losses.sentence import GroupCollator, HInfoNCELoss
    from crops.losses.table import LOSSES, Loss, find_loss

_MODULES = {
    "checks": ("hidden_pairs",),
    "functions": ("h_infonce", "infonce_binary", "infonce_graded", "nce", "softmax_ce"),
    "kernel": ("Options", "Reduction"),
    "sentence": ("GroupCollator", "HInfoNCELoss"),
    "table": ("LOSSES", "Loss", "find_loss"),
}

__all__ = [
    "LOSSES",
    "GroupCollator",
    "HInfoNCELoss",
    "Loss",
    "Options",
    "Reduction",
    "find_loss",
    "h_infonce",
    "hidden_pairs",
    "infonce_binary",
    "infonce_graded",
    "nce",
    "softmax_ce",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  (a module attribute can be anything)
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"crops.losses.{module}"), name)
    raise AttributeError(f"module 'crops.losses' has no attribute '{name}'")
