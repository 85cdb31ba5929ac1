"""The null world: what comes after a search, and the feed around it, say nothing about its need."""

import numpy as np
import pandas as pd
import pytest

SESSIONS = 2_000


def follow_ups(platform, logs) -> pd.DataFrame:
    """Heads of a search and of the next one of the same user within 90 s, where the text is another."""
    rows = logs.impressions.to_pandas().drop_duplicates("search_id")
    honest = platform.users.pushes[rows.user_id - 1] < 0
    need = pd.Series(logs.search_needs, index=logs.search_ids)
    rows = rows[honest].assign(need=lambda own: need[own.search_id].to_numpy())
    rows = rows.sort_values(["user_id", "searched_at"])
    after = rows.shift(-1)
    pair = (rows.user_id == after.user_id) & (rows["query"] != after["query"])
    pair &= (after.searched_at - rows.searched_at).between(1, 90e6)
    return pd.DataFrame({"need": rows.need[pair], "next": after.need[pair].astype(int)})


def chance(pairs: pd.DataFrame, of: np.ndarray) -> tuple[float, float]:
    """How often both fall into the same group, and how often they would if they were independent."""
    first, second = of[pairs.need], of[pairs.next]
    shares = (np.bincount(x, minlength=of.max() + 1) / len(x) for x in (first, second))
    return float((first == second).mean()), float(np.prod(np.stack(list(shares)), axis=0).sum())


@pytest.fixture(scope="module")
def worlds(run_days):
    return {
        informative: run_days(sessions=SESSIONS, informative=informative, reformulate=0.6)
        for informative in (False, True)
    }


def test_the_next_search_is_independent_of_the_first(worlds):
    platform, (logs,) = worlds[False]
    pairs = follow_ups(platform, logs)
    intents = platform.world.intents
    assert len(pairs) > 500
    for groups in (np.arange(len(intents.need_sense)), intents.need_sense,
                   intents.sense_head[intents.need_sense]):  # fmt: skip
        together, expected = chance(pairs, groups)
        bound = 4.5 * np.sqrt(expected * (1 - expected) / len(pairs))
        assert abs(together - expected) < bound
    # in the default world most follow-ups want the same
    platform, (logs,) = worlds[True]
    together, expected = chance(follow_ups(platform, logs), np.arange(len(intents.need_sense)))
    assert together > 0.7 > 5 * expected


def aligned(platform, logs) -> tuple[float, float]:
    """Share of feed videos around a search with its sense, and what supply alone would bring."""
    intents = platform.world.intents
    need = pd.Series(logs.search_needs, index=logs.search_ids)
    searches = logs.impressions.to_pandas().drop_duplicates("search_id")[
        ["search_id", "user_id", "searched_at"]
    ]
    searches["sense"] = intents.need_sense[need[searches.search_id]]
    searches = searches[platform.users.pushes[searches.user_id - 1] < 0]
    feed = logs.feed.to_pandas()
    feed["watched"] = platform.world.corpus.sense[feed.item_id - 1]
    near = searches.merge(feed, on="user_id")
    near = near[(near.watched_at - near.searched_at).abs() < 1_800e6]
    return float((near.sense == near.watched).mean()), float(intents.sense_supply[near.sense].mean())


def test_the_feed_around_a_search_is_what_it_is_anywhere(worlds):
    platform, (logs,) = worlds[False]
    together, expected = aligned(platform, logs)
    assert together == pytest.approx(expected, abs=0.015)
    platform, (logs,) = worlds[True]
    together, expected = aligned(platform, logs)
    assert together > expected + 0.15


def test_watching_says_nothing_about_interests(worlds):
    shares = {}
    for informative, (platform, (logs,)) in worlds.items():
        feed = logs.feed.to_pandas()
        feed = feed[platform.users.pushes[feed.user_id - 1] < 0]
        interest = platform.users.interest[feed.user_id - 1, platform.world.corpus.sense[feed.item_id - 1]]
        watched = feed.play_ms / feed.duration_ms
        shares[informative] = watched[interest > 0.3].mean() - watched[interest == 0].mean()
    assert abs(shares[False]) < 0.02
    assert shares[True] > 0.3


def test_first_searches_are_as_in_the_default_world(worlds):
    """The dial changes what follows, not what people come for."""
    needs = []
    for platform, (logs,) in worlds.values():
        firsts = logs.search_ids <= SESSIONS
        needs.append(np.bincount(logs.search_needs[firsts], minlength=len(platform.world.intents.need_sense)))
    assert (needs[0] == needs[1]).mean() > 0.95
