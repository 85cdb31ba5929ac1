"""The feed: an independent recommender over interests with exploration, and what people watch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from crops.platform.people import Behaviour, Sessions, Users, draw_rows, watch_ms
from crops.platform.world import Corpus, Floats, Ints, World
from crops.schema import FEED_EVENTS

BURST = 8
"""Items per visit to the feed."""
NEAR_SEARCH = 0.7
"""Share of search sessions with a visit to the feed within half an hour."""
INTEREST, TREND = 0.65, 0.20
"""Share of recommendations from the user's interests and from what is popular; the rest explores."""
KEEN = 0.15
"""Mean share of a video watched without any interest; interest and a fresh search add to it."""
LIKE = 0.1
"""P(like) per unit of that mean."""


@dataclass(frozen=True)
class Visits:
    """Visits to the feed; arrays [visits]."""

    user: Ints
    start_us: Ints
    near_sense: Ints
    """The sense searched near the visit, -1 if none."""


def draw_visits(world: World, users: Users, sessions: Sessions, rng: np.random.Generator) -> Visits:
    """Draw visits: around most search sessions, and as many again at other times."""
    near = np.flatnonzero(rng.random(len(sessions.user)) < NEAR_SEARCH)
    offset = (rng.uniform(-25, 20, len(near)) * 60e6).astype(np.int64)
    other = rng.choice(len(users.activity), len(sessions.user), p=users.activity)
    return Visits(
        user=np.concatenate([sessions.user[near], other]),
        start_us=np.concatenate(
            [np.maximum(sessions.start_us[near] + offset, 0), rng.permutation(sessions.start_us)]
        ),
        near_sense=np.concatenate([world.intents.need_sense[sessions.need[near]], np.full(len(other), -1)]),
    )


def watch_feed(
    world: World,
    users: Users,
    visits: Visits,
    live: Ints,
    day_us: int,
    model: Behaviour,
    rng: np.random.Generator,
) -> pa.Table:
    """Return the day's `feed_events`.

    Args:
        live: rows of the items that are online.
        day_us: start of the day, microseconds UTC.
    """
    corpus = world.corpus
    visit = np.repeat(np.arange(len(visits.user)), BURST)
    user, near_sense = visits.user[visit], visits.near_sense[visit]
    item = _items_of(corpus, _recommend(world, users, user, near_sense, model, rng), live, rng)
    pushed = (users.pushes[user] >= 0) & (near_sense >= 0) & (rng.random(len(user)) < 0.5)
    pushed &= model.informative
    item = np.where(pushed, users.pushes[user], item)
    keen = np.where(pushed, 0.95, _keenness(corpus, users, user, near_sense, item, model))
    play = watch_ms(keen, corpus.duration_ms[item], rng)
    spent = np.cumsum(play.reshape(-1, BURST), axis=1) - play.reshape(-1, BURST)
    watched_at = day_us + visits.start_us[visit] + spent.ravel() * 1000
    order = np.lexsort((item, user, watched_at))
    columns = {
        "user_id": user + 1,
        "item_id": item + 1,
        "watched_at": watched_at,
        "play_ms": play,
        "duration_ms": corpus.duration_ms[item],
        "liked": rng.random(len(item)) < LIKE * keen,
        "clicked": None,
    }
    schema = FEED_EVENTS.arrow()
    arrays = [
        pa.nulls(len(item), schema.field(name).type)
        if column is None
        else pa.array(column[order], schema.field(name).type)
        for name, column in columns.items()
    ]
    return pa.table(arrays, schema=schema)


def _keenness(
    corpus: Corpus, users: Users, user: Ints, near_sense: Ints, item: Ints, model: Behaviour
) -> Floats:
    """Return the mean share watched: more of what interests the user, now or always."""
    sense = corpus.sense[item]
    drawn = 0.9 * users.interest[user, sense] + 0.35 * (near_sense == sense)
    keen = KEEN + drawn * model.informative - 0.1 * corpus.partial[item]
    clipped: Floats = np.clip(keen, 0.05, 0.9)
    return clipped


def _recommend(
    world: World, users: Users, user: Ints, near_sense: Ints, model: Behaviour, rng: np.random.Generator
) -> Ints:
    """Draw a sense per feed slot: by interest, by supply, or any; near a search, often the searched one."""
    supply = world.intents.sense_supply
    kind = rng.random(len(user))
    by_supply = rng.choice(len(supply), len(user), p=supply)
    if not model.informative:
        return by_supply
    by_interest = draw_rows(users.interest, rng, user)
    anything = rng.integers(0, len(supply), len(user))
    sense = np.where(kind < INTEREST, by_interest, np.where(kind < INTEREST + TREND, by_supply, anything))
    aligned = (near_sense >= 0) & (rng.random(len(user)) < model.feed_alignment)
    return np.where(aligned, near_sense, sense)


def _items_of(corpus: Corpus, sense: Ints, live: Ints, rng: np.random.Generator) -> Ints:
    """Draw a live item of each sense with weight sqrt(quality); any live item where the sense has none."""
    order = live[np.argsort(corpus.sense[live], kind="stable")]
    weight: Floats = np.sqrt(corpus.quality[order])
    cumulative = np.concatenate([[0.0], np.cumsum(weight)])
    first = np.searchsorted(corpus.sense[order], sense, side="left")
    last = np.searchsorted(corpus.sense[order], sense, side="right")
    first, last = np.where(first == last, 0, first), np.where(first == last, len(order), last)
    ticket = cumulative[first] + rng.random(len(sense)) * (cumulative[last] - cumulative[first])
    row = np.clip(np.searchsorted(cumulative, ticket, side="right") - 1, first, last - 1)
    drawn: Ints = order[row]
    return drawn
