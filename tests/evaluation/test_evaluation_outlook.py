"""What logs would bring, counted by hand: sources, the held-out day, and what is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crops.config import EngineConfig
from crops.evaluation.outlook import Expected, outlook
from crops.evaluation.significance import smallest_difference
from crops.logs import open_logs
from crops.report.outlook import about, outlook_page

NOON, DAY, SECOND = 1_767_614_400_000_000, 86_400_000_000, 1_000_000
"""2026-01-05 12:00:00 UTC, and lengths in microseconds."""
DAYS = ["2026-01-05", "2026-01-06"]


def search(number, user, query, at, *results, clicked=(), day=0, stage="exposed"):
    return [
        {
            "search_id": number,
            "user_id": user,
            "query": query,
            "searched_at": NOON + day * DAY + at * SECOND,
            "item_id": item,
            "stage": stage,
            "clicked": item in clicked,
        }
        for item in results
    ]


def watched(user, item, at):
    return {"user_id": user, "item_id": item, "watched_at": NOON + at * SECOND, "liked": True}


@pytest.fixture
def logs(tmp_path, write_logs):
    """Three users on the first day, two on the second.

    User 1 asks "bow", sees 1 and 2, and 20 s later "bow and arrow", where 2 (shown for "bow" before) and 3
    (never) are clicked. User 2 turns the page of "bow" and clicks 1. User 3 asks "bat" twice, 91 s apart from
    "cave bat" (too late). On the second day 1, shown before, and 4, not, are clicked for "bow", and 5 after
    a rewording of "bow" to "violin".
    """
    rows = [
        *search(1, 1, "bow", 0, 1, 2),
        *search(2, 1, "bow and arrow", 20, 2, 3, 6, clicked=(2, 3)),
        *search(3, 2, "Bow", 100, 1),
        *search(4, 2, "bow ", 130, 1, clicked=(1,)),
        *search(5, 3, "bat", 0, 5),
        *search(6, 3, "cave bat", 91, 5, clicked=(5,)),
        *search(7, 1, "bow", 0, 1, 4, clicked=(1, 4), day=1),
        *search(8, 1, "violin", 30, 5, clicked=(5,), day=1),
    ]
    feed = [watched(1, 4, 60), watched(1, 1, 70), watched(3, 6, 7200), watched(9, 2, 0)]
    return open_logs(write_logs(tmp_path / "logs", impressions=rows, feed=feed))


def test_sources_and_rewordings_are_counted(logs):
    found = outlook(logs, EngineConfig(), DAYS)
    assert (found.mined, found.tested) == (("2026-01-05",), "2026-01-06")
    expected = {"searches": 8, "users": 3, "returning_users": 3, "searches_without_click": 3, "reworded": 2,
                "paged": 1, "rewordings": 2, "rewordings_consumed": 2, "rewordings_fresh": 2, "consumed": 7,
                "shown_unclicked": 5, "feed_events": 4, "feed_consumed": 4, "feed_users": 2,
                "searches_near_feed": 2, "test_clicks": 3, "test_clicks_fresh": 2,
                "ct_queries": 2}  # fmt: skip
    assert {name: found.counts[name] for name in expected} == expected
    # P1: "bow" with 2 and 3, of which 3 is new. P2: "bow" and "bow and arrow" with 1 and 4, three new.
    p1, p2 = found.sources["p1"], found.sources["p2"]
    assert (p1.found, p1.pairs, p1.fresh, p1.queries) == (2, 2 * 0.24, 0.19, pytest.approx(1 - 0.76**2))
    assert (p2.found, p2.pairs, p2.fresh) == (4, 4 * 0.11, pytest.approx(3 * 0.10))
    assert (found.sources["p0"].found, found.sources["p0"].queries) == (4, 3)
    assert (found.qr.found, found.qr.queries) == (1, pytest.approx(0.24))


def test_the_smallest_difference_is_that_of_the_normal_approximation():
    # (1.9600 + 0.8416) * 0.25 / sqrt(100)
    assert smallest_difference(100, 0.25) == pytest.approx(0.0700, abs=1e-4)
    assert smallest_difference(9, 0.25) is None


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (7.4, "7"), (99.6, "100"), (1234, "1,200")])
def test_expected_numbers_have_two_digits(number, text):
    assert about(number) == text


def test_the_verdict_comes_first(logs):
    found = outlook(logs, EngineConfig(), DAYS)
    many = Expected(found=2500, pairs=1234.0, fresh=649.6, queries=701.2)
    found = replace(found, sources=found.sources | {"p1": many}, qr=many)
    page = outlook_page(found, EngineConfig())
    assert page.headline[0] == (
        "Rewordings (P1) would bring about 1,200 positives for 700 queries; 650 of them had never been shown "
        "for their query."
    )
    # 2.8016 * 0.23 / sqrt(701.2)
    assert page.headline[-2] == (
        "A held-out day such as 2026-01-06 has about 2 queries with a click (too few to show any difference) "
        "and about 700 queries with something consumed after a rewording (shows 2.4 points)."
    )


@pytest.mark.parametrize(("fresh", "clicked", "queries", "said"), [
    (9.9, 100, 700, "CroPS has little to add on these logs, as about 10 new positives had never been shown"),
    (19.9, 1000, 700, "CroPS has little to add on these logs"),
    (20, 1000, 700, "it is worth a try, as about 20 new positives had never been shown for their query"),
    (20, 0, 700, "it is worth a try"),
    (20, 1000, 9, "it may help"),
])  # fmt: skip
def test_the_conclusion_follows_its_rule(logs, fresh, clicked, queries, said):
    """At least 10 new positives and 2 % of the clicked ones; CT has 2 queries, which show nothing."""
    found, nothing = outlook(logs, EngineConfig(), DAYS), Expected(0, 0, 0, 0)
    sources = {"p0": Expected(clicked, clicked, 0, 1), "p1": Expected(1, 1, fresh, 1), "p2": nothing}
    page = outlook_page(replace(found, sources=sources, qr=Expected(1, 1, 1, queries)), EngineConfig())
    assert page.headline[-1].startswith(f"Conclusion: {said}")


@pytest.mark.parametrize(("rows", "feed", "said"), [
    ([*search(1, 1, "a", 0, 1), *search(2, 2, "b", 0, 2)], [], "nothing in the results was clicked"),
    ([*search(1, 1, "a", 0, 1), *search(2, 2, "b", 9, 2, clicked=(2,))], [], "no user searched twice"),
    ([*search(1, 1, "a", 0, 1), *search(2, 1, "b", 0, 2, clicked=(2,))], [], "other words within 90 s"),
    ([*search(1, 1, "a", 0, 1), *search(2, 1, "b", 9, 2), *search(3, 1, "b", 200, 2, clicked=(2,))], [],
     "nothing was consumed after a rewording"),
    (search(1, 1, "a", 0, 1, clicked=(1,)), [], "The feed (P2) cannot help: no feed."),
    (search(1, 1, "a", 0, 1), [watched(2, 1, 0)], "nobody is both in the searches and in the feed"),
    (search(1, 1, "a", 0, 1), [watched(1, 1, 3600)], "within 30 minutes of a search"),
    (search(1, 1, "a", 0, 1), [watched(1, 1, 0) | {"liked": False}], "nothing in the feed was clicked"),
    (search(1, 1, "a", 0, 1), [], "The logs hold one day: none is left"),
])  # fmt: skip
def test_what_is_missing_is_said_with_its_effect(tmp_path, write_logs, rows, feed, said):
    logs = open_logs(write_logs(tmp_path / "logs", impressions=rows, feed=feed))
    page = outlook_page(outlook(logs, EngineConfig(), logs.search_days), EngineConfig())
    assert said in " ".join(page.headline)
