"""The losses that a run can name, for settings, training and commands; `crops.losses.functions` has them.

A new loss is one file: a function of the signature of `h_infonce`, and a row for it. `LOSSES["mine"] =
Loss(...)` before the settings are read makes it known to Python; `--loss my_loss.py:ROW` takes it from a file
(see examples/extending/loss.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from crops.errors import CropsError, nearest
from crops.plugins import load_object


@dataclass(frozen=True)
class Loss:
    """A row of the table."""

    function: str | Callable[..., Any]
    """The function, or "module:name" of it, which is loaded when it is needed."""
    help: str
    """What it does, in a line."""
    anchors: Literal["min_anchor_label", "positive_label"] = "min_anchor_label"
    """The setting that is the lowest label of an anchor."""
    bound: str = "min_anchor_label"
    """The argument of the function that takes that label."""
    lowest: int = 0
    """Lowest label that can teach anything, whatever the setting says."""
    weighted: bool = False
    """Whether it takes `label_weights` (`crops.losses.h_infonce`)."""
    by_query: bool = False
    """Whether its mean is over queries with an anchor, not over anchors."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the function."""

    def load(self) -> Callable[..., Any]:
        """Return the function."""
        return load_object(self.function) if isinstance(self.function, str) else self.function


_FUNCTIONS = "crops.losses.functions"

LOSSES: dict[str, Loss] = {
    "h_infonce": Loss(
        f"{_FUNCTIONS}:h_infonce", "each document contrasted with all that is worse", weighted=True
    ),
    "infonce_graded": Loss(
        f"{_FUNCTIONS}:infonce_graded",
        "one positive of each query per pass, as the paper's InfoNCE",
        weighted=True,
    ),
    "infonce_binary": Loss(
        f"{_FUNCTIONS}:infonce_binary", "positives and negatives", "positive_label", "positive_label"
    ),
    # Label 0 has no gain, hence no term.
    "softmax_ce": Loss(
        f"{_FUNCTIONS}:softmax_ce", "listwise cross-entropy over the batch", lowest=1, by_query=True
    ),
    "softmax_ce_lower": Loss(
        f"{_FUNCTIONS}:softmax_ce",
        "the same over lower labels only",
        lowest=1,
        by_query=True,
        options={"denominator": "lower"},
    ),
    "nce": Loss(f"{_FUNCTIONS}:nce", "binary logistic loss with noise", "positive_label"),
}


def find_loss(name: str) -> Loss:
    """Return the row of a loss: of the table, or named as "module:row" or "file.py:row".

    Raises:
        CropsError: there is none of that name.
    """
    if name in LOSSES:
        return LOSSES[name]
    if ":" not in name:
        raise CropsError(
            f"unknown loss '{name}'; known: {', '.join(LOSSES)}, or FILE.py:ROW.{nearest(name, LOSSES)}"
        )
    row = load_object(name)
    if not isinstance(row, Loss):
        raise CropsError(f"{name} is no row of the table of losses; make it a crops.losses.Loss")
    return row
