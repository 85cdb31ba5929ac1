"""The feed: what is recommended near a search and elsewhere, and how long it is watched."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from platform_hand import (
    ATTENTION,
    ELECTRIC,
    FIG,
    HUM,
    MODEL,
    WATERING,
    WINDING,
    hand_users,
    hand_world,
    within,
)

from crops.config import PlatformConfig
from crops.platform.day import behaviour
from crops.platform.people import (
    BURST,
    INTEREST,
    KEEN,
    NEAR_SEARCH,
    TREND,
    Behaviour,
    Sessions,
    Visits,
    draw_visits,
    watch_feed,
)

WORLD = hand_world([HUM, WINDING, ATTENTION, WATERING] * 5)
EVERYTHING = np.arange(20)
NO_SEARCH = -1


def model(**rates: Any) -> Behaviour:
    return dataclasses.replace(behaviour(PlatformConfig()), **rates)


def watch(near, *, rates=None, users=None, live=EVERYTHING, user=0, world=WORLD, seed=0):
    """One visit per entry of `near`, all of one user."""
    visits = Visits(np.full(len(near), user), np.arange(len(near)) * 10**10, np.array(near))
    table = watch_feed(
        world, users or hand_users(2), visits, live, 0, rates or model(), np.random.default_rng(seed)
    )
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def senses(events) -> np.ndarray:
    return WORLD.corpus.sense[events["item_id"] - 1]


def in_one_sense(interest: tuple[float, float, float]):
    users = hand_users(1)
    users.interest[0] = interest
    return users


def test_recommendations_follow_interest_supply_and_chance():
    n = 2_000
    events = watch([NO_SEARCH] * n, users=in_one_sense((0, 0, 1)))
    slots = n * BURST
    supply = WORLD.intents.sense_supply
    for sense in (ELECTRIC, MODEL, FIG):
        share = INTEREST * (sense == FIG) + TREND * supply[sense] + (1 - INTEREST - TREND) / 3
        assert within(int((senses(events) == sense).sum()), slots, share)


def test_near_a_search_the_feed_leans_towards_it():
    n = 2_000
    base = watch([NO_SEARCH] * n, users=in_one_sense((0, 0, 1)))
    share = float(np.mean(senses(base) == MODEL))
    for alignment in (0.0, 0.25, 0.8):
        events = watch([MODEL] * n, users=in_one_sense((0, 0, 1)), rates=model(feed_alignment=alignment))
        expected = alignment + (1 - alignment) * share
        assert np.mean(senses(events) == MODEL) == pytest.approx(expected, abs=0.02)


def test_people_watch_longer_what_interests_them():
    users = in_one_sense((0, 0, 1))
    events = watch([MODEL] * 4_000, users=users, rates=model(feed_alignment=0.4))
    share = events["play_ms"] / events["duration_ms"]
    by_sense = [share[senses(events) == sense].mean() for sense in (ELECTRIC, MODEL, FIG)]
    # nothing; the sense just searched; a lasting interest (0.15 + 0.9, clipped at 0.9)
    assert by_sense == pytest.approx([KEEN, KEEN + 0.35, 0.9], abs=0.015)


def test_in_the_null_world_feed_and_watching_know_nothing():
    rates = model(informative=False, feed_alignment=1.0)
    events = watch([MODEL] * 3_000, users=in_one_sense((0, 0, 1)), rates=rates)
    supply = WORLD.intents.sense_supply
    for sense in range(3):
        own = senses(events) == sense
        assert within(int(own.sum()), 3_000 * BURST, supply[sense])
        assert (events["play_ms"] / events["duration_ms"])[own].mean() == pytest.approx(KEEN, abs=0.02)


def test_abusers_play_what_they_push_around_their_searches():
    users = hand_users(2, pushes={0: 3})
    near, elsewhere = watch([FIG] * 500, users=users), watch([NO_SEARCH] * 500, users=users)
    pushed = near["item_id"] == 4
    assert pushed.mean() > 0.45
    assert (elsewhere["item_id"] == 4).mean() < 0.15
    played = near["play_ms"] / near["duration_ms"]
    assert played[pushed].mean() > 0.8
    null = watch([FIG] * 500, users=users, rates=model(informative=False))
    assert (null["item_id"] == 4).mean() < 0.15


def test_only_items_that_are_online_are_shown():
    events = watch([NO_SEARCH] * 300, live=np.array([0, 2, 3]))
    assert set(events["item_id"]) == {1, 3, 4}
    # a sense without a live item is filled with any
    events = watch([MODEL] * 300, live=np.array([0, 3]), rates=model(feed_alignment=1.0))
    assert set(events["item_id"]) == {1, 4}


def test_appeal_draws_by_its_square_root():
    world = hand_world([WATERING] * 3, quality=[1.0, 4.0, 16.0])
    events = watch([FIG] * 1_000, world=world, live=np.arange(3), rates=model(feed_alignment=1.0))
    counts = np.bincount(events["item_id"], minlength=4)[1:]
    for count, weight in zip(counts, (1, 2, 4), strict=True):
        assert within(int(count), 1_000 * BURST, weight / 7)


def test_a_visit_is_a_burst_of_videos_one_after_the_other():
    events = watch([NO_SEARCH] * 3)
    assert events["user_id"].tolist() == [1] * 3 * BURST
    assert (np.diff(events["watched_at"]) >= 0).all()
    before = np.concatenate([[0], np.cumsum(events["play_ms"][: BURST - 1])])
    assert events["watched_at"][:BURST].tolist() == (events["watched_at"][0] + before * 1000).tolist()


def test_visits_gather_around_searches():
    n = 3_000
    rng = np.random.default_rng(0)
    start = np.full(n, 12 * 3600 * 10**6)
    sessions = Sessions(np.zeros(n, np.int64), np.full(n, ATTENTION), start)
    visits = draw_visits(WORLD, hand_users(2), sessions, rng)
    near = visits.near_sense >= 0
    assert within(int(near.sum()), n, NEAR_SEARCH)
    assert (visits.near_sense[near] == MODEL).all()
    assert (visits.user[near] == 0).all()
    minutes = (visits.start_us[near] - start[0]) / 60e6
    assert minutes.min() >= -25
    assert minutes.max() <= 20
    assert (~near).sum() == n
    assert within(int((visits.user[~near] == 1).sum()), n, 0.5)
