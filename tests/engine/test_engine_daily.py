"""The rolling window by hand; builds that are refused, killed, moved, or meet a wrong clock."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from days import DAY_S, DAYS, contents, hashed_job, plain_job, random_days, write_days
from handmade import P0, P2, clicked, labels, read_tables, shown, watched, write_logs

from crops.config import EngineConfig
from crops.engine import mine
from crops.engine.backend import DuckDBBackend
from crops.engine.daily import built_days, exclusive, mine_daily
from crops.engine.mined import read_mined
from crops.engine.window import _file_groups, _ranges, _row_groups
from crops.errors import CropsError
from crops.labels import Source
from crops.logs import open_logs
from crops.retrieval import load_items
from crops.text import query_id


def build(folder: Path, searches, feed=None, days=(), **config):
    """Build days of hand-written logs; return the window's tables and its report."""
    logs = write_logs(folder / "logs", searches, feed)
    report = mine_daily(logs, folder / "out", plain_job(**config), days)
    return read_tables(folder / "out" / "window"), report


def test_the_window_by_hand(tmp_path):
    """Age in calendar days: the first day is 2 days old, the last one 0. Decay: search 0.9, P2 0.8."""
    late = 2 * DAY_S
    tables, report = build(
        tmp_path,
        [
            clicked(1, 1, "a", 0, 10),  # clicked on the old day only: 0.9^2
            clicked(1, 1, "a", 0, 11),  # and shown on the new day: still positive, still old
            clicked(1, 1, "a", 0, 12),  # and clicked on the new day: fresh
            shown(1, 1, "a", 0, 13),  # shown on both days: a fresh negative
            shown(1, 1, "a", 0, 14, "filtered"),
            clicked(1, 1, "a", 0, 16),  # clicked on the old day: 0.81; in the feed of that day: 0.64
            shown(1, 1, "a", 0, 17),  # only the feed made it positive: 0.64, though it was shown too
            *(shown(2, 2, "A", late, item) for item in (11, 13)),
            clicked(2, 2, "A", late, 12),
            clicked(3, 3, "a", late + 5000, 12),
        ],
        [watched(1, item, 10) for item in (15, 16, 17)],
    )
    rows = {row["item_id"]: row for row in tables["samples"]}
    assert {item: row["weight"] for item, row in rows.items()} == pytest.approx(
        {10: 0.81, 11: 0.81, 12: 1.0, 13: 1.0, 14: 0.81, 15: 0.64, 16: 0.81, 17: 0.64}
    )
    assert {item: label for (_, item), (label, _) in labels(tables, ["a"]).items()} == {
        10: 4, 11: 4, 12: 4, 13: 3, 14: 1, 15: 4, 16: 4, 17: 4
    }  # fmt: skip
    assert rows[11]["sources"] == Source.CLICKED | Source.EXPOSED
    assert rows[16]["sources"] == P0 | P2
    # Three searches; one user on the first day, two on the last.
    assert tables["queries"] == [{"query_id": query_id("a"), "query": "a", "searches": 3, "users": 2}]
    assert [row["day"] for row in tables["evidence"] if row["item_id"] == 12] == [DAYS[0], DAYS[2], DAYS[2]]
    assert report["days"] == [DAYS[0], DAYS[2]]
    assert report["labels"] == {"4": 6, "3": 1, "1": 1}
    # Sums over days: 10, 11, 12, 16 clicked on the first day, 12 on the last.
    assert report["sources"]["search"]["clicked"] == {"candidates": 5, "kept": 5}
    assert report["input"]["searches"] == 3
    assert report["novelty"]["p2"] == {"positives": 3, "never_shown": 1, "share": 0.333333}


