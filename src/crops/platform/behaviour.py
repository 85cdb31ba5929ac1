"""How people behave before a list of results; pure functions over arrays.

Three models of examination, all with the same attraction and satisfaction by grade:

- `dbn`: dynamic Bayesian network (Chapelle & Zhang, WWW 2009). After each result, P(go on | satisfied) = 0
  and P(go on | not satisfied) = gamma.
- `dcm`: dependent click model (Guo et al., WSDM 2009). Everybody goes on until a click; after a click P(go
  on) falls with the position; who is satisfied by the result stops.
- `pbm`: position-based model (Craswell et al., WSDM 2008). Each position is examined with a chance of its
  own, theta^eta with theta from eye tracking (Joachims et al. 2005).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from crops.platform.world import Flags, Floats, Ints

LAST_START = 22.5
"""Hour after which nobody begins to search, so that a session ends on its day."""
POSITIONS = (0.68, 0.61, 0.48, 0.34, 0.28, 0.20, 0.11, 0.10, 0.08, 0.06)
"""theta: P(examine) of the positions of a page under `pbm`, before eta."""


@dataclass(frozen=True)
class Behaviour:
    """Rates of the behaviour model; docs/platform.md says where each comes from.

    What has no default here is a setting of the run (`crops.config.PlatformConfig`).
    """

    click_model: str
    reformulate: float
    """P(reformulate | not satisfied). No public figure for short-video search: a setting."""
    feed_alignment: float
    """P(a feed item near a search is about the searched sense), beyond the user's lasting interests."""
    good_abandonment: float
    """P(satisfied | no click, a result of grade 2 or 3 was examined): the cover alone was the answer."""
    informative: bool
    """False = the null world: later queries and feed watching say nothing about the need of a search."""
    attraction: tuple[float, ...] = (0.05, 0.21, 0.64, 0.84)
    """P(click | examined, grade 0..3); for grade 0 these are accidents and curiosity."""
    match_attraction: float = 0.12
    """Added for items whose text shows words of the query: they look relevant."""
    bait_attraction: float = 0.10
    """Added for items that answer only in part: their covers promise more."""
    satisfaction: tuple[float, ...] = (0.02, 0.10, 0.42, 0.68)
    """P(satisfied | clicked, grade)."""
    continue_rate: float = 0.84
    """`dbn`: gamma, P(examine the next position | not satisfied)."""
    continue_after_click: tuple[float, float] = (0.9, 0.8)
    """`dcm`: lambda of the first position, and its factor per position."""
    position_power: float = 1.0
    """`pbm`: eta."""
    like: tuple[float, ...] = (0.005, 0.02, 0.06, 0.12)
    """P(like | clicked, grade)."""
    watch: tuple[float, ...] = (0.12, 0.25, 0.55, 0.75)
    """Mean share of a clicked video that is watched, by grade."""
    page: float = 0.34
    """P(next page | not satisfied); a page is logged as the same query again."""
    switch: float = 0.06
    """P(search for something else | not satisfied): unrelated follow-ups."""
    max_searches: int = 6
    """Searches per session at most."""
    specify: float = 0.60
    rephrase: float = 0.28
    """Shares of reformulations; the rest generalise."""
    gap_s: float = 22.0
    """Median of the log-normal time between leaving a list and the next search, seconds."""
    gap_sigma: float = 0.9
    trend: float = 0.20
    """Share of sessions that follow the day's trends and not the user's interests."""
    from_feed: float = 0.15
    """Share of sessions that follow what the user watched in the feed the day before."""


@dataclass(frozen=True)
class Clicks:
    """What n people did with a list of m results; arrays [n, m] but `satisfied` [n]."""

    clicked: Flags
    liked: Flags
    play_ms: Ints
    """0 where not clicked."""
    satisfied: Flags


class _Walk(NamedTuple):
    """How n people went through m results; [n, m] but `satisfied` [n]."""

    examined: Flags
    clicked: Flags
    satisfied: Flags


