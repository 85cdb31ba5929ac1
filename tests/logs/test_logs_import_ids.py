"""Ids for good: numbers that every import gives alike, salts of users, and days that are appended."""

from __future__ import annotations

import json
import stat
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

import crops
from crops.errors import CropsError
from crops.ids import known_numbers, number_of, numbers_of, user_number
from crops.logs import check, import_logs, importing, open_logs
from crops.logs.check import explain

DAY_S = 86_400
MONDAY_S = 1_767_571_200
"""2026-01-05 00:00:00 UTC."""
MAPPING = """
[items]
files = "items.csv"
columns = { item_id = "sku", ocr_cover = "title", play_cnt = "plays" }
[search_impressions]
files = "shown.csv"
[search_impressions.columns]
user_id = "uid"
search_id = "sid"
query = "q"
searched_at = { column = "ts", unit = "s" }
item_id = "sku"
clicked = "clicked"
"""
SKUS = ["A7", "7", "007", "0", "7.0", str(2**62), "\u9774-9"]
"""Of these "7" is a whole number that is kept; "7.0" is it too, as pandas writes it."""


@pytest.fixture
def imported(tmp_path):
    """Import rows of (user, search, item, seconds after Monday) into a folder of a name."""
    (tmp_path / "map.toml").write_text(MAPPING)

    def run(name, rows, titles=None, salt="salt", **options):
        source = tmp_path / f"{name}.source"
        source.mkdir(exist_ok=True)
        titles = {sku: (f"title of {sku}", 1) for _, _, sku, _ in rows} | (titles or {})
        listed = [f"{sku},{title},{plays}" for sku, (title, plays) in titles.items()]
        (source / "items.csv").write_text("\n".join(["sku,title,plays", *listed]) + "\n")
        shown = [f"{user},{search},ficus,{MONDAY_S + at},{sku},1" for user, search, sku, at in rows]
        (source / "shown.csv").write_text("\n".join(["uid,sid,q,ts,sku,clicked", *shown]) + "\n")
        out = tmp_path / options.pop("into", name)
        salt = salt and tmp_path / salt
        return import_logs("table", source, out, tmp_path / "map.toml", salt=salt, **options), out

    return run


def read(path):
    return pq.read_table(path, partitioning=None).to_pylist()


def shown(out):
    return [row for file in sorted(out.glob("search_impressions/*/*.parquet")) for row in read(file)]


def test_an_id_has_one_number_whatever_else_is_imported(imported):
    rows = [("anna", f"s{i}", sku, i) for i, sku in enumerate(SKUS)]
    report, out = imported("all", rows)
    assert report.ids == {"user_id": "salted", "item_id": "partly hashed", "search_id": "hashed"}
    found = {row["source_item_id"] or "7": row["item_id"] for row in shown(out)}
    assert found == {sku: number_of(sku) for sku in SKUS if sku != "7.0"}
    assert len(set(found.values())) == len(SKUS) - 1
    for name, some in (("reversed", rows[::-1]), ("some", rows[1::2])):
        _, other = imported(name, some)
        assert {(row["search_id"], row["item_id"], row["user_id"]) for row in shown(other)} <= {
            (row["search_id"], row["item_id"], row["user_id"]) for row in shown(out)
        }


def test_another_process_gives_the_same_numbers():
    code = "from crops.ids import *; print(number_of('A7'), number_of('7'), user_number('anna', b'salt'))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    # By sha256sum, and by openssl dgst -hmac salt: the first 62 of these bits.
    assert told.split() == [
        str(2**62 + (0x724F7BDF7E74A5FE >> 2)),
        "7",
        str(2**62 + (0x16DD075BC5F71179 >> 2)),
    ]


