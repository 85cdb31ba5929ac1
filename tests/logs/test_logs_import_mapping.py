"""The language of a mapping: lists, joins, kinds of rows, paths, layouts of text, times, and what is lost."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.database import literal, open_database
from crops.errors import CropsError
from crops.ids import user_number
from crops.logs import check, import_logs, open_logs
from crops.logs.mapping import elements

SALT = "the salt of this test"
NOON = 1_767_614_400
"""2026-01-05 12:00:00 UTC."""
ITEMS = '[items]\nfiles = "items.csv"\ncolumns = { item_id = "sku", ocr_cover = "title" }\n'
COLUMNS = {"user_id": '"uid"', "search_id": '"sid"', "query": '"q"',
           "searched_at": '{ column = "ts", unit = "s" }', "item_id": '"sku"', "clicked": '"c"'}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """Import files, by name, with the lines of [search_impressions] and its columns."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "items.csv").write_text("sku,title\n1,one\n2,two\n3,three\n4,four\n")

    def run(files, head, columns=(), top="", tail=""):
        for name, content in files.items():
            if isinstance(content, pa.Table):
                pq.write_table(content, source / name)
            else:
                (source / name).write_text(content)
        lines = "\n".join(f"{name} = {how}" for name, how in (COLUMNS | dict(columns)).items() if how)
        mapping = tmp_path / "map.toml"
        mapping.write_text(
            f"{top}\n{ITEMS}[search_impressions]\n{head}\n[search_impressions.columns]\n{lines}\n{tail}"
        )
        (tmp_path / "salt").write_text(SALT)
        return import_logs("table", source, tmp_path / "logs", mapping, "200MB", salt=tmp_path / "salt")

    run.logs = tmp_path / "logs"
    return run


def shown(logs, *names):
    rows = pq.read_table(logs / "search_impressions", partitioning=None).to_pylist()
    return [tuple(row[name] for name in names) for row in rows]


def balance(report):
    counts = report.tables["search_impressions"]
    assert counts.rows == counts.imported + counts.rejected
    return counts.imported, dict(counts.reasons), counts.others


LIST_COLUMNS = {"item_id": '"ids"', "rank": '{ position = "ids" }', "clicked": '{ in = "clicks" }',
                "liked": '{ in = "likes" }'}  # fmt: skip
LIST_ROWS = [  # 4 was clicked on a further page
    {"uid": 7, "sid": 1, "q": "bow", "ts": NOON, "ids": [3, 1, 2], "clicks": [1, 4], "likes": [4]},
    {"uid": 7, "sid": 2, "q": "bat", "ts": NOON + 1, "ids": [], "clicks": [], "likes": []},
    {"uid": 8, "sid": 3, "q": "cat", "ts": NOON + 2, "ids": [2], "clicks": [], "likes": []},
]
LIST_EXPECTED = [
    (1, 1, 3, False, False),
    (1, 2, 1, True, False),
    (1, 3, 2, False, False),
    (1, None, 4, True, True),
    (3, 1, 2, False, False),
]


