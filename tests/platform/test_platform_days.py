"""Whole days: the tables keep the contract, and what people do shows in them."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crops.platform import SIZES, build_platform, simulate_day
from crops.platform.behaviour import Behaviour
from crops.platform.cascade import (
    FILTERED,
    PAGE,
    RANKED,
    ROUTES,
    Memory,
    Recall,
    RelevanceModel,
    _hash_normal,
)
from crops.platform.day import counters
from crops.retrieval import BM25Retriever
from crops.schema import FEED_EVENTS, SEARCH_IMPRESSIONS


class Everything:
    """A route that finds the same items for everybody."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows

    def search(self, queries, k):
        ids = np.tile(np.array(self.rows[:k]) + 1, (len(queries), 1))
        return ids, np.tile(np.linspace(1, 0.5, ids.shape[1]), (len(queries), 1))


def run(seed: int, behaviour: Behaviour | None = None):
    platform = build_platform(SIZES["tiny"], 4, seed, behaviour)
    corpus = platform.corpus
    texts = [
        " ".join(filter(None, row)) for row in zip(corpus.title, corpus.caption, corpus.tags, strict=True)
    ]
    return platform, simulate_day(
        platform, 0, 200, {"bm25": BM25Retriever(np.arange(1, len(texts) + 1), texts)}
    )


@pytest.fixture(scope="module")
def day():
    return run(0)


def test_tables_keep_the_contract(day):
    _, logs = day
    assert logs.impressions.schema.names == SEARCH_IMPRESSIONS.names()
    assert logs.feed.schema.names == FEED_EVENTS.names()
    for column in SEARCH_IMPRESSIONS.columns:
        if not column.nullable:
            assert logs.impressions[column.name].null_count == 0
    assert set(logs.impressions["stage"].to_pylist()) == {"exposed", "unexposed", "filtered"}
    shown = logs.impressions.filter(pc.equal(logs.impressions["stage"], "exposed"))
    assert shown["rank"].null_count == 0
    assert pc.min_max(shown["rank"]).as_py() == {"min": 1, "max": PAGE}
    hidden = logs.impressions.filter(pc.not_equal(logs.impressions["stage"], "exposed"))
    assert hidden["rank"].null_count == len(hidden)
    assert not pc.any(hidden["clicked"]).as_py()


def test_each_document_is_logged_once_per_search(day):
    _, logs = day
    pairs = logs.impressions.group_by(["search_id", "item_id"]).aggregate([([], "count_all")])
    assert pc.max(pairs["count_all"]).as_py() == 1
    per_search = logs.impressions.group_by("search_id").aggregate([([], "count_all")])
    assert pc.max(per_search["count_all"]).as_py() <= RANKED + FILTERED


def test_truth_covers_every_search_and_only_those(day):
    _, logs = day
    assert set(logs.search_ids.tolist()) == set(logs.impressions["search_id"].to_pylist())


def test_people_page_reword_and_switch_within_the_window(day):
    _, logs = day
    events = logs.impressions.group_by("search_id").aggregate(
        [("user_id", "max"), ("query", "max"), ("searched_at", "max")]
    )
    rows = sorted(
        zip(
            *(events[name].to_pylist() for name in ("user_id_max", "searched_at_max", "query_max")),
            strict=True,
        )
    )
    near = [
        (a[2], b[2]) for a, b in zip(rows, rows[1:], strict=False) if a[0] == b[0] and 0 < b[1] - a[1] <= 90e6
    ]
    same = sum(a == b for a, b in near)
    assert same > 10
    assert len(near) - same > 10


def test_same_seed_same_day_other_seed_other_day(day):
    _, logs = day
    _, again = run(0)
    _, other = run(1)
    assert again.impressions.equals(logs.impressions)
    assert again.feed.equals(logs.feed)
    assert not other.impressions.equals(logs.impressions)


def test_the_day_is_remembered(day):
    platform, logs = day
    clicks = pc.sum(logs.impressions["clicked"]).as_py()
    assert sum(count for items in platform.memory.clicks.values() for count in items.values()) == clicks
    assert platform.memory.sense_clicks.sum() == clicks
    assert (counters(platform, np.random.default_rng(0))["play_cnt"] == platform.memory.plays).all()


def test_without_dissatisfaction_nobody_searches_twice():
    _, logs = run(0, Behaviour(page=0.0, reformulate=0.0, switch=0.0))
    assert 190 < len(logs.search_ids) <= 200


def recall(routes, memory: Memory | None = None, one_category: tuple[int, ...] = ()):
    platform = build_platform(SIZES["tiny"], 4, 0)
    corpus = platform.corpus
    memory = memory or Memory(np.zeros(len(corpus), dtype=np.int64))
    category = np.zeros(len(corpus), dtype=np.int64)
    category[list(one_category)] = 1
    belief = np.full(len(platform.world.sense_head), 1 / len(platform.world.sense_head))
    model = RelevanceModel(corpus, platform.world.sense_head, belief, seed=0)
    nothing_said = np.array([[-1, -1, -1]])
    return Recall(corpus, memory, routes, model, category, 0)(["bass"], nothing_said)


def live_rows(live: bool) -> list[int]:
    uploaded = build_platform(SIZES["tiny"], 4, 0).corpus.uploaded_day
    return np.flatnonzero((uploaded <= 0) == live).tolist()


