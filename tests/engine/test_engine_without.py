"""Mining without users and items equals mining logs that never held them."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from days import DAY_S, DAYS, content, contents, hashed_job, plain_job, random_days, write_days
from handmade import Row, clicked, read_tables, run, shown, watched, write_logs
from typer.testing import CliRunner

import crops.engine.daily
from crops.cli.app import app
from crops.engine.daily import Job, mine_daily
from crops.engine.report import insights
from crops.engine.without import Without, read_without
from crops.errors import CropsError
from crops.ids import number_of, user_number
from crops.logs import open_logs


def without(job: Job, *, users: tuple[int, ...] = (), items: tuple[int, ...] = ()) -> Job:
    """Return the job without some users and items."""
    return replace(job, without=Without(frozenset(users), frozenset(items)))


def others(user: int | None = None, item: int | None = None) -> list[list[Row]]:
    """Return the random searches and feed events but those of a user and an item."""
    return [
        [row for row in rows if row["user_id"] != user and row["item_id"] != item] for rows in random_days()
    ]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Logs of three days and a build of the first two."""
    folder = tmp_path_factory.mktemp("built")
    mine_daily(write_days(folder / "logs"), folder / "out", hashed_job(), DAYS[:2])
    return folder


@pytest.mark.parametrize("gone", [{"user": 3}, {"item": 7}])
def test_a_mining_equals_that_of_logs_that_never_held_them(tmp_path, built, gone):
    """With caps per user and per stage that others fill up when a user goes."""
    job = without(hashed_job(), **{f"{name}s": (number,) for name, number in gone.items()})
    report = job.mine(open_logs(built / "logs"), tmp_path / "mined", None)
    expected = hashed_job().mine(write_logs(tmp_path / "never", *others(**gone)), tmp_path / "other", None)
    assert content(tmp_path / "mined") == content(tmp_path / "other")
    left = report["input"].pop("without")
    assert report == expected
    rows, kept = random_days(), others(**gone)
    assert left["search_impressions"] == len(rows[0]) - len(kept[0]) > 0
    assert left["feed_events"] == len(rows[1]) - len(kept[1]) > 0
    assert left["items"] == int("item" in gone)
    assert json.loads((tmp_path / "mined" / "report.json").read_text())["input"]["without"] == left


def test_rows_left_out_are_counted_by_hand(tmp_path):
    rows = [shown(1, 1, "a", 0, 7), clicked(1, 1, "a", 0, 8), clicked(2, 2, "a", 9, 8)]
    _, report = run(tmp_path / "a", rows, [watched(1, 7, 5), watched(2, 7, 5)])
    assert "without" not in report["input"]
    job = without(plain_job(k=1), users=(1, 99), items=(7,))
    report = job.mine(open_logs(tmp_path / "a" / "logs"), tmp_path / "mined", None)
    assert report["input"]["without"] == {"search_impressions": 2, "feed_events": 2, "items": 1}
    # What single people did who were left out is for the owner only.
    assert "without" in insights(tmp_path / "mined", owner=True)["input"]
    assert "without" not in insights(tmp_path / "mined")["input"]


def written(folder):
    """Which file a manifest is, and when it was written."""
    found = (folder / "manifest.json").stat()
    return found.st_ino, found.st_mtime_ns


def test_only_days_that_held_them_are_mined_again(tmp_path):
    rows = [clicked(1, 1, "a", 0, 1), clicked(2, 2, "a", 1, 2), clicked(3, 1, "a", DAY_S, 1)]
    logs, out = write_logs(tmp_path / "logs", rows), tmp_path / "out"
    mine_daily(logs, out, plain_job())
    kept = written(out / f"day={DAYS[1]}")
    report = mine_daily(logs, out, without(plain_job(), users=(2, 99)))
    assert written(out / f"day={DAYS[1]}") == kept
    assert {row["item_id"] for row in read_tables(out / "window")["samples"]} == {1}
    assert report["input"]["without"] == {"search_impressions": 1, "feed_events": 0, "items": 0}
    windows = written(out / "window")
    mine_daily(logs, out, without(plain_job(), users=(2,)))  # 99 was nowhere: nothing is done again
    assert written(out / "window") == windows
    # a day that was theirs alone goes
    mine_daily(logs, out, without(plain_job(), users=(1,)))
    assert [path.name for path in out.glob("day=*")] == [f"day={DAYS[0]}"]
    mine_daily(logs, out, without(plain_job(), users=(1, 2)))
    assert not (out / "window").exists()
    with pytest.raises(CropsError, match="no search on any day without the users and items left out"):
        without(plain_job(), users=(1, 2)).mine(logs, tmp_path / "mined", None)


def test_whoever_was_left_out_does_not_come_back_unnoticed(tmp_path):
    rows = [clicked(10 * day + user, user, "a", day * DAY_S, user) for day in (0, 1) for user in (1, 2, 3)]
    logs, out = write_logs(tmp_path / "logs", rows), tmp_path / "out"
    mine_daily(logs, out, without(plain_job(), users=(3,)), DAYS[:1])
    with pytest.raises(CropsError, match="day=2026-01-05 was mined without some users or items; give their"):
        mine_daily(logs, out, plain_job(), DAYS[1:2])
    mine_daily(logs, out, without(plain_job(), users=(2, 3)), DAYS[1:2])
    assert {row["item_id"] for row in read_tables(out / "window")["samples"]} == {1}
    assert read_tables(out / "window")["queries"][0]["searches"] == 2
    mine_daily(logs, out, without(plain_job()))
    assert {row["item_id"] for row in read_tables(out / "window")["samples"]} == {1, 2, 3}


