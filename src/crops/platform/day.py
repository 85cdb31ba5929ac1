"""One simulated day as a story: people come, search, click, reword, watch; the platform learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from crops.platform.behaviour import Behaviour, Clicks, click, start_times
from crops.platform.bubble import Bubble
from crops.platform.cascade import (
    PAGE,
    RANKED,
    Candidates,
    ProductionRanker,
    RelevanceModel,
    recall,
    recall_for_users,
)
from crops.platform.corpus import DAY_US
from crops.platform.feed import draw_visits, watch_feed
from crops.platform.memory import Memory
from crops.platform.noise import uniform
from crops.platform.routes import TEXT_MATCH, Routes
from crops.platform.searchlog import log_searches
from crops.platform.speech import Speech
from crops.platform.users import Sessions, Users, draw_sessions, drift
from crops.platform.world import Ints, World
from crops.protocols import Ranker, Retriever

Rng = np.random.Generator

READING_US = 4_000_000
"""Time spent looking at a list before anything else happens, microseconds."""
LIFT = 10.0
"""Added to the score of a candidate that the list explores: above every other."""


@dataclass(frozen=True)
class Platform:
    """All that stays the same over the days, and what does not: the memory and the users' interests."""

    world: World
    users: Users
    memory: Memory
    behaviour: Behaviour
    bubble: Bubble
    ranker_noise: float
    first_day_us: int
    seed: int


@dataclass(frozen=True)
class DayLogs:
    """What a day leaves behind."""

    impressions: pa.Table
    feed: pa.Table
    search_ids: Ints
    """Query events of the day and, at the same places, the needs behind them: truth, not log."""
    search_needs: Ints


@dataclass
class Searches:
    """The searches that happen at the same step of their sessions; arrays [n]."""

    session: Ints
    phrase: Ints
    text: list[str]
    page: Ints
    at_us: Ints


def simulate_day(platform: Platform, day: int, sessions: int, retrievers: Mapping[str, Retriever]) -> DayLogs:
    """Simulate one day and let the platform's memory grow by it.

    Args:
        platform: the platform; its memory is updated.
        day: day number, 0 = the first.
        sessions: search sessions of the day.
        retrievers: text routes by name (`bm25`, `dense`, `sparse`).
    """
    rng = np.random.default_rng([platform.seed, day])
    world, users, memory, model = platform.world, platform.users, platform.memory, platform.behaviour
    drift(users, world.intents, rng)
    times = start_times(sessions, rng)
    who = draw_sessions(world.intents, world.corpus, users, memory.yesterday(), times, model, rng)
    visits = draw_visits(world, users, who, rng)
    senses = len(world.intents.sense_head)
    routes = Routes(world.corpus, memory, retrievers, platform.bubble, senses, day, platform.seed)
    impressions, ids, needs = _search(platform, day, who, routes, rng)
    live = np.flatnonzero(routes.live)
    feed = watch_feed(world, users, visits, live, platform.first_day_us + day * DAY_US, model, rng)
    memory.learn(impressions, feed, world.corpus.sense)
    return DayLogs(impressions, feed, ids, needs)


def _search(
    platform: Platform, day: int, who: Sessions, routes: Routes, rng: Rng
) -> tuple[pa.Table, Ints, Ints]:
    """Run all sessions of the day, one search per session and round, until everybody has stopped."""
    speech, model = Speech(platform.world.intents), platform.behaviour
    phrase = speech.first(who.need, rng)
    everybody = np.arange(len(who.user))
    now = Searches(everybody, phrase, speech.type(phrase, rng), np.zeros_like(everybody), who.start_us)
    board = _Board(platform, routes, speech)
    parts: list[pa.Table] = []
    ids: list[Ints] = []
    needs: list[Ints] = []
    for _ in range(model.max_searches):
        if not len(now.session):
            break
        user = who.user[now.session]
        query, found = board.look_up(now, user)
        listed, clicks = _serve(platform, who, now, query, found, board.ranker(), rng)
        search_id = day * 100_000_000 + sum(map(len, ids)) + np.arange(len(query)) + 1
        at_us = platform.first_day_us + day * DAY_US + now.at_us
        duration = platform.world.corpus.duration_ms
        parts.append(log_searches(search_id, user, now.text, at_us, now.page, listed, clicks, duration))
        ids.append(search_id)
        needs.append(who.need[now.session].copy())
        now = _go_on(now, who, clicks, speech, model, rng)
    impressions, search_id = pa.concat_tables(parts), np.concatenate(ids)
    # A search that found nothing leaves no row.
    logged = np.isin(search_id, impressions["search_id"].to_numpy())
    return impressions, search_id[logged], np.concatenate(needs)[logged]


