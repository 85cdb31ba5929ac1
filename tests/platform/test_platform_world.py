"""The world and its people, on examples small enough to check by eye."""

import numpy as np
import pytest
from scipy import stats

from crops.errors import CropsError
from crops.platform.behaviour import Behaviour, click, watch_ms
from crops.platform.corpus import _split_by_style, build_corpus, draw_needs
from crops.platform.topics import FIRST_HEADS, Head, Need, Sense, load_topics
from crops.platform.users import MODIFIERS, Speech, _slip, build_users, draw_rows
from crops.platform.world import HEAD_LEVEL, NEED_LEVEL, SENSE_LEVEL, build_world, relevance


def need(name: str, *search: str) -> Need:
    return Need(name, search, ("t1", "t2", "t3"), ("c1", "c2", "c3"), ("tag",))


@pytest.fixture
def world():
    electric = Sense(
        "electric",
        "engineering",
        1,
        3,
        ("power transformer",),
        ("grid",),
        (need("hum", "why hum", "loud hum"), need("wind", "coil winding")),
    )
    model = Sense(
        "model", "technology", 3, 1, ("transformer ai",), ("llm",), (need("attention", "self attention"),)
    )
    fig = Sense("fig", "garden", 1, 1, ("fig tree",), ("leaf",), (need("water", "watering a ficus"),))
    heads = [Head("transformer", "ambiguous", (electric, model)), Head("ficus", "broad", (fig,))]
    return build_world(heads, np.random.default_rng(0))


def test_grades_follow_the_definition(world):
    # needs: 0 hum, 1 wind (both electric), 2 attention (model), 3 water (fig)
    item_need = np.array([0, 0, 1, 1, 2, 3])
    second = np.array([-1, -1, -1, 0, 0, -1])
    partial = np.array([False, True, False, False, False, False])
    grades = relevance(world, np.array(0), item_need, second, partial)
    # the need itself; in part; another need of the sense; in passing; in passing from another sense; nothing
    assert grades.tolist() == [3, 2, 1, 2, 2, 0]


def test_shares_sum_to_one_and_split_by_weight(world):
    assert world.sense_demand.sum() == pytest.approx(1)
    assert world.sense_supply.sum() == pytest.approx(1)
    assert world.sense_demand[1] / world.sense_demand[0] == pytest.approx(3)
    assert world.sense_supply[0] / world.sense_supply[1] == pytest.approx(3)
    assert np.bincount(world.need_sense, weights=world.need_share) == pytest.approx([1, 1, 1])


def test_phrases_know_what_they_give_away(world):
    phrases = world.phrases
    at = phrases.text.index("transformer")
    assert (phrases.level[at], phrases.head[at], phrases.sense[at], phrases.need[at]) == (
        HEAD_LEVEL,
        0,
        -1,
        -1,
    )
    at = phrases.text.index("transformer ai")
    assert (phrases.level[at], phrases.sense[at], phrases.need[at]) == (SENSE_LEVEL, 1, -1)
    at = phrases.text.index("watering a ficus")
    assert (phrases.level[at], phrases.head[at], phrases.sense[at], phrases.need[at]) == (NEED_LEVEL, 1, 2, 3)


def test_searchers_only_say_phrases_of_their_need(world):
    rng = np.random.default_rng(1)
    speech, phrases = Speech(world), world.phrases
    needs = rng.integers(0, 4, 500)
    drawn = speech.first(needs, rng)
    for want, row in zip(needs, drawn, strict=True):
        assert phrases.head[row] == world.sense_head[world.need_sense[want]]
        assert phrases.sense[row] in (-1, world.need_sense[want])
        assert phrases.need[row] in (-1, want)
    assert set(phrases.level[drawn]) == {HEAD_LEVEL, SENSE_LEVEL, NEED_LEVEL}
    only_specific = Behaviour(specify=1.0, rephrase=0.0)
    again = speech.again(needs, drawn, only_specific, rng)
    assert (phrases.level[again] == np.minimum(phrases.level[drawn] + 1, NEED_LEVEL)).all()


def test_typed_text_keeps_the_phrase_but_for_modifiers_and_slips(world):
    rng = np.random.default_rng(2)
    phrase = np.full(400, world.phrases.text.index("self attention"))
    typed = Speech(world).type(phrase, rng)
    plain = [text for text in typed if text == "self attention"]
    modified = [
        t
        for t in typed
        if t.removeprefix("self attention ") in MODIFIERS or t.removesuffix(" self attention") in MODIFIERS
    ]
    assert 0.35 < len(plain) / 400 < 0.60
    assert len(modified) > 120
    assert 1 <= 400 - len(plain) - len(modified) < 40