def _delimited(rows, write):
    lines = [";".join(rows[0])]
    lines += [";".join(write(v) if isinstance(v, list) else str(v) for v in row.values()) for row in rows]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(("name", "content", "more"), [
    ("log.parquet", pa.Table.from_pylist(LIST_ROWS), ""),
    ("log.jsonl", "".join(json.dumps(row) + "\n" for row in LIST_ROWS), ""),
    ("log.json", json.dumps(LIST_ROWS, indent=1), ""),
    ("log.csv", _delimited(LIST_ROWS, json.dumps), 'delimiter = ";"'),
    ("log.csv", _delimited(LIST_ROWS, lambda v: f"{[str(i) for i in v]}"), 'delimiter = ";"'),
    ("log.csv", _delimited(LIST_ROWS, lambda v: f"[{'  '.join(map(str, v))}]"), 'delimiter = ";"'),
    ("log.txt", _delimited(LIST_ROWS, lambda v: f"{{{','.join(map(str, v))}}}"), 'delimiter = ";"'),
    ("log.csv", _delimited(LIST_ROWS, lambda v: " ".join(map(str, v))), 'delimiter = ";"'),
    ("log.csv", _delimited(LIST_ROWS, lambda v: "_".join(map(str, v))), 'delimiter = ";"\nseparator = "_"'),
])  # fmt: skip
def test_lists_in_any_spelling_are_taken_apart_with_places_and_members(run, name, content, more):
    report = run({name: content}, f'files = "{name}"\nexplode = "ids"\n{more}', LIST_COLUMNS)
    assert shown(run.logs, "search_id", "rank", "item_id", "clicked", "liked") == LIST_EXPECTED
    assert balance(report) == (5, {"empty_list": 1, "unmapped_item_id": 1}, 0)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_fields_of_structs_in_lists_and_lists_in_step(run, kind):
    hits = [{"sku": 3, "dwell": 1.5}, {"sku": 1, "dwell": float("nan")}, {"sku": None, "dwell": 1}]
    search = {"who": {"id": "u"}, "sid": 1, "q": "bow", "ts": NOON}
    rows = [search | {"hits": {"list": hits}, "labels": [0.0, 2.0, 1.0]}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    content = text if kind == "jsonl" else pa.Table.from_pylist(rows)
    columns = {"user_id": '"who.id"', "item_id": '"hits.list.sku"', "rank": '{ position = "hits.list" }',
               "clicked": '"labels"', "liked": '{ column = "labels", equals = ["2.0"] }',
               "play_ms": '{ column = "hits.list.dwell", unit = "s" }'}  # fmt: skip
    head = f'files = "log.{kind}"\nexplode = ["hits.list", "labels"]'
    report = run({f"log.{kind}": content}, head, columns)
    assert shown(run.logs, "item_id", "rank", "clicked", "liked", "play_ms") == [
        (3, 1, False, False, 1_500),
        (1, 2, True, True, None),
    ]
    assert balance(report) == (2, {"unmapped_item_id": 1}, 0)


def test_lists_in_step_of_different_lengths_are_rejected_whole_with_their_values(run):
    labels = {1: [0, 1], 2: [0, 0, 1, 1], 3: [0, 1, 0], 4: None, 5: []}
    search = {"uid": "u", "q": "bow", "ts": NOON, "ids": [3, 1, 2]}
    rows = [search | {"sid": sid, "labels": found} for sid, found in labels.items()]
    rows.append(search | {"sid": 6, "ids": [], "labels": [1]})
    columns = {"item_id": '"ids"', "rank": '{ position = "ids" }', "clicked": '"labels"'}
    head = 'files = "log.jsonl"\nexplode = ["ids", "labels"]'
    report = run({"log.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}, head, columns)
    assert shown(run.logs, "search_id", "rank", "item_id", "clicked") == [
        *((3, 1, 3, False), (3, 2, 1, True), (3, 3, 2, False)),
        *((4, 1, 3, False), (4, 2, 1, False), (4, 3, 2, False)),  # no list, no label
    ]
    assert balance(report) == (6, {"uneven_lists": 4}, 0)
    rejects = pq.read_table(run.logs / "rejects/search_impressions.parquet").to_pylist()
    kept = sorted(
        (found["sid"], found["ids"], found["labels"])
        for one in rejects
        for found in [json.loads(one["source"])]
    )
    assert kept[:2] == [("1", "[3,1,2]", "[0,1]"), ("2", "[3,1,2]", "[0,0,1,1]")]
    with pytest.raises(CropsError, match=r"nothing of .* can be imported: uneven_lists \(1 rows\)"):
        run({"log.jsonl": json.dumps(rows[0])}, head, columns)


@pytest.mark.parametrize(("text", "found"), [
    ("""['Nonesuch-1', 'TrueGrit', "it's None", None, True]""",
     ["Nonesuch-1", "TrueGrit", "it's None", None, "true"]),
    ("""['say "None"', 'it\\'s', False]""", ['say "None"', "it's", "false"]),
    ("""[{'id': 'a, None, b', 'n': None, 'ok':False}]""", ['{"id":"a, None, b","n":null,"ok":false}']),
])  # fmt: skip
def test_pythons_words_are_values_only_alone_and_outside_quotes(text, found):
    with open_database() as db:
        assert db.execute(f"select {elements(literal(text))}").fetchall() == [(found,)]


@pytest.mark.parametrize(("values", "words"), [
    ([True, False, None], '"True"'),
    ([1.0, 0.0, None], '"1"'),
    ([1, 2, 0], '"1.0"'),
    (["True", "TRUEST", "no"], '"x", "true"'),
    (["yes", "False", ""], "true"),
])  # fmt: skip
def test_words_that_mean_yes_are_found_however_they_are_written(run, values, words):
    table = {
        "uid": ["u"] * 3,
        "sid": [1] * 3,
        "q": ["bow"] * 3,
        "ts": [NOON] * 3,
        "sku": [1, 2, 3],
        "c": values,
    }
    how = f'{{ column = "c", equals = [{words}] }}'
    columns = {"clicked": how, "liked": '{ column = "c", equals = ["never"] }'}  # no like is no error
    run({"log.parquet": pa.table(table)}, 'files = "log.parquet"', columns)
    assert shown(run.logs, "item_id", "clicked", "liked") == [
        (1, True, False),
        (2, False, False),
        (3, False, False),
    ]


EVENTS = """uid,sid,q,ts,event,sku,pos
u,1,bow,1767614400,view,3,0
u,1,bow,1767614400,view,1,1
u,1,bow,1767614401,click,1,
u,1,bow,1767614402,click,1,
u,1,bow,1767614403,click,2,
u,2,bat,1767614404,view,2,0
u,,,1767614405,login,,
,,,,,,
"""
CLICKS = """
[search_impressions.join.clicks]
files = "{}"
on = {}
{}
"""


def test_views_and_clicks_of_one_table_of_events_find_each_other(run):
    tail = CLICKS.format("events.csv", '["sid", "sku"]', 'where = { event = "click" }')
    report = run(
        {"events.csv": EVENTS},
        'files = "events.csv"\nwhere = { event = ["view"] }',
        {"clicked": '{ found = "clicks" }', "rank": '{ column = "pos", base = 0 }'},
        tail=tail,
    )
    assert shown(run.logs, "search_id", "rank", "item_id", "clicked") == [
        (1, 1, 3, False),
        (1, 2, 1, True),
        (2, 1, 2, False),
    ]
    imported, reasons, others = balance(report)
    assert (imported, others) == (3, 2)  # the login and the empty row; two clicks of one item are one
    assert reasons["unmatched_clicks"] == 1  # item 2 was clicked and not shown
    assert 8 == report.tables["search_impressions"].rows + others + 2  # the clicks that found their rows


@pytest.mark.parametrize("seed", range(3))
def test_every_line_of_random_events_is_accounted_for(run, seed):
    draw = random.Random(seed)
    lines, kinds = [], {"view": [], "click": [], "login": [], "junk": []}
    for _ in range(200):
        kind, sid = draw.choice([*kinds]), draw.randrange(20)
        row = {
            "event": kind,
            "sid": sid,
            "sku": draw.randrange(4),
            "uid": sid,
            "q": f"q{sid}",
            "ts": NOON + sid,
        }
        lines.append(json.dumps(row) if kind != "junk" else draw.choice(["{", "[1]", "nul"]))
        kinds[kind].append((sid, row["sku"]))
    tail = CLICKS.format("events.jsonl", '["sid", "sku"]', 'where = { event = "click" }')
    head = 'files = "events.jsonl"\nwhere = { event = "view" }'
    report = run({"events.jsonl": "\n".join(lines)}, head, {"clicked": '{ found = "clicks" }'}, tail=tail)
    matched = sum(click in kinds["view"] for click in kinds["click"])
    imported, reasons, others = balance(report)
    assert (imported, others) == (len(kinds["view"]), len(kinds["login"]))
    assert reasons["malformed_json"] == len(kinds["junk"])
    assert reasons["unmatched_clicks"] == len(kinds["click"]) - matched
    assert report.tables["search_impressions"].rows + others + matched == 200


def test_clicks_of_a_second_table_find_the_elements_of_a_list(run):
    rows = [{"uid": "u", "sid": 1, "q": "bow", "ts": NOON, "hits": [{"sku": 3}, {"sku": 1}]}]
    clicks = "search;item;dwell\n1;1.0;2\nx\n1;2;1\n"
    tail = CLICKS.format("clicks.log", '{ sid = "search", "hits.sku" = "item" }', 'delimiter = ";"')
    columns = {"item_id": '"hits.sku"', "clicked": '{ found = "clicks" }',
               "play_ms": '{ column = "clicks.dwell", unit = "s" }'}  # fmt: skip
    report = run(
        {"log.json": json.dumps(rows), "clicks.log": clicks},
        'files = "log.json"\nexplode = "hits"',
        columns,
        tail=tail,
    )
    assert shown(run.logs, "item_id", "clicked", "play_ms") == [(1, True, 2_000), (3, False, None)]
    assert balance(report)[1]["unmatched_clicks"] == 1
    assert report.malformed_lines == 1


def test_results_find_their_search_and_searches_without_results_are_counted(run):
    searches = "sid,uid,q,ts\n1,u,bow,1767614400\n1,u,bowl,1767614400\n2,u,bat,1767614401\n"
    columns = {"user_id": '"searches.uid"', "query": '"searches.q"',
               "searched_at": '{ column = "searches.ts", unit = "s" }'}  # fmt: skip
    tail = '[search_impressions.join.searches]\nfiles = "searches.csv"\non = "sid"\n'
    report = run(
        {"results.csv": "sid,sku,c\n1,3,0\n1,1,1\n9,1,1\n", "searches.csv": searches},
        'files = "results.csv"',
        columns,
        tail=tail,
    )
    assert shown(run.logs, "query", "item_id", "clicked") == [("bow", 1, True), ("bow", 3, False)]
    reasons = balance(report)[1]
    assert (reasons["unmatched_searches"], reasons["repeated_searches"]) == (1, 1)
    assert reasons["unmapped_query"] == 1  # search 9 is not there


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_paths_go_through_json_and_pairs_of_keys_and_values(run, kind):
    params = [
        {"key": "term", "value": {"string_value": "bow", "int_value": None}},
        {"key": "session", "value": {"string_value": None, "int_value": 5}},
    ]
    row = {
        "user": {"id": "u"},
        "params": params,
        "payload": json.dumps({"at": NOON, "items": [{"sku": 3}, {"sku": 1}]}),
        "a.b": "1",
    }
    if kind == "csv":
        cells = [value if isinstance(value, str) else json.dumps(value) for value in row.values()]
        content = "|".join(row) + "\n" + "|".join(cells) + "\n"
    else:
        content = json.dumps(row) + "\n" if kind == "jsonl" else pa.Table.from_pylist([row])
    columns = {"user_id": '"user.id"',
               "search_id": '{ columns = ["user.id", "params.session", "params.term"] }',
               "query": '"params.term"', "searched_at": '{ column = "payload.at", unit = "s" }',
               "item_id": '"payload.items.1.sku"', "clicked": '"a.b"'}  # fmt: skip
    layout = 'delimiter = "|"\nquote = ""' if kind == "csv" else ""
    run({f"log.{kind}": content}, f'files = "log.{kind}"\n{layout}', columns)
    (found,) = pq.read_table(run.logs / "search_impressions", partitioning=None).to_pylist()
    names = ("query", "searched_at", "item_id", "clicked", "search_id")
    search = user_number("u|5|bow", SALT.encode())  # salted, as it holds the user
    assert tuple(found[name] for name in names) == ("bow", NOON * 1_000_000, 1, True, search)
    assert "source_search_id" not in found


def test_a_text_without_header_quotes_or_values(run):
    log = 'u\t"bow\t1767614400\t1\t1\nu\t\\N\t1767614400\t1\t1\nu\tx\x01y\t1767614401\t1\t-\n'
    head = 'files = "log.txt"\ndelimiter = "\\t"\nquote = ""\nnull = ["\\\\N", "-"]'
    head += '\nnames = ["uid", "q", "ts", "sku", "c"]'
    columns = {"search_id": "{ row = true }", "query": '{ column = "q", replace = { "\\u0001" = " " } }'}
    report = run({"log.txt": log}, head, columns)
    assert shown(run.logs, "search_id", "query", "clicked") == [(1, '"bow', True), (3, "x y", False)]
    assert balance(report) == (2, {"unmapped_query": 1}, 0)
    assert report.tables["search_impressions"].lost == {}


@pytest.mark.parametrize(("text", "how", "seconds"), [
    ("05/01/2026 14:00:00", 'format = "%d/%m/%Y %H:%M:%S"', NOON),
    ("260105140000", 'format = "%y%m%d%H%M%S"', NOON),
    ("05/Jan/2026:20:00:00 +0800", 'format = "%d/%b/%Y:%H:%M:%S %z"', NOON),
    ("1.5", 'unit = "d", since = "2026-01-04"', NOON - 2 * 3600),
    ("90", 'unit = "min", since = "2026-01-05T10:30:00Z"', NOON),
    ("5", 'unit = "s", since = "2026-01-05 14:00:00"', NOON + 5),
    ("2026-01-05 14:00:00 BST", 'unit = "iso", replace = { " BST" = "" }', NOON),
    ("at 2026-01-05 14:00", 'unit = "any", extract = "at (.*)"', NOON),
    ("2026-01-05 13:00:00 Europe/Berlin", 'unit = "any"', NOON),
    ("2026-01-05 20:00:00 UTC+8", 'unit = "iso"', NOON),
    ("2026-01-05 12:00:00 gmt", 'format = "%Y-%m-%d %H:%M:%S %Z"', NOON),
])  # fmt: skip
def test_times_of_other_formats_and_since_other_days(run, text, how, seconds):
    columns = {"searched_at": f'{{ column = "ts", {how} }}'}
    log = f"uid,sid,q,ts,sku,c\nu,1,bow,{text},1,1\nu,2,bow,soon,1,1\nu,3,bow,2026-01-05 12:00:00 CST,1,1\n"
    report = run({"log.csv": log}, 'files = "log.csv"', columns, 'utc_offset = "+02:00"')
    assert shown(run.logs, "searched_at") == [(seconds * 1_000_000,)]
    assert balance(report) == (1, {"unmapped_searched_at": 2}, 0)


def test_texts_are_cut_out_decoded_put_together_and_optional(run):
    log = (
        "uid,day,hour,url,sku,c,brand,cat,cat_en\n"
        "u,20260105,12,https://s.example/?q=red%20bow+tie&p=1,1,1,ACME,,hats\n"
        "u,20260105,13,https://s.example/,1,0,,,\n"
    )
    columns = {
        "search_id": '{ columns = ["uid", "day", "hour"] }',
        "query": '{ column = "url", extract = "[?&]q=([^&#]*)", decode = "url" }',
        "searched_at": '{ columns = ["day", "hour"], format = "%Y%m%d %H" }',
        "arm": '{ columns = ["brand", ["cat", "cat_en"]] }',
        "play_ms": '{ column = "dwell", unit = "s", optional = true }',
    }
    report = run({"log.csv": log}, 'files = "log.csv"', columns)
    assert shown(run.logs, "query", "searched_at", "arm", "play_ms") == [
        ("red bow tie", NOON * 1_000_000, "ACME hats", None)
    ]
    assert balance(report) == (1, {"unmapped_query": 1}, 0)


@pytest.mark.parametrize(("head", "columns", "top", "message"), [
    ("", {"clicked": '{ found = "click" }'}, "", r"there is no \[search_impressions.join.click\]"),
    ("", {"rank": '{ position = "ids" }'}, "", r'rank: a position is one in a list: explode = "ids"'),
    ('names = ["a", "b"]', {}, "", r"its first line has 7 values \('uid', 'sid', 'q', ...\), and"),
    ("", {"searched_at": '{ column = "ts", unit = "h" }'}, "", r"say from when its h count, e.g. since"),
    ("", {"searched_at": '{ column = "ts", format = "DD/MM" }'}, "", r"'DD/MM': write it as %d/%m/%Y"),
    ("", {"query": '{ column = "q", extract = "q=" }'}, "", r"extract: .*'q=': put one group, in paren"),
    ("", {"query": '{ column = "q", extract = "(?=x)(q)" }'}, "", r"is no regular expression: .*\(\?="),
    ("", {}, 'utc_offset = "+99:99"', r"utc_offset = '\+99:99': write it as \+08:00, between -14:00"),
    ("", {}, 'utc_offset = "+14:30"', r"between -14:00 and \+14:00"),
    ("", {"search_id": ""}, "", r"lacks search_id: .*; it may be made of several: { columns = "),
    ('delimiter = ";"', {}, "", r"log.csv: column uid is missing"),
    ("", {"clicked": '{ column = "c", equals = ["y"] }'}, "", r"such as '1' in .*csv, column c; .*.y.\]"),
    ("", {"searched_at": '{ column = "z", unit = "iso" }'}, "", r" BST' in .*csv, column z; .* UTC or"),
    ("explode = 'sku'", {"query": '"sku.name"', "clicked": '{ in = "c" }'}, "", r"nothing of search_imp"),
])  # fmt: skip
def test_what_a_mapping_cannot_mean_is_said_in_one_sentence(run, head, columns, top, message):
    log = "uid,sid,q,ts,sku,c,z\nu,1,bow,1767614400,1,1,2026-01-05 12:00:00 BST\n"
    with pytest.raises(CropsError, match=message):
        run({"log.csv": log}, f'files = "log.csv"\n{head}', columns, top)
    assert not run.logs.exists()


def test_a_broken_array_and_a_text_without_delimiter_are_named(run):
    with pytest.raises(CropsError, match=r"log\.json is no JSON array that can be read; write one object"):
        run({"log.json": '[{"uid": 1}, {"uid": '}, 'files = "log.json"')
    with pytest.raises(CropsError, match=r"log\.txt: say what parts its columns, e.g. delimiter"):
        run({"log.txt": "a\n"}, 'files = "log.txt"')


def test_searches_without_results_are_checked_and_their_rewordings_counted(run, tmp_path):
    log = [
        ("u", NOON, "red bow"),
        ("u", NOON + 30, "Red  bow "),  # paging: the same text
        ("u", NOON + 60, "red bow tie"),  # 30 s after the last
        ("u", NOON + 151, "tie"),  # 91 s: too late
        ("v", NOON + 152, "tie clip"),  # of another user
        ("v", NOON + 153, " "),
    ]
    text = "who\twhen\twhat\n" + "".join(f"{who}\t{when}\t{what}\n" for who, when, what in log)
    mapping = tmp_path / "searches.toml"
    mapping.write_text(
        '[search_impressions]\nfiles = "log.tsv"\n[search_impressions.columns]\nuser_id = "who"\n'
        'query = "what"\nsearch_id = { columns = ["who", "when"] }\n'
        'searched_at = { column = "when", unit = "s" }\n'
    )
    (tmp_path / "source" / "log.tsv").write_text(text)
    report = import_logs("table", tmp_path / "source", run.logs, mapping)
    assert (report.tables["searches"].imported, report.tables["searches"].rejected) == (5, 1)
    found = check(run.logs, tmp_path / "checked")
    assert (found.facts.searches, found.facts.users, found.facts.reworded) == (5, 2, 1)
    assert "followed by other words within 90 s: 1, 20.0%" in found.notes()
    assert check(run.logs, tmp_path / "checked").notes() == found.notes()  # again, into the same folder
    assert check(tmp_path / "checked/accepted").facts.reworded == 1
    with pytest.raises(CropsError, match="holds searches and nothing of their results: crops check counts"):
        open_logs(tmp_path / "checked/accepted")
