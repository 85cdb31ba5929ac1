"""One simulated day as a story: people come, search, click, reword, watch; the platform learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops.platform.behaviour import Behaviour, Clicks, click, start_times
from crops.platform.cascade import PAGE, RANKED, Candidates, Memory, ProductionRanker, Recall, RelevanceModel
from crops.platform.corpus import Corpus
from crops.platform.feed import draw_visits, watch_feed
from crops.platform.users import Sessions, Speech, Users, draw_sessions, meanings
from crops.platform.world import Floats, Ints, World, relevance
from crops.protocols import Ranker, Retriever
from crops.schema import SEARCH_IMPRESSIONS, STAGES
from crops.text import normalise_query

Rng = np.random.Generator

DAY_US = 86_400_000_000
READING_US = 4_000_000
"""Time spent looking at a list before anything else happens, microseconds."""


@dataclass(frozen=True)
class Platform:
    """All that stays the same over the days, and the memory that does not."""

    world: World
    corpus: Corpus
    users: Users
    memory: Memory
    behaviour: Behaviour
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
class _Searches:
    """The state of sessions that are still searching; arrays [n]."""

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
        retrievers: text routes by name (`bm25`, `dense`).
    """
    rng = np.random.default_rng([platform.seed, day])
    world, users, model = platform.world, platform.users, platform.behaviour
    who = draw_sessions(world, users, sessions, start_times(sessions, rng), model, rng)
    category = np.unique(
        [sense.category for head in world.heads for sense in head.senses], return_inverse=True
    )[1]
    judge = _relevance_model(platform)
    recall = Recall(platform.corpus, platform.memory, retrievers, judge, category[platform.corpus.sense], day)
    impressions, ids, needs = _search(platform, day, who, recall, judge, rng)
    visits = draw_visits(world, users, who, rng)
    live = np.flatnonzero(platform.corpus.uploaded_day <= day)
    feed = watch_feed(
        world, platform.corpus, users, visits, live, platform.first_day_us + day * DAY_US, model, rng
    )
    _remember(platform, impressions, feed)
    return DayLogs(impressions, feed, ids, needs)


def _search(
    platform: Platform, day: int, who: Sessions, recall: Recall, judge: RelevanceModel, rng: Rng
) -> tuple[pa.Table, Ints, Ints]:
    """Run all sessions of the day, one search per session and round, until everybody has stopped."""
    speech, model = Speech(platform.world), platform.behaviour
    phrase = speech.first(who.need, rng)
    everybody = np.arange(len(who.user))
    now = _Searches(everybody, phrase, speech.type(phrase, rng), np.zeros_like(everybody), who.start_us)
    board, popularity = _Board(recall, platform.world), platform.memory.popularity()
    parts: list[pa.Table] = []
    ids: list[Ints] = []
    needs: list[Ints] = []
    for _ in range(model.max_searches):
        if not len(now.session):
            break
        query, found = board.look_up(now)
        ranker = ProductionRanker(judge, platform.users, popularity, board.meaning)
        listed, clicks = _serve(platform, who, now, query, found, ranker, rng)
        search_id = day * 100_000_000 + sum(map(len, ids)) + np.arange(len(query)) + 1
        parts.append(_log(platform, day, who.user[now.session], now, listed, clicks, search_id))
        ids.append(search_id)
        needs.append(who.need[now.session].copy())
        now = _go_on(now, who, clicks, speech, model, rng)
    impressions, search_id = pa.concat_tables(parts), np.concatenate(ids)
    logged = np.isin(
        search_id, impressions["search_id"].to_numpy()
    )  # a search that found nothing leaves no row
    return impressions, search_id[logged], np.concatenate(needs)[logged]


class _Board:
    """The day's distinct queries with their candidates and meanings, each recalled once."""

    def __init__(self, recall: Recall, world: World) -> None:
        self._recall = recall
        self._world = world
        self._row: dict[str, int] = {}
        self._blocks: list[Candidates] = []
        self.meaning: Ints = np.empty((0, 3), dtype=np.int64)

    def look_up(self, now: _Searches) -> tuple[Ints, Candidates]:
        """Return the query number of each search, and its candidates."""
        fresh = {text: row for row, text in enumerate(now.text) if text not in self._row}
        if fresh:
            self._row.update({text: len(self._row) + i for i, text in enumerate(fresh)})
            added = meanings(self._world, now.phrase[list(fresh.values())])
            self._blocks = [_stack([*self._blocks, self._recall(list(fresh), added)])]
            self.meaning = np.concatenate([self.meaning, added])
        query = np.array([self._row[text] for text in now.text])
        all_ = self._blocks[0]
        return query, Candidates(all_.rows[query], all_.routes[query], all_.pre_score[query])


def _stack(blocks: list[Candidates]) -> Candidates:
    return Candidates(
        *(np.concatenate([getattr(b, f) for b in blocks]) for f in ("rows", "routes", "pre_score"))
    )


def _relevance_model(platform: Platform) -> RelevanceModel:
    clicks = platform.memory.sense_clicks + 20 * platform.world.sense_demand
    return RelevanceModel(platform.corpus, platform.world.sense_head, clicks / clicks.sum(), platform.seed)


