"""Dirty sources: every row, line and value is imported, rejected, or counted; zones that are named win."""

from __future__ import annotations

import gzip
import json
import random
from datetime import UTC, datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.errors import CropsError
from crops.logs import import_logs

NOON = 1_767_614_400_000_000
"""2026-01-05 12:00:00 UTC."""
MAPPING = """
utc_offset = "+02:00"
[items]
files = "items.*"
columns = { item_id = "sku", ocr_cover = "title" }
[search_impressions]
files = "shown.*"
[search_impressions.columns]
user_id = "uid"
search_id = "sid"
query = "q"
searched_at = { column = "ts", unit = "iso" }
item_id = "sku"
rank = { column = "pos", base = 0 }
clicked = "c"
play_ms = { column = "dwell", unit = "s" }
"""
GOOD = {"uid": "u", "sid": "1", "q": "bow", "ts": "2026-01-05T12:00:00Z", "sku": "1", "pos": "0", "c": "1",
        "dwell": "2"}  # fmt: skip


@pytest.fixture
def importing(tmp_path):
    source = tmp_path / "own"
    source.mkdir()
    (source / "items.csv").write_text("sku,title\n1,one\n2,two\n")
    mapping = tmp_path / "own.toml"
    mapping.write_text(MAPPING)

    def run():
        return import_logs("table", source, tmp_path / "logs", mapping)

    run.source, run.logs, run.mapping = source, tmp_path / "logs", mapping
    return run


def as_json(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def as_csv(path, lines):
    path.write_bytes(b"\n".join([",".join(GOOD).encode(), *lines, b""]))


def csv_line(**other):
    return ",".join((GOOD | other).values()).encode()


def impressions(logs):
    return pq.read_table(logs / "search_impressions", partitioning=None).to_pylist()


def test_a_zone_that_is_named_wins(importing):
    texts = [
        "2026-01-05T12:00:00+00:00",
        "2026-01-05 12:00:00+00",
        "2026-01-05 20:00:00+08",
        "2026-01-05 20:00:00.000+0800",
        "2026-01-05 17:30:00+05:30:00",
        "2026-01-05 04:00:00-08:00",
        "2026-01-05 17:30:00.5 +0530",
        "2026-01-05 04:00:00 -08:00 ",
        "2026-01-05 12:00:00 UTC",
        "2026-01-05 12:00 GMT",
        "2026-01-05 13:00:00 Europe/Berlin",
        "2026-01-05T12:00:00Z",
        "2026-01-05 14:00:00",  # no zone: utc_offset
        "2026-01-05T14:00:00.000000",
    ]
    rows = [GOOD | {"ts": text, "sid": str(i)} for i, text in enumerate(texts)]
    as_json(importing.source / "shown.jsonl", rows)
    importing()
    found = {
        texts[int(row["source_search_id"] or row["search_id"])]: row["searched_at"]
        for row in impressions(importing.logs)
    }
    assert found == {text: NOON + (500_000 if ".5" in text else 0) for text in texts}


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, UTC, timezone(timedelta(hours=8))])
def test_parquet_times_go_by_their_type(importing, unit, zone):
    at = datetime(2026, 1, 5, 14 if zone is None else 12, tzinfo=None if zone is None else UTC)
    name = None if zone is None else "UTC" if zone is UTC else "+08:00"
    table = pa.table({name: [value] for name, value in GOOD.items() if name != "ts"})
    times = pa.array([at], pa.timestamp(unit, name))
    pq.write_table(table.append_column("ts", times), importing.source / "shown.parquet")
    importing()
    assert [row["searched_at"] for row in impressions(importing.logs)] == [NOON]


def test_a_day_without_a_time_names_no_zone_and_nonsense_is_rejected(importing):
    texts = ["2026-01-05", "2026-01-05 12:00:00 Nowhere/City", "12:00 tomorrow"]
    as_json(
        importing.source / "shown.jsonl", [GOOD | {"ts": text, "sid": str(i)} for i, text in enumerate(texts)]
    )
    report = importing()
    assert [row["searched_at"] for row in impressions(importing.logs)] == [NOON - 14 * 3_600_000_000]
    assert report.tables["search_impressions"].reasons == {"unmapped_searched_at": 2}


