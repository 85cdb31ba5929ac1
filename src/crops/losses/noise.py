"""Binary logistic loss with noise."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from crops.losses.batch import Options, evaluate, prepare
from crops.losses.objectives import against_noise


def nce(
    query_emb: Tensor,
    doc_emb: Tensor,
    query_index: Tensor,
    labels: Tensor,
    **options: Unpack[Options],
) -> Tensor:
    r"""Noise-contrastive estimation (Gutmann & Hyvärinen 2010; the NCE baseline of CroPS, Table 2).

    Anchors are told from noise one by one, as binary logistic regression:
    $-\log \sigma(\Delta_i) - \sum_{j=1}^{k} \log \sigma(-\Delta_j)$ per anchor, with
    $\Delta_j = \cos(q, d_j) / \tau - \log k - \log q_j$. Noise = the documents of other queries and the own
    ones that are no anchors; k counts it after all masks. The score is the logarithm of how much likelier the
    document is as a match than as noise; given `log_q`, of its likelihood itself. The order of labels above
    `min_anchor_label` is not used: give it the lowest positive label.

    Args:
        query_emb: [Q, d], see `h_infonce`.
        doc_emb: [N, d], see `h_infonce`.
        query_index: [N], see `h_infonce`.
        labels: [N], see `h_infonce`.
        **options: as of `h_infonce`, but `log_q` is taken off the scores of own documents as well.

    Returns:
        A scalar, or [N] for "none".

    Raises:
        CropsError: as `h_infonce`.
    """
    tau, plan = prepare(query_emb, doc_emb, query_index, labels, options)
    return evaluate(against_noise, query_emb, doc_emb, tau, plan, options.get("reduction", "mean"))