def test_a_missing_day_is_said_and_ages_the_others(tmp_path):
    tables, report = build(tmp_path, [clicked(1, 1, "a", 0, 1), clicked(2, 1, "a", 2 * DAY_S, 2)])
    manifest = json.loads((tmp_path / "out" / "window" / "manifest.json").read_text())
    assert manifest["missing_days"] == ["2026-01-06"]
    assert "no build of 2026-01-06: the window is made without it" in report["notes"]
    assert [row["weight"] for row in tables["samples"]] == pytest.approx([0.81, 1.0])


def test_the_last_catalogue_counts(tmp_path):
    out = tmp_path / "out"
    mine_daily(write_logs(tmp_path / "logs", [clicked(1, 1, "a", 0, 1)]), out, plain_job())
    later = write_logs(tmp_path / "later", [clicked(2, 1, "a", DAY_S, 2)])
    items = [{"item_id": 2, "ocr_cover": "new 2"}, {"item_id": 3, "ocr_cover": "new 3"}]
    pq.write_table(pa.Table.from_pylist(items), tmp_path / "later" / "items.parquet")
    mine_daily(later, out, plain_job())
    window = read_tables(out / "window")["items"]
    assert {row["item_id"]: row["ocr_cover"] for row in window} == {1: "doc 1", 2: "new 2", 3: "new 3"}


def catalogue(folder: Path, *texts: str) -> None:
    """Write items from 1 on."""
    rows = [{"item_id": number, "ocr_cover": text} for number, text in enumerate(texts, 1)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "items.parquet")


def named(folder: Path) -> dict[int, str]:
    """Return the texts of the items of a mined folder."""
    return {row["item_id"]: row["ocr_cover"] for row in read_tables(folder)["items"]}


def test_a_day_holds_the_items_that_it_names_and_the_window_all(tmp_path):
    logs = write_logs(tmp_path / "logs", [clicked(1, 1, "a", 0, 1), shown(2, 2, "b", DAY_S, 2)])
    catalogue(logs.path, "old 1", "old 2", "never used")
    out = tmp_path / "out"
    mine_daily(open_logs(logs.path), out, plain_job(), DAYS[:1])
    assert named(out / f"day={DAYS[0]}") == {1: "old 1"}
    assert named(out / "window") == {1: "old 1", 2: "old 2", 3: "never used"}
    catalogue(logs.path, "renamed 1", "renamed 2", "never used", "added")
    grown = open_logs(logs.path)
    mine_daily(grown, out, plain_job(), DAYS[1:2])
    assert named(out / f"day={DAYS[0]}") == {1: "old 1"}
    assert named(out / f"day={DAYS[1]}") == {2: "renamed 2"}
    assert named(out / "window") == {1: "renamed 1", 2: "renamed 2", 3: "never used", 4: "added"}
    version = grown.catalogue()
    assert version == {"items.parquet": (logs.path / "items.parquet").stat().st_size}
    for name, noted in ((f"day={DAYS[1]}", version), ("window", dict.fromkeys(DAYS[:2], version))):
        assert json.loads((out / name / "manifest.json").read_text())["catalogue"] == noted
    catalogue(logs.path, "renamed 1", "renamed 2", "never used", "added", "added without a day")
    mine_daily(open_logs(logs.path), out, plain_job(), DAYS[1:2])  # nothing is mined, all is merged
    assert named(out / "window")[5] == "added without a day"


def test_a_day_is_no_catalogue_to_search(tmp_path):
    logs = write_logs(tmp_path / "logs", [clicked(1, 1, "a", 0, 1)])
    mine_daily(logs, tmp_path / "out", plain_job())
    day, window = tmp_path / "out" / f"day={DAYS[0]}", tmp_path / "out" / "window"
    with pytest.raises(CropsError, match=f"holds only the items that it names; give its window, {window}"):
        load_items(day)
    assert load_items(window)[0].tolist() == load_items(logs.path)[0].tolist()


