"""The evidence trail by hand, and what k keeps out of it."""

import shutil

import pytest
from days import DAY_S, plain_job
from handmade import NOON, P0, P1, P2, P3, clicked, run, shown, watched, write_logs
from typer.testing import CliRunner

from crops.cli.app import app
from crops.engine.daily import mine_daily
from crops.engine.evidence import Trail, TrainingEvidence, explain
from crops.errors import CropsError
from crops.text import query_id

SEARCHES = [
    shown(1, 1, "Jaguar", 0, 1),
    clicked(2, 1, "big cat", 40, 5),
    shown(3, 2, "jaguar", 0, 1),
    clicked(4, 2, "big  cat", 40, 5),
    shown(5, 3, "jaguar", 0, 1),
    clicked(6, 3, "panthera onca", 40, 5),
    clicked(7, 4, "jaguar", 0, 1),
    clicked(8, 5, "jaguar", 900, 1),
    clicked(9, 5, "jaguar", 950, 1),
]
FEED = [watched(4, 6, 10)]
GENERATED = [{"query": "jaguar", "ocr_cover": "Spotted hunters"}]


def trails(found):
    return {
        (positive.item_id, trail.source): trail for positive in found.positives for trail in positive.trails
    }


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """A mining of them with k = 2."""
    folder = tmp_path_factory.mktemp("evidence")
    run(folder, SEARCHES, FEED, generated=GENERATED, k=2)
    return folder / "mined"


def test_the_trail_by_hand(mined):
    """k = 2: users 4 and 5 clicked item 1; 1 and 2 found item 5 as big cat, 3 as panthera onca."""
    found = explain(" JAGUAR ", mined)
    assert (found.query, found.searches, found.users, found.rows) == ("jaguar", 6, 5, ())
    by_item = {positive.item_id: positive for positive in found.positives}
    written = min(by_item)
    assert [(positive.item_id, positive.label) for positive in found.positives] == [
        (5, 5), (written, 4), (1, 4), (6, 4)
    ]  # fmt: skip
    assert by_item[5].trails == (Trail(P1, 2, 2, ("big cat",)),)
    assert by_item[1].trails == (Trail(P0, 3, 2),)
    assert by_item[6].trails == (Trail(P2, None, None),)
    assert by_item[written].trails == (Trail(P3, None, None),)
    assert (by_item[5].text, by_item[written].text) == ("doc 5", "Spotted hunters")


def test_raw_shows_every_count_and_the_rows(mined):
    found = explain("jaguar", mined, raw=True)
    assert trails(found)[6, P2] == Trail(P2, 1, 1)
    assert [trail.via for trail in found.positives[0].trails] == [("big cat",), ("panthera onca",)]
    rows = [
        (row["source"], row["user_id"], row["search_id"], row["query"], row["item_id"], row["seen_at"] - NOON)
        for row in found.rows
    ]
    assert rows == [
        (P0, 4, 7, "jaguar", 1, 0),
        (P0, 5, 8, "jaguar", 1, 900_000_000),
        (P0, 5, 9, "jaguar", 1, 950_000_000),
        (P1, 1, 2, "big cat", 5, 40_000_000),
        (P1, 2, 4, "big  cat", 5, 40_000_000),
        (P1, 3, 6, "panthera onca", 5, 40_000_000),
        (P2, 4, 7, None, 6, 10_000_000),
    ]


def test_raw_rows_of_p1_are_those_of_the_later_query(tmp_path):
    """The second jaguar is paging, and the click after 91 s is too late: neither is a reason for P1."""
    searches = [
        shown(1, 1, "jaguar", 0, 1),
        clicked(2, 1, "jaguar", 20, 5),
        clicked(3, 1, "big cat", 40, 5),
        clicked(4, 1, "big cat", 131, 5),
    ]
    run(tmp_path, searches)
    found = explain("jaguar", tmp_path / "mined", raw=True)
    assert [(row["source"], row["search_id"]) for row in found.rows] == [(P1, 3), (P0, 2)]


