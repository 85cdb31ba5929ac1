"""How people behave before a list of results and in a feed; pure functions over arrays.

Examination and clicks follow the dynamic Bayesian network of Chapelle & Zhang (2009). The click rates by
usefulness keep the order and rough size of TianGong-Qref (.03 .62 .62 .71 by usefulness) and CosoBe
(.06 .16 .33 by label); they are settings, not fits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crops.platform.world import Floats, Ints

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Behaviour:
    """Rates of the behaviour model."""

    attraction: tuple[float, ...] = (0.04, 0.14, 0.42, 0.60)
    """P(click | examined, grade 0..3)."""
    bait_attraction: float = 0.10
    """Added for items that answer only in part: their covers promise more."""
    satisfaction: tuple[float, ...] = (0.02, 0.12, 0.50, 0.80)
    """P(satisfied | clicked, grade)."""
    continue_rate: float = 0.85
    """gamma: P(examine the next position | not satisfied)."""
    like: tuple[float, ...] = (0.005, 0.02, 0.06, 0.12)
    """P(like | clicked, grade)."""
    watch: tuple[float, ...] = (0.12, 0.25, 0.55, 0.75)
    """Mean share of a clicked video that is watched, by grade."""
    page: float = 0.34
    """P(next page | not satisfied); a page is logged as the same query again (63 % of same-user pairs
    within 90 s in the Excite 1997 log)."""
    reformulate: float = 0.22
    """P(reformulate | not satisfied). No public figure for short-video search: a setting."""
    switch: float = 0.06
    """P(search for something else | not satisfied): unrelated follow-ups."""
    max_searches: int = 6
    """Searches per session at most."""
    specify: float = 0.50
    rephrase: float = 0.35
    """Shares of reformulations; the rest generalise."""
    gap_s: float = 22.0
    """Median of the log-normal time between leaving a list and the next search, seconds."""
    gap_sigma: float = 0.9
    feed_alignment: float = 0.25
    """P(a feed item near a search is about the searched sense), beyond the user's lasting interests."""
    trend: float = 0.25
    """Share of sessions that follow the day's trends and not the user's interests."""


@dataclass(frozen=True)
class Clicks:
    """What n people did with a list of m results; arrays [n, m] but `satisfied` [n]."""

    clicked: Flags
    liked: Flags
    play_ms: Ints
    """0 where not clicked."""
    satisfied: Flags


def click(
    grade: Ints, partial: Flags, duration_ms: Ints, model: Behaviour, rng: np.random.Generator
) -> Clicks:
    """Walk down the list: examine, click by attraction, stop when satisfied.

    Args:
        grade: true grade of each shown item for the person's need, [n, m]; -1 = no item.
        partial: the item answers only in part, [n, m].
        duration_ms: length of the item, [n, m].
        model: the rates.
        rng: source of randomness.
    """
    shape = grade.shape
    known = np.maximum(grade, 0)
    attraction = np.where(grade < 0, 0.0, np.array(model.attraction)[known] + model.bait_attraction * partial)
    attracted = rng.random(shape) < attraction
    content = rng.random(shape) < np.array(model.satisfaction)[known]
    goes_on = rng.random(shape) < model.continue_rate
    clicked = np.zeros(shape, dtype=bool)
    examining = np.ones(shape[0], dtype=bool)
    satisfied = np.zeros(shape[0], dtype=bool)
    for position in range(shape[1]):
        clicked[:, position] = examining & attracted[:, position]
        satisfied |= clicked[:, position] & content[:, position]
        examining &= ~satisfied & goes_on[:, position]
    return Clicks(
        clicked=clicked,
        liked=clicked & (rng.random(shape) < np.array(model.like)[known]),
        play_ms=np.where(clicked, watch_ms(np.array(model.watch)[known], duration_ms, rng), 0),
        satisfied=satisfied,
    )


def watch_ms(mean: Floats, duration_ms: Ints, rng: np.random.Generator) -> Ints:
    """Draw time played: a Beta share with the given mean (concentration 2) of the duration, in ms."""
    share = rng.beta(2 * mean, 2 * (1 - mean))
    return (share * duration_ms).astype(np.int64)


def start_times(n: int, rng: np.random.Generator) -> Ints:
    """Draw n times of day in microseconds: two broad peaks, noon and evening."""
    noon = rng.random(n) < 0.4
    hours = np.where(noon, rng.normal(12.5, 2.5, n), rng.normal(20.0, 2.5, n))
    return (np.clip(hours, 0.0, 23.5) * 3600e6).astype(np.int64)
