"""Which loss a run minimises, which documents are its anchors, and what its mean is over."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crops.config import TrainingConfig
from crops.encoders import over_dims
from crops.losses import h_infonce, infonce_binary, infonce_graded, nce, softmax_ce

_LISTWISE: dict[str, Callable[..., Tensor]] = {
    "softmax_ce": softmax_ce,
    "softmax_ce_lower": functools.partial(softmax_ce, denominator="lower"),
}


@dataclass(frozen=True)
class Objective:
    """A loss of embeddings and labels; see `crops.losses.h_infonce` for its arguments."""

    loss: Callable[..., Tensor]
    lowest_anchor: int
    """Lowest label of an anchor; a group without one teaches nothing."""
    by_query: bool = False
    """Whether the mean is over queries and not over anchors."""

    def terms(self, labels: NDArray[np.int64], query_index: NDArray[np.int64]) -> int:
        """Return what the mean of a batch divides by.

        Args:
            labels: [N].
            query_index: [N] row of each document's query.
        """
        anchors = labels >= self.lowest_anchor
        return len(np.unique(query_index[anchors])) if self.by_query else int(anchors.sum())


def objective(config: TrainingConfig) -> Objective:
    """Return the loss that the settings name."""
    graded, positive = config.min_anchor_label, config.positive_label
    if config.loss == "infonce_binary":
        found = Objective(functools.partial(infonce_binary, positive_label=positive), positive)
    elif config.loss == "nce":
        found = Objective(functools.partial(nce, min_anchor_label=positive), positive)
    elif config.loss in _LISTWISE:
        # Label 0 has no gain, hence no term.
        listwise = functools.partial(_LISTWISE[config.loss], min_anchor_label=graded)
        found = Objective(listwise, max(1, graded), by_query=True)
    else:
        form = {"h_infonce": h_infonce, "infonce_graded": infonce_graded}[config.loss]
        found = Objective(functools.partial(form, min_anchor_label=graded), graded)
    loss = found.loss if config.in_batch else _among_own(found.loss)
    return Objective(over_dims(loss, config.matryoshka_dims), found.lowest_anchor, found.by_query)


def _among_own(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the loss without the documents of other queries: rows of one query id are not contrasted."""

    def own(*args: Tensor, query_id: Tensor, **options: Any) -> Tensor:  # noqa: ANN401
        return loss(*args, query_id=torch.zeros_like(query_id), **options)

    return own
