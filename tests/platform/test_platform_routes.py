"""Each recall route by hand: what it finds, and what it must not find."""

from collections.abc import Sequence

import numpy as np
import pytest
from platform_hand import ATTENTION, HUM, PLAIN_BUBBLE, WATERING, WINDING, Fixed, hand_world, memory_of

from crops.platform.search import DEPTH, ROUTES, Bubble, Routes

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


def test_names_are_the_bits_of_the_log():
    assert ROUTES == (
        "bm25", "dense", "sparse", "co_click", "similar",
        "co_watch", "popular", "fresh", "explore", "personal",
    )  # fmt: skip


def test_text_routes_have_their_depths():
    found, _ = routes({"bm25": range(ITEMS), "dense": range(ITEMS)})(["any"])
    assert found["bm25"].shape == (1, DEPTH["bm25"])
    assert found_by(found, "bm25") == list(range(ITEMS))
    assert found["dense"].tolist() == [[0, 1, 2, 3, 4]]  # as deep as the dial says


def test_the_leaf_category_is_what_most_candidates_have():
    assert routes({"bm25": [2, 3, 7]})(["any"])[1].tolist() == [2]
    assert routes({"bm25": [2, 6], "dense": [3, 7, 11]})(["any"])[1].tolist() == [2]
    assert routes({"bm25": [2, 3]})(["any"])[1].tolist() == [1]  # ties: the smaller


def test_words_that_lead_nowhere_have_no_leaf():
    found, leaf = routes({"bm25": []})(["xyz"])
    assert leaf.tolist() == [-1]
    for name in ("popular", "fresh", "co_watch"):
        assert found_by(found, name) == []
    assert (routes({"bm25": []}).personal(np.array([5]), leaf) == -1).all()


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


def test_without_clicks_there_are_no_click_routes():
    found, _ = routes({"bm25": [0]})(["any"])
    assert set(found) == {"bm25", "co_watch", "popular", "fresh"}


def test_co_watch_brings_the_feed_neighbours_of_the_best_candidates():
    # people watched 0 with 8 twice and with 9 once; 11 is seen by nobody together with a seed
    watched = [(1, 0), (1, 8), (2, 0), (2, 8), (2, 9), (3, 11), (3, 10)]
    found, _ = routes({"bm25": [0, 4]}, watched=watched)(["any"])
    assert found_by(found, "co_watch")[:2] == [8, 9]
    assert not {10, 11} & set(found_by(found, "co_watch"))


def test_only_the_best_few_candidates_bring_neighbours():
    watched = [(1, 9), (1, 10)]
    shallow, _ = routes({"bm25": [0, 1, 2, 3, 9]}, watched=watched)(["any"])
    deep, _ = routes({"bm25": [0, 1, 2, 3, 4, 9]}, watched=watched)(["any"])
    assert found_by(shallow, "co_watch") == [10]
    assert found_by(deep, "co_watch") == []


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


def test_no_exploration_when_the_dial_says_none():
    assert "explore" not in routes({"bm25": [0]})(["any"])[0]


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


def test_uploads_between_the_days_do_not_reshuffle_personal_candidates():
    uploaded = [0.5 if row == 4 else -1.0 for row in range(ITEMS)]
    users, leaf = np.arange(50), np.zeros(50, dtype=np.int64)
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