class _Board:
    """The day's distinct queries with their candidates and meanings, each recalled once."""

    def __init__(self, platform: Platform, routes: Routes, speech: Speech) -> None:
        clicks = platform.memory.sense_clicks + 20 * platform.world.intents.sense_demand
        belief = clicks / clicks.sum()
        self._platform, self._routes, self._speech = platform, routes, speech
        self._model = RelevanceModel(platform.world, belief, platform.ranker_noise, platform.seed)
        self._row: dict[str, int] = {}
        self._found: list[Candidates] = []
        self._meaning: Ints = np.empty((0, 3), dtype=np.int64)
        self._leaf: Ints = np.empty(0, dtype=np.int64)

    def look_up(self, now: Searches, user: Ints) -> tuple[Ints, Candidates]:
        """Return the query number of each search, and what is found for the searcher."""
        # Of those who type the same, the one who says least decides what it means.
        vaguest_last = np.argsort(-self._speech.level(now.phrase), kind="stable").tolist()
        fresh = {now.text[row]: row for row in vaguest_last if now.text[row] not in self._row}
        if fresh:
            self._row.update({text: len(self._row) + i for i, text in enumerate(fresh)})
            meaning = self._speech.meanings(list(fresh), now.phrase[list(fresh.values())])
            added, leaf = recall(self._routes, self._model, self._platform.bubble, list(fresh), meaning)
            self._found = [Candidates.join([*self._found, added])]
            self._meaning = np.concatenate([self._meaning, meaning])
            self._leaf = np.concatenate([self._leaf, leaf])
        query = np.array([self._row[text] for text in now.text])
        (all_,) = self._found
        shared = Candidates(all_.rows[query], all_.routes[query], all_.pre_score[query])
        bubble, meaning, leaf = self._platform.bubble, self._meaning[query], self._leaf[query]
        return query, recall_for_users(self._routes, self._model, bubble, shared, meaning, leaf, user)

    def ranker(self) -> Ranker:
        """Return the ranker of the queries so far."""
        platform = self._platform
        return ProductionRanker(
            self._model, platform.users, self._routes.popularity, platform.bubble, self._meaning
        )


def _serve(
    platform: Platform,
    who: Sessions,
    now: Searches,
    query: Ints,
    found: Candidates,
    ranker: Ranker,
    rng: Rng,
) -> tuple[Candidates, Clicks]:
    """Rank, show a page and watch what happens; the candidates come back in the order of the ranked list."""
    user = who.user[now.session]
    score = ranker.score(query, user, found.rows[:, :RANKED], found.routes[:, :RANKED])
    # The same in every page of a session: turning the page must not shuffle the list.
    session = now.session * 1_009 + platform.seed * 7_919 + now.phrase
    score += LIFT * (uniform(session[:, None], found.rows[:, :RANKED]) < platform.bubble.boost)
    order = np.argsort(-score, axis=1, kind="stable")
    tail = np.broadcast_to(np.arange(RANKED, found.rows.shape[1]), (len(query), found.rows.shape[1] - RANKED))
    column = np.concatenate([order, tail], axis=1)
    listed = Candidates(
        rows=np.take_along_axis(found.rows, column, 1),
        routes=np.take_along_axis(found.routes, column, 1),
        pre_score=np.take_along_axis(found.pre_score, column, 1),
    )
    page = PAGE * now.page[:, None] + np.arange(PAGE)
    shown = np.take_along_axis(listed.rows, page, 1)
    matches = (np.take_along_axis(listed.routes, page, 1) & TEXT_MATCH) > 0
    item, corpus = np.maximum(shown, 0), platform.world.corpus
    grade = platform.world.relevance(who.need[now.session][:, None], item)
    grade = np.where(shown < 0, -1, grade)
    clicks = click(grade, corpus.partial[item], matches, corpus.duration_ms[item], platform.behaviour, rng)
    clicks = _push(clicks, shown, platform.users.pushes[user], corpus.duration_ms[item])
    return listed, clicks


def _push(clicks: Clicks, shown: Ints, pushes: Ints, duration_ms: Ints) -> Clicks:
    """Let abusers click the item they push wherever it is shown, play it to the end, and nothing else."""
    foul = (pushes >= 0)[:, None]
    clicked = np.where(foul, shown == pushes[:, None], clicks.clicked)
    return Clicks(
        clicked=clicked,
        liked=np.where(foul, clicked, clicks.liked),
        play_ms=np.where(foul, duration_ms * clicked, clicks.play_ms),
        satisfied=clicks.satisfied,
    )


def _go_on(
    now: Searches, who: Sessions, clicks: Clicks, speech: Speech, model: Behaviour, rng: Rng
) -> Searches:
    """Decide who pages, rewords, switches topic or leaves; return those who search again."""
    n = len(now.session)
    choice = rng.random(n)
    pages = choice < model.page
    rewords = ~pages & (choice < model.page + model.reformulate)
    switches = ~pages & ~rewords & (choice < model.page + model.reformulate + model.switch)
    if not model.informative:
        rewords, switches = np.zeros_like(rewords), rewords | switches
    can_page = (now.page + 2) * PAGE <= RANKED
    stays = ~clicks.satisfied & ((pages & can_page) | rewords | switches)
    need = who.need[now.session]
    another = rng.permutation(need)
    reworded = speech.again(need, now.phrase, model, rng)
    who.need[now.session[switches & stays]] = another[switches & stays]
    elsewhere = speech.first(who.need[now.session], rng)
    phrase = np.where(pages, now.phrase, np.where(rewords, reworded, elsewhere))
    gap = rng.lognormal(np.log(model.gap_s * 1e6), model.gap_sigma, n) * np.where(pages, 0.5, 1.0)
    at_us = now.at_us + READING_US + clicks.play_ms.sum(axis=1) * 1000 + gap.astype(np.int64)
    keep = np.flatnonzero(stays)
    typed = speech.type(phrase[keep], rng)
    return Searches(
        session=now.session[keep],
        phrase=phrase[keep],
        text=[now.text[row] if pages[row] else text for row, text in zip(keep, typed, strict=True)],
        page=np.where(pages, now.page + 1, 0)[keep],
        at_us=at_us[keep],
    )
