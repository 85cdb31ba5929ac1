"""A platform and its days: people come, search, click, reword, watch; the platform learns.

`build_platform` returns it before its first day, `simulate_day` lets it live one, and the tables of a day are
written for everybody (logs) or for evaluation only (truth).
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.special import betaincinv, ndtri

from crops.config import TOPICS, PlatformConfig
from crops.errors import CropsError
from crops.outputs import whole_file
from crops.platform.learned import Memory
from crops.platform.people import (
    Behaviour,
    Clicks,
    Sessions,
    Speech,
    Users,
    build_users,
    click,
    draw_sessions,
    draw_visits,
    drift,
    start_times,
    watch_feed,
)
from crops.platform.search import (
    BUBBLES,
    PAGE,
    RANKED,
    TEXT_MATCH,
    Bubble,
    Candidates,
    ProductionRanker,
    RelevanceModel,
    Routes,
    click_queries,
    counters,
    log_searches,
    recall,
    recall_for_users,
)
from crops.platform.topics import EDITIONS, Manner, build_topics_world, extent, load_manner
from crops.platform.world import DAY_US, Floats, Ints, World, items_table, read_judged_world, uniform
from crops.protocols import Retriever

Rng = np.random.Generator
READING_US = 4_000_000
"""Time spent looking at a list before anything else happens, microseconds."""
SEARCHES_PER_DAY = 100_000_000
"""Room for the numbers of a day's searches: a search's number is day * this + its number in the day."""
LIFT = 10.0
"""Added to the score of a candidate that the list explores: above every other."""
FIRST_DAY = dt.date(2026, 1, 5)
PLAYS_BEFORE = 5.0
"""Mean plays per unit of quality that items had before the first day."""


@dataclass(frozen=True)
class Platform:
    """All that stays the same over the days, and what does not: the memory and the users' interests."""

    world: World
    manner: Manner
    users: Users
    memory: Memory
    behaviour: Behaviour
    bubble: Bubble
    ranker_noise: float
    first_day_us: int
    seed: int


def build_platform(config: PlatformConfig, seed: int) -> Platform:
    """Return a platform before its first day.

    Raises:
        CropsError: a setting is impossible, or a judged collection has no usable need.
    """
    rng = np.random.default_rng([seed, 1_000_000])
    size, edition = extent(config), EDITIONS[config.edition]
    world: World
    if config.world == TOPICS:
        world = build_topics_world(
            size,
            config.days,
            rng,
            config.language,
            speechless=edition.speechless,
            arrival_days=max(edition.arrival_days, config.days + 2),
        )
    elif not Path(config.world).is_dir():
        raise CropsError(
            f"setting 'platform.world' = '{config.world}': neither '{TOPICS}' nor a folder with docs, "
            "queries and qrels as Parquet files"
        )
    else:
        world = read_judged_world(Path(config.world), size, config.days, rng)
    corpus = world.corpus
    memory = Memory(
        plays=rng.poisson(PLAYS_BEFORE * corpus.quality) * (corpus.uploaded_day <= 0),
        sense_clicks=np.zeros(len(world.intents.sense_head), dtype=np.int64),
    )
    midnight = dt.datetime.combine(FIRST_DAY, dt.time(), dt.UTC)
    return Platform(
        world=world,
        manner=load_manner(config.language),
        users=build_users(world.intents, corpus, size.users, rng),
        memory=memory,
        behaviour=behaviour(config),
        bubble=BUBBLES[config.bubble],
        ranker_noise=config.ranker_noise,
        first_day_us=int(midnight.timestamp()) * 1_000_000,
        seed=seed,
    )


def behaviour(config: PlatformConfig) -> Behaviour:
    """Return the rates of a run: the model's own, and what the settings say."""
    return Behaviour(
        click_model=config.click_model,
        reformulate=config.reformulate,
        feed_alignment=config.feed_alignment,
        good_abandonment=config.good_abandonment,
        informative=config.informative,
        first_level=EDITIONS[config.edition].first_level,
    )


def sessions_per_day(config: PlatformConfig) -> int:
    """Return the search sessions of a day: the setting, or what size and edition have."""
    return extent(config).sessions