def test_a_query_of_few_users_is_answered_as_one_that_nobody_asked(mined):
    """Otherwise whoever guesses the query reads what its only searcher clicked."""
    said = r"'{}' is no query of at least 2 users on the days mined{}; --raw, for the owner"
    near = {"panthera onca": "", "jagaur": "; the nearest queries: 'jaguar'", "it''s": ""}
    for text, nearest in near.items():
        with pytest.raises(CropsError, match=said.format(text, nearest)) as refused:
            explain(text, mined)
        assert "'panthera" not in str(refused.value).split(";", 1)[1]
    assert explain("panthera onca", mined, raw=True).users == 1
    with pytest.raises(CropsError, match="nobody searched 'jagaur' .*nearest queries: 'jaguar'$"):
        explain("jagaur", mined, raw=True)


def test_a_later_query_is_named_for_its_trail_and_not_for_its_own_searchers(tmp_path):
    """Three people searched big cat; only user 1 came to item 7 by it from jaguar."""
    searches = [
        *SEARCHES,
        shown(20, 3, "big cat", 5000, 1),
        clicked(21, 1, "jaguar", 9000, 1),
        clicked(22, 1, "big cat", 9010, 7),
    ]
    run(tmp_path, searches, k=2)
    found = explain("jaguar", tmp_path / "mined")
    assert explain("big cat", tmp_path / "mined").users == 3
    assert trails(found)[7, P1] == Trail(P1, None, None)
    assert trails(found)[5, P1] == Trail(P1, 2, 2, ("big cat",))


def test_over_days_whose_logs_lie_apart(tmp_path):
    """Two people a day; item 1 was clicked by one of them each day, and by two in all."""
    for day in (0, 1):
        rows = [clicked(day, day, "a", day * DAY_S, 1), shown(9, 9, "a", day * DAY_S, 2)]
        logs = write_logs(tmp_path / f"logs{day}", rows)
        mine_daily(logs, tmp_path / "out", plain_job(k=2))
    found = explain("a", tmp_path / "out")
    assert found.positives[0].trails == (Trail(P0, 2, 2),)
    assert (found.searches, found.users) == (4, 2)  # three people, of whom a day knows two
    evidence = TrainingEvidence(tmp_path / "out")
    assert [pair.trails for pair in evidence.group(query_id("a")) if pair.item_id == 1] == [
        (Trail(P0, 2, 2),)
    ]


def test_groups_of_one_event(tmp_path):
    run(tmp_path, SEARCHES, FEED, group_by="event", k=2)
    found = explain("jaguar", tmp_path / "mined")
    assert (found.searches, found.users) == (6, 5)
    told = trails(found)
    assert (told[5, P1], told[1, P0]) == (Trail(P1, 2, 2, ("big cat",)), Trail(P0, 3, 2))


def test_missing_parts_are_named(tmp_path):
    run(tmp_path, SEARCHES, k=2)
    with pytest.raises(CropsError, match="is not an output of `crops mine`"):
        explain("jaguar", tmp_path / "logs")
    shutil.move(tmp_path / "logs", tmp_path / "moved")
    with pytest.raises(CropsError, match="are not there any more; give --logs"):
        explain("jaguar", tmp_path / "mined")
    assert explain("jaguar", tmp_path / "mined", tmp_path / "moved").positives


def test_the_command(mined):
    shown = CliRunner().invoke(app, ["explain", "jaguar", str(mined)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    for words in (
        "searched 6 time(s) by 5 user(s)",
        "consumed after rewording as “big cat”: 2 time(s) by 2 user(s)",
        "consumed in the feed of its searchers: by fewer than 2 users",
        "written by an LLM",
    ):
        assert words in shown.output
    assert "panthera" not in shown.output
    raw = CliRunner().invoke(app, ["explain", "jaguar", str(mined), "--raw"], env={"COLUMNS": "200"})
    assert "panthera onca" in raw.output
    row = "  source CLICKED, user_id 4, search_id 7, query jaguar, seen_at 2026-01-05 12:00:00.000+00:00, "
    assert row in raw.output
