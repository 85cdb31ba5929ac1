"""Users: what interests them, what they come to search for, and how they put it into words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crops.platform.behaviour import Behaviour
from crops.platform.corpus import draw_needs
from crops.platform.world import HEAD_LEVEL, NEED_LEVEL, SENSE_LEVEL, Floats, Ints, World

INTERESTS = 6
"""Senses that a user cares about."""
FIRST_LEVEL = (0.35, 0.25, 0.40)
"""Level of a session's first query: head, sense, need. A vague start is more common than a specific one."""
MODIFIED = (0.25, 0.50, 0.50)
"""Chance of a modifier by level."""
TYPO = 0.05
MODIFIERS = (
    "tutorial", "for beginners", "tips", "video", "easy", "ideas", "2026", "explained", "guide", "at home",
    "step by step", "best", "quick", "help", "review", "before and after", "fast", "simple", "at night",
    "without tools", "for kids", "in one minute", "mistakes", "real life", "close up", "advice",
)  # fmt: skip
"""Words that searchers add; drawn by Zipf's law."""


@dataclass(frozen=True)
class Users:
    """Arrays over users; the id of row i is i + 1."""

    interest: Floats
    """[users, senses], rows sum to 1."""
    activity: Floats
    """Share of sessions, [users]."""


def build_users(world: World, users: int, rng: np.random.Generator) -> Users:
    """Draw users: a handful of senses each, by demand, and an unequal appetite for searching."""
    senses = len(world.sense_demand)
    keys = rng.exponential(size=(users, senses)) / world.sense_demand
    chosen = np.argsort(keys, axis=1)[:, :INTERESTS]
    interest = np.zeros((users, senses))
    np.put_along_axis(interest, chosen, rng.dirichlet(np.full(chosen.shape[1], 0.8), users), axis=1)
    activity = rng.gamma(1.0, size=users)
    return Users(interest, activity / activity.sum())


@dataclass(frozen=True)
class Sessions:
    """Search sessions of a day; arrays [sessions]."""

    user: Ints
    need: Ints
    start_us: Ints
    """Time of day of the first search."""


def draw_sessions(
    world: World, users: Users, n: int, start_us: Ints, model: Behaviour, rng: np.random.Generator
) -> Sessions:
    """Draw who searches for what: a need of an interesting sense, or of one that trends today."""
    user = rng.choice(len(users.activity), n, p=users.activity)
    trend = world.sense_demand * rng.lognormal(0.0, 0.5, len(world.sense_demand))
    trending = rng.choice(len(trend), n, p=trend / trend.sum())
    sense = np.where(rng.random(n) < model.trend, trending, draw_rows(users.interest[user], rng))
    return Sessions(user, draw_needs(world, sense, rng), start_us)


def draw_rows(weights: Floats, rng: np.random.Generator) -> Ints:
    """Draw one column per row of a non-negative weight matrix [n, m]."""
    cumulative = np.cumsum(weights, axis=1)
    ticket = rng.random(len(weights)) * cumulative[:, -1]
    drawn: Ints = np.minimum((cumulative <= ticket[:, None]).sum(axis=1), weights.shape[1] - 1)
    return drawn


class Speech:
    """Turns needs into phrases, and phrases into typed text."""

    def __init__(self, world: World) -> None:
        phrases = world.phrases
        self._world = world
        self._phrases = phrases
        at_level = [phrases.level == level for level in (HEAD_LEVEL, SENSE_LEVEL, NEED_LEVEL)]
        owners = (phrases.head, phrases.sense, phrases.need)
        self._rows = [np.flatnonzero(mask) for mask in at_level]
        self._counts = [np.bincount(owner[mask]) for owner, mask in zip(owners, at_level, strict=True)]
        weights = 1.0 / np.arange(1, len(MODIFIERS) + 1)
        self._modifier_share = weights / weights.sum()

    def first(self, need: Ints, rng: np.random.Generator) -> Ints:
        """Draw the phrase row of a session's first query."""
        return self._draw(need, rng.choice(3, len(need), p=FIRST_LEVEL), rng)

    def again(self, need: Ints, phrase: Ints, model: Behaviour, rng: np.random.Generator) -> Ints:
        """Draw the phrase row of a reformulation: more specific, other words, or more general."""
        mode = rng.random(len(need))
        step = np.where(mode < model.specify, 1, np.where(mode < model.specify + model.rephrase, 0, -1))
        level = np.clip(self._phrases.level[phrase] + step, HEAD_LEVEL, NEED_LEVEL)
        return self._draw(need, level, rng)

    def _draw(self, need: Ints, level: Ints, rng: np.random.Generator) -> Ints:
        sense = self._world.need_sense[need]
        owners = (self._world.sense_head[sense], sense, need)
        ticket = rng.random(len(need))
        result = np.zeros(len(need), dtype=np.int64)
        for at, (rows, counts, owner) in enumerate(zip(self._rows, self._counts, owners, strict=True)):
            first = np.concatenate([[0], np.cumsum(counts)])[owner]
            drawn = rows[np.minimum(first + (ticket * counts[owner]).astype(np.int64), len(rows) - 1)]
            result = np.where(level == at, drawn, result)
        return result

    def type(self, phrase: Ints, rng: np.random.Generator) -> list[str]:
        """Return the texts typed for phrase rows: with modifiers, and sometimes a slip of the finger."""
        n = len(phrase)
        modified = rng.random(n) < np.array(MODIFIED)[self._phrases.level[phrase]]
        modifier = rng.choice(len(MODIFIERS), n, p=self._modifier_share)
        before = rng.random(n) < 0.2
        slipped = np.flatnonzero(rng.random(n) < TYPO)
        texts = [self._phrases.text[row] for row in phrase]
        for row in np.flatnonzero(modified):
            pair = (
                (MODIFIERS[modifier[row]], texts[row])
                if before[row]
                else (texts[row], MODIFIERS[modifier[row]])
            )
            texts[row] = " ".join(pair)
        for row, place, kind in zip(
            slipped, rng.random(len(slipped)), rng.integers(0, 2, len(slipped)), strict=True
        ):
            texts[row] = _slip(texts[row], place, bool(kind))
        return texts


def _slip(text: str, place: float, swap: bool) -> str:
    """Drop the letter at relative `place`, or swap it with the next."""
    at = int(place * (len(text) - 1))
    middle = text[at + 1] + text[at] if swap else text[at + 1]
    return (text[:at] + middle + text[at + 2 :]).strip()


def meanings(world: World, phrase: Ints) -> NDArray[np.int64]:
    """Return (head, sense, need) of phrase rows, [n, 3]; -1 where the phrase does not say."""
    phrases = world.phrases
    return np.stack([phrases.head[phrase], phrases.sense[phrase], phrases.need[phrase]], axis=1)