def test_recall_merges_routes_and_keeps_their_bits():
    rows = live_rows(True)[:8]
    memory = Memory(np.zeros(SIZES["tiny"].items, dtype=np.int64), {"bass": {rows[0]: 3}})
    found = recall({"bm25": Everything(rows[:5]), "dense": Everything(rows[3:8])}, memory, tuple(rows))
    bits = dict(zip(found.rows[0].tolist(), found.routes[0].tolist(), strict=True))
    bm25, dense, co_click = (1 << ROUTES.index(name) for name in ("bm25", "dense", "co_click"))
    assert bits[rows[0]] & (bm25 | dense | co_click) == bm25 | co_click
    assert bits[rows[3]] & (bm25 | dense | co_click) == bm25 | dense
    assert bits[rows[7]] & (bm25 | dense | co_click) == dense
    assert (np.diff(found.pre_score[0]) <= 0).all()


def test_co_watch_brings_what_the_same_people_watched():
    rows = live_rows(True)
    seed, often, once, other = rows[:4]
    memory = Memory(np.zeros(SIZES["tiny"].items, dtype=np.int64))
    # users 0 and 1 watched the seed and `often`, user 0 also `once`; user 2 watched only `other`
    memory.watched.append((np.array([0, 0, 0, 1, 1, 2]), np.array([seed, often, once, seed, often, other])))
    assert memory.co_watched()[seed][:3].tolist() == [often, once, -1]
    found = recall({"bm25": Everything([seed])}, memory)
    bits = dict(zip(found.rows[0].tolist(), found.routes[0].tolist(), strict=True))
    co_watch = 1 << ROUTES.index("co_watch")
    assert bits[often] & co_watch
    assert bits[once] & co_watch
    assert not bits.get(other, 0) & co_watch


def test_items_of_tomorrow_are_not_found_today():
    late = live_rows(False)[:5]
    assert not set(recall({"bm25": Everything(late)}).rows[0].tolist()) & set(late)


def test_the_rankers_err_the_same_way_every_time():
    meaning = np.stack([np.arange(2000), np.full(2000, -1), np.full(2000, -1)], axis=1)
    rows = np.broadcast_to(np.arange(10), (2000, 10))
    first = _hash_normal(meaning, rows, seed=1)
    assert (first == _hash_normal(meaning, rows, seed=1)).all()
    assert (first != _hash_normal(meaning, rows, seed=2)).mean() > 0.99
    assert abs(first.mean()) < 0.03
    assert first.std() == pytest.approx(1.0, abs=0.03)
    assert np.corrcoef(first[:, 0], first[:, 1])[0, 1] == pytest.approx(0, abs=0.1)


def test_the_relevance_model_knows_what_the_query_says_and_bets_on_the_rest():
    platform = build_platform(SIZES["tiny"], 4, 0)
    world, corpus = platform.world, platform.corpus
    clicked_sense, other_sense = np.flatnonzero(world.sense_head == 0)[:2]
    belief = np.zeros(len(world.sense_head))
    belief[[clicked_sense, other_sense]] = 0.75, 0.25
    model = RelevanceModel(corpus, world.sense_head, belief, seed=0)
    of_clicked, of_other = (
        np.flatnonzero(corpus.sense == sense)[0] for sense in (clicked_sense, other_sense)
    )
    elsewhere = np.flatnonzero(world.sense_head[corpus.sense] == 1)[0]
    rows = np.array([[of_clicked, of_other, elsewhere]])
    # a vague query: 0.3 + 0.6 * (its share of clicks / the strongest share of the head)
    assert model(np.array([[0, -1, -1]]), rows, 0.0)[0] == pytest.approx([0.9, 0.5, 0.0])
    # the sense is said: 0.8 for it, nothing for the others
    assert model(np.array([[0, other_sense, -1]]), rows, 0.0)[0] == pytest.approx([0.0, 0.8, 0.0])
    # the need is said: 1, or 0.67 for an answer in part; 0.33 for another need of the sense
    need = corpus.need[of_clicked]
    another = np.flatnonzero(
        (corpus.sense == clicked_sense) & (corpus.need != need) & (corpus.second != need)
    )[0]
    exact = model(np.array([[0, clicked_sense, need]]), np.array([[of_clicked, another]]), 0.0)[0]
    assert exact == pytest.approx([0.67 if corpus.partial[of_clicked] else 1.0, 0.33])


def test_the_feed_leans_towards_the_search_nearby():
    def share(alignment: float) -> float:
        platform, logs = run(0, Behaviour(feed_alignment=alignment))
        sense_of_user: dict[int, set[int]] = {}
        need = dict(zip(logs.search_ids.tolist(), logs.search_needs.tolist(), strict=True))
        pairs = zip(
            logs.impressions["search_id"].to_pylist(), logs.impressions["user_id"].to_pylist(), strict=True
        )
        for search, user in set(pairs):
            sense_of_user.setdefault(user, set()).add(int(platform.world.need_sense[need[search]]))
        seen = zip(logs.feed["user_id"].to_pylist(), logs.feed["item_id"].to_pylist(), strict=True)
        hits = [int(platform.corpus.sense[item - 1]) in sense_of_user.get(user, set()) for user, item in seen]
        return float(np.mean(hits))

    assert share(0.8) > share(0.0) + 0.1


def test_catalogue_table_is_complete(day):
    from crops.platform.corpus import items_table
    from crops.platform.day import click_queries
    from crops.schema import ITEMS

    platform, _ = day
    zero = {
        name: np.zeros(len(platform.corpus), dtype=np.int64)
        for name in ("play_cnt", "like_cnt", "long_view_cnt", "download_cnt")
    }
    table = items_table(
        platform.world,
        platform.corpus,
        platform.first_day_us,
        zero,
        click_queries(platform.memory, len(platform.corpus)),
    )
    assert isinstance(table, pa.Table)
    assert table.schema.names == ITEMS.names()
    assert len(set(table["item_id"].to_pylist())) == len(platform.corpus)
    assert any(table["click_query"].to_pylist())
