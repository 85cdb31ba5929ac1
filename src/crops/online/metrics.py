"""What an experiment measures: each metric is a ratio of two sums over users.

CTR, long plays and reformulations are those of CroPS (Tables 6 and 9), Ratio_rank and Ratio_show those of its
Tables 5 and 8. docs/online-metrics.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["effect", "user", "route", "truth"]
"""Table of the metric: effects, shares per user, shares of the recall routes, and what only truth tells."""


@dataclass(frozen=True)
class Metric:
    """A ratio metric: sum of `numerator` over users / sum of `denominator` over users."""

    key: str
    label: str
    numerator: str
    denominator: str
    explanation: str
    role: Role = "effect"
    better: int = 1
    """+1: higher is better, -1: lower is better, 0: neither."""
    share: bool = True
    """Whether it is a share in [0, 1], to be printed in %."""


CTR, LPR, RQR = "ctr", "lpr", "rqr"
PRIMARY = (CTR, LPR, RQR)
"""The metrics whose tests are corrected together."""

_BEHAVIOUR = (
    Metric(CTR, "CTR", "clicked_searches", "searches", "searches with a click / searches"),
    Metric(
        "ctr_shown",
        "CTR per result",
        "clicks",
        "shown",
        "clicked results / shown results: CTR per impression",
    ),
    Metric(LPR, "LPR", "long_plays", "plays", "long plays / plays from search"),
    Metric(
        RQR,
        "RQR",
        "reformulated",
        "searches",
        "searches that the same user followed in the window by another text of one intent / searches",
        better=-1,
    ),
)
_USERS = (
    Metric("ctr_user", "CTR per user", "ctr_own", "ctr_has", "mean over users of their own CTR", "user"),
    Metric("lpr_user", "LPR per user", "lpr_own", "lpr_has", "mean over users of their own LPR", "user"),
    Metric("rqr_user", "RQR per user", "rqr_own", "rqr_has", "mean over users of their own RQR", "user", -1),
    Metric(
        "lpr_any", "users with a long play", "lpr_ever", "lpr_has", "users with a long play / players", "user"
    ),
    Metric("rqr_any", "users who reworded", "rqr_ever", "rqr_has", "of those who searched", "user", -1),
)
_SATISFIED = Metric(
    "satisfied",
    "satisfied",
    "satisfied",
    "searches",
    "searches that truly satisfied the searcher / searches",
    "truth",
)
_SENSES = Metric(
    "senses",
    "senses",
    "senses",
    "ambiguous",
    "senses covered: different true meanings of the query shown per search of an ambiguous query",
    "truth",
    share=False,
)
BEHAVIOUR_STATISTICS = (
    "searches",
    "clicked_searches",
    "shown",
    "clicks",
    "plays",
    "long_plays",
    "reformulated",
    "ranked",
)
"""What every log has per user and day; what its columns do not tell is 0."""


def route_metrics(routes: Sequence[str]) -> tuple[Metric, ...]:
    """Return Ratio_rank and Ratio_show of recall routes, each with its unique share.

    An item that several routes found counts for each of them; the unique share counts what no other route
    found.
    """
    return tuple(
        Metric(
            f"{kind}_{stage}:{route}",
            f"Ratio_{stage}{', unique' if kind == 'only' else ''} ({route})",
            f"{kind}_{column}:{route}",
            column,
            f"share of the {column} results that {route} {'alone ' if kind == 'only' else ''}found",
            "route",
            better=0,
        )
        for route in routes
        for kind in ("ratio", "only")
        for stage, column in (("rank", "ranked"), ("show", "shown"))
    )


def route_statistics(routes: Sequence[str]) -> tuple[str, ...]:
    """Return the numerators of `route_metrics`."""
    return tuple(metric.numerator for metric in route_metrics(routes))


def metrics_of(routes: Sequence[str], statistics: Sequence[str]) -> tuple[Metric, ...]:
    """Return the metrics that a log can tell, in the order of the tables.

    Args:
        routes: recall routes whose shares are wanted.
        statistics: names of the statistics that were measured.
    """
    known = {*statistics, *USER_STATISTICS}
    every = (*_BEHAVIOUR, *_USERS, *route_metrics(routes), _SATISFIED, _SENSES)
    return tuple(metric for metric in every if {metric.numerator, metric.denominator} <= known)


USER_SHARES = {
    CTR: ("clicked_searches", "searches"),
    LPR: ("long_plays", "plays"),
    RQR: ("reformulated", "searches"),
}
"""Numerator and denominator of the shares that each user has of his own."""
USER_STATISTICS = tuple(f"{key}_{part}" for key in USER_SHARES for part in ("own", "has", "ever"))
"""Made of a user's sums: the own share (0 without a denominator), whether there is one, whether it is > 0."""
