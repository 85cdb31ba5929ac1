"""One simulated day whose users are served by different recall routes, all feeding one memory.

The steps of a day are the platform's own, taken as they are: its files are frozen by their content hash.
With one way for everybody and a plain stream of random numbers it is `crops.platform.simulate_day`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from crops.online.board import Board, Served
from crops.online.draws import Draws, KeyedDraws
from crops.platform import Platform
from crops.platform.behaviour import start_times
from crops.platform.corpus import DAY_US
from crops.platform.day import Searches, _go_on, _serve
from crops.platform.feed import draw_visits, watch_feed
from crops.platform.searchlog import log_searches
from crops.platform.speech import Speech
from crops.platform.users import ABUSE_SESSIONS, Sessions, draw_sessions, drift
from crops.platform.world import Flags, Ints

STEPS = 10
"""Room for the searches of a session in the numbers of search events."""
_DAY = 100_000_000


@dataclass(frozen=True)
class OnlineDay:
    """What a day leaves behind."""

    impressions: pa.Table
    feed: pa.Table
    searches: pa.Table
    """Truth: every search (also those that found nothing) with its user, time, need and satisfaction, and
    its place: session and step. The same place is the same event in every copy of a world."""


def online_day(
    platform: Platform, day: int, sessions: int, served: Served, draws: Draws | None = None
) -> OnlineDay:
    """Simulate one day and let the platform's memory grow by it.

    Args:
        platform: the platform; its memory and the users' interests are updated.
        day: day number, 0 = the first.
        sessions: search sessions of the day.
        served: which text routes serve whom.
        draws: the random numbers; keyed by session if None.
    """
    draws = draws or KeyedDraws(platform.seed, day, sessions + _abuse(platform))
    rng = draws.start()
    world, users, memory, model = platform.world, platform.users, platform.memory, platform.behaviour
    drift(users, world.intents, rng)
    times = start_times(sessions, rng)
    who = draw_sessions(world.intents, world.corpus, users, memory.yesterday(), times, model, rng)
    visits = draw_visits(world, users, who, rng)
    board = Board(platform, day, served, Speech(world.intents))
    impressions, searches = _search(platform, day, who, board, draws, rng)
    live = np.flatnonzero(board.routes.live)
    feed = watch_feed(world, users, visits, live, platform.first_day_us + day * DAY_US, model, draws.feed())
    memory.learn(impressions, feed, world.corpus.sense)
    return OnlineDay(impressions, feed, searches)


def replay(platform: Platform, day: int, impressions: pa.Table, feed: pa.Table) -> None:
    """Let the platform live through a day that is already in its logs: the logs are the checkpoint.

    Args:
        platform: the platform at the end of the day before; updated as the day itself did it.
        day: day number.
        impressions: the day's `search_impressions`, in their order; only clicks are read.
        feed: the day's `feed_events`.
    """
    drift(platform.users, platform.world.intents, np.random.default_rng([platform.seed, day]))
    platform.memory.learn(impressions, feed, platform.world.corpus.sense)


def _abuse(platform: Platform) -> int:
    return ABUSE_SESSIONS * int((platform.users.pushes >= 0).sum())


def _search(
    platform: Platform, day: int, who: Sessions, board: Board, draws: Draws, rng: np.random.Generator
) -> tuple[pa.Table, pa.Table]:
    """Run all sessions, one search per session and step, until everybody has stopped."""
    speech, model, duration = board.speech, platform.behaviour, platform.world.corpus.duration_ms
    phrase = speech.first(who.need, rng)
    everybody = np.arange(len(who.user))
    now = Searches(everybody, phrase, speech.type(phrase, rng), np.zeros_like(everybody), who.start_us)
    parts: list[pa.Table] = []
    truth: list[pa.Table] = []
    for step in range(model.max_searches):
        if not len(now.session):
            break
        user = who.user[now.session]
        query, found = board.look_up(now, user)
        chance = draws.step(step, now.session)
        listed, clicks = _serve(platform, who, now, query, found, board.ranker(), chance)
        at_us = platform.first_day_us + day * DAY_US + now.at_us
        search_id = day * _DAY + now.session * STEPS + step + 1
        parts.append(log_searches(search_id, user, now.text, at_us, now.page, listed, clicks, duration))
        truth.append(
            _truth(search_id, user, at_us, who.need[now.session], clicks.satisfied, now.session, step)
        )
        after = _go_on(now, who, clicks, speech, model, chance)
        now = draws.typed(step, after, now, speech)
    return pa.concat_tables(parts), pa.concat_tables(truth)


def _truth(
    search_id: Ints, user: Ints, at_us: Ints, need: Ints, satisfied: Flags, session: Ints, step: int
) -> pa.Table:
    columns = {
        "search_id": search_id,
        "user_id": user + 1,
        "searched_at": at_us,
        "need_id": need,
        "satisfied": satisfied,
        "session": session,
        "step": np.full(len(session), step),
    }
    return pa.table(columns)
