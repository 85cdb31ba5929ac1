"""The three click models against their closed forms, and by hand."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from platform_hand import within

from crops.config import PlatformConfig
from crops.platform.day import behaviour
from crops.platform.people import POSITIONS, Behaviour, click, watch_ms

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
    theta = np.array(POSITIONS) ** eta
    assert rates_hold(found.clicked, 0.5 * theta)
    assert within(int(found.satisfied.sum()), N, 1 - np.prod(1 - 0.2 * theta))
    # positions are independent: a click does not change the next
    both = (found.clicked[:, 0] & found.clicked[:, 1]).sum()
    assert within(int(both), N, 0.25 * theta[0] * theta[1])


def test_pbm_positions_fall():
    assert len(POSITIONS) == M
    assert list(POSITIONS) == sorted(POSITIONS, reverse=True)


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


def test_rates_grow_with_the_grade():
    rates = behaviour(PlatformConfig())
    for name in ("attraction", "satisfaction", "like", "watch"):
        values = getattr(rates, name)
        assert len(values) == 4
        assert list(values) == sorted(values)
        assert all(0 <= value <= 1 for value in values)
    assert max(rates.attraction) < 1


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


def test_likes_follow_clicks():
    rates = model("dbn", attraction=(1, 1, 1, 1), satisfaction=(0, 0, 0, 0), continue_rate=1.0)
    found = clicks(rates, np.tile([0, 3], (N, 1)))
    assert within(int(found.liked[:, 0].sum()), N, rates.like[0])
    assert within(int(found.liked[:, 1].sum()), N, rates.like[3])
    quiet = clicks(dataclasses.replace(rates, attraction=(0, 0, 0, 0)), np.tile([0, 3], (N, 1)))
    assert not quiet.liked.any()


@pytest.mark.parametrize("mean", [0.05, 0.12, 0.55, 0.9])
def test_watched_share_has_the_asked_mean(mean):
    n = 40_000
    played = watch_ms(np.full(n, mean), np.full(n, 1_000_000), np.random.default_rng(0)) / 1_000_000
    # a Beta of concentration 2 has the variance m (1 - m) / 3
    deviation = np.sqrt(mean * (1 - mean) / 3)
    assert abs(played.mean() - mean) < 4.5 * deviation / np.sqrt(n)
    assert played.std() == pytest.approx(deviation, rel=0.03)
    assert played.min() >= 0
    assert played.max() <= 1


def test_clicked_videos_are_watched_by_grade():
    rates = model("pbm", attraction=(1, 1, 1, 1), position_power=0.0)
    found = clicks(rates, np.tile(np.arange(4), (N, 1)))
    assert found.clicked.all()
    assert found.play_ms.mean(axis=0) / 10_000 == pytest.approx(rates.watch, abs=0.02)
