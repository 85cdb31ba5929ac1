"""What CroPS (arXiv 2511.15443) published, beside which our figures stand, and the rows of its tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CT, QR, NDCG = "recall@100/ct", "recall@100/qr", "ndcg_exp2@4/pool"
"""The paper's three columns: Recall@100 on clicks and on reformulations, NDCG@4 on annotated lists."""
QR_TRUTH, TRUE = "recall@100/qr_truth", "true_recall@100"
BM25 = "bm25"


@dataclass(frozen=True)
class Row:
    """A row of a table: the method that fills it and the paper's figures."""

    method: str
    """`bm25`, or a key of `crops.training.methods.METHODS`."""
    title: str
    paper: tuple[float, float, float] | None
    """CT, QR, NDCG@4, in %; None for a row of ours."""
    hours: float | None = None
    """Training time (Table 4)."""

    def published(self) -> Mapping[str, float]:
        """Return the paper's figures by metric, shares in [0, 1]."""
        shares = (value / 100 for value in self.paper or ())
        return dict(zip((CT, QR, NDCG), shares, strict=False))


@dataclass(frozen=True)
class Layout:
    """A table of the paper."""

    name: str
    title: str
    reference: str
    """The method that all other rows are compared with."""
    rows: tuple[Row, ...]
    settings: str | None = None
    """The method whose tuned settings all rows are trained with, so that an ablation changes one thing a row;
    each row has its own when None."""


LAYOUTS: dict[str, Layout] = {
    "table2": Layout(
        "table2",
        "Table 2: CroPS beside other ways to train a retriever",
        "crops",
        (
            Row(BM25, "BM25", (42.9, 22.5, 64.8)),
            Row("nce", "NCE", (53.6, 27.5, 65.4)),
            Row("dpr", "DPR", (56.0, 30.7, 66.5)),
            Row("ance", "ANCE", (56.9, 31.3, 67.1)),
            Row("adore", "ADORE+STAR", (59.4, 31.9, 67.4)),
            Row("trisampler", "TriSampler", (59.8, 32.2, 66.9)),
            Row("fs_lr", "FS-LR", (59.6, 33.0, 66.0)),
            Row("crops", "CroPS", (69.1, 40.1, 67.0)),
        ),
    ),
    "table3": Layout(
        "table3",
        "Table 3: what each source and each label adds",
        "fs_lr",
        (
            Row("fs_lr", "baseline (FS-LR)", (59.6, 33.0, 66.0)),
            Row("plus_p1", "+ P1", (63.3, 36.1, 66.5)),
            Row("plus_p2", "+ P2", (65.7, 37.4, 66.7)),
            Row("crops", "+ P3 = CroPS", (69.1, 40.1, 67.0)),
            Row("binary", "CroPS, binary labels", (59.9, 32.1, 66.7)),
            Row("p1_at_4", "CroPS, P1 at label 4", (67.1, 38.4, 66.8)),
            Row("crops_anchors", "ours: CroPS, high anchors", None),
        ),
        settings="crops",
    ),
    "table4": Layout(
        "table4",
        "Table 4: losses on the same samples",
        "crops",
        (
            Row("infonce_graded", "InfoNCE, one positive at a time", (67.8, 38.9, 66.9), 178),
            Row("softmax_ce", "Softmax-CE", (65.3, 37.8, 66.8), 89),
            Row("crops", "H-InfoNCE (CroPS)", (69.1, 40.1, 67.0), 88),
            Row("softmax_ce_lower", "ours: Softmax-CE over lower labels", None),
        ),
    ),
}

FIG6 = {"very relevant": 0.813, "relevant": 0.145, "irrelevant": 0.042}
"""Fig. 6: 1,000 documents that Qwen2.5-14B wrote, judged."""
FIG7 = (0.05, 0.03)
"""Fig. 7: the temperature at the start, and about where it ends."""
