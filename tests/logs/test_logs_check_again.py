"""`crops check` into the folder of the last check: it reads what changed and writes what a full one does."""

import json
import math
import os
import random
import shutil
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checked import whole
from test_logs_check import BAD_IMPRESSIONS, BAD_ITEMS

from crops.errors import CropsError
from crops.logs import check, last
from crops.schema import ARROW_TYPES, FEED_EVENTS, ITEMS, SEARCH_IMPRESSIONS

NOON = 1_767_614_400_000_000
"""2026-01-05 12:00:00 UTC."""
DAY = 86_400_000_000
ALL_KEPT = {"read": 0, "taken_over": 3, "beside": 0}


def day_of(n):
    return f"2026-01-{5 + n:02d}"


def shown(day, search, item=1, **more):
    return {"search_id": search, "item_id": item, "searched_at": NOON + day * DAY, **more}


def table_of(table, rows, **extra):
    """Rows as a table: integers beside a float become floats; further columns get a value for each row."""
    columns = {}
    for column in (one for one in table.columns if not one.own_of):
        values = [row.get(column.name) for row in rows]
        floats = column.type in ("BIGINT", "INTEGER") and any(isinstance(one, float) for one in values)
        values = [None if one is None else float(one) for one in values] if floats else values
        columns[column.name] = pa.array(values, pa.float64() if floats else ARROW_TYPES[column.type])
    return pa.table(columns | {name: pa.array([value] * len(rows)) for name, value in extra.items()})


def put(logs, day, rows, name="part-0.parquet", table=SEARCH_IMPRESSIONS, **extra):
    """Write a file of a day."""
    defaults = {"user_id": 1, "search_id": 1, "query": "query", "item_id": 1, "stage": "exposed"}
    rows = [defaults | {"clicked": False} | row for row in rows]
    file = logs / table.name / f"day={day_of(day)}" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table_of(table, rows, **extra), file)
    return file


def put_items(logs, *ids, bad=()):
    rows = [{"item_id": one, "ocr_cover": f"item {one}"} for one in ids]
    pq.write_table(table_of(ITEMS, [*rows, *bad]), logs / "items.parquet")


@pytest.fixture
def logs(tmp_path):
    """Three days: a search that goes on over midnight, an unknown item, a faulty row, a control character."""
    logs = tmp_path / "logs"
    put(logs, 0, [shown(0, 1), shown(0, 2, query="a\x07b"), shown(0, 3, rank=0)])
    put(logs, 1, [shown(1, 11), shown(1, 12, 2), shown(1, 13, 404)])
    put(logs, 2, [shown(2, 21), shown(2, 22, 3)])
    put_items(logs, 1, 2, 3)
    return logs


def assert_as_full(logs, out):
    """Check into the folder and into a new one; return how many days were read and taken over."""
    full = out.with_name("full")
    shutil.rmtree(full, ignore_errors=True)
    report, _ = check(logs, out), check(logs, full)
    ours, theirs = whole(out), whole(full)
    for part in theirs:
        assert ours[part] == theirs[part], part
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["days"] == report.days == json.loads((out / "report.json").read_text())["days"]
    return report.days


def searches(logs, out):
    """Return of `search_impressions` the days read, taken over, and read beside others."""
    return tuple(assert_as_full(logs, out)["search_impressions"].values())


def test_where_nothing_changed_no_day_is_read_and_files_keep_their_place_on_the_disk(logs, tmp_path):
    out = tmp_path / "out"
    assert searches(logs, out) == (3, 0, 0)
    before = {file.relative_to(out): file.stat().st_ino for file in (out / "accepted").rglob("*.parquet")}
    kept = {"read": 0, "taken_over": 1, "beside": 0}
    assert assert_as_full(logs, out) == {"items": kept, "search_impressions": ALL_KEPT}
    after = {file.relative_to(out): file.stat().st_ino for file in (out / "accepted").rglob("*.parquet")}
    assert after == before
    assert searches(logs, out) == (0, 3, 0)  # and once more, from what was taken over


