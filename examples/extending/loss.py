"""A loss of your own in one file: a function of the signature of `h_infonce`, and a row for it.

crops train SAMPLES MODEL --loss examples/extending/loss.py:SMOOTH
"""

from typing import Unpack

from torch import Tensor

from crops.losses import Loss, Options, h_infonce


def smoothed(
    query_emb: Tensor, doc_emb: Tensor, query_index: Tensor, labels: Tensor, **options: Unpack[Options]
) -> Tensor:
    """H-InfoNCE whose lowest anchors, which are many and noisy, weigh half."""
    lowest = options.get("min_anchor_label", 1)
    return h_infonce(query_emb, doc_emb, query_index, labels, **options, label_weights={lowest: 0.5})


SMOOTH = Loss(smoothed, "h_infonce, the lowest anchors at half weight")
