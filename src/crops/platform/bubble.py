"""The dial of the filter bubble: how much a list follows popularity and its own past, how much it explores.

Its effect is read off the logs alone (`crops platform-report`): concentration of exposure, senses shown per
ambiguous query, share of relevant items ever shown, share of clicks on items that were never shown before.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bubble:
    """One position of the dial."""

    popularity: float
    """Weight of popularity in [0, 1] beside relevance in [0, 1], in both rankers."""
    own_past: int
    """Candidates of each route that learned from the own clicks: dense, sparse, co-click, similar."""
    beyond: float
    """Factor on the routes that need no words and no clicks on this text: co-watch, fresh, personal."""
    explore: int
    """Candidates per query that are drawn at random from the query's leaf category, anew each day."""
    boost: float
    """Chance of a ranked candidate to be lifted to the top of a list, whatever its score: epsilon-greedy."""


BUBBLES = {
    "weak": Bubble(popularity=0.10, own_past=10, beyond=2.0, explore=30, boost=0.02),
    "default": Bubble(popularity=0.35, own_past=20, beyond=1.0, explore=15, boost=0.005),
    "strong": Bubble(popularity=1.00, own_past=60, beyond=0.1, explore=0, boost=0.0),
}