def test_of_an_added_a_changed_and_a_removed_day_only_that_is_read(logs, tmp_path):
    out = tmp_path / "out"
    check(logs, out)
    put(logs, 3, [shown(3, 31), shown(3, 32, rank=0)])
    assert searches(logs, out) == (1, 3, 0)
    put(logs, 1, [shown(1, 14)], "late.parquet")
    assert searches(logs, out) == (1, 3, 0)
    shutil.rmtree(logs / "search_impressions" / f"day={day_of(0)}")
    assert searches(logs, out) == (0, 3, 0)


def test_a_file_of_the_same_name_and_bytes_is_read_where_its_time_differs(logs, tmp_path):
    file, out = put(logs, 2, [shown(2, 21)]), tmp_path / "out"
    check(logs, out)
    size = file.stat().st_size
    put(logs, 2, [shown(2, 29)])
    assert file.stat().st_size == size
    assert searches(logs, out) == (1, 2, 0)
    (row,) = pq.read_table(out / "accepted/search_impressions" / f"day={day_of(2)}").to_pylist()
    assert row["search_id"] == 29


def test_a_late_row_is_judged_with_its_search_on_other_days_and_these_are_judged_again(logs, tmp_path):
    out = tmp_path / "out"
    check(logs, out)
    # Search 1 is of user 1 on day 0. A row of user 2, earlier by its clock, takes it over: now the rows of
    # day 0 contradict it.
    put(logs, 2, [shown(0, 1, 2, user_id=2, searched_at=NOON + DAY)], "late.parquet")
    assert searches(logs, out) == (2, 1, 0)
    put(logs, 2, [shown(0, 1, 2, user_id=2, searched_at=NOON - 1)], "late.parquet")
    put(logs, 0, [shown(0, 4)], "late.parquet")
    assert searches(logs, out) == (2, 1, 0)
    # Without the late file the rows of day 0 are right again, though day 0 did not change.
    (logs / "search_impressions" / f"day={day_of(2)}" / "late.parquet").unlink()
    assert searches(logs, out) == (2, 1, 0)
    # A key twice, on two days: the earlier is kept with the signals of both, until its day is gone.
    put(logs, 1, [shown(1, 21, clicked=True, searched_at=NOON + 2 * DAY - 1)], "late.parquet")
    assert searches(logs, out) == (2, 1, 0)
    shutil.rmtree(logs / "search_impressions" / f"day={day_of(1)}")
    assert searches(logs, out) == (1, 1, 0)


def test_days_that_share_a_suspect_search_with_one_that_is_read_are_read_beside_it(logs, tmp_path):
    # Day 0 and day 1 share search 5, day 1 and day 2 search 6, and each time the key repeats.
    out = tmp_path / "out"
    put(logs, 0, [shown(0, 5, play_ms=1)], "more.parquet")
    put(logs, 1, [shown(1, 5, play_ms=2), shown(1, 6, play_ms=3)], "more.parquet")
    put(logs, 2, [shown(2, 6, play_ms=4)], "more.parquet")
    check(logs, out)
    put(logs, 0, [shown(0, 5, play_ms=9)], "more.parquet")
    assert searches(logs, out) == (2, 1, 1)  # day 1 holds rows of search 5, and of search 6 of day 2
    kept = pq.read_table(out / "accepted/search_impressions").to_pylist()
    assert {row["search_id"]: row["play_ms"] for row in kept if row["play_ms"]} == {5: 9, 6: 4}


@pytest.mark.parametrize(
    ("items", "bad", "read"),
    [
        ((1, 2, 3, 404), (), 1),  # known now: day 1 holds it
        ((1, 2, 3, 99), (), 0),  # new, on no day
        ((1, 2), (), 1),  # gone: day 2 holds it
        ((1, 2), ({"item_id": 3, "ocr_cover": " "},), 1),  # there, but rejected
        ((2, 1, 3), (), 0),  # the same, in another order
        ((2, 3), (), 3),  # each day holds item 1
    ],
)
def test_of_a_changed_catalogue_the_days_are_read_that_hold_what_became_known_or_unknown(
    logs, tmp_path, items, bad, read
):
    out = tmp_path / "out"
    check(logs, out)
    put_items(logs, *items, bad=bad)
    assert searches(logs, out) == (read, 3 - read, 0)


