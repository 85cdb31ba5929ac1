"""The mining job: a day by hand, faulty and odd logs, and results that do not depend on order or threads."""

import functools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from days import random_logs
from handmade import (
    DAY,
    FakeScorer,
    clicked,
    evidence,
    hashed,
    labels,
    run,
    scores,
    shown,
    watched,
    write_logs,
)

from crops.config import EngineConfig
from crops.engine import mine
from crops.engine.backend import DuckDBBackend, open_parquet
from crops.engine.mine import TABLES
from crops.errors import CropsError
from crops.labels import Source
from crops.schema import ARROW_TYPES, EVIDENCE, ITEMS, LATEST_US, QUERIES, SAMPLES, SYNTHETIC_ITEMS
from crops.text import normalise_query, query_id

SEARCHES = [shown(1, 1, "a", 0, 1), clicked(2, 1, "b", 30, 2)]


def test_a_day_by_hand(tmp_path):
    """One user searches jaguar, sees cars, says big cat, clicks item 5, and watches item 6 in the feed."""
    tables, report = run(
        tmp_path,
        [
            shown(1, 1, "Jaguar", 0, 1),
            shown(1, 1, "Jaguar", 0, 5, "unexposed"),
            shown(1, 1, "Jaguar", 0, 9, "filtered"),
            clicked(2, 1, "big cat", 40, 5),
            clicked(2, 1, "big cat", 40, 8),
            clicked(3, 2, "jaguar", 500, 1),
            clicked(4, 2, "recipe", 520, 7),
        ],
        [watched(1, 6, 300), watched(1, 4, 310, play_ms=100), watched(2, 7, 9000)],
        similarity=scores({("jaguar", "big cat"): 0.8, ("jaguar", "recipe"): 0.1}),
        relevance=scores({("jaguar", "doc 5"): 0.9, ("jaguar", "doc 6"): 0.7, ("big cat", "doc 6"): 0.65}),
        generated=[{"query": "jaguar", "ocr_cover": "Spotted hunters"}],
    )
    big_cat, jaguar, recipe = query_id("big cat"), query_id("jaguar"), query_id("recipe")
    written = tables["synthetic_items"][0]["item_id"]
    assert labels(tables, ["jaguar", "big cat", "recipe"]) == {
        ("jaguar", 5): (5, Source.REFORMULATION | Source.UNEXPOSED),
        ("jaguar", 1): (4, Source.CLICKED | Source.EXPOSED),
        ("jaguar", 6): (4, Source.FEED),
        ("jaguar", written): (4, Source.KNOWLEDGE),
        ("jaguar", 9): (1, Source.FILTERED),
        ("big cat", 5): (4, Source.CLICKED),
        ("big cat", 8): (4, Source.CLICKED),
        ("big cat", 6): (4, Source.FEED),
        ("recipe", 7): (4, Source.CLICKED),
    }
    assert tables["queries"] == sorted(
        [
            {"query_id": jaguar, "query": "jaguar", "searches": 2, "users": 2},
            {"query_id": big_cat, "query": "big cat", "searches": 1, "users": 1},
            {"query_id": recipe, "query": "recipe", "searches": 1, "users": 1},
        ],
        key=lambda row: row["query_id"],
    )
    assert [row["item_id"] for row in tables["items"]] == [1, 4, 5, 6, 7, 8, 9]
    assert evidence(tables, Source.REFORMULATION)[0]["theta"] == 0.9
    assert report == {
        "days": [DAY],
        "input": {
            "searches": 4,
            "searches_without_click": 1,
            "queries": 3,
            "users": 2,
            "impressions": {"exposed": 5, "filtered": 1, "unexposed": 1},
            "feed_events": 3,
            "feed_events_consumed": 2,
            "items": 7,
            "bots": {"users": 0, "searches": 0, "feed_events": 0},
        },
        "sources": {
            "search": {
                "clicked": {"candidates": 4, "kept": 4},
                "exposed": {"candidates": 0, "kept": 0},
                "unexposed": {"candidates": 1, "kept": 1},
                "filtered": {"candidates": 1, "kept": 1},
            },
            # jaguar -> items 5, 8 (big cat) and 7 (recipe); recipe is not similar; theta drops item 8.
            "p1": {
                "similarity": 0.5,
                "theta": 0.6,
                "candidates": 3,
                "after_similarity": 2,
                "after_relevance": 1,
                "kept": 1,
            },
            "p2": {"theta": 0.6, "candidates": 2, "after_relevance": 2, "kept": 2},
            "p3": {"candidates": 1, "of_mined_queries": 1, "kept": 1},
            "p4": {"theta": 0.8, "candidates": 0, "after_relevance": 0, "kept": 0},
        },
        "labels": {"5": 1, "4": 7, "1": 1},
        "novelty": {
            "p0": {"positives": 4, "never_shown": 0, "share": 0.0},
            "p1": {"positives": 1, "never_shown": 1, "share": 1.0},
            "p2": {"positives": 2, "never_shown": 2, "share": 1.0},
            "p4": {"positives": 0, "never_shown": 0, "share": None},
            "all": {"positives": 7, "never_shown": 3, "share": 0.428571},
        },
        "rescued": {"pairs": 1, "3": 0, "2": 1, "1": 0},
        "pairs": [
            # jaguar 6 and big cat 6 by P2, jaguar's generated document; the filtered item 9.
            {"considered": 0, "sources": 16, "pairs": 1},
            {"considered": 0, "sources": 32, "pairs": 2},
            {"considered": 1, "sources": 1, "pairs": 1},
            {"considered": 2, "sources": 66, "pairs": 1},
            {"considered": 8, "sources": 8, "pairs": 3},
            {"considered": 12, "sources": 12, "pairs": 1},
        ],
        "p3_coverage": {
            "queries": 3,
            "with_generation": 1,
            "without_generation": 2,
            "share_of_queries": 0.333333,
            "samples": 1,
            "share_of_samples": 0.111111,
        },
        "notes": [],
    }


