"""Users, what they come to search for, and who plays foul."""

import dataclasses

import numpy as np
import pytest
from platform_hand import ATTENTION, ELECTRIC, FIG, HUM, MODEL, hand_intents, hand_users, hand_world, within
from scipy import stats

from crops.config import PlatformConfig
from crops.platform.day import behaviour
from crops.platform.people import (
    ABUSE_SESSIONS,
    ABUSERS,
    DRIFT,
    DRIFT_WEIGHT,
    INTERESTS,
    build_users,
    draw_rows,
    draw_sessions,
    drift,
    start_times,
)
from crops.platform.topics import build_topics_world
from crops.platform.world import SIZES

NOBODY = (np.zeros(0, np.int64), np.zeros(0, np.int64))


@pytest.fixture(scope="module")
def world():
    return build_topics_world(SIZES["tiny"], 4, np.random.default_rng(0))


def model(**rates: float):
    return dataclasses.replace(behaviour(PlatformConfig()), **rates)


def test_users_have_a_handful_of_interests_by_demand(world):
    users = build_users(world.intents, world.corpus, 3_000, np.random.default_rng(0))
    assert users.interest.sum(axis=1) == pytest.approx(np.ones(3_000), abs=1e-5)
    assert ((users.interest > 0).sum(axis=1) <= INTERESTS).all()
    assert users.activity.sum() == pytest.approx(1)
    held = (users.interest > 0).mean(axis=0)
    assert stats.spearmanr(held, world.intents.sense_demand).statistic > 0.9


def test_one_user_in_a_thousand_pushes_an_item_that_is_online(world):
    for count, expected in ((3_000, 3), (150, 1)):
        users = build_users(world.intents, world.corpus, count, np.random.default_rng(0))
        pushed = users.pushes[users.pushes >= 0]
        assert len(pushed) == expected == max(1, round(ABUSERS * count))
        assert (world.corpus.uploaded_day[pushed] <= 0).all()


def test_drift_moves_the_stated_share_of_users():
    n = 20_000
    users = hand_users(n)
    drift(users, hand_intents(), np.random.default_rng(0))
    moved = ~np.isclose(users.interest, 1 / 3).all(axis=1)
    assert within(int(moved.sum()), n, DRIFT)
    assert users.interest.sum(axis=1) == pytest.approx(np.ones(n), abs=1e-5)
    # a third each, of which 70 % stay, and 30 % go to one sense
    kept = (1 - DRIFT_WEIGHT) / 3
    assert np.sort(users.interest[moved], axis=1) == pytest.approx(
        np.tile([kept, kept, kept + DRIFT_WEIGHT], (int(moved.sum()), 1)), abs=1e-6
    )


def sessions_of(users, n, watched=NOBODY, intents=None, **rates: float):
    """Sessions in a catalogue of two items, about humming (electric) and about attention (model)."""
    corpus = hand_world([HUM, ATTENTION]).corpus
    start, rng = np.zeros(n, np.int64), np.random.default_rng(0)
    return draw_sessions(intents or hand_intents(), corpus, users, watched, start, model(**rates), rng)


def test_sessions_come_from_interests():
    n = 4_000
    users = hand_users(2)
    users.interest[:] = [[1, 0, 0], [0, 0.25, 0.75]]
    drawn = sessions_of(users, n, trend=0.0, from_feed=0.0)
    sense = hand_intents().need_sense[drawn.need]
    assert within(int((drawn.user == 0).sum()), n, 0.5)
    assert set(sense[drawn.user == 0]) == {ELECTRIC}
    other = sense[drawn.user == 1]
    assert within(int((other == FIG).sum()), len(other), 0.75)
    assert (other != ELECTRIC).all()


def test_sessions_from_the_feed_are_of_who_watched_and_what():
    n = 20_000
    users = hand_users(3)
    users.interest[:] = [[0, 0, 1]] * 3
    drawn = sessions_of(users, n, (np.array([2]), np.array([1])), trend=0.0)  # user 2 watched item 1
    sense = hand_intents().need_sense[drawn.need]
    assert within(int((sense == MODEL).sum()), n, model().from_feed)
    assert (drawn.user[sense == MODEL] == 2).all()
    assert set(sense) == {MODEL, FIG}


def test_sessions_from_trends_follow_demand_whoever_comes():
    n = 20_000
    users = hand_users(3)
    users.interest[:] = [[0, 0, 1]] * 3
    # figs interest everybody and are in no demand: the trends show
    intents = dataclasses.replace(hand_intents(), sense_demand=np.array([0.25, 0.75, 0.0]))
    sense = intents.need_sense[sessions_of(users, n, intents=intents, from_feed=0.0).need]
    assert within(int((sense != FIG).sum()), n, model().trend)
    ratio = (sense == MODEL).sum() / (sense == ELECTRIC).sum()
    assert 0.1 < abs(np.log(ratio / 3)) < 2.5  # the day's tilt: log-normal, sigma 0.5 for each


def test_feed_of_yesterday_brings_nothing_on_the_first_day():
    users = hand_users(3)
    users.interest[:] = [[0, 0, 1]] * 3
    drawn = sessions_of(users, 500, trend=0.0, from_feed=1.0)
    assert set(hand_intents().need_sense[drawn.need]) == {FIG}


def test_abusers_search_the_need_of_what_they_push():
    drawn = sessions_of(hand_users(4, pushes={1: 1, 3: 0}), 10)
    assert drawn.user[10:].tolist() == [1] * ABUSE_SESSIONS + [3] * ABUSE_SESSIONS
    assert drawn.need[10:].tolist() == [ATTENTION] * ABUSE_SESSIONS + [HUM] * ABUSE_SESSIONS
    assert len(drawn.start_us) == 10 + 2 * ABUSE_SESSIONS


def test_rows_are_drawn_by_weight():
    weights = np.array([[0, 1, 3, 0], [1, 0, 0, 0]], dtype=np.float32)
    rows = np.repeat([0, 1], 4_000)
    drawn = draw_rows(weights, np.random.default_rng(3), rows, block=999)
    counts = np.bincount(drawn[:4_000], minlength=4)
    assert counts[[0, 3]].tolist() == [0, 0]
    assert within(int(counts[1]), 4_000, 0.25)
    assert (drawn[4_000:] == 0).all()


def test_sessions_begin_all_over_the_day_with_two_peaks():
    hours = start_times(50_000, np.random.default_rng(0)) / 3600e6
    assert hours.min() >= 0
    assert hours.max() < 24
    counts = np.histogram(hours, bins=24, range=(0, 24))[0] / 50_000
    assert counts.argmax() in (18, 19, 20)
    assert counts[11:13].mean() > counts[15]
    # no pile at one instant
    assert np.unique(hours).size > 49_900