def test_slips():
    assert _slip("abcd", 0.0, swap=True) == "bacd"
    assert _slip("abcd", 0.99, swap=False) == "abd"


def test_rows_are_drawn_by_weight():
    weights = np.tile([0.0, 1.0, 3.0, 0.0], (4000, 1))
    counts = np.bincount(draw_rows(weights, np.random.default_rng(3)), minlength=4)
    assert counts[0] == counts[3] == 0
    assert stats.chisquare(counts[1:3], [1000, 3000]).pvalue > 0.001


def test_needs_are_drawn_within_their_sense(world):
    sense = np.random.default_rng(4).integers(0, 3, 1000)
    drawn = draw_needs(world, sense, np.random.default_rng(5))
    assert (world.need_sense[drawn] == sense).all()
    assert set(drawn) == {0, 1, 2, 3}


def test_nobody_clicks_beyond_the_satisfying_result():
    sure = Behaviour(attraction=(0, 0, 0, 1), satisfaction=(0, 0, 0, 1), continue_rate=1.0)
    grade = np.array([[0, 3, 3, 1], [0, 0, 0, 0], [3, -1, -1, -1]])
    flat = np.zeros_like(grade, dtype=bool)
    result = click(grade, flat, np.full(grade.shape, 10_000), sure, np.random.default_rng(0))
    assert result.clicked.tolist() == [[False, True, False, False], [False] * 4, [True, False, False, False]]
    assert result.satisfied.tolist() == [True, False, True]
    assert ((result.play_ms > 0) == result.clicked).all()


def test_clicks_fall_with_position_at_equal_relevance():
    grade = np.full((20_000, 10), 2)
    flat = np.zeros_like(grade, dtype=bool)
    model = Behaviour()
    result = click(grade, flat, np.full(grade.shape, 10_000), model, np.random.default_rng(0))
    rates = result.clicked.mean(axis=0)
    # DBN: P(examine r+1) = P(examine r) * gamma * (1 - P(click) * P(satisfied | click))
    stay = model.continue_rate * (1 - model.attraction[2] * model.satisfaction[2])
    assert rates == pytest.approx(model.attraction[2] * stay ** np.arange(10), abs=0.012)


def test_watched_share_has_the_asked_mean():
    played = watch_ms(np.full(50_000, 0.3), np.full(50_000, 100_000), np.random.default_rng(0))
    assert played.mean() / 100_000 == pytest.approx(0.3, abs=0.01)
    assert played.min() >= 0
    assert played.max() <= 100_000


def test_plain_creators_speak_like_searchers():
    one = Need(
        "n",
        ("how to tune a guitar",),
        ("Quiet strings", "Tune a guitar fast", "Your guitar, in tune", "Pegs", "Ear work"),
        (),
        (),
    )
    plain, jargon = _split_by_style(one, one.titles)
    assert plain == ["Tune a guitar fast", "Your guitar, in tune"]
    assert jargon == ["Ear work", "Pegs", "Quiet strings"]


def test_items_answer_needs_of_their_sense(world):
    corpus = build_corpus(world, 500, 20, 4, np.random.default_rng(0))
    assert (world.need_sense[corpus.need] == corpus.sense).all()
    has_second = corpus.second >= 0
    assert (world.need_sense[corpus.second[has_second]] == corpus.sense[has_second]).all()
    assert (corpus.second != corpus.need).all()
    assert all(
        title or caption or tags
        for title, caption, tags in zip(corpus.title, corpus.caption, corpus.tags, strict=True)
    )


def test_users_have_few_interests(world):
    users = build_users(world, 50, np.random.default_rng(0))
    assert users.interest.sum(axis=1) == pytest.approx(np.ones(50))
    assert users.activity.sum() == pytest.approx(1)


def test_every_topic_of_the_package_is_well_formed():
    heads = load_topics(len(FIRST_HEADS))
    for head in heads:
        assert 2 <= len(head.senses) <= 4
        for sense in head.senses:
            assert 4 <= len(sense.needs) <= 8
            for one in sense.needs:
                assert min(len(one.search), len(one.titles), len(one.captions)) >= 4
                assert all(text == text.lower() for text in one.search)
        phrases = [text for sense in head.senses for one in sense.needs for text in one.search]
        assert len(set(phrases)) == len(phrases), head.name


def test_too_many_heads_are_refused():
    with pytest.raises(CropsError, match="'heads' = 100000"):
        load_topics(100_000)