def test_the_tables_are_those_documented(tmp_path, monkeypatch):
    found: dict[str, dict[str, str]] = {}
    close = DuckDBBackend.__exit__

    def describe(self, *error):
        for row in self.rows(
            "select table_name, column_name, data_type from duckdb_columns where not internal"
        ):
            found.setdefault(row["table_name"], {})[row["column_name"]] = row["data_type"]
        close(self, *error)

    monkeypatch.setattr(DuckDBBackend, "__exit__", describe)
    run(
        tmp_path,
        [shown(1, 1, "jaguar", 0, 1), clicked(2, 1, "big cat", 40, 5)],
        [watched(1, 6, 300)],
        similarity=scores({("jaguar", "big cat"): 0.8}),
        relevance=scores({("jaguar", "doc 5"): 0.9}),
        generated=[{"query": "jaguar", "ocr_cover": "Spotted hunters"}],
    )
    known = {"theta_known", "similarity_known"}  # the cached scores
    assert found.keys() - known == TABLES.keys()
    for name, text in TABLES.items():
        columns = text.partition(":")[0]
        if columns == "as the contract":
            continue
        wanted: dict[str, str] = {}
        for part in columns.split(", "):
            if part.startswith("those of "):
                wanted |= found[part.removeprefix("those of ")]
            elif part != "and their texts":
                column, kind = part.split()
                wanted[column] = kind
        texts = {"ocr_cover", "photo_caption", "keyword", "click_query"} if "texts" in columns else set()
        assert {name: kind for name, kind in found[name].items() if name not in texts} == wanted, name


