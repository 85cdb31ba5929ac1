"""`crops import --guess`: unknown logs that import with the guess unedited, and what it asks when unsure."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from crops.cli.app import app
from crops.errors import CropsError
from crops.logs import import_logs
from crops.logs.guess import guess_map, known_format, write_guess

sys.path.append(str(Path(__file__).parents[2] / "examples" / "logs"))
import make_logs  # noqa: E402

SEARCHES = make_logs.searches()


def shown():
    """A row per shown item."""
    for one in SEARCHES:
        for place, item in enumerate(one.shown, 1):
            yield one, place, item, make_logs.ITEMS[item][0]


def write_csv(path, header, rows, delimiter=","):
    with path.open("w", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([header, *rows])


def write_items(folder):
    write_csv(
        folder / "products.csv", ["sku", "name"], [(i, title) for i, (title, _) in make_logs.ITEMS.items()]
    )


def german(folder):
    header = ["Kunde", "Suchbegriff", "Datum", "Uhrzeit", "Artikelnummer", "Bezeichnung", "Geklickt"]
    rows = (
        (
            f"k{s.user}",
            s.query,
            *make_logs._iso(s.at)[:-1].split("T"),
            i,
            title,
            "ja" if i in s.clicked else "nein",
        )
        for s, _, i, title in shown()
    )
    write_csv(folder / "protokoll.csv", header, rows, ";")


def chinese(folder):
    header = ["用户ID", "搜索词", "搜索时间", "商品ID", "商品标题", "是否点击"]
    rows = ((s.user, s.query, s.at, i, title, int(i in s.clicked)) for s, _, i, title in shown())
    write_csv(folder / "日志.tsv", header, rows, "\t")


def structs(folder):
    rows = [
        {
            "uid": s.user,
            "requestId": f"r{s.id}",
            "q": s.query,
            "ts": s.at * 1000,
            "results": [
                {"id": i, "title": make_logs.ITEMS[i][0], "clicked": i in s.clicked} for i in s.shown
            ],
        }
        for s in SEARCHES
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "searches.parquet")


def lists_of_acts(folder):
    write_items(folder)
    rows = [
        {"user": s.user, "search_id": s.id, "query": s.query, "time": s.at, "items": s.shown}
        | {"clicked": bool(s.clicked), "clicked_ids": s.clicked, "purchases": s.clicked[:1]}
        for s in SEARCHES
    ]
    (folder / "log.json").write_text(json.dumps(rows))


def parallel_lists(folder):
    write_items(folder)
    rows = [
        {"user": s.user, "search_id": s.id, "query": s.query, "time": s.at, "items": s.shown}
        | {"click_flags": [int(i in s.clicked) for i in s.shown]}
        for s in SEARCHES
    ]
    (folder / "log.json").write_text(json.dumps(rows))


def two_tables(folder):
    write_items(folder)
    rows = [(s.id, f"u{s.user}", s.query, s.at, " ".join(map(str, s.shown))) for s in SEARCHES]
    write_csv(folder / "queries.csv", ["query_id", "user", "query", "timestamp", "shown"], rows)
    rows = [(s.id, i, s.at + 5) for s in SEARCHES for i in s.clicked]
    write_csv(folder / "clicks.csv", ["query_id", "item_id", "clicked_at"], rows)


def queries_apart(folder):
    write_items(folder)
    rows = [(s.id, f"u{s.user}", s.query, s.at) for s in SEARCHES]
    write_csv(folder / "searches.csv", ["search_id", "user", "query", "timestamp"], rows)
    rows = [(s.id, i, place, i in s.clicked) for s, place, i, _ in shown()]
    write_csv(folder / "impressions.csv", ["search_id", "item_id", "position", "clicked"], rows)


def parts_of_events(folder):
    """Events that carry their query, in compressed parts below days."""
    header = ["action", "visitor", "search_term", "event_time", "sku", "product_name"]
    for n in range(2):
        (folder / f"day={n}").mkdir()
        with gzip.open(folder / f"day={n}" / "part-0.csv.gz", "wt") as stream:
            writer = csv.writer(stream)
            writer.writerow(header)
            for s, _, i, title in shown():
                if s.id % 2 == n:
                    for action in ("show", *(["product_click"] if i in s.clicked else [])):
                        writer.writerow([action, s.user, s.query, make_logs._iso(s.at), i, title])


KINDS = {name: make_logs.KINDS[name] for name in ("impressions", "events", "click_lists", "five_columns")}
SHAPES = [german, chinese, structs, parallel_lists, two_tables, queries_apart, parts_of_events,
          *KINDS.values()]  # fmt: skip


@pytest.mark.parametrize("write", SHAPES, ids=lambda one: one.__name__)
def test_a_plain_log_imports_with_the_guess_unedited(write, tmp_path):
    source, logs = tmp_path / "source", tmp_path / "logs"
    source.mkdir()
    write(source)
    assert known_format(source) is None
    write_guess(source, tmp_path / "map.toml")
    report = import_logs("table", source, logs, tmp_path / "map.toml")
    assert all(one.rejected == 0 and not one.lost for one in report.tables.values())
    found = duckdb.sql(f"""
        select query, ocr_cover, bool_or(clicked) from '{logs}/search_impressions/*/*.parquet'
        join '{logs}/items.parquet' using (item_id) group by search_id, query, ocr_cover""").fetchall()
    told = (str(item) if write is make_logs.five_columns else title for _, _, item, title in shown())
    clicks = (item in one.clicked for one, _, item, _ in shown())
    assert Counter(found) == Counter(zip((one.query for one, *_ in shown()), told, clicks, strict=True))


def log(header="query,user,time,item,click", row="lamp{n},u{u},2026-01-05T12:{n}:00Z,i{n},{c}", rows=30):
    lines = (
        row.format(
            n=n + 10, u=n % 7, c=n % 2, d=n % 9 + 1, e=["impression", "click"][n % 2], q=["lamp", ""][n % 2]
        )
        for n in range(rows)
    )
    return "\n".join([header, *lines]) + "\n"


ITEM = "query,user,time,item"
ROW = "lamp,u{u},2026-01-05T12:{n}:00Z,i{n}"
PARTS_OF_CLICK = ("total_clicks", "item_clicks_30d", "is_clickable", "total_click_cnt")
NO_CLICK = ("click_position", "not_clicked", "no_click", "unclicked", "未点击")


def kinds(yes, no):
    return log("query,user,time,item,action").replace(",1\n", f",{yes}\n").replace(",0\n", f",{no}\n")


def lists(name):
    row = 'lamp,u{u},2026-01-05T12:{n}:00Z,"[{n}, {d}]",[{d}]'
    return log(f"query,user,time,items,{name}", row)


@pytest.mark.parametrize(("files", "said"), [
    ({}, "no files; name the folder or the file"),
    ({"a.png": b"\x89PNG\r\n", "b.png": b"\x89PNG"}, r"no file that crops reads \(2 .png\); write"),
    ({"log.csv": b"\x89PNG\r\n\0\0\0"}, "log.csv is not text in UTF-8; write it as CSV"),
    ({"log.parquet": b"PAR0"}, "log.parquet is not readable .*; write the file again"),
    ({"log.csv": "query\nlamp\nbag\n"}, "log.csv: it reads as one column .* such as 'query'; write it with"),
    ({"log.csv": "query^user^click\nlamp^1^0\n"}, "log.csv: it reads as one column .*'query.user.click'"),
    ({"log.csv": "query,user,time,item,click\n"}, "log.csv: no rows; export the logs again"),
    ({"log.csv": "query,user,query\na,1,b\n"}, "log.csv: column query is there twice; rename one"),
    ({"log.csv": "price,stock\n1.5,2\n2.5,3\n"}, "no table has a query with its user or time .*price, stock"),
    ({"1.csv": log(), "2.csv": log("query,user,time,item", "lamp,u{u},2026-01-05,i{n}")},
     r"1.csv and 2.csv all look like the searches, and their columns differ: give"),
])  # fmt: skip
def test_what_cannot_be_read_is_told_in_a_sentence_with_the_remedy(files, said, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name, content in files.items():
        (source / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CropsError, match=said) as told:
        write_guess(source, tmp_path / "map.toml")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "map.toml").exists()


@pytest.mark.parametrize(("text", "said", "left"), [
    (log(row="lamp,u{u},0{d}/02/2026 12:{n}:00,i{n},{c}"),
     'searched_at: is the day or the month first, in "01/02/2026 12:10:00"',
     ["%d/%m/%Y %H:%M:%S", "%m/%d/%Y %H:%M:%S"]),
    (log("query,user,time,item,click,ad_click", "lamp,u{u},2026-01-05T12:{n}:00Z,i{n},{c},0"),
     'clicked: is it `click` \\("0", "1"\\) or `ad_click` \\("0"\\)?',
     ['clicked = "click"', 'clicked = "ad_click"']),
    (log("query,user,time,item,flag"), "clicked: what says whether the item was clicked",
     ['clicked = { column = "flag", equals = ["0", "1"] }']),
    (log("query,user,time,item,type", "lamp,u{u},2026-01-05T12:{n}:00Z,i{n},k{c}"),
     "clicked: what says whether the item was clicked",
     ['clicked = { column = "type", equals = ["k0", "k1"] }']),
    (log("query,buyer,visitor,time,item,click", "l{d},b{c},u{u},2026-01-05,i{n},{c}"), "user_id: is it", []),
    (log("was,user,time,item,click"), 'query: is it `was` \\("lamp10"', ['query = "was"']),
    *((log(f"query,user,time,item,{name}"), f"clicked: is it `{name}`", []) for name in PARTS_OF_CLICK),
    *((log(f"query,user,time,item,{name}"), "clicked: what says", []) for name in NO_CLICK),
    (log(row=f"{ROW},1"), "clicked: is it `click` .* the same in every row", []),
    (log(row="lamp,u{d},2026-01-05T12:00:00Z,i{n},{d}"), "the same in all rows of a search", []),
    (log(row="lamp,u{u},2026-01-05T12:{n}:00Z,i{d},{d}"), "the same in all rows of an item", []),
    *(
        (kinds(yes, no), "clicked: what says", [f'{{ column = "action", equals = ["{yes}"] }}'])
        for yes, no in (
            ("click", "no_click"),
            ("click", "unclick"),
            ("result_click", "click_through_shown"),
            ("点击", "未点击"),
        )
    ),
    (log("query,user,time,item,event", "{q},u{u},2026-01-05T12:00:{n}Z,i{u},{e}"),
     "search_id: clicks say no query, and no column is called an id of the search", []),
    (log("query,user,date,hour,item,click", "lamp,u{u},2026-01-05,{d},i{n},{c}"),
     'searched_at: `date` \\("2026-01-05"\\) says the day only: which column is the time of day',
     ['{ columns = ["date", "COLUMN"], format = "%Y-%m-%d %H:%M:%S" }']),
    *((lists(name), "clicked: what says", [f'{{ in = "{name}" }}']) for name in ("sponsored", "hovered")),
    *(
        (
            log(row=f"lamp,u{{u}},{day},i{{n}},{{c}}"),
            "searched_at: .*[Ii]s the day or the month first",
            [f'format = "{format_}"', 'unit = "iso"'][: 1 + ("-" in format_)],
        )
        for day, format_ in (  # the first days of January, or each first of a month
            ("2026-0{d}-01 12:{n}:00", "%Y-%d-%m %H:%M:%S"),
            ("2026-0{d}-01", "%Y-%d-%m %H:%M:%S"),
            ("20260{d}01", "%Y%d%m"),
        )
    ),
    (
        log("query,user,time,shown_item,clicked_item", f"{ROW},i{{n}}"),
        r"could be told\. clicked: what says",  # and no question about the item
        ['clicked = { in = "clicked_item" }'],
    ),
    (
        log("query,user,time,sku,asin,click", "lamp,u{u},2026-01-05T12:{n}:00Z,i{d},a{u},{c}"),
        r"told\. item_id: is it `\w+` \([^?]*\) or `\w+` \([^?]*\)\? Correct",  # once
        ['item_id = "sku"', 'item_id = "asin"'],
    ),
    (
        log(row='{n},lamp,u{u},2026-01-05T12:{n}:00Z,"[{n}, {d}]",[{n}]').partition("\n")[2],
        "clicked: what says",  # a list that no search lacks may be what was shown, too
        ['clicked = { in = "c6" }'],
    ),
])  # fmt: skip
def test_a_guess_that_is_not_sure_asks_and_imports_nothing(text, said, left, tmp_path):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(CropsError, match=said):
        write_guess(tmp_path / "log.csv", tmp_path / "map.toml")
    written = (tmp_path / "map.toml").read_text()
    assert all(any(one in line for line in written.splitlines() if line.startswith("# ")) for one in left)
    with pytest.raises(
        CropsError, match=r"lines marked TO DO .*of \[(items|search_impressions)\] .line \d+.*take the # off"
    ):
        import_logs("table", tmp_path, tmp_path / "logs", tmp_path / "map.toml")
    with pytest.raises(CropsError, match="map.toml is there already, perhaps with your corrections"):
        write_guess(tmp_path / "log.csv", tmp_path / "map.toml")


@pytest.mark.parametrize("kind", ["ubi", "kuaisar", "jdsearch", "ga4"])
def test_a_known_format_is_told_by_its_files(kind, tmp_path):
    make_logs.KINDS[kind](tmp_path)
    assert known_format(tmp_path) == kind


@pytest.mark.parametrize(("header", "row", "lines"), [
    *(
        (
            f"{key},query,user,time,item,click",
            "e{n},lamp,u{u},2026-01-05T12:00:00Z,i{d},{c}",
            made,
        )
        for key in ("id", "impression_id", "event_id")
        for made in [['search_id = { columns = ["user", "query", "time"] }']]
    ),
    ("session,query,time,item,click", "s{u},lamp{d},2026-01-05T12:00:00Z,i{n},{c}",
     ['search_id = { columns = ["session", "query", "time"] }', 'user_id = "session"']),
    ("query,time,item,click", "lamp,2026-01-05T12:0{d}:00Z,i{n},{c}",
     ['search_id = { columns = ["query", "time"] }', 'user_id = { columns = ["query", "time"] }']),
    ("session,query,user,time,item,click,position", "{q},lamp,u{u},2026-01-05T12:00:00Z,i{n},{c},{d}",
     ['search_id = { columns = ["user", "query", "time"] }']),
    *(
        (
            f"{ITEM},click,{name}",
            f"{ROW},{{c}},{{d}}",
            [f'# liked = {{ column = "{name}" }}'],
        )
        for name in ("like_count", "sort_order", "cart_size")
    ),
    *(
        (
            "query,user,date,time,item,click",
            f"lamp,u{{u}},2026-01-05,08:00:{{n}}{end},i{{n}},{{c}}",
            [f'searched_at = {{ columns = ["date", "time"], format = "%Y-%m-%d {clock}" }}'],
        )
        for end, clock in (
            (" AM", "%I:%M:%S %p"),
            ("am", "%I:%M:%S%p"),
            (".123", "%H:%M:%S.%f"),
            ("Z", "%H:%M:%SZ"),
            ("+08:00", "%H:%M:%S%z"),
            (" +0800", "%H:%M:%S %z"),
        )
    ),
])  # fmt: skip
def test_searches_likes_and_clocks_are_told_from_what_looks_like_them(header, row, lines, tmp_path):
    (tmp_path / "log.csv").write_text(log(header, row))
    write_guess(tmp_path / "log.csv", tmp_path / "map.toml")
    written = (tmp_path / "map.toml").read_text().splitlines()
    assert all(any(one.startswith(line) for one in written) for line in lines), written
    report = import_logs("table", tmp_path, tmp_path / "logs", tmp_path / "map.toml")
    assert not any(one.rejected for one in report.tables.values())


def test_a_rank_that_is_no_number_is_left_to_the_import(tmp_path):
    text = log("query,user,time,item,click,position", f"{ROW},{{c}},{{d}}", 60).replace(
        ",1,9\n", ",1,n/a\n", 1
    )
    (tmp_path / "log.csv").write_text(text)
    written = guess_map(tmp_path).parts["search_impressions"]
    assert any(line.startswith('rank = "position"') for line in written)


def test_queries_of_token_ids_in_lists_are_told(tmp_path):
    make_logs.KINDS["kuaisar"](tmp_path)
    guess = guess_map(tmp_path)
    assert any(
        'query = { column = "keyword", tokens = true }' in line for line in guess.parts["search_impressions"]
    )
    assert guess.top == ['text = "anonymised tokens"    # queries are token ids']


def test_one_value_that_is_no_number_leaves_the_times_of_a_log_without_a_header(tmp_path):
    make_logs.KINDS["click_lists"](tmp_path)
    clean = guess_map(tmp_path).parts
    file = tmp_path / "searches.tsv"
    lines = file.read_text().splitlines()
    lines[9] = "\t".join([*lines[9].split("\t")[:2], "7.7.7", *lines[9].split("\t")[3:]])
    file.write_text("\n".join(lines) + "\n")
    assert guess_map(tmp_path).parts == clean


def test_a_list_of_purchases_is_what_was_liked(tmp_path):
    lists_of_acts(tmp_path)
    assert 'liked = { in = "purchases" }' in "\n".join(guess_map(tmp_path).parts["search_impressions"])


def test_the_command_tells_the_kind_or_what_to_type_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in ("kuaisar", "impressions"):
        Path(kind).mkdir()
        make_logs.KINDS[kind](Path(kind))

    def told(*words):
        result = CliRunner().invoke(app, ["import", *words])
        return " ".join(result.output.split()) + str(result.exception or "")

    assert "kuaisar is imported as kuaisar" in told("kuaisar", "--out", "logs")
    assert "needs no map next: crops import kuaisar kuaisar --out LOGS" in told("--guess", "kuaisar")
    assert "for tables of your own: crops import --guess impressions" in told("impressions", "--out", "out")
    said = told("--guess", "impressions/impressions.csv")
    assert said.endswith("next: crops import table impressions --mapping map.toml --out LOGS")
    assert "say where the logs go: --out LOGS" in told("table", "impressions")


def spanish_shop(folder):
    """Sixty searches of three results each, the first one clicked, the third never on screen."""
    folder.mkdir()
    products = [f"REF-{n:04d};producto {chr(97 + n % 26)} {n};hogar" for n in range(60)]
    (folder / "productos.csv").write_text("\n".join(["referencia;nombre;categoria", *products]))
    shown, clicks = [], ["id_busqueda,referencia,fecha"]
    for n in range(60):
        for place in range(3):
            row = {"id_busqueda": f"B{n}", "usuario": f"u{n % 9}",
                   "consulta": f"producto {chr(97 + n % 26)} barato",
                   "fecha": f"2026-01-0{1 + n % 3}T10:{n:02d}:00",
                   "referencia": f"REF-{(n + place) % 60:04d}", "posicion": place + 1,
                   "visto": "no" if place == 2 else "si"}  # fmt: skip
            shown.append(json.dumps(row))
        clicks.append(f"B{n},REF-{n:04d},2026-01-0{1 + n % 3}T10:{n:02d}:30")
    (folder / "impresiones.jsonl").write_text("\n".join(shown))
    (folder / "clics.csv").write_text("\n".join(clicks))
    (folder / "leeme.pdf").write_text("x")
    return folder


def test_a_spanish_shop_is_joined_by_what_its_columns_hold(tmp_path):
    folder = spanish_shop(tmp_path / "shop")
    notes = "\n".join(write_guess(folder, tmp_path / "map.toml").notes)
    assert "not used: leeme.pdf" in notes
    assert "`visto`" in notes
    assert "all rows count as shown unless the map has stage" in notes
    import_logs("table", folder, tmp_path / "logs", tmp_path / "map.toml")
    rows = pq.read_table(tmp_path / "logs/search_impressions", partitioning=None).to_pylist()
    assert len(rows) == 180
    assert sum(row["clicked"] for row in rows) == 60
    assert {row["query"] for row in rows} == {f"producto {chr(97 + n)} barato" for n in range(26)}
    assert pq.read_table(tmp_path / "logs/items.parquet").num_rows == 60


def test_a_map_says_what_was_not_shown_and_loses_its_ranks_only(tmp_path):
    folder = spanish_shop(tmp_path / "shop")
    write_guess(folder, tmp_path / "map.toml")
    lines = (tmp_path / "map.toml").read_text().splitlines()
    taken = [line.removeprefix("# ") if line.startswith("# stage = ") else line for line in lines]
    assert taken != lines
    (tmp_path / "map.toml").write_text("\n".join(taken))
    import_logs("table", folder, tmp_path / "logs", tmp_path / "map.toml")
    rows = pq.read_table(tmp_path / "logs/search_impressions", partitioning=None).to_pylist()
    assert {(row["stage"], row["rank"]) for row in rows} == {
        ("exposed", 1),
        ("exposed", 2),
        ("unexposed", None),
    }
    wrong = "\n".join(taken).replace('query = "consulta"', 'query = "consultas"')
    (tmp_path / "wrong.toml").write_text(wrong)
    with pytest.raises(
        CropsError, match="column consultas is missing: no line has it. Did you mean 'consulta'"
    ):
        import_logs("table", folder, tmp_path / "other", tmp_path / "wrong.toml")
    with pytest.raises(CropsError, match="does not exist"):
        write_guess(tmp_path / "nowhere", tmp_path / "none.toml")