def day_name(day: int) -> str:
    """Return the date of a simulated day, YYYY-MM-DD."""
    return (FIRST_DAY + dt.timedelta(days=day)).isoformat()


@dataclass(frozen=True)
class DayLogs:
    """What a day leaves behind."""

    impressions: pa.Table
    feed: pa.Table
    searches: pa.Table
    """Truth, not log: every search (also those that found nothing) with its user, time, need, satisfaction
    and place (session and step)."""

    @property
    def search_ids(self) -> Ints:
        """Searches that left a row in the log, in their order [n]: one that found nothing leaves none."""
        ids: Ints = self._logged["search_id"].to_numpy()
        return ids

    @property
    def search_needs(self) -> Ints:
        """The needs behind `search_ids` [n]: truth, not log."""
        needs: Ints = self._logged["need_id"].to_numpy()
        return needs

    @functools.cached_property
    def _logged(self) -> pa.Table:
        found = pc.is_in(self.searches["search_id"], pc.unique(self.impressions["search_id"]))
        return self.searches.filter(found)


@dataclass(frozen=True)
class Served:
    """Which text routes serve whom."""

    retrievers: tuple[Mapping[str, Retriever], ...]
    """Text routes by name (`bm25`, `dense`, `sparse`), one mapping per way of being served."""
    way: Ints
    """The way of each user, [users]."""


def same_for_all(retrievers: Mapping[str, Retriever], users: int) -> Served:
    """Return one way for everybody."""
    return Served((retrievers,), np.zeros(users, dtype=np.int64))


@dataclass
class Searches:
    """The searches that happen at the same step of their sessions; arrays [n]."""

    session: Ints
    phrase: Ints
    text: list[str]
    page: Ints
    at_us: Ints


def simulate_day(
    platform: Platform,
    day: int,
    sessions: int,
    retrievers: Mapping[str, Retriever] | Served,
    draws: Draws | None = None,
) -> DayLogs:
    """Simulate one day; the platform's memory and its users' interests are updated.

    Args:
        day: 0 = the first.
        retrievers: text routes by name (`bm25`, `dense`, `sparse`), or which of them serve whom.
        draws: the random numbers; one stream if None.
    """
    draws = draws or Draws(platform.seed, day)
    rng = draws.start()
    world, users, memory, model = platform.world, platform.users, platform.memory, platform.behaviour
    served = retrievers if isinstance(retrievers, Served) else same_for_all(retrievers, len(users.pushes))
    drift(users, world.intents, rng)
    times = start_times(sessions, rng)
    who = draw_sessions(world.intents, world.corpus, users, memory.yesterday(), times, model, rng)
    visits = draw_visits(world, users, who, rng)
    speech = Speech(world.intents, platform.manner.modifiers, platform.manner.space)
    queries = _Queries(platform, day, served, speech)
    impressions, searches = _search(platform, day, who, queries, draws, rng)
    live = np.flatnonzero(queries.routes.live)
    feed = watch_feed(world, users, visits, live, platform.first_day_us + day * DAY_US, model, draws.feed())
    memory.learn(impressions, feed, world.corpus.sense)
    return DayLogs(impressions, feed, searches)


def _search(
    platform: Platform, day: int, who: Sessions, queries: _Queries, draws: Draws, rng: Rng
) -> tuple[pa.Table, pa.Table]:
    """Run all sessions of the day, one search per session and step, until everybody has stopped."""
    speech, model, duration = queries.speech, platform.behaviour, platform.world.corpus.duration_ms
    phrase = speech.first(who.need, model, rng)
    everybody = np.arange(len(who.user))
    now = Searches(everybody, phrase, speech.type(phrase, rng), np.zeros_like(everybody), who.start_us)
    parts: list[pa.Table] = []
    truth: list[pa.Table] = []
    for step in range(model.max_searches):
        if not len(now.session):
            break
        user = who.user[now.session]
        query, found = queries.look_up(now, user)
        chance = draws.step(step, now.session)
        listed, clicks = _serve(platform, who, now, query, found, queries.ranker(), chance)
        search_id = day * SEARCHES_PER_DAY + draws.number(step, now.session)
        at_us = platform.first_day_us + day * DAY_US + now.at_us
        parts.append(log_searches(search_id, user, now.text, at_us, now.page, listed, clicks, duration))
        columns = {
            "search_id": search_id,
            "user_id": user + 1,
            "searched_at": at_us,
            "need_id": who.need[now.session],
            "satisfied": clicks.satisfied,
            "session": now.session,
            "step": np.full(len(query), step),
        }
        truth.append(pa.table(columns))
        after = _go_on(now, who, clicks, speech, model, chance)
        now = draws.typed(step, after, now, speech)
    return pa.concat_tables(parts), pa.concat_tables(truth)


