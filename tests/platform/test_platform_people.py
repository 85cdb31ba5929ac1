"""People: who comes for what, what they type, and how they walk down a list."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from platform_hand import ATTENTION, ELECTRIC, FIG, HUM, MODEL, hand_intents, hand_users, hand_world, within
from scipy import stats

from crops.config import PlatformConfig
from crops.platform import people
from crops.platform.day import behaviour
from crops.platform.people import (
    Behaviour,
    Speech,
    build_users,
    click,
    draw_rows,
    draw_sessions,
    drift,
    start_times,
    watch_ms,
)
from crops.platform.topics import build_topics_world
from crops.platform.world import HEAD_LEVEL, NEED_LEVEL, SIZES

NOBODY = (np.zeros(0, np.int64), np.zeros(0, np.int64))


@pytest.fixture(scope="module")
def world():
    return build_topics_world(SIZES["tiny"], 4, np.random.default_rng(0))


def rates_of(**rates: float):
    return dataclasses.replace(behaviour(PlatformConfig()), **rates)


def test_users_have_a_handful_of_interests_by_demand(world):
    users = build_users(world.intents, world.corpus, 3_000, np.random.default_rng(0))
    assert users.interest.sum(axis=1) == pytest.approx(np.ones(3_000), abs=1e-5)
    assert ((users.interest > 0).sum(axis=1) <= people.INTERESTS).all()
    assert users.activity.sum() == pytest.approx(1)
    held = (users.interest > 0).mean(axis=0)
    assert stats.spearmanr(held, world.intents.sense_demand).statistic > 0.9


def test_one_user_in_a_thousand_pushes_an_item_that_is_online(world):
    for count, expected in ((3_000, 3), (150, 1)):
        users = build_users(world.intents, world.corpus, count, np.random.default_rng(0))
        pushed = users.pushes[users.pushes >= 0]
        assert len(pushed) == expected == max(1, round(people.ABUSERS * count))
        assert (world.corpus.uploaded_day[pushed] <= 0).all()


def test_drift_moves_the_stated_share_of_users():
    n = 20_000
    users = hand_users(n)
    drift(users, hand_intents(), np.random.default_rng(0))
    moved = ~np.isclose(users.interest, 1 / 3).all(axis=1)
    assert within(int(moved.sum()), n, people.DRIFT)
    assert users.interest.sum(axis=1) == pytest.approx(np.ones(n), abs=1e-5)
    # a third each, of which 70 % stay, and 30 % go to one sense
    kept = (1 - people.DRIFT_WEIGHT) / 3
    assert np.sort(users.interest[moved], axis=1) == pytest.approx(
        np.tile([kept, kept, kept + people.DRIFT_WEIGHT], (int(moved.sum()), 1)), abs=1e-6
    )


def sessions_of(users, n, watched=NOBODY, intents=None, **rates: float):
    """Sessions in a catalogue of two items, about humming (electric) and about attention (model)."""
    corpus = hand_world([HUM, ATTENTION]).corpus
    start, rng = np.zeros(n, np.int64), np.random.default_rng(0)
    return draw_sessions(intents or hand_intents(), corpus, users, watched, start, rates_of(**rates), rng)


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
    assert within(int((sense == MODEL).sum()), n, rates_of().from_feed)
    assert (drawn.user[sense == MODEL] == 2).all()
    assert set(sense) == {MODEL, FIG}
    # on the first day nobody has watched anything
    drawn = sessions_of(users, 500, trend=0.0, from_feed=1.0)
    assert set(hand_intents().need_sense[drawn.need]) == {FIG}


def test_sessions_from_trends_follow_demand_whoever_comes():
    n = 20_000
    users = hand_users(3)
    users.interest[:] = [[0, 0, 1]] * 3
    # figs interest everybody and are in no demand: the trends show
    intents = dataclasses.replace(hand_intents(), sense_demand=np.array([0.25, 0.75, 0.0]))
    sense = intents.need_sense[sessions_of(users, n, intents=intents, from_feed=0.0).need]
    assert within(int((sense != FIG).sum()), n, rates_of().trend)
    ratio = (sense == MODEL).sum() / (sense == ELECTRIC).sum()
    assert 0.1 < abs(np.log(ratio / 3)) < 2.5  # the day's tilt: log-normal, sigma 0.5 for each


def test_abusers_search_the_need_of_what_they_push():
    drawn = sessions_of(hand_users(4, pushes={1: 1, 3: 0}), 10)
    assert drawn.user[10:].tolist() == [1] * people.ABUSE_SESSIONS + [3] * people.ABUSE_SESSIONS
    assert drawn.need[10:].tolist() == [ATTENTION] * people.ABUSE_SESSIONS + [HUM] * people.ABUSE_SESSIONS
    assert len(drawn.start_us) == 10 + 2 * people.ABUSE_SESSIONS


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
    counts = np.histogram(hours, bins=24, range=(0, 24))[0] / 50_000
    assert counts.sum() == pytest.approx(1)
    assert counts.argmax() in (18, 19, 20)
    assert counts[11:13].mean() > counts[15]
    assert np.unique(hours).size > 49_900  # no pile at one instant


DRAWS = 8_000


@pytest.fixture(scope="module")
def speech():
    return Speech(hand_intents())


@pytest.fixture(scope="module")
def phrases():
    return hand_intents().phrases


def test_searchers_say_phrases_of_their_need_at_the_stated_levels(speech, phrases):
    needs = np.random.default_rng(0).integers(0, 4, DRAWS)
    rows = speech.first(needs, behaviour(PlatformConfig()), np.random.default_rng(1))
    intents = hand_intents()
    assert (phrases.head[rows] == intents.sense_head[intents.need_sense[needs]]).all()
    assert np.isin(phrases.sense[rows] - intents.need_sense[needs], (0,))[phrases.sense[rows] >= 0].all()
    assert (phrases.need[rows] == needs)[phrases.need[rows] >= 0].all()
    for level, share in enumerate(people.FIRST_LEVEL):
        assert within(int((phrases.level[rows] == level).sum()), DRAWS, share)
    # both searches of "hum" are used
    said = {phrases.text[row] for row in rows[needs == HUM]}
    assert said == {"transformer", "power transformer", "why does it hum", "loud hum"}


def test_reformulations_specify_rephrase_or_generalise_between_head_and_need(speech, phrases):
    model, rng = behaviour(PlatformConfig()), np.random.default_rng(0)

    def levels(said: str, model: Behaviour) -> list[int]:
        again = speech.again(np.full(DRAWS, HUM), np.full(DRAWS, phrases.text.index(said)), model, rng)
        return np.bincount(phrases.level[again], minlength=3).tolist()

    shares = (1 - model.specify - model.rephrase, model.rephrase, model.specify)
    found = levels("power transformer", model)
    assert all(within(count, DRAWS, share) for count, share in zip(found, shares, strict=True))
    # nobody gets vaguer than the head or finer than the need
    vaguer = dataclasses.replace(model, specify=0.0, rephrase=0.0)
    assert levels("transformer", vaguer)[HEAD_LEVEL] == DRAWS
    assert levels("loud hum", dataclasses.replace(vaguer, specify=1.0))[NEED_LEVEL] == DRAWS


def test_typed_text_has_modifiers_and_slips_at_their_rates(speech, phrases):
    def type_often(text: str) -> list[str]:
        return speech.type(np.full(DRAWS, phrases.text.index(text)), np.random.default_rng(2))

    typed = type_often("self attention")
    assert typed == type_often("self attention")
    clean = 1 - people.TYPO
    after = sum(text.removeprefix("self attention ") in people.MODIFIERS for text in typed)
    before = sum(text.removesuffix(" self attention") in people.MODIFIERS for text in typed)
    modified, first = people.MODIFIED[NEED_LEVEL], people.MODIFIER_FIRST
    assert within(after, DRAWS, modified * (1 - first) * clean)
    assert within(before, DRAWS, modified * first * clean)
    assert within(typed.count("self attention"), DRAWS, (1 - modified) * clean)
    one, two = (typed.count(f"self attention {word}") for word in people.MODIFIERS[:2])
    assert 1.5 < one / two < 2.7  # Zipf: 2
    heads = type_often("ficus")
    assert within(heads.count("ficus"), DRAWS, (1 - people.MODIFIED[HEAD_LEVEL]) * clean, sigmas=6)


def test_long_phrases_lose_words(speech, phrases):
    typed = speech.type(np.full(DRAWS, phrases.text.index("why does it hum")), np.random.default_rng(3))
    shorter = {"does it hum", "why it hum", "why does hum", "why does it"}
    rate = people.LOSES_WORD * (1 - people.MODIFIED[NEED_LEVEL]) * (1 - people.TYPO)
    assert within(sum(text in shorter for text in typed), DRAWS, rate, sigmas=6)
    assert shorter <= set(typed)


def test_meanings_are_what_the_words_say_whoever_types_them(speech, phrases):
    head, sense, need = (
        phrases.text.index(text) for text in ("transformer", "power transformer", "loud hum")
    )
    texts = ["transformer tips", "powr transformer", "loud hum", "transformer"]
    rows = np.array([head, sense, need, need])
    # the last one meant the need, but typed the head alone
    assert speech.meanings(texts, rows).tolist() == [
        [0, -1, -1], [0, ELECTRIC, -1], [0, ELECTRIC, HUM], [0, -1, -1],
    ]  # fmt: skip


def test_a_text_at_several_levels_means_the_vaguest():
    intents = hand_intents()
    rows = intents.phrases
    text = [
        "transformer" if row in (rows.text.index("loud hum"), 1) else own for row, own in enumerate(rows.text)
    ]
    assert text.count("transformer") == 3
    speech = Speech(dataclasses.replace(intents, phrases=dataclasses.replace(rows, text=tuple(text))))
    assert speech.meanings(["transformer"], np.array([rows.text.index("loud hum")])).tolist() == [[0, -1, -1]]


N, M = 20_000, 10


def model(name: str, **rates: Any) -> Behaviour:
    settings = behaviour(PlatformConfig(click_model=name, good_abandonment=0))  # type: ignore[arg-type]
    return dataclasses.replace(settings, **rates)


def clicks(rates: Behaviour, grade: np.ndarray, *, partial=False, matches=False, seed=0):
    shape = grade.shape
    flags = (np.full(shape, value) for value in (partial, matches))
    return click(grade, *flags, np.full(shape, 10_000), rates, np.random.default_rng(seed))


def rates_hold(clicked: np.ndarray, expected: np.ndarray) -> bool:
    return all(within(int(clicked[:, r].sum()), len(clicked), p) for r, p in enumerate(expected))


def test_dbn_closed_form():
    rates = model("dbn", attraction=(0, 0, 0.5, 0), satisfaction=(0, 0, 0.4, 0), continue_rate=0.9)
    found = clicks(rates, np.full((N, M), 2))
    # P(examine r) = (gamma (1 - a s))^(r-1): 0.9 * (1 - 0.5 * 0.4) = 0.72
    assert rates_hold(found.clicked, 0.5 * 0.72 ** np.arange(M))
    # P(satisfied) = sum over r of P(examine r) a s = 0.2 (1 - 0.72^10) / (1 - 0.72)
    assert within(int(found.satisfied.sum()), N, 0.2 * (1 - 0.72**10) / 0.28)


def test_dcm_closed_form():
    rates = model(
        "dcm", attraction=(0, 0, 0.5, 0), satisfaction=(0, 0, 0.4, 0), continue_after_click=(0.9, 0.8)
    )
    found = clicks(rates, np.full((N, M), 2))
    # E(r+1) = E(r) (1 - a + a (1 - s) lambda_r), lambda_r = 0.9 * 0.8^(r-1)
    go_on = 0.5 + 0.5 * 0.6 * 0.9 * 0.8 ** np.arange(M)
    examined = np.concatenate([[1], np.cumprod(go_on)[:-1]])
    assert examined[1] == pytest.approx(0.77)
    assert rates_hold(found.clicked, 0.5 * examined)


def test_dcm_without_clicks_reads_to_the_end():
    rates = model("dcm", attraction=(0, 0, 0, 1), satisfaction=(0, 0, 0, 0), continue_after_click=(0.0, 1.0))
    grade = np.zeros((4, M), dtype=int)
    grade[:, 9] = 3
    assert clicks(rates, grade).clicked[:, 9].all()
    grade[:, 4] = 3  # lambda = 0: the first click ends the walk
    found = clicks(rates, grade).clicked
    assert found[:, 4].all()
    assert not found[:, 9].any()


@pytest.mark.parametrize("eta", [1.0, 2.0])
def test_pbm_closed_form(eta):
    rates = model("pbm", attraction=(0, 0, 0.5, 0), satisfaction=(0, 0, 0.4, 0), position_power=eta)
    found = clicks(rates, np.full((N, M), 2))
    theta = np.array(people.POSITIONS) ** eta
    assert rates_hold(found.clicked, 0.5 * theta)
    assert within(int(found.satisfied.sum()), N, 1 - np.prod(1 - 0.2 * theta))
    # positions are independent: a click does not change the next
    both = (found.clicked[:, 0] & found.clicked[:, 1]).sum()
    assert within(int(both), N, 0.25 * theta[0] * theta[1])


@pytest.mark.parametrize("name", ["dbn", "dcm"])
def test_nobody_looks_beyond_the_satisfying_result(name):
    sure = model(
        name,
        attraction=(0, 0, 0, 1),
        satisfaction=(0, 0, 0, 1),
        continue_rate=1.0,
        continue_after_click=(1.0, 1.0),
    )
    found = clicks(sure, np.array([[0, 3, 3, 1], [0, 0, 0, 0], [3, -1, -1, -1]]))
    assert found.clicked.tolist() == [[False, True, False, False], [False] * 4, [True, False, False, False]]
    assert found.satisfied.tolist() == [True, False, True]
    assert ((found.play_ms > 0) == found.clicked).all()


def test_attraction_by_grade_match_and_bait():
    rates = model("dbn", continue_rate=1.0, satisfaction=(0, 0, 0, 0))
    for grade in range(4):
        for partial, matches in ((False, False), (True, False), (False, True), (True, True)):
            found = clicks(rates, np.full((N, 1), grade), partial=partial, matches=matches, seed=grade)
            looks = rates.bait_attraction * partial + rates.match_attraction * matches
            assert within(int(found.clicked.sum()), N, min(1.0, rates.attraction[grade] + looks))
    assert not clicks(rates, np.full((N, 1), -1), partial=True, matches=True).clicked.any()


def test_good_abandonment_needs_a_relevant_result_that_was_examined():
    blind = {"attraction": (0, 0, 0, 0), "good_abandonment": 0.3, "match_attraction": 0.0}
    relevant, useless = np.tile([2, 0, 0], (N, 1)), np.tile([1, 1, 1], (N, 1))
    found = clicks(model("dbn", **blind), relevant)
    assert not found.clicked.any()
    assert within(int(found.satisfied.sum()), N, 0.3)
    assert not clicks(model("dbn", **blind), useless).satisfied.any()
    # PBM examines the first place with 0.68 only
    assert within(int(clicks(model("pbm", **blind), relevant).satisfied.sum()), N, 0.3 * 0.68)
    # whoever clicked something is not satisfied by what was only seen
    clicking = model("dbn", attraction=(1, 1, 1, 1), satisfaction=(0, 0, 0, 0), good_abandonment=1.0)
    assert not clicks(clicking, relevant).satisfied.any()


def test_likes_and_plays_follow_clicks_by_grade():
    rates = model("dbn", attraction=(1, 1, 1, 1), satisfaction=(0, 0, 0, 0), continue_rate=1.0)
    found = clicks(rates, np.tile([0, 3], (N, 1)))
    assert within(int(found.liked[:, 0].sum()), N, rates.like[0])
    assert within(int(found.liked[:, 1].sum()), N, rates.like[3])
    rates = model("pbm", attraction=(1, 1, 1, 1), position_power=0.0)
    watched = clicks(rates, np.tile(np.arange(4), (N, 1))).play_ms
    assert watched.mean(axis=0) / 10_000 == pytest.approx(rates.watch, abs=0.02)
    quiet = clicks(dataclasses.replace(rates, attraction=(0, 0, 0, 0)), np.tile([0, 3], (N, 1)))
    assert not quiet.liked.any()


@pytest.mark.parametrize("mean", [0.05, 0.55])
def test_watched_share_has_the_asked_mean(mean):
    n = 40_000
    played = watch_ms(np.full(n, mean), np.full(n, 1_000_000), np.random.default_rng(0)) / 1_000_000
    # a Beta of concentration 2 has the variance m (1 - m) / 3
    deviation = np.sqrt(mean * (1 - mean) / 3)
    assert abs(played.mean() - mean) < 4.5 * deviation / np.sqrt(n)
    assert played.std() == pytest.approx(deviation, rel=0.03)
    assert played.min() >= 0
    assert played.max() <= 1