def test_logs_that_are_gone_leave_the_items_that_their_day_names(tmp_path, capsys):
    for number, folder in enumerate(("first", "second")):
        logs = write_logs(tmp_path / folder, [clicked(number + 1, 1, "a", number * DAY_S, number + 1)])
        catalogue(logs.path, f"{folder} 1", f"{folder} 2", *(["only in the first"] if number == 0 else []))
        mine_daily(open_logs(logs.path), tmp_path / "out", plain_job())
    window = tmp_path / "out" / "window"
    both = {1: "second 1", 2: "second 2", 3: "only in the first"}
    assert named(window) == both
    shutil.rmtree(tmp_path / "first")
    second = open_logs(tmp_path / "second")
    mine_daily(second, tmp_path / "out", plain_job())  # that they are gone is no reason to merge again
    assert named(window) == both
    catalogue(second.path, "second 1, renamed")
    capsys.readouterr()
    report = mine_daily(open_logs(second.path), tmp_path / "out", plain_job())
    assert named(window) == {1: "second 1, renamed", 2: "second 2"}  # 2 as its day keeps it
    said = f"the logs of {DAYS[0]} are gone: of its items only those that it names are known"
    assert said in report["notes"]
    assert said in " ".join(capsys.readouterr().err.split())


def test_days_of_a_former_release_are_merged_with_all_their_items(tmp_path, capsys):
    logs = write_logs(tmp_path / "logs", [clicked(1, 1, "a", 0, 1)])
    catalogue(logs.path, "one", "two")
    day = tmp_path / "out" / f"day={DAYS[0]}"
    mine_daily(open_logs(logs.path), tmp_path / "out", plain_job())
    plain_job().mine(logs, tmp_path / "whole", DAYS[:1])
    shutil.copy(tmp_path / "whole" / "items.parquet", day)
    for folder in (day, tmp_path / "out" / "window"):
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["catalogue"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(logs.path)
    later = write_logs(tmp_path / "later", [clicked(2, 1, "a", DAY_S, 1)])
    mine_daily(later, tmp_path / "out", plain_job())
    assert named(tmp_path / "out" / "window") == {1: "doc 1", 2: "two"}
    assert "are gone" not in capsys.readouterr().err


def test_a_catalogue_in_no_order_is_merged_range_by_range(tmp_path, monkeypatch):
    logs = write_logs(tmp_path / "logs", [clicked(1, 1, "a", 0, 1)])
    ids = np.random.default_rng(0).permutation([*range(1, 900), *(2**62 + 7 * one for one in range(101))])
    pq.write_table(
        pa.table({"item_id": ids, "ocr_cover": [f"doc {i}" for i in ids]}), logs.path / "items.parquet"
    )
    monkeypatch.setattr("crops.engine.window.query_partitions", lambda rows, memory: 4)
    with DuckDBBackend("1GB") as backend:
        backend.read_logs("items", open_logs(logs.path), "items", None)
        ranges = _ranges(_row_groups(backend, ["items"]), "item_id", 1)
        counts = [backend.count(f"(select * from items where {one}) r") for one in ranges]
    assert sum(counts) == 1000
    assert len(counts) == 4
    assert all(230 < count < 270 for count in counts), counts
    mine_daily(open_logs(logs.path), tmp_path / "out", plain_job())
    table = pq.read_table(tmp_path / "out" / "window" / "items.parquet")
    assert table["item_id"].to_pylist() == sorted(ids.tolist())


def test_one_day_is_what_mine_gives(tmp_path):
    logs = write_days(tmp_path / "logs")
    job = hashed_job()
    mine_daily(logs, tmp_path / "out", job, DAYS[1:2])
    job.mine(logs, tmp_path / "mined", DAYS[1:2])
    mined = read_tables(tmp_path / "mined")
    used = {row["item_id"] for row in mined["samples"]}
    items = [row for row in mined["items"] if row["item_id"] in used]
    assert 0 < len(items) < len(mined["items"])
    assert read_tables(tmp_path / "out" / f"day={DAYS[1]}") == {**mined, "items": items}
    window = read_tables(tmp_path / "out" / "window")
    assert window["samples"] == mined["samples"]
    assert sorted(map(str, window["evidence"])) == sorted(map(str, mined["evidence"]))


def test_the_window_rolls(tmp_path):
    logs = write_days(tmp_path / "logs")
    out, job = tmp_path / "out", plain_job(daily={"window": 2})
    for day in DAYS:
        mine_daily(logs, out, job, [day])
    assert [path.name for path in sorted(out.glob("day=*"))] == [f"day={day}" for day in DAYS[1:]]
    with pytest.raises(CropsError, match=r"2026-01-05 is before the window \(2026-01-06 to 2026-01-07\)"):
        mine_daily(logs, out, job, [DAYS[0]])
    at_once = tmp_path / "at_once"
    mine_daily(logs, at_once, job)
    assert contents(at_once) == contents(out)


def test_a_built_day_is_not_mined_again(tmp_path):
    logs = write_days(tmp_path / "logs")
    mine_daily(logs, tmp_path / "out", hashed_job(), DAYS[:2])
    before = contents(tmp_path / "out")
    again = hashed_job()
    mine_daily(logs, tmp_path / "out", again, DAYS[:2])
    assert again.relevance.asked == []
    assert contents(tmp_path / "out") == before
    mine_daily(logs, tmp_path / "out", again, DAYS[1:2], rebuild=True)
    assert again.relevance.asked
    assert contents(tmp_path / "out") == before


def test_other_settings_and_other_logs_are_refused(tmp_path):
    logs = write_days(tmp_path / "logs")
    out = tmp_path / "out"
    mine_daily(logs, out, plain_job(), DAYS[:1])
    with pytest.raises(
        CropsError,
        match=r"day=2026-01-05 was built from other settings: engine.feed.window_s was 1800.0, now 60",
    ):
        mine_daily(logs, out, plain_job(feed={"window_s": 60}), DAYS[1:2])
    with pytest.raises(CropsError, match=r"scorers.relevance was none, now relevance"):
        mine_daily(logs, out, hashed_job(search={}, max_positives_per_user=50), DAYS[1:2])
    assert [path.name for path in out.glob("day=*")] == ["day=2026-01-05"]
    mine_daily(logs, out, plain_job(memory="1GB", daily={"window": 3}), DAYS[:1])  # free to change
    searches, feed = random_days(1)
    other = write_logs(tmp_path / "late", searches[:-6], feed)
    with pytest.raises(CropsError, match=r"other logs of that day; .* --rebuild"):
        mine_daily(other, out, plain_job(), DAYS[:1])
    mine_daily(other, out, plain_job(), DAYS[:1], rebuild=True)


def test_folders_that_are_no_daily_build_and_days_that_are_none_are_refused(tmp_path):
    logs = write_logs(tmp_path / "logs", [clicked(1, 1, "a", 0, 1)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for out, days, message in (
        ("out", [], r"is no daily build: it holds thesis.txt"),
        ("out/thesis.txt", [], "is a file"),
        ("new", ["2026-1-5"], "'2026-1-5' is no day"),
        ("new", ["2026-01-09"], "no search_impressions on 2026-01-09; the days"),
    ):
        with pytest.raises(CropsError, match=message):
            mine_daily(logs, tmp_path / out, plain_job(), days)
    with exclusive(tmp_path / "busy"), pytest.raises(CropsError, match="another build is at work"):
        mine_daily(logs, tmp_path / "busy", plain_job())


def test_a_full_disk_leaves_the_build_as_it_was(tmp_path, monkeypatch):
    logs = write_days(tmp_path / "logs")
    out = tmp_path / "out"
    mine_daily(logs, out, plain_job(), DAYS[:1])
    before = contents(out)

    def full(self, query, order, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DuckDBBackend, "emit", full)
    with pytest.raises(CropsError, match="nothing was published: .*No space left"):
        mine_daily(logs, out, plain_job(), DAYS[1:2])
    assert contents(out) == before
    assert sorted(path.name for path in out.iterdir()) == [".lock", "day=2026-01-05", "window"]


@pytest.fixture
def at(monkeypatch):
    """Set what day it is."""

    def set_today(day: str) -> None:
        for module in ("crops.logs.days", "crops.engine.daily"):
            monkeypatch.setattr(f"{module}.today", lambda: day)

    set_today("2026-01-31")
    return set_today


def on(*numbers: int):
    """Return a search on each of some days, from 2026-01-05 on."""
    return [clicked(number + 1, 1, "a", number * DAY_S, 1) for number in numbers]


def test_a_row_from_the_future_moves_nothing(tmp_path, at, capsys):
    job = plain_job(daily={"window": 2})
    logs = write_logs(tmp_path / "logs", on(0, 1))
    mine_daily(logs, tmp_path / "out", job)
    later = write_logs(tmp_path / "later", on(0, 1, 2, 400))
    report = mine_daily(later, tmp_path / "out", job)
    days = ["2026-01-06", "2026-01-07"]
    assert built_days(tmp_path / "out") == report["days"] == days
    said = " ".join(capsys.readouterr().err.split())
    assert "2027-02-09 is left out: it is after today, 2026-01-31; name it with --day" in said
    assert "day=2026-01-05 is removed: 2026-01-05 left the window (2026-01-06 to 2026-01-07)" in said
    assert "2026-01-05 left the window (2026-01-06 to 2026-01-07)" in report["notes"]
    at("2026-01-06")  # tomorrow is the future too
    mine_daily(write_logs(tmp_path / "more", on(0, 1, 2)), tmp_path / "else", job)
    assert built_days(tmp_path / "else")[-1] == "2026-01-06"


def test_a_jump_of_more_than_the_window_must_be_named(tmp_path, at, capsys):
    out, job = tmp_path / "out", plain_job(daily={"window": 3})
    mine_daily(write_logs(tmp_path / "first", on(0, 1)), out, job)
    grown = write_logs(tmp_path / "grown", on(0, 1, 2, 6))
    assert mine_daily(grown, out, job)["days"] == ["2026-01-05", "2026-01-06", "2026-01-07"]
    said = " ".join(capsys.readouterr().err.split())
    assert "2026-01-11 is left out: it is more than 3 days after 2026-01-07; name it with --day" in said
    before = contents(out)
    with pytest.raises(
        CropsError,
        match="nothing was added: 2026-01-11 is more than 3 days after 2026-01-07, the newest day built",
    ):
        mine_daily(grown, out, job)
    assert contents(out) == before
    assert mine_daily(grown, out, job, ["2026-01-11"])["days"] == ["2026-01-11"]
    exactly = write_logs(tmp_path / "exactly", on(6, 9))
    assert mine_daily(exactly, out, job)["days"] == ["2026-01-14"]


def test_the_first_build_takes_the_days_that_are_meant(tmp_path, at):
    job = plain_job(daily={"window": 3})
    old = write_logs(tmp_path / "old", on(-2000, 5, 6))
    assert mine_daily(old, tmp_path / "a", job)["days"] == ["2026-01-10", "2026-01-11"]
    unclear = write_logs(tmp_path / "unclear", on(0, 1, 20))
    with pytest.raises(
        CropsError,
        match="2026-01-25 is more than 3 days after the other days, 2026-01-05 to 2026-01-06; name",
    ):
        mine_daily(unclear, tmp_path / "b", job)
    assert built_days(tmp_path / "b") == []
    with pytest.raises(CropsError, match="all days are after today, 2026-01-31: 2027-02-09; correct"):
        mine_daily(write_logs(tmp_path / "future", on(400)), tmp_path / "c", job)


def test_a_build_that_holds_a_day_of_a_wrong_clock(tmp_path, at):
    out, job = tmp_path / "out", plain_job(daily={"window": 3})
    logs = write_logs(tmp_path / "logs", on(0, 1, 400))
    mine_daily(logs, out, job, ["2027-02-09"])
    with pytest.raises(CropsError, match="no day can be added; .*day=2027-02-09 is after today: delete it"):
        mine_daily(logs, out, job)
    with pytest.raises(CropsError, match="2026-01-05 is before the window .*day=2027-02-09 is after today"):
        mine_daily(logs, out, job, ["2026-01-05"])
    assert built_days(out) == ["2027-02-09"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import crops.engine.daily, crops.outputs
from crops.logs import open_logs
from days import DAYS, hashed_job

def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

swap = crops.outputs._swap

def rename_once(staging, target):
    if not target.exists():
        return swap(staging, target)
    target.rename(target.with_name(f".{target.name}.{os.getpid()}.old"))
    kill()

job, rebuild = hashed_job(), False
match sys.argv[3]:
    case "scoring": object.__setattr__(job, "relevance", kill)
    case "day": sys.modules["crops.engine.mine"].write_manifest = kill
    case "before window": crops.engine.daily.merge_window = kill
    case "window": crops.engine.daily.write_manifest = kill
    case "between renames":
        crops.outputs._swap, rebuild = rename_once, True
folder = Path(sys.argv[2])
crops.engine.daily.mine_daily(open_logs(folder / "logs"), folder / "out", job, DAYS[:2], rebuild=rebuild)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Logs and a build of two of their days that nothing disturbed; the first of them also alone."""
    folder = tmp_path_factory.mktemp("whole")
    logs = write_days(folder / "logs")
    mine_daily(logs, folder / "first", hashed_job(), DAYS[:1])
    shutil.copytree(folder / "first", folder / "both")
    mine_daily(logs, folder / "both", hashed_job(), DAYS[:2])
    return folder


@pytest.mark.parametrize(
    "point",
    [
        "day",
        "between renames",
        *(pytest.param(point, marks=pytest.mark.verify) for point in ("scoring", "before window", "window")),
    ],
)
def test_killed_and_started_again(tmp_path, whole, point):
    out = tmp_path / "out"
    shutil.copytree(whole / "logs", tmp_path / "logs")
    shutil.copytree(whole / ("both" if point == "between renames" else "first"), out)
    before = contents(out)
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path), point]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    if point in ("scoring", "day"):
        assert contents(out) == before  # the day before is still there, and whole
    mine_daily(open_logs(tmp_path / "logs"), out, hashed_job(), DAYS[:2])
    assert contents(out) == contents(whole / "both")
    names = [".lock", *(f"day={day}" for day in DAYS[:2]), "window"]
    assert sorted(path.name for path in out.iterdir()) == names


@pytest.mark.parametrize("group_by", ["query", "event"])
def test_a_window_that_is_merged_in_ranges_has_the_rows_of_one_merge_in_their_order(
    tmp_path, monkeypatch, group_by
):
    logs, tables = write_days(tmp_path / "logs"), []
    for ranges in (1, 7):
        monkeypatch.setattr("crops.engine.window.query_partitions", lambda rows, memory, n=ranges: n)
        mine_daily(logs, tmp_path / str(ranges), plain_job(group_by=group_by), DAYS)
        tables.append(read_tables(tmp_path / str(ranges) / "window"))
    assert tables[0] == tables[1]
    ids = [row["query_id"] for row in tables[0]["samples"]]
    assert len({*ids}) > 7
    assert ids == sorted(ids)


def test_ranges_hold_about_as_many_rows_each_and_every_id_once(tmp_path, monkeypatch):
    """Two files of row groups of 10: 1,000 ids that lie evenly, and 1,000 in the upper tenth."""
    top = 2**63 - 1
    even = [-(2**63) + (2**64 - 1) * place // 999 for place in range(1000)]
    upper = sorted({*np.random.default_rng(0).integers(top - top // 5, top, 1000).tolist()})
    files = []
    for name, ids in (("even", even), ("upper", upper)):
        files.append(tmp_path / f"{name}.parquet")
        pq.write_table(pa.table({"query_id": ids}), files[-1], row_group_size=10)
    monkeypatch.setattr("crops.engine.window.query_partitions", lambda rows, memory: 4)
    ranges = _ranges(_file_groups(files, "query_id"), "query_id", 1)
    with DuckDBBackend("1GB") as backend:
        backend.read_parquet("rows_of_both", files, pa.schema([("query_id", pa.int64())]))
        counts = [backend.count(f"(select * from rows_of_both where {one}) r") for one in ranges]
    assert sum(counts) == 1000 + len(upper)
    assert len(counts) == 4
    assert all(480 < count < 520 for count in counts), counts
    # A query of so many rows that row groups hold it alone weighs in its own range only.
    pq.write_table(pa.table({"query_id": sorted([*even, *[even[100]] * 250])}), files[1], row_group_size=10)
    with DuckDBBackend("1GB") as backend:
        backend.read_parquet("rows_of_both", files, pa.schema([("query_id", pa.int64())]))
        ranges = _ranges(_file_groups(files, "query_id"), "query_id", 1)
        counts = [backend.count(f"(select * from rows_of_both where {one}) r") for one in ranges]
    assert sum(counts) == 2250
    assert max(counts) < 800, counts
    monkeypatch.setattr("crops.engine.window.query_partitions", lambda rows, memory: 1)
    assert _ranges(_file_groups(files, "query_id"), "query_id", 1) == ["1 = 1"]


PRUNED = """
import os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import crops.engine.daily
from crops.logs import open_logs
from days import DAYS, hashed_job

whole = shutil.rmtree

def half(path, **options):
    if "day=" in Path(path).name:
        (Path(path) / "config.toml").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    whole(path, **options)

folder = Path(sys.argv[2])
job = hashed_job(daily={"window": 1})
crops.engine.daily.shutil.rmtree = half
crops.engine.daily.merge_window(folder / "out", job.config, {})
"""


def test_killed_while_an_old_day_goes(tmp_path, whole):
    out = shutil.copytree(whole / "both", tmp_path / "out")
    command = [sys.executable, "-c", PRUNED, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    mine_daily(open_logs(whole / "logs"), out, hashed_job(daily={"window": 1}), DAYS[1:2])
    assert sorted(path.name for path in out.iterdir()) == [".lock", f"day={DAYS[1]}", "window"]


def test_logs_are_found_from_another_directory_and_after_a_move(tmp_path, monkeypatch):
    """What was made from inside, by relative paths; then a daily build goes on where it was moved."""
    made = tmp_path / "before"
    write_days(made / "logs")
    monkeypatch.chdir(made)
    mine(open_logs("logs"), "mined", EngineConfig(), relevance=None, similarity=None)
    mine_daily(open_logs("logs"), made / "daily", hashed_job(), DAYS[:1])
    monkeypatch.chdir(tmp_path)
    names = ("mined", "daily", f"daily/day={DAYS[0]}")
    assert all(list(read_mined(made / name).logs) == [str(made / "logs")] for name in names)
    moved = made.rename(tmp_path / "deep")
    for name in names:
        assert list(read_mined(moved / name).logs) == [str(moved / "logs")]
        read_mined(moved / name).open_logs(None)
    mine_daily(open_logs(moved / "logs"), moved / "daily", hashed_job(), DAYS[:2])
    assert list(read_mined(moved / "daily").logs) == [str(moved / "logs")]
    alone = shutil.move(moved / "mined", tmp_path / "alone")
    assert list(read_mined(alone).logs) == [str(made / "logs")]
    with pytest.raises(CropsError, match="are not there any more; give --logs"):
        read_mined(alone).open_logs(None)