class _Queries:
    """The day's distinct queries, candidates and meanings; each is recalled once per way of being served.

    What a text means is decided by all who type it; clicks, popularity and rankers know nothing of ways.
    """

    def __init__(self, platform: Platform, day: int, served: Served, speech: Speech) -> None:
        intents = platform.world.intents
        clicks = platform.memory.sense_clicks + 20 * intents.sense_demand
        self.speech = speech
        self._platform, self._served = platform, served
        self._model = RelevanceModel(
            platform.world, clicks / clicks.sum(), platform.ranker_noise, platform.seed
        )
        self._current: dict[str, Retriever] = {}
        self.routes = Routes(
            platform.world.corpus,
            platform.memory,
            self._current,
            platform.bubble,
            len(intents.sense_head),
            day,
            platform.seed,
        )
        self._row: dict[tuple[int, str], int] = {}
        self._meant: dict[str, Ints] = {}
        self._found: list[Candidates] = []
        self._meaning: Ints = np.empty((0, 3), dtype=np.int64)
        self._leaf: Ints = np.empty(0, dtype=np.int64)

    def look_up(self, now: Searches, user: Ints) -> tuple[Ints, Candidates]:
        """Return the query number of each search [n], and what is found for the searcher."""
        # Of those who type the same, the one who says least decides what it means.
        vaguest_last = np.argsort(-self.speech.level(now.phrase), kind="stable").tolist()
        unheard = {now.text[row]: row for row in vaguest_last if now.text[row] not in self._meant}
        if unheard:
            meaning = self.speech.meanings(list(unheard), now.phrase[list(unheard.values())])
            self._meant.update(zip(unheard, meaning, strict=True))
        keys = list(zip(self._served.way[user].tolist(), now.text, strict=True))
        fresh = dict.fromkeys(keys[row] for row in vaguest_last if keys[row] not in self._row)
        for way in sorted({way for way, _ in fresh}):
            self._recall(way, [text for one, text in fresh if one == way])
        query = np.array([self._row[key] for key in keys])
        (all_,) = self._found
        shared = Candidates(all_.rows[query], all_.routes[query], all_.pre_score[query])
        bubble, meaning, leaf = self._platform.bubble, self._meaning[query], self._leaf[query]
        return query, recall_for_users(self.routes, self._model, bubble, shared, meaning, leaf, user)

    def ranker(self) -> ProductionRanker:
        """Return the ranker of the queries so far."""
        platform = self._platform
        return ProductionRanker(
            self._model, platform.users, self.routes.popularity, platform.bubble, self._meaning
        )

    def _recall(self, way: int, texts: list[str]) -> None:
        """Look texts up by the routes of a way: the other routes are shared, their tables built once."""
        self._current.clear()
        self._current.update(self._served.retrievers[way])
        self._row.update({(way, text): len(self._row) + i for i, text in enumerate(texts)})
        meaning = np.stack([self._meant[text] for text in texts])
        added, leaf = recall(self.routes, self._model, self._platform.bubble, texts, meaning)
        self._found = [Candidates.join([*self._found, added])]
        self._meaning = np.concatenate([self._meaning, meaning])
        self._leaf = np.concatenate([self._leaf, leaf])