def test_built_days_are_mined_again_also_after_an_interruption(tmp_path, built, monkeypatch):
    never = tmp_path / "never"
    mine_daily(write_logs(never / "logs", *others(3, 7)), never / "out", hashed_job(), DAYS[:2])
    out = shutil.copytree(built / "out", tmp_path / "out")
    before = contents(out)

    def stop(*args):
        raise KeyboardInterrupt

    logs, job = open_logs(built / "logs"), without(hashed_job(), users=(3,), items=(7,))
    with monkeypatch.context() as patched:
        patched.setattr(crops.engine.daily, "merge_window", stop)
        with pytest.raises(KeyboardInterrupt):
            mine_daily(logs, out, job, DAYS[:2])
    with pytest.raises(CropsError, match="was mined without some users or items"):
        mine_daily(logs, out, hashed_job(), DAYS[:2])
    mine_daily(logs, out, job, DAYS[:2])
    assert contents(out) == contents(never / "out")
    assert not set(contents(out).values()) & set(before.values())


def test_days_are_mined_again_from_their_own_logs(tmp_path):
    """One folder of logs a day; the first is moved, then changed, then gone."""
    first = write_logs(tmp_path / "first", [clicked(1, 1, "a", 0, 1), clicked(2, 2, "a", 1, 2)])
    second = write_logs(tmp_path / "second", [clicked(3, 1, "a", DAY_S, 1)])
    out, job = tmp_path / "out", without(plain_job(), users=(2,))
    mine_daily(first, out, plain_job())
    before = contents(out)
    shutil.copytree(first.path, tmp_path / "copy")
    rows = [clicked(1, 1, "a", 0, 1), clicked(2, 2, "a", 1, 2), shown(4, 3, "b", 2, 3)]
    shutil.rmtree(first.path)
    write_logs(tmp_path / "first", rows)
    with pytest.raises(
        CropsError, match="day=2026-01-05 was built from other logs of that day; name another"
    ):
        mine_daily(second, out, job)
    shutil.rmtree(first.path)
    with pytest.raises(
        CropsError,
        match="first: the logs that .*day=2026-01-05 was mined from are gone, or hold .*; put them back",
    ):
        mine_daily(second, out, job)
    assert contents(out) == before
    (tmp_path / "copy").rename(first.path)
    mine_daily(second, out, job)
    assert {row["item_id"] for row in read_tables(out / "window")["samples"]} == {1}


def test_lists_of_ids(tmp_path):
    (tmp_path / "users.txt").write_text("\ufeff1\n\n -9223372036854775808 \r\n1\n")
    (tmp_path / "items-2.txt").write_text(f"7\nA7\n{2**62}")
    lists = [tmp_path / "users.txt", tmp_path / "items-2.txt"]
    items = frozenset(
        {7, number_of("A7"), number_of(str(2**62)), 2**62}
    )  # a number of the logs, or of the source
    assert read_without(lists) == Without(frozenset({1, -(2**63)}), items)
    (tmp_path / "salt").write_text("the salt of this test")
    (tmp_path / "users.txt").write_text("anna\n5")
    salted = {user_number(user, b"the salt of this test") for user in ("anna", "5")}
    assert read_without(lists, tmp_path / "salt").users == salted | {5}
    assert not Without()
    for name, text, message in (
        ("people.txt", "1", "people.txt: users or items. Name the list users.txt or items.txt"),
        ("users.csv", "1\nx7\n", "users.csv, line 2: 'x7' is no number of a user.*name the salt"),
        ("users.txt", f"{2**63}", "users.txt, line 1: '9223372036854775808' is no number"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(CropsError, match=message):
            read_without([tmp_path / name])
    with pytest.raises(CropsError, match="none: there is no such file"):
        read_without([], tmp_path / "none")
    with pytest.raises(CropsError, match="cannot read the ids to leave out"):
        read_without([tmp_path / "users-none.txt"])


def test_the_command(tmp_path):
    write_days(tmp_path / "logs")
    (tmp_path / "users.txt").write_text("3\n")
    (tmp_path / "items.txt").write_text("7\n")
    lists = [word for name in ("users", "items") for word in ("--without", str(tmp_path / f"{name}.txt"))]
    options = ["--relevance", "none", "--day", DAYS[0], "--seed", "5", "--daily", *lists]
    done = CliRunner().invoke(app, ["mine", str(tmp_path / "logs"), str(tmp_path / "out"), *options])
    assert done.exit_code == 0, done.output
    assert re.search(
        r"rows left out: [1-9]\d* of search_impressions, [1-9]\d* of feed_events, 1 of items", done.output
    )
    logs = write_logs(tmp_path / "others", *others(3, 7))
    mine_daily(logs, tmp_path / "never", replace(plain_job(), seed=5), DAYS[:1])
    assert contents(tmp_path / "out") == contents(tmp_path / "never")
    (tmp_path / "users.txt").write_text("99")
    arguments = ["mine", str(tmp_path / "logs"), str(tmp_path / "mined"), "--relevance", "none", *lists[:2]]
    done = CliRunner().invoke(app, arguments)
    assert "rows left out: none, these users and items are not in the logs" in " ".join(done.output.split())