def test_an_item_that_becomes_known_decides_about_the_search_on_another_day(logs, tmp_path):
    out = tmp_path / "out"
    put(logs, 1, [shown(1, 7, 404, user_id=1)], "more.parquet")
    put(logs, 2, [shown(2, 7, 1, user_id=2)], "more.parquet")
    check(logs, out)
    assert {7, 21} <= kept_searches(out, 2)
    put_items(logs, 1, 2, 3, 404)  # the earlier row of user 1 counts now, so that of user 2 is no more right
    assert searches(logs, out) == (2, 1, 0)
    assert 7 not in kept_searches(out, 2)


def kept_searches(out, day):
    rows = pq.read_table(out / "accepted/search_impressions" / f"day={day_of(day)}")
    return set(rows["search_id"].to_pylist())


def test_where_columns_change_a_table_is_read_whole_or_one_day_of_each_layout_beside(logs, tmp_path, capsys):
    out = tmp_path / "out"
    put(logs, 0, [shown(0, 1, play_ms=math.nan, stage="unexposed"), shown(0, 2, play_ms=7.0)], device="a")
    assert searches(logs, out) == (3, 0, 0)
    put(logs, 3, [shown(3, 31, play_ms=5)])  # a layout that is known: that of day 0 lies beside
    assert searches(logs, out) == (1, 3, 1)
    put(logs, 2, [shown(2, 21)], other=1)
    assert searches(logs, out) == (4, 0, 0)
    assert "search_impressions is read whole" in capsys.readouterr().err
    put(logs, 1, [shown(1, 11, rank=0)], other=2)  # of the three layouts those of days 0 and 3 lie beside
    assert searches(logs, out) == (1, 3, 2)
    shutil.rmtree(logs / "search_impressions" / f"day={day_of(0)}")
    assert searches(logs, out) == (3, 0, 0)


def test_tables_without_partitions_are_taken_over_whole_or_not_at_all(logs, tmp_path):
    out = tmp_path / "out"
    rows = [shown(0, 1), shown(1, 2, 404), shown(1, 3, rank=0), shown(2, 4, searched_at=5)]
    put(logs, 0, rows)
    file = logs / "search_impressions" / f"day={day_of(0)}" / "part-0.parquet"
    file.rename(logs / "search_impressions.parquet")
    shutil.rmtree(logs / "search_impressions")
    assert searches(logs, out) == (1, 0, 0)
    assert searches(logs, out) == (0, 1, 0)
    put_items(logs, 1, 2, 3, 99)
    assert searches(logs, out) == (1, 0, 0)


def test_searches_without_results_are_taken_over_by_day(tmp_path):
    logs, out = tmp_path / "logs", tmp_path / "out"
    searched = {"user_id": 1, "search_id": 1, "query": "a", "searched_at": NOON}

    def write(day, *rows):
        target = logs / "searches" / f"day={day_of(day)}" / "part-0.parquet"
        target.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([searched | row for row in rows]), target)

    write(0, {}, {"search_id": 2, "query": " "})
    write(1, {"search_id": 3, "searched_at": NOON + DAY})
    assert assert_as_full(logs, out) == {"searches": {"read": 2, "taken_over": 0, "beside": 0}}
    write(2, {"search_id": 4, "query": "b", "searched_at": NOON + DAY + 1_000_000})  # a rewording of search 3
    assert assert_as_full(logs, out) == {"searches": {"read": 1, "taken_over": 2, "beside": 0}}
    assert json.loads((out / "report.json").read_text())["facts"]["reworded"] == 1


