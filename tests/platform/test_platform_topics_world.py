"""The world of topics: grades by definition, phrases, shares."""

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
    hand_intents,
    hand_world,
    within,
)
from scipy import stats

from crops.errors import CropsError
from crops.platform.topics import PARTIAL, SECOND_NEED, build_topics_world
from crops.platform.world import HEAD_LEVEL, NEED_LEVEL, SENSE_LEVEL, SIZES, Size, split_shares, zipf


def test_grades_by_definition():
    needs = [HUM, HUM, WINDING, WINDING, ATTENTION, ATTENTION, WATERING]
    second = [-1, -1, -1, HUM, -1, HUM, -1]
    partial = [False, True, False, False, False, False, False]
    world = hand_world(needs, second, partial=partial)
    # the need; in part; another need; in passing; another sense; in passing from there; another head
    assert world.relevance(np.array(HUM), np.arange(7)).tolist() == [3, 2, 1, 2, 0, 2, 0]
    assert world.relevance(np.array(WATERING), np.arange(7)).tolist() == [0, 0, 0, 0, 0, 0, 3]


def test_a_partial_answer_in_passing_stays_in_passing():
    world = hand_world([WINDING], [HUM], partial=[True])
    assert world.relevance(np.array([HUM, WINDING]), np.array([0, 0])).tolist() == [2, 2]


def test_grades_broadcast_needs_against_lists():
    world = hand_world([HUM, WINDING, ATTENTION])
    lists = np.array([[0, 1, 2], [2, 1, 0]])
    assert world.relevance(np.array([[HUM], [ATTENTION]]), lists).tolist() == [[3, 1, 0], [3, 0, 0]]


def test_phrases_know_what_they_give_away():
    phrases = hand_intents().phrases
    by_text = {
        text: (
            int(phrases.level[row]),
            int(phrases.head[row]),
            int(phrases.sense[row]),
            int(phrases.need[row]),
        )
        for row, text in enumerate(phrases.text)
    }
    assert by_text["transformer"] == (HEAD_LEVEL, 0, -1, -1)
    assert by_text["transformer ai"] == (SENSE_LEVEL, 0, MODEL, -1)
    assert by_text["loud hum"] == (NEED_LEVEL, 0, ELECTRIC, HUM)
    assert by_text["watering a ficus"] == (NEED_LEVEL, 1, FIG, WATERING)
    assert len(by_text) == 2 + 3 + 5


def test_names_are_in_the_order_of_needs():
    assert hand_intents().names == (
        ("transformer", "electric", "hum"),
        ("transformer", "electric", "winding"),
        ("transformer", "model", "attention"),
        ("ficus", "fig tree", "watering"),
    )


def test_zipf():
    assert zipf(3).tolist() == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    assert zipf(2, 0.0).tolist() == [0.5, 0.5]


def test_heads_have_zipf_shares_split_by_weight():
    shares = split_shares(np.array([0, 0, 1]), np.array([1.0, 3.0, 5.0]), np.random.default_rng(0))
    heads = sorted([shares[0] + shares[1], shares[2]])
    assert heads == pytest.approx([2**-0.6 / (1 + 2**-0.6), 1 / (1 + 2**-0.6)])
    assert shares[1] / shares[0] == pytest.approx(3)


def test_demand_and_supply_come_from_the_topics():
    intents = hand_intents()
    assert intents.sense_demand.sum() == pytest.approx(1)
    assert intents.sense_supply.sum() == pytest.approx(1)
    assert intents.sense_demand[MODEL] / intents.sense_demand[ELECTRIC] == pytest.approx(3)
    assert intents.sense_supply[ELECTRIC] / intents.sense_supply[MODEL] == pytest.approx(3)
    assert np.bincount(intents.need_sense, weights=intents.need_share) == pytest.approx([1, 1, 1])


def test_demand_and_supply_rank_the_heads_differently():
    world = build_topics_world(SIZES["small"], 4, np.random.default_rng(0))
    intents = world.intents
    demand, supply = (
        np.bincount(intents.sense_head, weights=share)
        for share in (intents.sense_demand, intents.sense_supply)
    )
    assert np.sort(demand) == pytest.approx(np.sort(supply))
    assert abs(stats.spearmanr(demand, supply).statistic) < 0.6


def test_needs_are_drawn_by_their_share_within_their_sense():
    intents = hand_intents()
    n = 20_000
    drawn = intents.draw_needs(np.full(n, ELECTRIC), np.random.default_rng(1))
    counts = np.bincount(drawn, minlength=4)
    assert counts[[ATTENTION, WATERING]].tolist() == [0, 0]
    # two needs of a sense: Zipf 0.7, so 1 : 2^-0.7 in some order
    assert within(counts[:2].max(), n, 1 / (1 + 2**-0.7))
    assert intents.draw_needs(np.array([FIG, MODEL]), np.random.default_rng(2)).tolist() == [
        WATERING,
        ATTENTION,
    ]


def test_the_catalogue_follows_supply_and_every_need_has_an_item():
    rng = np.random.default_rng(3)
    world = build_topics_world(SIZES["tiny"], 4, rng)
    corpus, intents = world.corpus, world.intents
    n = SIZES["tiny"].items
    assert len(corpus) == n
    assert (intents.need_sense[corpus.need] == corpus.sense).all()
    biggest = intents.sense_supply.argmax()
    forced = len(intents.need_sense)
    assert abs((corpus.sense == biggest).sum() - n * intents.sense_supply[biggest]) < forced + 4 * np.sqrt(n)
    assert within(corpus.partial.sum(), n, PARTIAL)
    touched = world.second >= 0
    assert (intents.need_sense[world.second[touched]] == corpus.sense[touched]).all()
    assert (world.second != corpus.need).all()
    own = np.bincount(corpus.sense, minlength=len(intents.sense_head)) / n
    miss = float((own * (1 - np.bincount(intents.need_sense, weights=intents.need_share**2))).sum())
    assert within(touched.sum(), n, SECOND_NEED * miss)


def test_somebody_posts_about_every_need():
    needs = len(build_topics_world(SIZES["tiny"], 4, np.random.default_rng(0)).intents.need_sense)
    just_enough = Size(heads=4, items=needs, authors=9, users=2, sessions=1)
    world = build_topics_world(just_enough, 4, np.random.default_rng(0))
    assert sorted(world.corpus.need) == list(range(needs))


def test_more_needs_than_items_are_refused():
    few = Size(heads=4, items=10, authors=2, users=2, sessions=1)
    with pytest.raises(CropsError, match="size: 10 items are fewer than the .* needs of 4 heads"):
        build_topics_world(few, 4, np.random.default_rng(0))
