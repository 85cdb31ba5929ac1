"""Daily looks keep their promise; interleaving favours nobody."""

import numpy as np
import pytest

from crops.errors import CropsError
from crops.online.interleave import NOBODY, A, B, Interleaved, credit, preference, team_draft
from crops.online.sequential import crossing, looks, obrien_fleming

# Jennison & Turnbull (2000), Table 2.3, two-sided alpha 0.05.
PUBLISHED = {1: 1.960, 2: 1.977, 3: 2.004, 4: 2.024, 5: 2.040, 6: 2.053, 7: 2.063, 10: 2.087}


@pytest.mark.parametrize(("planned", "constant"), PUBLISHED.items())
def test_the_constants_are_the_published_ones(planned, constant):
    assert obrien_fleming(planned, 0.05) == pytest.approx(constant, abs=6e-4)


def daily_z(runs, seed, heterogeneity):
    """z of the mean of the days so far of 400 users, half of them treated with nothing, for 7 days.

    A user's days share a mean of their own: the cumulated data of returning users.
    """
    rng = np.random.default_rng(seed)
    z = np.empty((runs, 7))
    for run in range(runs):
        own = rng.normal(0, heterogeneity, 400)[:, None]
        so_far = np.cumsum(own + rng.normal(size=(400, 7)), axis=1)
        a, b = so_far[:200], so_far[200:]
        error = np.sqrt(a.var(axis=0, ddof=1) / 200 + b.var(axis=0, ddof=1) / 200)
        z[run] = (b.mean(axis=0) - a.mean(axis=0)) / error
    return np.abs(z)


@pytest.mark.parametrize("heterogeneity", [0.0, 0.5])
def test_seven_looks_keep_five_percent_and_peeking_does_not(heterogeneity):
    runs = 6000
    z = daily_z(runs, 0, heterogeneity)
    bound = np.array([look.z for look in looks(7)])
    kept, naive = (z >= bound).any(axis=1).mean(), (z >= 1.96).any(axis=1).mean()
    noise = 3 * np.sqrt(0.05 * 0.95 / runs)
    # Users who come back bring less new information each day: then the boundary keeps more than it promises.
    assert kept < 0.05 + noise
    if not heterogeneity:
        assert kept > 0.05 - noise
        assert naive == pytest.approx(0.166, abs=3 * np.sqrt(0.166 * 0.834 / runs))


def test_crossing_of_naive_peeking():
    assert crossing([1.959964]) == pytest.approx(0.05, abs=1e-6)
    assert crossing([1.959964] * 7) == pytest.approx(0.166, abs=1e-3)


def test_looks_get_easier():
    seven = looks(7)
    assert [look.number for look in seven] == list(range(1, 8))
    assert seven[0].z == pytest.approx(2.0633 * np.sqrt(7), abs=1e-3)
    assert all(a.z > b.z and a.p < b.p for a, b in zip(seven, seven[1:], strict=False))
    assert seven[-1].p == pytest.approx(0.0391, abs=2e-4)


@pytest.mark.parametrize(("planned", "alpha"), [(0, 0.05), (7, 0.0), (7, 0.6)])
def test_impossible_looks_are_refused(planned, alpha):
    with pytest.raises(CropsError, match="plan at least one look"):
        looks(planned, alpha)


def draft(a, b, k, seed):
    return team_draft(a, b, k, np.random.default_rng(seed))


def test_team_draft_by_hand():
    # Common beginning 1, then A has 2, 3 and B has 3, 4. Whoever drafts first takes its best, the other too.
    seen = set()
    for seed in range(40):
        merged = draft([1, 2, 3], [1, 3, 4], 3, seed)
        assert merged.team[0] == NOBODY
        seen.add((tuple(merged.items.tolist()), tuple(merged.team.tolist())))
    assert seen == {((1, 2, 3), (NOBODY, A, B)), ((1, 3, 2), (NOBODY, B, A))}


def test_no_item_twice_and_both_lists_run_out():
    merged = draft([1, 2], [2, 3], 10, 0)
    assert sorted(merged.items.tolist()) == [1, 2, 3]
    same = draft([5, 6, 7], [5, 6, 7], 2, 0)
    assert same.items.tolist() == [5, 6]
    assert set(same.team.tolist()) == {NOBODY}
    assert draft([1], [], 5, 0).team.tolist() == [A]


def test_teams_and_places_are_unbiased():
    # Two systems without a common item, a reader who clicks by position only: nobody may win.
    rng = np.random.default_rng(1)
    chance = 0.7 ** np.arange(10)
    first, clicks, sizes = 0, np.zeros(2), np.zeros(2)
    runs = 4000
    for _ in range(runs):
        merged = team_draft(list(range(10)), list(range(100, 110)), 9, rng)
        first += int(merged.team[0] == B)
        clicks += credit(merged, rng.random(9) < chance[:9])
        sizes += [(merged.team == A).sum(), (merged.team == B).sum()]
    assert first / runs == pytest.approx(0.5, abs=3 * 0.5 / np.sqrt(runs))
    assert clicks[1] / clicks.sum() == pytest.approx(0.5, abs=3 * 0.5 / np.sqrt(clicks.sum()))
    assert sizes[1] / sizes.sum() == pytest.approx(0.5, abs=0.01)


def simulate(better, users, seed):
    """Users who click what is relevant: system B ranks it `better` places higher."""
    rng = np.random.default_rng(seed)
    who, a, b = [], [], []
    for user in range(users):
        for _ in range(3):
            merged = team_draft(
                list(range(1, 11)), [*range(101, 105 - better), 99, *range(105, 115)], 10, rng
            )
            relevant = np.isin(merged.items, [5, 99])
            reads = np.arange(10) < rng.geometric(0.15)
            gained = credit(merged, relevant & reads)
            who.append(user)
            a.append(gained[0])
            b.append(gained[1])
    return np.array(who), np.array(a), np.array(b)


def test_equal_systems_tie_and_a_better_one_wins():
    assert preference(*simulate(0, 300, 2)).p > 0.01
    won = preference(*simulate(3, 300, 2))
    assert won.p < 0.01
    assert won.share_b > 0.55
    assert 0.5 < won.low < won.high


def test_a_user_counts_once():
    # User 1 clicks five times for A, users 2 and 3 once for B, user 4 for both.
    found = preference(np.array([1, 1, 2, 3, 4]), np.array([3, 2, 0, 0, 1]), np.array([0, 0, 1, 1, 1]))
    assert (found.wins_a, found.wins_b, found.ties) == (1, 2, 1)
    assert found.share_b == pytest.approx(2.5 / 4)
    assert found.p == 1.0


def test_bad_lists_are_refused():
    with pytest.raises(CropsError, match="each item once"):
        draft([1, 1], [2], 3, 0)
    with pytest.raises(CropsError, match="k = 0"):
        draft([1], [2], 0, 0)
    with pytest.raises(CropsError, match="none of 2 users"):
        preference(np.array([1, 2]), np.array([1, 0]), np.array([1, 0]))


def test_clicks_on_the_common_beginning_count_for_nobody():
    shown = Interleaved(np.array([1, 2, 3]), np.array([NOBODY, A, B]))
    assert credit(shown, np.array([True, True, False])) == (1, 0)