def test_users_are_the_same_with_the_same_salt_only(imported, tmp_path):
    rows = [("anna", "s1", "A7", 0), ("5", "s2", "A7", 1)]
    first, again, other, none, nor = (
        {row["user_id"] for row in shown(imported(name, rows, salt=salt)[1])}
        for name, salt in (("a", "salt"), ("b", "salt"), ("c", "other"), ("d", None), ("e", None))
    )
    salt = tmp_path / "salt"
    assert first == again == {user_number(user, salt.read_bytes().strip()) for user in ("anna", "5")}
    assert len(first | other | none | nor) == 8
    assert stat.S_IMODE(salt.stat().st_mode) == 0o600
    written = b"".join(path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert salt.read_bytes().strip() not in written
    assert b"anna" not in written
    salt.write_text("short")
    with pytest.raises(CropsError, match="salt holds 5 bytes, a salt that can be guessed"):
        imported("f", rows)
    with pytest.raises(CropsError, match="keep it outside"):
        imported("f", rows, salt="f/salt")


def test_two_ids_with_one_number_are_named(imported, monkeypatch):
    monkeypatch.setattr(importing, "number_sql", lambda text: f"{2**62} + length({text})")
    with pytest.raises(CropsError, match=rf"item_id: 'A7' and 'B2' get one number, {2**62 + 2}; write one"):
        imported("a", [("anna", "s1", "A7", 0), ("anna", "s20", "B2", 0)])


def test_days_are_appended_and_a_day_that_is_there_is_refused(imported, tmp_path):
    monday = [("anna", "s1", "A7", 0), ("bert", "s2", "B2", 3_600)]
    tuesday = [("anna", "s3", "A7", DAY_S), ("anna", "s3", "C3", DAY_S)]
    _, out = imported("mon", monday, {"B2": ("boot", 9)}, into="logs", append=True)
    kept = (out / "search_impressions/day=2026-01-05/part-0.parquet").read_bytes()
    report, _ = imported("tue", tuesday, {"A7": ("new", 1), "B2": ("old", 8)}, into="logs", append=True)
    assert report.notes[-1].startswith("items: 1 new, 1 taken from this import, 1 kept as they were")
    assert open_logs(out).search_days == ("2026-01-05", "2026-01-06")
    assert (out / "search_impressions/day=2026-01-05/part-0.parquet").read_bytes() == kept
    titles = {row["source_id"]: row["ocr_cover"] for row in read(out / "items.parquet")}
    assert titles == {"A7": "new", "B2": "boot", "C3": "title of C3"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert [one["rows"]["search_impressions"]["imported"] for one in manifest["earlier"]] == [2]
    with pytest.raises(CropsError, match="holds the days of 2 imports, which would be lost"):
        imported("wed", [("anna", "s9", "A7", 2 * DAY_S)], into="logs")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(CropsError, match="holds search_impressions of 2026-01-06 already.*--replace-days"):
        imported("again", tuesday, into="logs", append=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    report, _ = imported("again", tuesday[:1], into="logs", replace_days=True)
    assert "search_impressions: replaced 2026-01-06 (1 rows in place of 2)" in report.notes
    # A day of the source that begins at 16:00 UTC: its rows are all after those that are there.
    late = [("anna", "s4", "A7", DAY_S + 57_600), ("anna", "s5", "", DAY_S + 57_600)]
    report, _ = imported("late", late, {"": ("nobody", 1)}, into="logs", append=True)
    assert "search_impressions: added to days of earlier imports 2026-01-06 (1 rows beside 1)" in report.notes
    with pytest.raises(
        CropsError, match=r"1 of 2 rows of search_impressions on 2026-01-06 \(UTC\) are before"
    ):
        imported("late again", late, {"": ("nobody", 1)}, into="logs", replace_days=True)
    noon = [("anna", "s4", "A7", DAY_S + 43_200)]  # of the right zone: all rows there are of other hours
    with pytest.raises(CropsError, match="2 of 2 rows of search_impressions on 2026-01-06.*would be lost"):
        imported("noon", noon, into="logs", replace_days=True)
    imported("later", [("anna", "s6", "A7", 3 * DAY_S), ("", "s7", "A7", 1)], into="logs", append=True)
    names = [str(file.relative_to(out)) for file in sorted(out.rglob("*.parquet"))]
    assert names == ["items.parquet", "rejects/items.parquet", "rejects/search_impressions-2.parquet",
                     "rejects/search_impressions.parquet", "search_impressions/day=2026-01-05/part-0.parquet",
                     "search_impressions/day=2026-01-06/part-0.parquet",
                     "search_impressions/day=2026-01-06/part-1.parquet",
                     "search_impressions/day=2026-01-08/part-0.parquet"]  # fmt: skip
    users = {row["source_search_id"]: row["user_id"] for row in shown(out)}
    assert len({users[search] for search in ("s1", "s3", "s4", "s6")}) == 1 < len(set(users.values()))
    assert check(out).faults == ()


@pytest.mark.parametrize(("options", "message"), [
    ({"salt": None}, "--append needs --salt FILE"),
    ({"salt": "other"}, "its users were numbered with another salt"),
    ({}, "search_id counts rows, which begins again with each import"),
])  # fmt: skip
def test_what_would_not_join_is_refused(imported, tmp_path, options, message):
    imported("mon", [("anna", "s1", "A7", 0)], into="logs")
    counted = MAPPING.replace('search_id = "sid"', "search_id = { row = true }")
    (tmp_path / "map.toml").write_text(MAPPING if options else counted)
    with pytest.raises(CropsError, match=message):
        imported("tue", [("anna", "s2", "A7", DAY_S)], into="logs", append=True, **options)


def test_what_people_give_finds_the_number(imported):
    assert numbers_of(" A7 ") == (number_of("A7"),)
    assert numbers_of("7") == (7,)
    large = 2**62 + 5  # an id of the source, or a number that a team gave itself
    assert numbers_of(str(large)) == (number_of(str(large)), large)
    for known in numbers_of(str(large)):
        assert known_numbers([str(large)], lambda numbers: numbers == known).tolist() == [known]  # noqa: B023


def test_an_id_goes_from_a_csv_to_results_and_back(imported, tmp_path):
    shown = [
        (f"u{i}", f"s{day}{i}", sku, day * DAY_S + i)
        for day in (0, 1)
        for i in range(6)
        for sku in ("A7", "9")
    ]
    _, logs = imported("raw", shown, {"lost": ("  ", 0)})
    report = check(logs, tmp_path / "checked")
    (fault,) = report.faults
    assert "item_id='lost'" in explain(fault)
    accepted, salt = tmp_path / "checked/accepted", tmp_path / "salt"
    assert [hit[0] for hit in crops.search("bm25", "title A7", items=accepted)] == ["A7", "9"]
    options = {"sources": ["search"], "relevance": "none", "day": ["2026-01-05"]}
    crops.mine(accepted, tmp_path / "mined", **options)
    found = crops.explain("ficus", tmp_path / "mined", raw=True)
    assert {positive.shown for positive in found.positives} == {"A7", "9"}
    assert {row["search_id"] for row in found.rows} == {f"s0{i}" for i in range(6)}
    assert {row["item_id"] for row in found.rows} == {"A7", 9}
    crops.export(tmp_path / "mined", tmp_path / "exported", owner=True)
    (line,) = (tmp_path / "exported/samples.jsonl").read_text().splitlines()
    assert {one["item_id"] for one in json.loads(line)["documents"]} == {"A7", "9"}
    (tmp_path / "items.txt").write_text("A7\n")
    (tmp_path / "users.txt").write_text("u0\nu1\n")
    lists = [tmp_path / "items.txt", tmp_path / "users.txt"]
    crops.mine(accepted, tmp_path / "without", without=lists, salt=salt, **options)
    found = crops.explain("ficus", tmp_path / "without", raw=True)
    assert {positive.shown for positive in found.positives} == {"9"}
    assert found.users == 4
