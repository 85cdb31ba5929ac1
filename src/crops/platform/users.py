"""Users: what interests them, how that drifts, what they come to search for, and who plays foul."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crops.platform.behaviour import Behaviour
from crops.platform.world import Corpus, Floats, Intents, Ints

INTERESTS = 6
"""Senses that a user cares about."""
DRIFT = 0.05
"""Share of users who take up another sense each day; it gets DRIFT_WEIGHT of their interest."""
DRIFT_WEIGHT = 0.3
ABUSERS = 0.001
"""Share of users (at least one) who try to push an item: they search its need again and again, click nothing
else, and play it in the feed around their searches."""
ABUSE_SESSIONS = 15
"""Search sessions of an abuser per day."""


@dataclass
class Users:
    """Arrays over users; the id of row i is i + 1."""

    interest: NDArray[np.float32]
    """[users, senses], rows sum to 1; drifts day by day."""
    activity: Floats
    """Share of sessions, [users]."""
    pushes: Ints
    """Item row that an abuser pushes, -1 for honest users, [users]."""


def build_users(intents: Intents, corpus: Corpus, users: int, rng: np.random.Generator) -> Users:
    """Draw users: a handful of senses each, by demand, and an unequal appetite for searching."""
    senses = len(intents.sense_demand)
    keys = rng.exponential(size=(users, senses)) / intents.sense_demand
    chosen = np.argpartition(keys, min(INTERESTS, senses - 1), axis=1)[:, :INTERESTS]
    interest = np.zeros((users, senses), dtype=np.float32)
    np.put_along_axis(interest, chosen, rng.dirichlet(np.full(chosen.shape[1], 0.8), users), axis=1)
    activity = rng.gamma(1.0, size=users)
    pushes = np.full(users, -1, dtype=np.int64)
    abusers = rng.choice(users, max(1, round(ABUSERS * users)), replace=False)
    old = np.flatnonzero((corpus.uploaded_day <= 0) & (corpus.need >= 0))
    pushes[abusers] = rng.choice(old, len(abusers))
    return Users(interest, activity / activity.sum(), pushes)


def drift(users: Users, intents: Intents, rng: np.random.Generator) -> None:
    """Let some users take up another sense, drawn by demand."""
    moved = np.flatnonzero(rng.random(len(users.activity)) < DRIFT)
    sense = rng.choice(len(intents.sense_demand), len(moved), p=intents.sense_demand)
    users.interest[moved] *= 1 - DRIFT_WEIGHT
    users.interest[moved, sense] += DRIFT_WEIGHT


@dataclass(frozen=True)
class Sessions:
    """Search sessions of a day; arrays [sessions]."""

    user: Ints
    need: Ints
    start_us: Ints
    """Time of day of the first search."""


def draw_sessions(
    intents: Intents,
    corpus: Corpus,
    users: Users,
    watched: tuple[Ints, Ints],
    start_us: Ints,
    model: Behaviour,
    rng: np.random.Generator,
) -> Sessions:
    """Draw who searches for what: from interests, from yesterday's feed, or from today's trends.

    Args:
        intents: what people may want.
        corpus: the catalogue.
        users: the users.
        watched: user and item rows of videos that were watched in the feed the day before.
        start_us: time of day of each honest session, [sessions].
        model: the rates.
        rng: source of randomness.
    """
    n = len(start_us)
    user = rng.choice(len(users.activity), n, p=users.activity)
    sense = draw_rows(users.interest, rng, user)
    trend = intents.sense_demand * rng.lognormal(0.0, 0.5, len(intents.sense_demand))
    kind = rng.random(n)
    trending = kind < model.trend
    sense[trending] = rng.choice(len(trend), int(trending.sum()), p=trend / trend.sum())
    if len(watched[0]):
        inspired = np.flatnonzero((kind >= model.trend) & (kind < model.trend + model.from_feed))
        event = rng.integers(0, len(watched[0]), len(inspired))
        user[inspired] = watched[0][event]
        sense[inspired] = corpus.sense[watched[1][event]]
    need = intents.draw_needs(sense, rng)
    foul = np.repeat(np.flatnonzero(users.pushes >= 0), ABUSE_SESSIONS)
    return Sessions(
        user=np.concatenate([user, foul]),
        need=np.concatenate([need, corpus.need[users.pushes[foul]]]),
        start_us=np.concatenate([start_us, rng.choice(start_us, len(foul))]),
    )


def draw_rows(
    weights: NDArray[np.float32], rng: np.random.Generator, rows: Ints, block: int = 50_000
) -> Ints:
    """Draw one column of a non-negative weight matrix for each of its `rows` [n]."""
    ticket = rng.random(len(rows))
    parts = [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(rows), block):
        cumulative = np.cumsum(weights[rows[start : start + block]], axis=1, dtype=np.float64)
        level = ticket[start : start + block] * cumulative[:, -1]
        parts.append(np.minimum((cumulative <= level[:, None]).sum(axis=1), weights.shape[1] - 1))
    return np.concatenate(parts)
