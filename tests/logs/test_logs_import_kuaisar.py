"""`crops import kuaisar`: files of the documented shape, clean and dirty rows."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from crops.errors import CropsError
from crops.ids import user_number
from crops.logs import check, import_logs, text_kind

MS = 1_684_737_000_000
"""2023-05-22 14:30:00 in Beijing, 06:30 UTC, where KuaiSAR begins."""

SALT = "the salt of this test"
USER = {text: user_number(text, SALT.encode()) for text in ("31", "77")}
SEARCHES = """user_id,search_session_id,search_session_time,search_session_timestamp,keyword,search_source,\
item_id,click_cnt,item_type
77,900,2023-05-22 14:30:00,1684737000000,"[20, 34, 3]",USER_INPUT,5,2,VIDEO
77,900,2023-05-22 14:30:00,1684737000000.0,"[20, 34, 3]",USER_INPUT,6,0,IMAGE_ATLAS
31,901,2023-05-22 14:30:09,1684737009000,"[7]",USER_INPUT,5,0,VIDEO
31,901,2023-05-22 14:30:09,1684737009000,"[7]",USER_INPUT,99,1,USER
31,902,2023-05-22 14:30:10,not a time,"[7]",USER_INPUT,5,0,VIDEO
31,903,2023-05-22 14:30:10,1684737010,"[7]",USER_INPUT,5,0,VIDEO
31,904,2023-05-22 14:30:11,1684737011000,"[]",USER_INPUT,5,0,VIDEO
31,905,2023-05-22 14:30:12,1684737012000,"[8]",USER_INPUT,99999999999999999999,0,VIDEO
31,906,2023-05-22 14:30:12,1684737012000,"[8]"
"""
FEED = """user_id,item_id,playing_time,duration_ms,time,timestamp,click,forward,like,follow,search,\
search_item_related
31,5,19000.5,20000,2023-05-23 00:10:00,1684771800000,1,0,1,0,0,0
31,6,NaN,12000,2023-05-23 00:10:00,1684771800000,0,0,0,0,0,0
77,6,300,12000,2023-05-23 09:00:00,1684803600000,0,0,0,0,0,0
,6,300,12000,2023-05-23 09:00:00,1684803600000,0,0,0,0,0,0
"""
ITEMS = """item_id,caption,author_id,item_type,upload_time,upload_type,first_level_category_id,\
first_level_category_name,first_level_category_name_en,second_level_category_name_en
5,"[20, 9]",4,VIDEO,2023-05-01 00:00:00,x,1,\u7f8e\u98df,Food,Baking
6,"[34]",4,IMAGE_ATLAS,2023-05-01 00:00:00,x,1,\u7f8e\u98df,,
99,"[1]",4,USER,2023-05-01 00:00:00,x,1,,,
"""


def write_source(folder):
    folder.mkdir()
    (folder / "src_inter.csv").write_text(SEARCHES)
    (folder / "rec_inter.csv").write_text(FEED)
    (folder / "item_features.csv").write_text(ITEMS, encoding="utf-8")
    # Never opened: reading it would fail.
    (folder / "user_features.csv").write_bytes(b"\xff\xfe\x00gender,age")
    return folder


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "KuaiSAR")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The report of an import of the source, and the logs folder."""
    folder = tmp_path_factory.mktemp("imported")
    (folder / "salt").write_text(SALT)
    source, logs = write_source(folder / "source"), folder / "logs"
    return import_logs("kuaisar", source, logs, salt=folder / "salt"), logs


def rows(path):
    return pq.read_table(path, partitioning=None).to_pylist()


def test_searches_become_impressions_with_their_units(imported):
    logs = imported[1]
    found = rows(logs / "search_impressions/day=2023-05-22/part-0.parquet")
    assert found == [
        {  # the "session" is the search; ms become microseconds
            "user_id": USER["77"],
            "search_id": 900,
            "query": "t20 t34 t3",
            "searched_at": MS * 1000,
            "item_id": item_id,
            "stage": "exposed",
            "clicked": clicked,
        }
        for item_id, clicked in ((5, True), (6, False))
    ] + [
        {
            "user_id": USER["31"],
            "search_id": 901,
            "query": "t7",
            "searched_at": (MS + 9_000) * 1000,
            "item_id": 5,
            "stage": "exposed",
            "clicked": False,
        }
    ]


