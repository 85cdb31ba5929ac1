"""What the platform must look like: public figures and the paper's own rows, each with the range we accept.

The platform is tuned against these rows and no others, and on the old system only: no row knows of an
augmented arm. Names are those of `observe`, or `<model> <metric>` of the old system's evaluation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Anchor:
    """A figure to match, as shares in [0, 1]."""

    name: str
    figure: str
    """What was measured elsewhere; "-" where no public figure exists."""
    source: str
    low: float | None = None
    """Accepted range; None where the row is reported only."""
    high: float | None = None

    def holds(self, measured: float) -> bool | None:
        """Return whether `measured` is accepted; None where there is no range."""
        if self.low is None or self.high is None:
            return None
        return math.isfinite(measured) and self.low <= measured <= self.high


def _around(name: str, figure: float, tolerance: float, source: str) -> Anchor:
    return Anchor(name, f"{figure:.2f}", source, max(0.0, figure - tolerance), min(1.0, figure + tolerance))


_COSOBE, _PAPER = "CosoBe (search sessions)", "CroPS, Table 2 and section 4"
_BAND = "band around the CroPS tables"
ANCHORS: tuple[Anchor, ...] = (
    _around("searches with a click", 0.60, 0.15, "KuaiSAR (short-video search)"),
    _around("same query again, of pairs within 90 s", 0.63, 0.10, "Excite 1997 log"),
    *(
        _around(f"CTR at rank {rank}", ctr, 0.15, _COSOBE)
        for rank, ctr in enumerate((0.51, 0.34, 0.22, 0.12, 0.08), start=1)
    ),
    *(
        _around(f"P(click | shown, grade {grade})", rate, 0.15, f"{_COSOBE}, labels 0, 1, 2")
        for grade, rate in (("0", 0.06), ("1", 0.16), ("2 or 3", 0.33))
    ),
    Anchor("ranked set found by dense", "0.30", "CroPS, Table 5", 0.20, 0.40),
    Anchor("ranked set found by sparse", "0.21", "CroPS, Table 8", 0.14, 0.28),
    Anchor("bm25 recall@100/ct", "0.43", _PAPER, 0.35, 0.50),
    Anchor("bm25 recall@100/qr", "0.23", _PAPER, 0.17, 0.30),
    Anchor("bm25 recall@100/qr_truth", "0.23", f"{_PAPER}; ours by truth", 0.17, 0.30),
    Anchor("baseline recall@100/ct", "0.60", f"{_PAPER} (baseline = FS-LR)", 0.50, 0.70),
    Anchor("baseline recall@100/qr", "0.33", f"{_PAPER} (baseline = FS-LR)", 0.25, 0.40),
    Anchor("baseline recall@100/qr_truth", "0.33", f"{_PAPER}; ours by truth", 0.25, 0.40),
    Anchor("exponent of the query frequency law", "-", "none for short-video search"),
    Anchor("test searches whose query is new", "-", "none for short-video search"),
    Anchor("test clicks on items not shown for the query in training", "-", "none"),
    Anchor("reworded by the next search within 90 s, of searches", "-", "none: a setting"),
    Anchor("clicks per search", "-", "none"),
    Anchor("feed: mean share of a video watched", "-", "none"),
    Anchor("search: long plays, of clicks", "-", "none; long play at 18 s as in KuaiRand"),
)
BUBBLE = (
    "exposure that the query's top 10 items get",
    "exposure that the top 1 % of items get",
    "senses shown per ambiguous query",
    "relevant items that the query was ever shown",
    "test clicks on items not shown for the query in training",
    "catalogue shown in search so far",
)
"""What `observe` says of the filter bubble."""