def cut(out):
    file = next((out / "accepted/search_impressions").rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-1])


def edit_in_place(out):
    file = next((out / "accepted/search_impressions").rglob("*.parquet"))
    os.utime(file, ns=(1, 1))


def drop(out):
    next((out / "accepted/search_impressions").rglob("*.parquet")).unlink()


def add(out):
    file = next((out / "accepted/search_impressions").rglob("*.parquet"))
    shutil.copy(file, file.with_name("part-9.parquet"))


def drop_rejected(out):
    shutil.rmtree(out / last.FOLDER / "rejected_search_impressions")


def edit_state(out):
    file = out / last.FOLDER / "state.json"
    file.write_text(file.read_text().replace('"rejected": true', '"rejected": false'))


def cut_state(out):
    file = out / last.FOLDER / "state.json"
    file.write_text(file.read_text()[:100])


def no_json(out):
    (out / last.FOLDER / "state.json").write_text("[]")


def test_a_key_is_hashed_in_the_types_of_the_contract():
    """Spark hashes the same number otherwise as an INTEGER than as a BIGINT, and days may have both."""
    group, known = last._group(SimpleNamespace(hash="xxhash64"), FEED_EVENTS)
    names = ("user_id", "item_id", "watched_at")
    assert group == f"xxhash64({', '.join(f'cast({name} as BIGINT)' for name in names)})"
    assert known == " and ".join(f"{name} is not null" for name in names)


def test_an_output_that_was_damaged_or_changed_is_not_relied_on(logs, tmp_path, capsys):
    out = tmp_path / "[/z] out"  # as markup, it would end a style that never began
    check(logs, out)
    full = whole(out)
    for damage in (cut, edit_in_place, drop, add, drop_rejected, edit_state, cut_state, no_json):
        damage(out)
        assert check(logs, out).days["search_impressions"] == {"read": 3, "taken_over": 0, "beside": 0}
        assert "all days are read" in capsys.readouterr().err
        assert whole(out) == full
    assert check(logs, out).days["search_impressions"] == ALL_KEPT


def test_rejects_that_somebody_changed_are_written_again(logs, tmp_path):
    out = tmp_path / "out"
    check(logs, out)
    shutil.rmtree(out / "rejects")
    assert searches(logs, out) == (0, 3, 0)