def test_the_output_folder_holds_the_contract(tmp_path):
    tables, report = run(tmp_path, *random_logs(seed=1), seed=3)
    out = tmp_path / "mined"
    for table in (SAMPLES, QUERIES, EVIDENCE, ITEMS, SYNTHETIC_ITEMS):
        schema = pq.read_schema(out / f"{table.name}.parquet")
        assert schema.names == table.names()
        assert schema.types == [ARROW_TYPES[column.type] for column in table.columns]
    assert json.loads((out / "report.json").read_text()) == report
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["command"], manifest["seed"]) == ("mine", 3)
    assert "seed = 3" in (out / "config.toml").read_text()
    for name, key in (("samples", ("query_id", "item_id")), ("queries", ("query_id",))):
        keys = [tuple(row[part] for part in key) for row in tables[name]]
        assert keys == sorted(set(keys))


def test_what_is_missing_is_said_in_the_report(tmp_path):
    searches = [shown(1, 1, "a", 0, 1), clicked(2, 1, "b", 30, 2)]
    tables, report = run(tmp_path, searches)
    assert labels(tables, ["a", "b"])["a", 2] == (5, Source.REFORMULATION)
    assert evidence(tables, Source.REFORMULATION)[0]["theta"] is None
    assert report["sources"]["p1"]["theta"] == report["sources"]["p2"]["theta"] == "none"
    assert report["sources"]["p1"]["similarity"] == "none"
    assert set(report["notes"]) == {
        "no unexposed documents in the logs: label 2 is absent",
        "no filtered documents in the logs: label 1 is absent",
        "P1: theta = none, candidates are not filtered by relevance",
        "P2: theta = none, candidates are not filtered by relevance",
        "P1: later queries are not filtered by similarity",
        "no feed events on these days: P2 is absent",
        "no generated document for any of these queries: P3 is absent",
    }


def test_days_are_a_setting(tmp_path):
    searches = [clicked(1, 1, "a", 0, 1), clicked(2, 1, "b", 86_400, 2)]
    tables, report = run(tmp_path, searches, days=("2026-01-06", "2026-01-07"))
    assert report["days"] == ["2026-01-06"]
    assert "no searches on 2026-01-07" in report["notes"]
    assert list(labels(tables, ["b"])) == [("b", 2)]
    with pytest.raises(CropsError, match="2026-01-09"):
        run(tmp_path / "late", searches, days=("2026-01-09",))
    with pytest.raises(CropsError, match="unknown source 'p6'"):
        run(tmp_path / "source", searches, sources=("search", "p6"))
    with pytest.raises(CropsError, match=r"unknown source 'clicks'.* Did you mean 'search'\?"):
        run(tmp_path / "source", searches, sources=("clicks",))


def lossy(batches):
    for batch in scores({})(batches):
        yield batch.slice(0, batch.num_rows - 1)


def broken(error):
    def score(batches):
        next(batches)
        raise error
        yield

    return score


@pytest.mark.parametrize(
    ("scorer", "error", "message"),
    [
        (lossy, CropsError, "scorer of theta gave 0 probabilities for 1 pairs"),
        (
            FakeScorer(lambda left, right: float("nan")),
            CropsError,
            "scorer of theta gave 0 probabilities for 1",
        ),
        (FakeScorer(lambda left, right: 1.5), CropsError, "scorer of theta gave 0 probabilities for 1 pairs"),
        (broken(ValueError("no model")), ValueError, "^no model$"),
        (broken(KeyboardInterrupt()), KeyboardInterrupt, None),
    ],
)
def test_a_fault_of_the_scorer_is_told_and_leaves_no_output(tmp_path, scorer, error, message):
    with pytest.raises(error, match=message):
        run(tmp_path, SEARCHES, relevance=scorer)
    assert [entry.name for entry in tmp_path.iterdir()] == ["logs"]


def test_many_pairs_stream_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("crops.engine.backend.BATCH_ROWS", 7)
    sizes, asked = [], []

    def sized(batches):
        for batch in FakeScorer(hashed)(batches):
            sizes.append(batch.num_rows)
            asked.extend(zip(batch["left_key"].to_pylist(), batch["right_key"].to_pylist(), strict=True))
            yield batch

    searches, feed = random_logs(seed=2)
    small, _ = run(tmp_path / "small", searches, feed, relevance=sized, similarity=FakeScorer(hashed))
    monkeypatch.undo()
    large, _ = run(
        tmp_path / "large", searches, feed, relevance=FakeScorer(hashed), similarity=FakeScorer(hashed)
    )
    assert len(sizes) > 5
    assert max(sizes) <= 7
    assert asked == sorted(set(asked))  # the same batches in every run, for scorers that depend on them
    assert small == large


