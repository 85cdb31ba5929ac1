"""People: what interests them, what they search for, click and watch, in search and in the feed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.platform.world import (
    HEAD_LEVEL,
    NEED_LEVEL,
    SENSE_LEVEL,
    Corpus,
    Flags,
    Floats,
    Intents,
    Ints,
    World,
    zipf,
)
from crops.schema import FEED_EVENTS

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
        watched: user and item rows of videos that were watched in the feed the day before.
        start_us: time of day of each honest session, [sessions].
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


# How needs become queries: a phrase at some level of detail, then modifiers, lost words and typos.


FIRST_LEVEL = (0.45, 0.27, 0.28)
"""Level of a session's first query: head, sense, need. A vague start is more common than a specific one."""
MODIFIED = (0.35, 0.50, 0.50)
"""Chance of a modifier by level."""
MODIFIER_FIRST = 0.2
"""Share of modifiers that precede the phrase."""
LOSES_WORD, TYPO = 0.12, 0.05
"""Chances of a phrase of four or more words to lose one, and of any text to have a slip of the finger."""
MODIFIERS = (
    "tutorial", "for beginners", "tips", "video", "easy", "ideas", "2026", "explained", "guide", "at home",
    "step by step", "best", "quick", "help", "review", "before and after", "fast", "simple", "at night",
    "without tools", "for kids", "in one minute", "mistakes", "real life", "close up", "advice",
)  # fmt: skip
"""Words that searchers add; drawn by Zipf's law."""


class Speech:
    """Turns needs into phrases, and phrases into typed text."""

    def __init__(self, intents: Intents, modifiers: Sequence[str] = MODIFIERS, space: str = " ") -> None:
        """Index the phrases by level and owner; `space` stands between a phrase and a modifier."""
        self._modifiers, self._space = modifiers, space
        phrases = intents.phrases
        self._intents = intents
        self._phrases = phrases
        at_level = [phrases.level == level for level in (HEAD_LEVEL, SENSE_LEVEL, NEED_LEVEL)]
        owners = (phrases.head, phrases.sense, phrases.need)
        self._rows = [np.flatnonzero(mask) for mask in at_level]
        vague_last = np.argsort(-phrases.level, kind="stable").tolist()
        self._exact = {phrases.text[row]: row for row in vague_last}
        self._counts = [np.bincount(owner[mask]) for owner, mask in zip(owners, at_level, strict=True)]

    def first(self, need: Ints, model: Behaviour, rng: np.random.Generator) -> Ints:
        """Draw the phrase row of a session's first query."""
        return self._draw(need, rng.choice(3, len(need), p=model.first_level), rng)

    def again(self, need: Ints, phrase: Ints, model: Behaviour, rng: np.random.Generator) -> Ints:
        """Draw the phrase row of a reformulation: more specific, other words, or more general."""
        mode = rng.random(len(need))
        step = np.where(mode < model.specify, 1, np.where(mode < model.specify + model.rephrase, 0, -1))
        level = np.clip(self._phrases.level[phrase] + step, HEAD_LEVEL, NEED_LEVEL)
        return self._draw(need, level, rng)

    def level(self, phrase: Ints) -> Ints:
        """Return how much phrase rows give away."""
        return self._phrases.level[phrase]

    def meanings(self, texts: Sequence[str], phrase: Ints) -> Ints:
        """Return (head, sense, need) that typed texts say, [n, 3]; -1 where they do not say.

        Args:
            phrase: the phrase rows meant; a text that is itself a phrase means that one, whoever typed it.
        """
        phrases = self._phrases
        typed = zip(texts, phrase.tolist(), strict=True)
        phrase = np.array([self._exact.get(text, row) for text, row in typed])
        return np.stack([phrases.head[phrase], phrases.sense[phrase], phrases.need[phrase]], axis=1)

    def _draw(self, need: Ints, level: Ints, rng: np.random.Generator) -> Ints:
        sense = self._intents.need_sense[need]
        owners = (self._intents.sense_head[sense], sense, need)
        ticket = rng.random(len(need))
        result = np.zeros(len(need), dtype=np.int64)
        for at, (rows, counts, owner) in enumerate(zip(self._rows, self._counts, owners, strict=True)):
            first = np.concatenate([[0], np.cumsum(counts)])[owner]
            drawn = rows[np.minimum(first + (ticket * counts[owner]).astype(np.int64), len(rows) - 1)]
            result = np.where(level == at, drawn, result)
        return result

    def type(self, phrase: Ints, rng: np.random.Generator) -> list[str]:
        """Return the texts typed for phrase rows: with modifiers, lost words and slips of the finger."""
        n = len(phrase)
        texts = [self._phrases.text[row] for row in phrase]
        place = rng.random((n, 2))
        for row in np.flatnonzero(rng.random(n) < LOSES_WORD):
            texts[row] = _lose_word(texts[row], place[row, 0])
        modifier = rng.choice(len(self._modifiers), n, p=zipf(len(self._modifiers)))
        before = rng.random(n) < MODIFIER_FIRST
        for row in np.flatnonzero(rng.random(n) < np.array(MODIFIED)[self._phrases.level[phrase]]):
            added = self._modifiers[modifier[row]]
            texts[row] = self._space.join([added, texts[row]] if before[row] else [texts[row], added])
        swap = rng.random(n) < 0.5
        for row in np.flatnonzero(rng.random(n) < TYPO):
            texts[row] = _slip(texts[row], place[row, 1], bool(swap[row]))
        return texts


def _lose_word(text: str, place: float) -> str:
    """Leave out the word at relative `place`, if at least four are there."""
    words = text.split()
    if len(words) < 4:
        return text
    del words[int(place * len(words))]
    return " ".join(words)


def _slip(text: str, place: float, swap: bool) -> str:
    """Drop the letter at relative `place`, or swap it with the next."""
    if len(text) < 2:
        return text
    at = int(place * (len(text) - 1))
    middle = text[at + 1] + text[at] if swap else text[at + 1]
    return (text[:at] + middle + text[at + 2 :]).strip()


# How people behave before a list of results; pure functions over arrays. Three models of examination, all
# with the same attraction and satisfaction by grade:
# - `dbn`: dynamic Bayesian network (Chapelle & Zhang, WWW 2009). After each result, P(go on | satisfied) = 0
#   and P(go on | not satisfied) = gamma.
# - `dcm`: dependent click model (Guo et al., WSDM 2009). Everybody continues until a click; after a click
#   P(go on) falls with the position; who is satisfied by the result stops.
# - `pbm`: position-based model (Craswell et al., WSDM 2008). Each position is examined with a chance of its
#   own, theta^eta with theta from eye tracking (Joachims et al. 2005).


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
    first_level: tuple[float, float, float] = FIRST_LEVEL
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


# The feed: an independent recommender over interests with exploration, and what people watch.


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
    # More is watched of what interests the user, now or always.
    sense = corpus.sense[item]
    drawn = 0.9 * users.interest[user, sense] + 0.35 * (near_sense == sense)
    keen = np.clip(KEEN + drawn * model.informative - 0.1 * corpus.partial[item], 0.05, 0.9)
    keen = np.where(pushed, 0.95, keen)
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
    }
    schema = FEED_EVENTS.arrow(own_ids=False)
    arrays = [pa.array(column[order], schema.field(name).type) for name, column in columns.items()]
    return pa.table([*arrays, pa.nulls(len(item), schema.field("clicked").type)], schema=schema)


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