def _serve(
    platform: Platform,
    who: Sessions,
    now: _Searches,
    query: Ints,
    found: Candidates,
    ranker: Ranker,
    rng: Rng,
) -> tuple[Candidates, Clicks]:
    """Rank, show a page and watch what happens; the candidates come back in the order of the ranked list."""
    ranked = found.rows[:, :RANKED]
    order = np.argsort(-ranker.score(query, who.user[now.session], ranked), axis=1, kind="stable")
    tail = np.broadcast_to(np.arange(RANKED, found.rows.shape[1]), (len(query), found.rows.shape[1] - RANKED))
    column = np.concatenate([order, tail], axis=1)
    listed = Candidates(
        rows=np.take_along_axis(found.rows, column, 1),
        routes=np.take_along_axis(found.routes, column, 1),
        pre_score=np.take_along_axis(found.pre_score, column, 1),
    )
    shown = np.take_along_axis(listed.rows, PAGE * now.page[:, None] + np.arange(PAGE), 1)
    item, corpus = np.maximum(shown, 0), platform.corpus
    need = who.need[now.session][:, None]
    partial = corpus.partial[item]
    grade = relevance(platform.world, need, corpus.need[item], corpus.second[item], partial)
    grade = np.where(shown < 0, -1, grade)
    return listed, click(grade, partial, corpus.duration_ms[item], platform.behaviour, rng)


def _log(
    platform: Platform,
    day: int,
    user: Ints,
    now: _Searches,
    listed: Candidates,
    clicks: Clicks,
    search_id: Ints,
) -> pa.Table:
    """Return one impression per document that was considered; earlier pages were logged before."""
    position = np.arange(listed.rows.shape[1])[None, :] - PAGE * now.page[:, None]
    event, at = np.nonzero((listed.rows >= 0) & (position >= 0))
    place = position[event, at]
    exposed = (place < PAGE) & (at < RANKED)
    slot = np.where(exposed, place, 0)
    clicked = exposed & clicks.clicked[event, slot]
    rows = listed.rows[event, at]
    columns = {
        "user_id": user[event] + 1,
        "search_id": search_id[event],
        "query": np.array(now.text, dtype=object)[event],
        "searched_at": platform.first_day_us + day * DAY_US + now.at_us[event],
        "item_id": rows + 1,
        "stage": np.array(STAGES)[np.where(exposed, 0, np.where(at < RANKED, 1, 2))],
        "rank": pa.array(place + 1, pa.int32(), mask=~exposed),
        "pre_score": listed.pre_score[event, at],
        "routes": listed.routes[event, at],
        "arm": pa.nulls(len(event), pa.string()),
        "clicked": clicked,
        "liked": clicked & clicks.liked[event, slot],
        "play_ms": pa.array(clicks.play_ms[event, slot], pa.int64(), mask=~clicked),
        "duration_ms": platform.corpus.duration_ms[rows],
    }
    schema = SEARCH_IMPRESSIONS.arrow()
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, schema.field(n).type) for n, c in columns.items()]
    return pa.table(arrays, schema=schema)


def _go_on(
    now: _Searches, who: Sessions, clicks: Clicks, speech: Speech, model: Behaviour, rng: Rng
) -> _Searches:
    """Decide who pages, rewords, switches topic or leaves; return those who search again."""
    n = len(now.session)
    choice = rng.random(n)
    pages = choice < model.page
    rewords = ~pages & (choice < model.page + model.reformulate)
    switches = ~pages & ~rewords & (choice < model.page + model.reformulate + model.switch)
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
    return _Searches(
        session=now.session[keep],
        phrase=phrase[keep],
        text=[now.text[row] if pages[row] else text for row, text in zip(keep, typed, strict=True)],
        page=np.where(pages, now.page + 1, 0)[keep],
        at_us=at_us[keep],
    )


def _remember(platform: Platform, impressions: pa.Table, feed: pa.Table) -> None:
    """Let the day's clicks and watches shape what the platform finds and ranks tomorrow."""
    memory, items = platform.memory, len(platform.corpus)
    clicked = impressions.filter(impressions["clicked"])
    rows = clicked["item_id"].to_numpy() - 1
    watched = feed.filter(pc.greater(feed["play_ms"], 3_000))["item_id"].to_numpy() - 1
    half = feed.filter(pc.greater(pc.multiply(feed["play_ms"], 2), feed["duration_ms"]))
    memory.watched.append((half["user_id"].to_numpy() - 1, half["item_id"].to_numpy() - 1))
    memory.plays += np.bincount(rows, minlength=items) + np.bincount(watched, minlength=items)
    memory.sense_clicks += np.bincount(platform.corpus.sense[rows], minlength=len(memory.sense_clicks))
    for text, row in zip(clicked["query"].to_pylist(), rows.tolist(), strict=True):
        of_query = memory.clicks.setdefault(text, {})
        of_query[row] = of_query.get(row, 0) + 1


def click_queries(memory: Memory, items: int, most: int = 3) -> list[str | None]:
    """Return the queries with most clicks per item, '|'-separated, None where there is none."""
    by_item: list[dict[str, int]] = [{} for _ in range(items)]
    for text, rows in memory.clicks.items():
        for row, count in rows.items():
            key = normalise_query(text)
            by_item[row][key] = by_item[row].get(key, 0) + count
    return ["|".join(sorted(q, key=lambda t: (-q[t], t))[:most]) or None for q in by_item]


def counters(platform: Platform, rng: Rng) -> dict[str, Ints]:
    """Return the item counters as of now, from plays."""
    plays = platform.memory.plays
    shares: dict[str, Floats | float] = {"like_cnt": 0.06, "long_view_cnt": 0.35, "download_cnt": 0.01}
    return {"play_cnt": plays.copy(), **{name: rng.binomial(plays, share) for name, share in shares.items()}}