def test_broken_json_lines_are_rejected_with_their_place(importing):
    as_json(importing.source / "shown.jsonl", [GOOD, '{"uid": ', "[1, 2]", "", "null", GOOD | {"sid": "2"}])
    counts = importing().tables["search_impressions"]
    assert (counts.rows, counts.imported, counts.rejected) == (5, 2, 3)
    assert counts.reasons == {"malformed_json": 3}
    rejects = pq.read_table(importing.logs / "rejects/search_impressions.parquet").to_pylist()
    assert sorted(row["row"] for row in rejects) == [2, 3, 5]
    assert {row["file"] for row in rejects} == {str(importing.source / "shown.jsonl")}


def test_lines_that_are_not_utf8_and_mixed_line_ends_keep_json_lines_numbered(importing):
    good, other = (json.dumps(GOOD | {"sid": sid}).encode() for sid in "12")
    lines = [good + b"\r\n", b'{"q": "\xff"}\n', b"{broken\r\n", other + b"\n"]
    (importing.source / "shown.jsonl").write_bytes(b"".join(lines))
    report = importing()
    assert report.tables["search_impressions"].imported == 2
    assert report.malformed_lines == 1
    assert pq.read_table(importing.logs / "rejects/lines.parquet")["line"].to_pylist() == [2]
    assert pq.read_table(importing.logs / "rejects/search_impressions.parquet")["row"].to_pylist() == [3]


def test_one_unclosed_quote_costs_its_line_only(importing):
    lines = [csv_line(sid=str(i)) for i in range(5_000)]
    lines[8] = csv_line(q='"bow', sid="8")
    lines[4_000] = csv_line(q='"the ""big""\nbow"', sid="4000")  # a value of two lines is sound
    lines[4_500] = csv_line(q='5" bow', sid="4500")
    as_csv(importing.source / "shown.csv", lines)
    report = importing()
    assert report.tables["search_impressions"].imported == 4_999
    assert report.malformed_lines == 1
    (line,) = pq.read_table(importing.logs / "rejects/lines.parquet").to_pylist()
    assert line == {"file": str(importing.source / "shown.csv"), "line": 10, "reason": "UNQUOTED VALUE"}
    queries = {row["search_id"]: row["query"] for row in impressions(importing.logs)}
    assert queries[4_000].split() == ["the", '"big"', "bow"]
    assert queries[4_500] == '5" bow'


@pytest.mark.parametrize("head", [b"", b"\xef\xbb\xbf"])
def test_mixed_line_ends_in_a_csv(importing, head):
    header = ",".join(GOOD).encode()
    rows = [csv_line(sid="1") + b"\r\n", csv_line(sid="2") + b"\n", csv_line(sid="3") + b"\r\n",
            csv_line(sid="4")]  # fmt: skip
    (importing.source / "shown.csv").write_bytes(head + header + b"\r\n" + b"".join(rows))
    assert importing().tables["search_impressions"].imported == 4


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["csv", "jsonl.gz", "parquet"])
def test_rows_in_are_rows_out_of_random_dirty_files(importing, seed, kind):
    draw = random.Random(seed)
    faults = [{}, {}, {}, {"ts": "soon"}, {"q": " "}, {"uid": ""}, {"c": "maybe"}, {"dwell": "long"}]
    rows = [GOOD] + [GOOD | draw.choice(faults) | {"sid": str(i)} for i in range(300)]
    broken = {draw.randrange(1, 300) for _ in range(20)}
    if kind == "csv":
        bad = [b'u,"1', b"u,1", csv_line() + b",9", csv_line(q='"a"b'),
               csv_line(q="?").replace(b"?", b"\xff")]  # fmt: skip
        ends = [b"\n", b"\r\n"] if seed % 2 else [b"\n"]
        lines = [draw.choice(bad) if i in broken else csv_line(**row) for i, row in enumerate(rows)]
        text = b"".join(line + draw.choice(ends) for line in [",".join(GOOD).encode(), *lines])
        (importing.source / "shown.csv").write_bytes(text)
    elif kind == "parquet":
        broken = set()
        pq.write_table(pa.Table.from_pylist(rows), importing.source / "shown.parquet")
    else:
        bad = ["{", "[]", '{"uid": "u"}}', "nul"]
        lines = [draw.choice(bad) if i in broken else json.dumps(row) for i, row in enumerate(rows)]
        with gzip.open(importing.source / "shown.jsonl.gz", "wt") as file:
            file.write("\n".join(lines))
    report = importing()
    counts = report.tables["search_impressions"]
    assert counts.rows == counts.imported + counts.rejected
    assert counts.rows + report.malformed_lines == len(rows)
    assert report.malformed_lines + counts.reasons.get("malformed_json", 0) == len(broken)
    taken = [
        row
        for i, row in enumerate(rows)
        if i not in broken and row["ts"] != "soon" and row["q"] != " " and row["uid"]
    ]
    assert counts.imported == len(taken)
    assert counts.lost.get("clicked", 0) == sum(row["c"] == "maybe" for row in taken)
    assert counts.lost.get("play_ms", 0) == sum(row["dwell"] == "long" for row in taken)