def test_feed_events_keep_their_ties_and_items_their_categories(imported):
    logs = imported[1]
    # 2023-05-23 00:10 in Beijing is still the 22nd, 16:10 UTC.
    late = rows(logs / "feed_events/day=2023-05-22/part-0.parquet")
    assert [(row["item_id"], row["play_ms"], row["liked"], row["clicked"]) for row in late] == [
        (5, 19_001, True, True),
        (6, None, False, False),
    ]
    assert {row["watched_at"] for row in late} == {1_684_771_800_000_000}
    (morning,) = rows(logs / "feed_events/day=2023-05-23/part-0.parquet")
    assert (morning["user_id"], morning["play_ms"], morning["duration_ms"]) == (USER["77"], 300,
                                                                                12_000)  # fmt: skip
    items = rows(logs / "items.parquet")
    assert [(row["item_id"], row["ocr_cover"], row["keyword"], row["category"]) for row in items] == [
        (5, "t20 t9", "Food Baking", "Food"),
        (6, "t34", "\u7f8e\u98df", "\u7f8e\u98df"),
    ]
    # 2023-05-01 00:00 in Beijing = 2023-04-30 16:00 UTC = 1682870400 s
    assert items[0]["uploaded_at"] == 1_682_870_400_000_000


def test_rows_that_cannot_be_mapped_are_rejected_and_counted(imported):
    report, logs = imported
    searches = report.tables["search_impressions"]
    assert (searches.rows, searches.imported, searches.rejected, searches.others) == (7, 3, 4, 1)
    assert searches.reasons == {
        "unmapped_item_id": 1,
        "unmapped_query": 1,
        "unmapped_searched_at": 2,  # no time, and seconds where milliseconds belong
    }
    assert report.malformed_lines == 1
    rejects = rows(logs / "rejects/search_impressions.parquet")
    overflow = next(row for row in rejects if row["reasons"] == ["unmapped_item_id"])
    assert overflow["file"].endswith("src_inter.csv")
    assert json.loads(overflow["source"])["item_id"] == "99999999999999999999"
    (line,) = rows(logs / "rejects/lines.parquet")
    assert (line["line"], line["reason"]) == (10, "MISSING COLUMNS")
    assert report.tables["feed_events"].reasons == {"unmapped_user_id": 1}
    assert (report.tables["items"].reasons, report.tables["items"].others) == ({}, 1)


def test_the_manifest_says_that_texts_are_tokens_and_a_check_passes_it_on(imported, tmp_path):
    logs = imported[1]
    manifest = json.loads((logs / "manifest.json").read_text())
    assert (manifest["command"], manifest["text"]) == ("import", "anonymised tokens")
    assert manifest["rows"]["search_impressions"]["rejected"] == 4
    report = check(logs, tmp_path / "checked")
    assert report.faults == ()
    assert report.facts.absent_labels == (2, 1)
    for folder in (logs, tmp_path / "checked/accepted"):
        assert text_kind(folder) == "anonymised tokens"


def test_an_import_is_the_same_twice(imported, tmp_path):
    logs = imported[1]
    import_logs("kuaisar", logs.parent / "source", tmp_path / "again", salt=logs.with_name("salt"))
    files = sorted(path.relative_to(logs) for path in logs.rglob("*.parquet"))
    assert len(files) == 7
    for file in files:
        assert (logs / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_a_missing_file_or_column_is_named(source, tmp_path):
    (source / "rec_inter.csv").write_text(FEED.replace("playing_time", "play_time"))
    with pytest.raises(CropsError, match=r"rec_inter\.csv: column playing_time is missing.*'play_time'"):
        import_logs("kuaisar", source, tmp_path / "logs")
    (source / "rec_inter.csv").unlink()
    with pytest.raises(CropsError, match=r"no file matches rec_inter\.csv"):
        import_logs("kuaisar", source, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_nothing_that_can_be_mapped_is_an_error_that_says_why(source, tmp_path):
    (source / "src_inter.csv").write_text(SEARCHES.replace("VIDEO", "LIVE").replace("IMAGE_ATLAS", "LIVE"))
    with pytest.raises(
        CropsError, match=r"nothing of search_impressions can be imported: 8 rows of another kind"
    ):
        import_logs("kuaisar", source, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