def click(
    grade: Ints,
    partial: Flags,
    matches: Flags,
    duration_ms: Ints,
    model: Behaviour,
    rng: np.random.Generator,
) -> Clicks:
    """Let people walk down their lists: examine, click by attraction, stop when satisfied.

    Args:
        grade: true grade of each shown item for the person's need, [n, m]; -1 = no item.
        partial: the item answers only in part, [n, m].
        matches: the item's text shows words of the query, [n, m].
        duration_ms: length of the item, [n, m].
        model: the rates.
        rng: source of randomness.
    """
    shape = grade.shape
    known = np.maximum(grade, 0)
    looks = model.bait_attraction * partial + model.match_attraction * matches
    attraction = np.where(grade < 0, 0.0, np.array(model.attraction)[known] + looks)
    attracted = rng.random(shape) < attraction
    content = rng.random(shape) < np.array(model.satisfaction)[known]
    walk = CLICK_MODELS[model.click_model](attracted, content, rng.random(shape), model)
    seen = (walk.examined & (grade >= 2)).any(axis=1) & ~walk.clicked.any(axis=1)
    return Clicks(
        clicked=walk.clicked,
        liked=walk.clicked & (rng.random(shape) < np.array(model.like)[known]),
        play_ms=np.where(walk.clicked, watch_ms(np.array(model.watch)[known], duration_ms, rng), 0),
        satisfied=walk.satisfied | (seen & (rng.random(len(grade)) < model.good_abandonment)),
    )


def _walk_down(attracted: Flags, content: Flags, goes_on: Callable[[int, Flags], Flags | np.bool_]) -> _Walk:
    """Examine from the top; `goes_on(position, clicked)` says who looks further, if not satisfied."""
    examined, clicked = np.zeros_like(attracted), np.zeros_like(attracted)
    examining: Flags = np.ones(len(attracted), dtype=bool)
    satisfied: Flags = np.zeros(len(attracted), dtype=bool)
    for position in range(attracted.shape[1]):
        examined[:, position] = examining
        clicked[:, position] = examining & attracted[:, position]
        satisfied = np.logical_or(satisfied, clicked[:, position] & content[:, position])
        stays = goes_on(position, clicked[:, position])
        examining = np.logical_and(examining, ~satisfied & stays)
    return _Walk(examined, clicked, satisfied)


def _dbn(attracted: Flags, content: Flags, ticket: Floats, model: Behaviour) -> _Walk:
    return _walk_down(attracted, content, lambda at, _: ticket[:, at] < model.continue_rate)


def _dcm(attracted: Flags, content: Flags, ticket: Floats, model: Behaviour) -> _Walk:
    first, factor = model.continue_after_click
    return _walk_down(attracted, content, lambda at, clicked: ~clicked | (ticket[:, at] < first * factor**at))


def _pbm(attracted: Flags, content: Flags, ticket: Floats, model: Behaviour) -> _Walk:
    examined = ticket < np.array(POSITIONS)[: ticket.shape[1]] ** model.position_power
    clicked = examined & attracted
    satisfied: Flags = np.any(clicked & content, axis=1)
    return _Walk(examined, clicked, satisfied)


CLICK_MODELS: dict[str, Callable[[Flags, Flags, Floats, Behaviour], _Walk]] = {
    "dbn": _dbn,
    "dcm": _dcm,
    "pbm": _pbm,
}


def watch_ms(mean: Floats, duration_ms: Ints, rng: np.random.Generator) -> Ints:
    """Draw time played: a Beta share with the given mean (concentration 2) of the duration, in ms."""
    share = rng.beta(2 * mean, 2 * (1 - mean))
    return (share * duration_ms).astype(np.int64)


def start_times(n: int, rng: np.random.Generator) -> Ints:
    """Draw n times of day in microseconds: two broad peaks, noon and evening."""
    noon = rng.random(n) < 0.4
    hours = np.where(noon, rng.normal(12.5, 2.5, n), rng.normal(20.0, 2.5, n)) % 24
    return (LAST_START / 24 * hours * 3600e6).astype(np.int64)