@pytest.mark.parametrize("seed", [0, 1])
def test_row_order_and_threads_do_not_matter(tmp_path, monkeypatch, seed):
    searches, feed = random_logs(seed)
    rng = np.random.default_rng(seed)
    results = []
    for threads in (1, 4):
        limited = functools.partial(DuckDBBackend, threads=threads)
        monkeypatch.setattr(sys.modules["crops.engine.mine"], "DuckDBBackend", limited)
        results.append(
            run(
                tmp_path / str(threads),
                [searches[row] for row in rng.permutation(len(searches))],
                [feed[row] for row in rng.permutation(len(feed))],
                relevance=FakeScorer(hashed),
                similarity=FakeScorer(hashed),
                generated=[
                    {"query": "query 1", "ocr_cover": f"text {number}"} for number in rng.permutation(9)
                ],
                search={"max_clicked": 3, "max_exposed": 2, "max_unexposed": 2, "max_filtered": 2},
                feed={"max_items": 5, "window_s": 200, "relevance": 0.3},
                max_positives_per_user=3,
            )
        )
    assert results[0][0]["samples"]
    assert results[0] == results[1]


def test_p1_and_p2_equal_plain_loops(tmp_path):
    searches, feed = random_logs(seed=7, searches=60)
    tables, _ = run(
        tmp_path, searches, feed, feed={"max_items": 4, "window_s": 120}, max_positives_per_user=1000
    )
    events = {row["search_id"]: row for row in searches}
    consumed = {(row["search_id"], row["item_id"]) for row in searches if _consumed(row)}

    p1 = {
        (query_id(q["query"]), item, q["search_id"], query_id(r["query"]))
        for q in events.values()
        for r in events.values()
        if q["user_id"] == r["user_id"]
        and 0 < r["searched_at"] - q["searched_at"] <= 90_000_000
        and normalise_query(q["query"]) != normalise_query(r["query"])
        for search, item in consumed
        if search == r["search_id"]
    }
    got = evidence(tables, Source.REFORMULATION)
    assert {(row["query_id"], row["item_id"], row["search_id"], row["via_query_id"]) for row in got} == p1
    assert len(got) == len(p1) > 50

    p2 = set()
    users_of = {(q["user_id"], normalise_query(q["query"])) for q in events.values()}
    for user, text in users_of:
        near = sorted(
            (abs(f["watched_at"] - q["searched_at"]), f["watched_at"], q["search_id"], f["item_id"])
            for q in events.values()
            for f in feed
            if q["user_id"] == f["user_id"] == user
            and normalise_query(q["query"]) == text
            and f["play_ms"] >= 18_000
        )
        nearest = {}
        for distance, watched_at, search, item in near:
            if distance <= 120_000_000:
                nearest.setdefault(item, (distance, watched_at, item, search))
        chosen = sorted(nearest.values())[:4]
        p2 |= {(query_id(text), item, search, at) for _, at, item, search in chosen}
    got = evidence(tables, Source.FEED)
    assert {(row["query_id"], row["item_id"], row["search_id"], row["watched_at"]) for row in got} == p2
    assert len(got) == len(p2) > 50


def _consumed(row):
    return row["stage"] == "exposed" and (row["clicked"] or row["play_ms"] >= 18_000)  # all items last 30 s