def _serve(
    platform: Platform,
    who: Sessions,
    now: Searches,
    query: Ints,
    found: Candidates,
    ranker: ProductionRanker,
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
    # Abusers click the item they push wherever it is shown, play it to the end, and nothing else.
    pushes = platform.users.pushes[user][:, None]
    clicked = np.where(pushes >= 0, shown == pushes, clicks.clicked)
    clicks = Clicks(
        clicked=clicked,
        liked=np.where(pushes >= 0, clicked, clicks.liked),
        play_ms=np.where(pushes >= 0, corpus.duration_ms[item] * clicked, clicks.play_ms),
        satisfied=clicks.satisfied,
    )
    return listed, clicks


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
    elsewhere = speech.first(who.need[now.session], model, rng)
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


# Where the random numbers of a day come from: one stream, or numbers that belong to a search. Two copies of a
# world that show different lists part ways at once if they read one stream: the first person who stays longer
# shifts the numbers of all who follow. With `KeyedDraws` each number is fixed by seed, day, step of the
# session, draw and session, so that what differs between the copies is caused by the lists (common random
# numbers).


STEPS = 10
"""Room for the searches of a session in the numbers of keyed searches."""
_STEP, _TYPING, _FEED = 1, 2, 3
"""What a stream is for; never 0, which numpy's seeds do not tell from nothing."""


class Draws:
    """Where the random numbers of one day come from: one stream, used up in the order of the day."""

    def __init__(self, seed: int, day: int) -> None:
        self._rng, self._searches = np.random.default_rng([seed, day]), 0

    def start(self) -> Rng:
        """Return what decides who comes, for what, and what they type first."""
        return self._rng

    def number(self, step: int, session: Ints) -> Ints:
        """Return the numbers in the day, from 1, of the searches of a step [n]."""
        first, self._searches = self._searches, self._searches + len(session)
        return first + np.arange(len(session)) + 1

    def step(self, step: int, session: Ints) -> Rng:
        """Return what decides how the sessions [n] of a step click, and how they go on."""
        return self._rng

    def typed(self, step: int, after: Searches, before: Searches, speech: Speech) -> Searches:
        """Return the searches after a step with the text that is typed: what the step has drawn."""
        return after

    def feed(self) -> Rng:
        """Return what decides what the feed brings and how it is watched."""
        return self._rng


class KeyedDraws(Draws):
    """Numbers fixed per session; people and first words are those of `Draws`."""

    def __init__(self, seed: int, day: int, sessions: int) -> None:
        """Fix the key; `sessions` are all of the day, those of abusers included."""
        super().__init__(seed, day)
        self._key, self._sessions = (seed, day), sessions

    def number(self, step: int, session: Ints) -> Ints:
        """Return the place of the search: the same place is the same event in every copy of a world."""
        return session * STEPS + step + 1

    def step(self, step: int, session: Ints) -> Rng:
        """Return numbers that are fixed per session and draw."""
        return self._keyed((_STEP, step + 1), session)

    def typed(self, step: int, after: Searches, before: Searches, speech: Speech) -> Searches:
        """Type new searches anew with numbers of their sessions; a turned page keeps its text."""
        text = speech.type(after.phrase, self._keyed((_TYPING, step + 1), after.session))
        chosen = [old if page else new for old, new, page in zip(after.text, text, after.page, strict=True)]
        return replace(after, text=chosen)

    def feed(self) -> Rng:
        """Return a stream of its own: the feed does not depend on the searches of its day."""
        return np.random.default_rng([*self._key, _FEED])

    def _keyed(self, purpose: tuple[int, int], session: Ints) -> Rng:
        # It offers those methods of a generator that the steps of a search use.
        return cast(Rng, _Keyed((*self._key, *purpose), session, self._sessions))


class _Keyed:
    """Each call draws for all sessions of the day and hands out the rows of those that are still there.

    Only the typing inside a step asks for other rows than its sessions; `KeyedDraws.typed` does that again.
    """

    def __init__(self, key: Sequence[int], session: Ints, sessions: int) -> None:
        self._key, self._session, self._sessions, self._calls = key, session, sessions, 0

    def random(self, size: int | tuple[int, ...]) -> Floats:
        """Return numbers in [0, 1), one row per session."""
        rows, *columns = (size,) if isinstance(size, int) else size
        self._calls += 1
        stream = np.random.default_rng([*self._key, self._calls])
        if rows != len(self._session):
            return stream.random(size)
        return stream.random((self._sessions, *columns))[self._session]

    def beta(self, a: Floats, b: Floats) -> Floats:
        """Return Beta(a, b) by its inverse: numbers stay with their rows whatever a and b are."""
        return cast(Floats, betaincinv(a, b, self.random(a.shape)))

    def lognormal(self, mean: float, sigma: float, size: int) -> Floats:
        """Return log-normal numbers by their inverse."""
        return cast(Floats, np.exp(mean + sigma * ndtri(self.random(size))))

    def choice(self, n: int, size: int, p: Sequence[float]) -> Ints:
        """Return numbers below n with chances p."""
        return np.minimum(np.searchsorted(np.cumsum(p), self.random(size), side="right"), n - 1)

    def permutation(self, values: Ints) -> Ints:
        """Return a value for each row, drawn with replacement by rank: who else is there matters little."""
        return np.sort(values)[(self.random(len(values)) * len(values)).astype(np.int64)]


# Days on disk: logs for everybody, truth for evaluation only.


def write_day(logs: str | Path, day: int, result: DayLogs) -> None:
    """Write one day's partitions of the two event tables."""
    logs = Path(logs)
    for name, table in (("search_impressions", result.impressions), ("feed_events", result.feed)):
        folder = logs / name / f"day={day_name(day)}"
        folder.mkdir(parents=True)
        pq.write_table(table, folder / "part-0.parquet", compression="zstd")


IMPRESSIONS, FEED = "logs/search_impressions", "logs/feed_events"
SEARCHES = "truth/searches"
"""The last table of a day of an experiment to be written: a day that has it is complete."""
_LEARNED = {
    IMPRESSIONS: ["query", "item_id", "clicked"],
    FEED: ["user_id", "item_id", "play_ms", "duration_ms"],
}
"""The columns that the platform's memory learns from."""


def day_file(folder: str | Path, table: str, day: int) -> Path:
    """Return the Parquet file of one day of a table, e.g. `logs/feed_events`."""
    return Path(folder) / table / f"day={day_name(day)}" / "part-0.parquet"


def replay_day(folder: str | Path, platform: Platform, day: int) -> None:
    """Let a platform live through a day that is already in `folder`/logs: the logs are the checkpoint."""
    impressions, feed = (
        pq.read_table(day_file(folder, table, day), columns=columns, partitioning=None)
        for table, columns in _LEARNED.items()
    )
    drift(platform.users, platform.world.intents, np.random.default_rng([platform.seed, day]))
    platform.memory.learn(impressions, feed, platform.world.corpus.sense)


def write_items(logs: str | Path, platform: Platform) -> pa.Table:
    """Write and return the catalogue with the counters and click queries of this moment."""
    logs = Path(logs)
    rng = np.random.default_rng([platform.seed, 2_000_000])
    memory = platform.memory
    table = items_table(platform.world, platform.first_day_us, counters(memory, rng), click_queries(memory))
    with whole_file(logs / "items.parquet") as staging:  # the rows of a killed run would be read by the next
        pq.write_table(table, staging, compression="zstd")
    return table


def write_truth(truth: str | Path, platform: Platform, searches: list[tuple[Ints, Ints]]) -> None:
    """Write what only a simulator knows: needs, the need behind each search, and grades 1..3."""
    truth = Path(truth)
    truth.mkdir(parents=True)
    intents, corpus = platform.world.intents, platform.world.corpus
    head, sense, need = (pa.array(column) for column in zip(*intents.names, strict=True))
    abusers = np.flatnonzero(platform.users.pushes >= 0)
    tables = {
        "needs": {"need_id": np.arange(len(need)), "head": head, "sense": sense, "need": need},
        "searches": {
            "search_id": np.concatenate([ids for ids, _ in searches]),
            "need_id": np.concatenate([needs for _, needs in searches]),
        },
        "items": {"item_id": np.arange(1, len(corpus) + 1), "need_id": corpus.need},
        "abusers": {"user_id": abusers + 1, "item_id": platform.users.pushes[abusers] + 1},
    }
    parts = []
    for row in range(len(need)):
        grade = platform.world.relevance(np.array(row), np.arange(len(corpus)))
        items = np.flatnonzero(grade)
        grades = pa.array(grade[items], pa.int32())
        parts.append(pa.table({"need_id": np.full(len(items), row), "item_id": items + 1, "grade": grades}))
    written = {name: pa.table(columns) for name, columns in tables.items()}
    for name, table in {**written, "grades": pa.concat_tables(parts)}.items():
        pq.write_table(table, truth / f"{name}.parquet", compression="zstd")
