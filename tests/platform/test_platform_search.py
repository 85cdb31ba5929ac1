"""The search cascade: what each route finds, what passes, and the order of the list."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from platform_hand import (
    ATTENTION,
    ELECTRIC,
    HUM,
    MODEL,
    PLAIN_BUBBLE,
    WATERING,
    WINDING,
    Fixed,
    hand_users,
    hand_world,
    memory_of,
)

from crops.platform import search
from crops.platform.search import (
    Bubble,
    ProductionRanker,
    RelevanceModel,
    Routes,
    recall,
    recall_for_users,
)
from crops.platform.world import mix, normal, uniform

ITEMS = 12
NEEDS = [HUM, WINDING, ATTENTION, WATERING] * 3
"""Leaf categories (senses) of the rows: 0 0 1 2 0 0 1 2 0 0 1 2."""
LEAF_0 = [0, 1, 4, 5, 8, 9]


def routes(
    found: dict[str, Sequence[int]],
    *,
    day: int = 0,
    seed: int = 0,
    bubble: Bubble = PLAIN_BUBBLE,
    uploaded: Sequence[float] = (-1.0,) * ITEMS,
    **memory,
) -> Routes:
    world = hand_world(NEEDS, uploaded_day=uploaded)
    retrievers = {name: Fixed(rows) for name, rows in found.items()}
    return Routes(world.corpus, memory_of(ITEMS, **memory), retrievers, bubble, 3, day, seed)


def found_by(found: dict[str, np.ndarray], name: str, row: int = 0) -> list[int]:
    return [item for item in found[name][row].tolist() if item >= 0]


def test_the_leaf_category_is_what_most_candidates_have():
    found, leaf = routes({"bm25": range(ITEMS), "dense": range(ITEMS)})(["any"])
    assert set(found) == {"bm25", "dense", "co_watch", "popular", "fresh"}  # no clicks, and no exploration
    assert found["bm25"].shape == (1, search.DEPTH["bm25"])
    assert found["dense"].tolist() == [[0, 1, 2, 3, 4]]  # as deep as the dial says
    assert leaf.tolist() == [0]
    assert routes({"bm25": [2, 6], "dense": [3, 7, 11]})(["any"])[1].tolist() == [2]
    assert routes({"bm25": [2, 3]})(["any"])[1].tolist() == [1]  # ties: the smaller


def test_words_that_lead_nowhere_find_nothing():
    _, built, model = build([HUM] * 4, {"bm25": []})
    assert all((rows == -1).all() for rows in built(["xyz"])[0].values())
    found, leaf = recall(built, model, PLAIN_BUBBLE, ["xyz"], SAYS_HUM)
    assert leaf.tolist() == [-1]
    mine = recall_for_users(built, model, PLAIN_BUBBLE, found, SAYS_HUM, leaf, np.array([0]))
    assert (found.rows == -1).all()
    assert (mine.rows == -1).all()


def test_co_click_finds_what_was_clicked_for_the_same_text():
    clicks = {"bow": {3: 1, 7: 4, 5: 1}, "tie": {2: 1}}
    found, _ = routes({"bm25": [0]}, clicks=clicks)(["bow", "tie", "new"])
    assert [found_by(found, "co_click", row) for row in range(3)] == [[7, 3, 5], [2], []]


def test_similar_finds_what_was_clicked_for_a_text_spelt_alike():
    clicks = {"transformer hum": {7: 2, 3: 1}, "sourdough": {2: 5}}
    found, _ = routes({"bm25": [0]}, clicks=clicks)(["transfomer hum", "sourdoh", "jaguar"])
    assert found_by(found, "similar", 0) == [7, 3]
    assert found_by(found, "similar", 2) == []
    assert 7 not in found_by(found, "similar", 1)
    # the same text is what co_click is for
    own, _ = routes({"bm25": [0]}, clicks=clicks)(["transformer hum"])
    assert found_by(own, "similar") == []


def test_co_watch_brings_the_feed_neighbours_of_the_best_candidates():
    # people watched 0 with 8 twice and with 9 once; 11 is seen by nobody together with a seed
    watched = [(1, 0), (1, 8), (2, 0), (2, 8), (2, 9), (3, 11), (3, 10)]
    found, _ = routes({"bm25": [0, 4]}, watched=watched)(["any"])
    assert found_by(found, "co_watch")[:2] == [8, 9]
    assert not {10, 11} & set(found_by(found, "co_watch"))
    # only the five best candidates bring neighbours
    for candidates, expected in (([0, 1, 2, 3, 9], [10]), ([0, 1, 2, 3, 4, 9], [])):
        found, _ = routes({"bm25": candidates}, watched=[(1, 9), (1, 10)])(["any"])
        assert found_by(found, "co_watch") == expected


def test_popular_and_fresh_are_of_the_leaf_category():
    plays = [5, 1, 99, 99, 7, 0, 99, 99, 6, 2, 99, 99]
    uploaded = [-9, -8, -1, -1, -3, -4, -1, -1, -5, -6, -1, -1]
    found, _ = routes({"bm25": [0, 1]}, plays=plays, uploaded=uploaded)(["any"])
    assert found_by(found, "popular") == [4, 8, 0, 9, 1, 5]
    assert found_by(found, "fresh") == [4, 5, 8, 9, 1, 0]


def test_exploration_is_fixed_by_text_and_day_and_stays_in_the_leaf():
    bubble = Bubble(popularity=0, own_past=5, beyond=1.0, explore=4, boost=0)
    texts = [f"text {row}" for row in range(40)]
    first, again, tomorrow, elsewhere = (
        routes({"bm25": [0, 1]}, bubble=bubble, day=day, seed=seed)(texts)[0]["explore"]
        for day, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert first.shape == (40, 4)
    assert (first == again).all()
    assert set(first.ravel()) == set(LEAF_0)
    for other in (tomorrow, elsewhere):
        assert 0.05 < (first == other).mean() < 0.35  # by chance 1 in 6
    assert len({tuple(row) for row in first.tolist()}) > 30  # by text, too


def test_personal_is_fixed_by_user_and_leaf_on_all_days():
    users, leaf = np.arange(50), np.zeros(50, dtype=np.int64)
    today, later, other_seed = (
        routes({}, day=day, seed=seed).personal(users, leaf) for day, seed in ((0, 0), (3, 0), (0, 1))
    )
    assert (today == later).all()
    assert (today == other_seed).mean() < 0.35
    assert set(today.ravel()) == set(LEAF_0)
    assert len({tuple(row) for row in today.tolist()}) > 45
    assert set(routes({}).personal(users, leaf + 2).ravel()) == {3, 7, 11}
    # an upload between the days does not reshuffle the others
    uploaded = [0.5 if row == 4 else -1.0 for row in range(ITEMS)]
    before, after = (routes({}, day=day, uploaded=uploaded).personal(users, leaf) for day in (0, 1))
    assert (before != 4).all()
    assert (after == 4).any()
    assert (before == after)[after != 4].all()


@pytest.mark.parametrize("name", ["popular", "fresh", "explore", "personal"])
def test_the_platforms_own_routes_find_nothing_before_its_upload(name):
    uploaded = [1.5 if row in (0, 4, 8) else -1.0 for row in range(ITEMS)]
    bubble = Bubble(popularity=0, own_past=5, beyond=1.0, explore=30, boost=0)
    for day, expected in ((1, {1, 5, 9}), (2, set(LEAF_0))):
        built = routes({"bm25": [1, 5]}, day=day, bubble=bubble, uploaded=uploaded, plays=[9] * ITEMS)
        rows = (
            built.personal(np.arange(20), np.zeros(20, dtype=np.int64))
            if name == "personal"
            else built(["a", "b", "c", "d"])[0][name]
        )
        assert set(rows.ravel().tolist()) - {-1} == expected


def relevance_model(world, *, noise=0.0, belief=(0.5, 0.3, 0.2), seed=0) -> RelevanceModel:
    return RelevanceModel(world, np.array(belief), noise, seed)


def build(needs, found, *, noise=0.0, bubble=PLAIN_BUBBLE, columns=None, **memory):
    world = hand_world(needs, **(columns or {}))
    retrievers = {name: Fixed(rows) for name, rows in found.items()}
    routes = Routes(world.corpus, memory_of(len(needs), **memory), retrievers, bubble, 3, 0, 0)
    return world, routes, relevance_model(world, noise=noise)


BIT = {name: 1 << place for place, name in enumerate(search.ROUTES)}
SAYS_HUM = np.array([[0, ELECTRIC, HUM]])
WIDTH = search.RANKED + search.FILTERED


def test_candidates_carry_the_bits_of_every_route_that_found_them():
    _, routes, model = build(
        [HUM] * 8, {"bm25": range(4), "dense": range(2, 6)}, clicks={"hum": {3: 1, 7: 1}}
    )
    found, leaf = recall(routes, model, PLAIN_BUBBLE, ["hum"], SAYS_HUM)
    everywhere = BIT["popular"] | BIT["fresh"]
    masks = dict(zip(found.rows[0].tolist(), found.routes[0].tolist(), strict=True))
    assert leaf.tolist() == [ELECTRIC]
    assert masks[0] == BIT["bm25"] | everywhere
    assert masks[2] == BIT["bm25"] | BIT["dense"] | everywhere
    assert masks[3] == BIT["bm25"] | BIT["dense"] | BIT["co_click"] | everywhere
    assert masks[5] == BIT["dense"] | everywhere
    assert masks[7] == BIT["co_click"] | everywhere
    assert found.rows.shape == (1, WIDTH)


def test_pre_rank_order_without_noise_is_relevance_then_match_then_id():
    needs = [WATERING, WINDING, HUM, HUM, HUM, HUM]
    texts = {"bm25": [1, 3, 4], "dense": [0, 5, 2]}
    _, routes, model = build(needs, texts, columns={"partial": [0, 0, 0, 0, 1, 0]})
    found, _ = recall(routes, model, PLAIN_BUBBLE, ["hum"], SAYS_HUM)
    # grades / 3: item 3 shows words of the query, 2 and 5 not; 4 answers in part; 1 another need; 0 nothing
    assert found.rows[0, :7].tolist() == [3, 2, 5, 4, 1, 0, -1]
    match = search.MATCH_WEIGHT
    expected = [1 + match, 1, 1, 2 / 3 + match, 1 / 3 + match, 0]
    assert found.pre_score[0, :6] == pytest.approx(expected, abs=1e-6)
    popular = dataclasses.replace(PLAIN_BUBBLE, popularity=0.7)
    _, routes, model = build([HUM] * 3, {"bm25": [0, 1, 2]}, bubble=popular, plays=[0, 1, 7])
    found, _ = recall(routes, model, popular, ["hum"], SAYS_HUM)
    assert found.rows[0, :3].tolist() == [2, 1, 0]
    assert found.pre_score[0, :3] == pytest.approx(1 + match + 0.7 * np.array([1, 1 / 3, 0]), abs=1e-6)


def test_no_stage_lets_tomorrows_items_through():
    uploaded = {"uploaded_day": [-1.0, 0.3, -1.0, 2.0]}
    _, routes, model = build([HUM] * 4, {"bm25": range(4), "dense": [3, 1]}, columns=uploaded)
    found, leaf = recall(routes, model, PLAIN_BUBBLE, ["hum"], SAYS_HUM)
    assert found.rows[0, :3].tolist() == [0, 2, -1]
    mine = recall_for_users(routes, model, PLAIN_BUBBLE, found, SAYS_HUM, leaf, np.array([0]))
    assert mine.rows[0, :3].tolist() == [0, 2, -1]


def test_blocks_of_queries_are_stacked_in_order(monkeypatch):
    monkeypatch.setattr("crops.platform.search._BLOCK", 2)
    _, routes, model = build([HUM] * 6, {"bm25": [0, 1]}, clicks={"a": {2: 1}, "c": {3: 1}, "e": {4: 1}})
    found, leaf = recall(routes, model, PLAIN_BUBBLE, list("abcde"), np.repeat(SAYS_HUM, 5, axis=0))
    assert found.rows.shape == (5, WIDTH)
    assert leaf.tolist() == [ELECTRIC] * 5
    clicked = [found.rows[row][(found.routes[row] & BIT["co_click"]) > 0].tolist() for row in range(5)]
    # padding has all bits set; only rows of items count
    assert [[item for item in row if item >= 0] for row in clicked] == [[2], [], [3], [], [4]]


def test_personal_candidates_are_added_once_and_ranked_among_the_others():
    users = np.arange(40)
    _, routes, model = build([HUM] * 200, {"dense": [0, 1]}, noise=0.5)
    found, leaf = recall(routes, model, PLAIN_BUBBLE, ["hum"], SAYS_HUM)
    tables = (found.rows, found.routes, found.pre_score)
    shared = type(found)(*(np.repeat(table, 40, axis=0) for table in tables))
    leaves = np.repeat(leaf, 40)
    meaning = np.repeat(SAYS_HUM, 40, axis=0)
    mine = recall_for_users(routes, model, PLAIN_BUBBLE, shared, meaning, leaves, users)
    assert mine.rows.shape == (40, WIDTH)
    already, doubly = set(found.rows[0].tolist()) - {-1}, 0
    for user, own in enumerate(map(set, routes.personal(users, leaves).tolist())):
        rows = [row for row in mine.rows[user].tolist() if row >= 0]
        assert len(rows) == len(set(rows))
        assert set(rows) == already | own or len(rows) == WIDTH
        masks = mine.routes[user][: len(rows)]
        assert ((masks & BIT["personal"]) > 0).tolist() == [row in own for row in rows]
        assert ((masks & ~BIT["personal"]) > 0).tolist() == [row in already for row in rows]
        doubly += len(already & own)
        scores = mine.pre_score[user][: len(rows)]
        assert (np.diff(scores) <= 0).all()
        estimate = model(SAYS_HUM[:, None, :], np.array([rows]), 1.8)[0]
        match = search.MATCH_WEIGHT * ((masks & search.TEXT_MATCH) > 0)
        assert scores == pytest.approx(estimate + match, abs=1e-5)
    assert doubly > 0


def test_the_relevance_model_knows_what_is_said_and_bets_on_the_rest():
    world = hand_world([HUM, WINDING, ATTENTION, WATERING], partial=[1, 0, 0, 0])
    model = relevance_model(world, belief=(0.2, 0.6, 0.2))
    rows = np.arange(4)
    # vague: 0.3 + 0.6 * (belief of the sense / strongest belief of its head), nothing for other heads
    assert model(np.array([0, -1, -1]), rows) == pytest.approx([0.5, 0.5, 0.9, 0.0])
    assert model(np.array([1, -1, -1]), rows) == pytest.approx([0.0, 0.0, 0.0, 0.9])
    # the sense is said: 0.8 for it
    assert model(np.array([0, ELECTRIC, -1]), rows) == pytest.approx([0.8, 0.8, 0.0, 0.0])
    # the need is said: grade / 3
    assert model(np.array([0, ELECTRIC, HUM]), rows) == pytest.approx([2 / 3, 1 / 3, 0.0, 0.0])


def test_the_estimates_err_by_the_dial_and_always_the_same_way():
    world = hand_world([ATTENTION] * 4_000)
    rows = np.arange(4_000)
    for noise, factor in ((0.35, 1.0), (0.35, 1.8), (1.2, 1.0)):
        error = relevance_model(world, noise=noise)(np.array([0, MODEL, -1]), rows, factor) - 0.8
        assert error.std() == pytest.approx(noise * factor, rel=0.05)
        assert abs(error.mean()) < 4.5 * noise * factor / np.sqrt(4_000)
    first, again, other = (
        relevance_model(world, noise=0.35, seed=seed)(np.array([0, MODEL, -1]), rows) for seed in (3, 3, 4)
    )
    assert (first == again).all()
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.08
    elsewhere = relevance_model(world, noise=0.35, seed=3)(np.array([0, MODEL, ATTENTION]), rows)
    assert abs(np.corrcoef(first, elsewhere)[0, 1]) < 0.08


def test_the_ranker_by_hand():
    world = hand_world([HUM, WINDING, ATTENTION], author=[7, 8, 9])
    users = hand_users(2)
    users.interest[1] = [0, 0, 1]
    bubble = dataclasses.replace(PLAIN_BUBBLE, popularity=0.5)
    popularity = np.array([0.0, 1.0, 0.4])
    ranker = ProductionRanker(relevance_model(world), users, popularity, bubble, SAYS_HUM)
    candidates = np.array([[0, 1, -1], [2, 0, 1]])
    routes = np.array([[search.TEXT_MATCH, 2, -1], [2, 2, 2]])
    scores = ranker.score(np.array([0, 0]), np.array([0, 1]), candidates, routes)
    taste = search.TASTE_WEIGHT * normal(np.array([[0], [1]]), np.array([[7, 8, 0], [9, 7, 8]]))
    assert scores[0, 0] == pytest.approx(
        1 + search.INTEREST_WEIGHT / 3 + search.MATCH_WEIGHT + taste[0, 0], abs=1e-6
    )
    assert scores[0, 1] == pytest.approx(1 / 3 + 0.5 + search.INTEREST_WEIGHT / 3 + taste[0, 1], abs=1e-6)
    assert np.isneginf(scores[0, 2])
    assert scores[1] == pytest.approx(
        [0.2 + taste[1, 0], 1 + taste[1, 1], 1 / 3 + 0.5 + taste[1, 2]], abs=1e-6
    )
    assert (scores[np.isfinite(scores)] == np.round(scores[np.isfinite(scores)], 6)).all()


def test_fixed_numbers_are_spread_and_independent():
    left, right = np.arange(300)[:, None], np.arange(200)[None, :]
    numbers = normal(left, right)
    assert abs(numbers.mean()) < 0.02
    assert numbers.std() == pytest.approx(1.0, abs=0.02)
    assert np.abs(np.corrcoef(numbers[:8])[~np.eye(8, dtype=bool)]).max() < 0.35
    assert len(np.unique(mix(left, right))) == 300 * 200
    flat = np.histogram(uniform(left, right), bins=10, range=(0, 1))[0]
    assert flat == pytest.approx(np.full(10, 6_000), rel=0.06)