def test_the_sql_keeps_to_the_common_subset(tmp_path, monkeypatch):
    """No construct that Spark lacks or answers differently; reading and writing files is the backend's."""
    statements = []
    for method in ("table", "append", "view", "map_batches", "arrow"):
        plain = getattr(DuckDBBackend, method)

        def spy(self, *given, plain=plain):
            if not given[0].startswith("log_"):
                statements.append(next(text for text in given if "select" in text).lower())
            return plain(self, *given)

        monkeypatch.setattr(DuckDBBackend, method, spy)
    run(tmp_path, *random_logs(seed=3), relevance=scores({}), similarity=scores({}))
    assert len(statements) > 15
    banned = re.compile(
        r"//|::|->|\bqualify\b|\bunnest\b|\basof\b|\blist_|\bhash\(|\binterval\b|\bepoch|\brange\b|\bexclude\b"
        r"|\b(semi|anti) join\b|\bas (left|right)\b|\bgroup by all\b|\bgroup by \d"
    )
    assert [text for text in statements if banned.search(text)] == []


def mine_plainly(logs, out, **settings):
    return mine(logs, out, EngineConfig.model_validate(settings), relevance=None, similarity=None)


def damaged(content: bytes) -> bytes:
    """Behind a sound footer."""
    return content[:4] + b"\xff" * 1996 + content[2000:]


@pytest.mark.parametrize(
    "change", [lambda content: content[:-20], damaged, None], ids=["cut", "damaged", "gone"]
)
def test_a_file_that_cannot_be_read_is_named_and_nothing_is_published(tmp_path, change):
    logs = write_logs(tmp_path / "logs", SEARCHES, [watched(1, item, item) for item in range(1, 900)])
    file = tmp_path / "logs" / "feed_events" / f"day={DAY}" / "0.parquet"
    file.write_bytes(change(file.read_bytes())) if change else file.unlink()
    with pytest.raises(CropsError, match=f"feed_events/day={DAY}/0.parquet"):
        mine_plainly(logs, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_clocks_that_disagree_lose_nothing(tmp_path):
    """Rows out of order, feed clocks ahead and far off: only what is in the windows counts."""
    searches = [clicked(2, 1, "b", 30, 2), shown(1, 1, "a", 0, 1)]
    feed = [watched(1, 5, 1700), watched(1, 4, -1700), watched(1, 3, 10)]
    late = {**watched(1, 6, 0), "watched_at": LATEST_US}
    tables, _ = run(tmp_path, searches, [*feed, late])
    assert set(labels(tables, ["a", "b"])) == {
        *(("a", item) for item in (1, 2, 3, 4, 5)),
        *(("b", item) for item in (2, 3, 4, 5)),
    }


def test_queries_of_any_length_and_of_control_characters(tmp_path):
    plain = ["x" * 100_000, "'; drop table samples; --", "\u202eright to left", "💥"]
    texts = [*plain, "null\u0000byte", "tab\tand\nline"]
    searches = [clicked(number, 1, text, 1000 * number, 1) for number, text in enumerate(texts, 1)]
    tables, _ = run(tmp_path, searches)
    assert {row["query"] for row in tables["queries"]} == {*plain, "null byte", "tab and line"}
    assert len(tables["samples"]) == len(texts)


def test_too_little_memory_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    feed = [watched(user, item, item) for user in range(1, 60) for item in range(1, 300)]
    searches = [shown(user * 1000 + n, user, f"q{n}", n, 1) for user in range(1, 60) for n in range(40)]
    logs = write_logs(tmp_path / "logs", searches, feed)
    monkeypatch.setattr("crops.engine.backend.duckdb_limit", lambda memory: 4_000_000)
    with pytest.raises(CropsError, match=r"engine.memory = '1MB' is not enough"):
        mine_plainly(logs, tmp_path / "out", memory="1MB")
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_a_full_disk_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    """The full device is met while tables are written; what was there before stays."""
    logs = write_logs(tmp_path / "logs", SEARCHES)
    mine_plainly(logs, tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    monkeypatch.setattr(
        "crops.engine.backend.open_parquet", lambda target, schema: open_parquet(Path("/dev/full"), schema)
    )
    with pytest.raises(CropsError, match="(?s)nothing was published.*No space left on device"):
        mine_plainly(logs, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "out"]
