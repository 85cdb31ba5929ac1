"""Team-draft interleaving: the sensitive first look at two systems (Radlinski, Kurup & Joachims, CIKM 2008).

Both systems' lists are merged into the one that is shown, so every searcher compares them. The captains of a
round draw who picks first; a pick is the best result that is not in the list yet. A click counts for the team
of the clicked result. The leading results that both lists have in common count for nobody: they can only add
noise (as in Radlinski & Craswell, WSDM 2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from crops.errors import CropsError

Ints = NDArray[np.int64]
NOBODY, A, B = -1, 0, 1


@dataclass(frozen=True)
class Interleaved:
    """A merged list."""

    items: Ints
    """[k]."""
    team: Ints
    """`A`, `B` or `NOBODY` (the common beginning) per item, [k]."""


@dataclass(frozen=True)
class Preference:
    """Which system the users prefer; a user counts once."""

    wins_a: int
    wins_b: int
    ties: int
    share_b: float
    """(wins of B + ties / 2) / users."""
    low: float
    high: float
    """95 % interval of B's share among the users who prefer one (Wilson)."""
    p: float
    """Of the sign test that A and B win equally often."""


def team_draft(a: Sequence[int], b: Sequence[int], k: int, rng: np.random.Generator) -> Interleaved:
    """Merge two ranked lists into one of at most k items.

    Args:
        a: item ids of system A, best first, each once.
        b: item ids of system B.
        k: length of the merged list.
        rng: draws the captains.

    Raises:
        CropsError: k < 1, or a list names an item twice.
    """
    if k < 1 or len(set(a)) < len(a) or len(set(b)) < len(b):
        raise CropsError(f"interleaving needs k >= 1 (k = {k}) and lists that name each item once")
    common = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    items, team = list(a[:common][:k]), [NOBODY] * min(common, k)
    taken, rests = set(items), [iter(a), iter(b)]
    while len(items) < k:
        before = len(items)
        for captain in rng.permutation(2).tolist():
            pick = next((item for item in rests[captain] if item not in taken), None)
            if pick is not None and len(items) < k:
                items.append(pick)
                team.append(captain)
                taken.add(pick)
        if len(items) == before:
            break
    return Interleaved(np.array(items, np.int64), np.array(team, np.int64))


def credit(shown: Interleaved, clicked: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the clicks that A and B earned; `clicked` says which items of the list were clicked, [k]."""
    return int((clicked & (shown.team == A)).sum()), int((clicked & (shown.team == B)).sum())


def preference(users: Ints, clicks_a: Ints, clicks_b: Ints) -> Preference:
    """Return who wins among users: who earned more of a user's clicks wins that user.

    Args:
        users: user of each search, [searches].
        clicks_a: clicks that A earned in it, [searches].
        clicks_b: clicks that B earned in it, [searches].

    Raises:
        CropsError: no user prefers either, so there is nothing to test.
    """
    distinct, place = np.unique(users, return_inverse=True)
    margin = np.bincount(place, clicks_b - clicks_a, minlength=len(distinct))
    wins_a, wins_b = int((margin < 0).sum()), int((margin > 0).sum())
    if not wins_a + wins_b:
        raise CropsError(
            f"none of {len(distinct)} users clicked more on one system's results than on the other's: "
            "run longer, or compare systems that differ"
        )
    test = binomtest(wins_b, wins_a + wins_b)
    interval = test.proportion_ci(method="wilson")
    ties = len(distinct) - wins_a - wins_b
    share = (wins_b + ties / 2) / len(distinct)
    return Preference(
        wins_a, wins_b, ties, share, float(interval.low), float(interval.high), float(test.pvalue)
    )