def test_values_that_became_null_or_false_are_counted(importing):
    odd = [{}, {"c": "maybe"}, {"c": ""}, {"dwell": "long"}, {"dwell": "-1"}, {"pos": "9223372036854775807"}]
    as_json(importing.source / "shown.jsonl", [GOOD | other | {"sid": str(i)} for i, other in enumerate(odd)])
    counts = importing().tables["search_impressions"]
    assert counts.imported == 6
    assert counts.lost == {"clicked": 1, "play_ms": 2, "rank": 1}


@pytest.mark.parametrize(("other", "message"), [
    ({"c": "oui"},
     r"no value for clicked can be read, of 3, such as 'oui' in .*, column c; expected: a number"),
    ({"dwell": "1:30"},
     r"no value for play_ms can be read, of 3, such as '1:30' in .*, column dwell; expected: a number"),
    ({"ts": "05.01.2026"},
     r"no value for searched_at .* such as '05.01.2026' in .*; expected: ISO 8601 such as"),
    ({"pos": "top"},
     r"no value for rank can be read, of 3, such as 'top' in .*shown.jsonl, column pos; expected: "),
])  # fmt: skip
def test_a_column_of_which_nothing_can_be_read_stops(importing, other, message):
    as_json(importing.source / "shown.jsonl", [GOOD | other | {"sid": str(i)} for i in range(3)])
    with pytest.raises(CropsError, match=message):
        importing()
    assert not importing.logs.exists()


def test_unknown_durations_alone_stop_nothing(importing):
    as_json(importing.source / "shown.jsonl", [GOOD | {"dwell": "-1"}, GOOD | {"dwell": "NaN", "sid": "2"}])
    assert importing().tables["search_impressions"].lost == {"play_ms": 1}  # "NaN" says nothing


@pytest.mark.parametrize(("column", "value"), [("sku", ["1", "2"]), ("q", {"text": "bow"}), ("uid", [])])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_list_is_no_value(importing, column, value, kind):
    if kind == "jsonl":
        as_json(importing.source / "shown.jsonl", [GOOD, GOOD | {column: value}])
    else:
        pq.write_table(
            pa.Table.from_pylist([GOOD | {column: value or ["1"]}]), importing.source / "shown.parquet"
        )
    with pytest.raises(
        CropsError, match=rf"shown.*column {column} holds lists or structs .* one row per element"
    ):
        importing()


def test_text_in_brackets_is_no_list(importing):
    as_json(importing.source / "shown.jsonl", [GOOD | {"q": "[bow]", "sku": "[1]"}])
    assert importing().tables["search_impressions"].imported == 1


def test_headers_with_empty_repeated_and_odd_names(importing):
    header = ",".join(["", *GOOD, "act", "act", "", "", "UID", "_file", "_row", "filename"]).encode()
    row = b"7," + csv_line() + b",a,b,,,U,f,1,n"
    (importing.source / "shown.csv").write_bytes(header + b"\n" + row + b"\n")
    assert importing().tables["search_impressions"].imported == 1
    (found,) = impressions(importing.logs)
    assert (found["query"], found["clicked"]) == ("bow", True)


def test_a_mapped_column_that_is_there_twice_is_refused(importing):
    (importing.source / "shown.csv").write_bytes(
        ",".join([*GOOD, "q"]).encode() + b"\n" + csv_line() + b",x\n"
    )
    with pytest.raises(CropsError, match=r"shown\.csv: column q is there 2 times; keep one"):
        importing()


def test_nothing_is_left_beside_the_logs(importing):
    as_csv(importing.source / "shown.csv", [csv_line(q='"bow'), csv_line()])
    importing()
    assert sorted(path.name for path in importing.logs.parent.iterdir()) == ["logs", "own", "own.toml"]
    assert not [path for path in importing.logs.rglob("*") if "clean" in path.name or "left_out" in path.name]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_a_header_in_another_encoding_is_named(importing, encoding):
    (importing.source / "shown.csv").write_text(f"{','.join(GOOD)}\n", encoding=encoding)
    with pytest.raises(
        CropsError, match=r"shown\.csv: its header is not UTF-8; write the file again, as UTF-8"
    ):
        importing()