def test_another_version_of_the_rules_or_other_logs_take_nothing_over(logs, tmp_path, monkeypatch, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    check(logs, out)
    shutil.copytree(logs, other)
    assert searches(other, out) == (3, 0, 0)
    assert "had other logs" in capsys.readouterr().err
    versions = last.versions() | {"duckdb": "0.1"}
    monkeypatch.setattr(last, "versions", lambda: versions)
    assert searches(other, out) == (3, 0, 0)
    assert "had other duckdb" in capsys.readouterr().err
    monkeypatch.setattr(last, "_code", lambda: {"code of crops": "another"})
    assert searches(other, out) == (3, 0, 0)
    assert "had other code of crops" in capsys.readouterr().err


def test_a_check_that_fails_leaves_the_last_one_to_the_next(logs, tmp_path, monkeypatch):
    out = tmp_path / "out"
    check(logs, out)
    put(logs, 3, [shown(3, 31)])
    monkeypatch.setattr(last.Last, "write", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check(logs, out)
    monkeypatch.undo()
    assert searches(logs, out) == (1, 3, 0)


def test_rows_that_no_longer_add_up_with_what_was_taken_over_are_an_error_that_says_what_to_do(
    logs, tmp_path, monkeypatch
):
    seen, out = {}, tmp_path / "out"
    find = last._days
    monkeypatch.setattr(last, "_days", lambda files: seen.setdefault(files.table.name, find(files)))
    check(logs, out)
    put(logs, 2, [shown(2, 21)])  # a row less, in a file that tells of no change
    with pytest.raises(
        CropsError, match=r"of 7 rows .* 6 were accepted and 2 rejected; .*\? check again, into a new folder"
    ):
        check(logs, out)


# Random walks over dirty logs: whatever changes, the output is that of a full check.


class Walk:
    """Logs of some days with all kinds of faults, searches that go over days, and steps that change them."""

    def __init__(self, folder, seed, lake):
        self.rng, self.logs, self.files = random.Random(seed), folder / "lo'gs +é", 0
        self.shared = self.rng.random() < 0.3
        """Whether days share most searches, or few."""
        self.items, self.bad = set(range(1, 11)), [row for row, _ in BAD_ITEMS]
        self.logs.mkdir(parents=True)
        self.place = self.logs
        put_items(self.logs, *self.items)
        for day in range(4):
            self.add(day)
        if lake:
            found = {"items": "items.parquet", "search_impressions": "search_impressions"}
            found["feed_events"] = "feed_events"
            uris = (f'{name} = "{self.logs / below}"\n' for name, below in found.items())
            self.place = str(folder / "logs.toml")
            (folder / "logs.toml").write_text("".join(uris))

    def add(self, day, name="part-0.parquet"):
        self.files += 1
        extra = {"Query": self.rng.choice(["a", 1])} if self.rng.random() < 0.1 else {}
        put(self.logs, day, [self.impression(day) for _ in range(self.rng.randint(3, 25))], name, **extra)
        put(self.logs, day, [self.event(day) for _ in range(self.rng.randint(1, 9))], name, FEED_EVENTS)

    def impression(self, day):
        rng = self.rng
        own = not self.shared and rng.random() < 0.92
        search = (day if own else rng.randint(0, 4)) * (0 if self.shared else 1000) + rng.randint(0, 30)
        row = shown(day, search, rng.randint(1, 14), searched_at=NOON + day * DAY + rng.randint(-3, 3))
        more = [{}] * 4 + [
            rng.choice(BAD_IMPRESSIONS)[0],
            {"user_id": 2},
            {"query": "b\x07c"},
            {"query": "d"},
        ]
        more += [{"clicked": True, "rank": rng.randint(1, 9)}] * 2
        return row | rng.choice([one for one in more if len(one.get("query") or "") < 5000])

    def event(self, day):
        half = self.rng.choice([-1, 0, 1]) * DAY // 2  # what is half a day off may be in two partitions
        more = {"play_ms": self.rng.choice([None, 5, 8, -1]), "liked": self.rng.choice([None, True])}
        item = self.rng.choice([None, *range(1, 15)])
        return {"item_id": item, "watched_at": NOON + day * DAY + half, **more}

    def step(self):
        rng, days = self.rng, sorted(self.logs.glob("*/day=*"))
        match rng.choice("add late drop item items bad both".split()):
            case "add":
                self.add(rng.randint(0, 6))
            case "late":
                self.add(rng.randint(0, 4), f"part-{self.files}.parquet")
            case "drop" if len(days) > 6:
                shutil.rmtree(rng.choice(days))
            case "item":
                self.items ^= {rng.randint(1, 14)}
                put_items(self.logs, *self.items or {1})
            case "bad":
                bad = [
                    {name: None if value != value else value for name, value in row.items()}
                    for row in self.bad
                ]
                put_items(self.logs, *self.items, bad=rng.sample(bad, 3))
            case "both":
                self.items ^= {rng.randint(1, 14)}
                put_items(self.logs, *self.items or {1})
                self.add(rng.randint(0, 6))


@pytest.mark.parametrize(("seed", "lake"), [(1, False), (2, True)])
def test_whatever_changes_the_output_is_that_of_a_full_check(tmp_path, seed, lake):
    walk, read, kept = Walk(tmp_path / "walk", seed, lake), 0, 0
    for _ in range(6):
        days = assert_as_full(walk.place, tmp_path / "out")
        read += sum(table["read"] for table in days.values())
        kept += sum(table["taken_over"] for table in days.values())
        walk.step()
    assert read > 10
    assert kept > 10
