from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from handmade import DAY, FakeScorer, clicked, evidence, labels, run, scores, shown, watched
from random_logs import random_logs

from crops.engine.backend import DuckDBBackend
from crops.engine.mine import TABLES
from crops.errors import CropsError
from crops.labels import Source
from crops.schema import ARROW_TYPES, EVIDENCE, ITEMS, QUERIES, SAMPLES, SYNTHETIC_ITEMS
from crops.text import query_id


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
        },
        "labels": {"5": 1, "4": 7, "1": 1},
        "novelty": {
            "p0": {"positives": 4, "never_shown": 0, "share": 0.0},
            "p1": {"positives": 1, "never_shown": 1, "share": 1.0},
            "p2": {"positives": 2, "never_shown": 2, "share": 1.0},
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
    _, report = run(tmp_path, [clicked(1, 1, "q", 0, 1)], seed=3)
    out = tmp_path / "mined"
    for table in (SAMPLES, QUERIES, EVIDENCE, ITEMS, SYNTHETIC_ITEMS):
        schema = pq.read_schema(out / f"{table.name}.parquet")
        assert schema.names == table.names()
        assert schema.types == [ARROW_TYPES[column.type] for column in table.columns]
    assert json.loads((out / "report.json").read_text()) == report
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["command"] == "mine"
    assert manifest["seed"] == 3
    assert "seed = 3" in (out / "config.toml").read_text()


def test_samples_are_sorted(tmp_path):
    searches, feed = random_logs(seed=1)
    tables, _ = run(tmp_path, searches, feed)
    keys = [(row["query_id"], row["item_id"]) for row in tables["samples"]]
    assert keys == sorted(set(keys))
    assert [row["query_id"] for row in tables["queries"]] == sorted(
        row["query_id"] for row in tables["queries"]
    )


def test_exposed_only_logs_lack_labels_two_and_one_and_say_so(tmp_path):
    tables, report = run(tmp_path, [clicked(1, 1, "q", 0, 1), shown(1, 1, "q", 0, 2)])
    assert sorted(row["label"] for row in tables["samples"]) == [3, 4]
    assert report["notes"][:2] == [
        "no unexposed documents in the logs: label 2 is absent",
        "no filtered documents in the logs: label 1 is absent",
    ]


def test_without_scorers_the_filters_are_skipped_and_the_report_says_so(tmp_path):
    searches = [shown(1, 1, "a", 0, 1), clicked(2, 1, "b", 30, 2)]
    tables, report = run(tmp_path, searches, [watched(1, 3, 5)])
    assert labels(tables, ["a", "b"])["a", 2] == (5, Source.REFORMULATION)
    assert evidence(tables, Source.REFORMULATION)[0]["theta"] is None
    assert report["sources"]["p1"]["theta"] == report["sources"]["p2"]["theta"] == "none"
    assert report["sources"]["p1"]["similarity"] == "none"
    assert "P1: theta = none, candidates are not filtered by relevance" in report["notes"]
    assert "P2: theta = none, candidates are not filtered by relevance" in report["notes"]
    assert "P1: later queries are not filtered by similarity" in report["notes"]


def test_days_are_a_setting(tmp_path):
    searches = [clicked(1, 1, "a", 0, 1), clicked(2, 1, "b", 86_400, 2)]
    tables, report = run(tmp_path, searches, days=("2026-01-06", "2026-01-07"))
    assert report["days"] == ["2026-01-06"]
    assert "no searches on 2026-01-07" in report["notes"]
    assert list(labels(tables, ["b"])) == [("b", 2)]
    with pytest.raises(CropsError, match="2026-01-09"):
        run(tmp_path / "late", searches, days=("2026-01-09",))


def test_an_unknown_source_is_named(tmp_path):
    with pytest.raises(CropsError, match="unknown source 'p4'"):
        run(tmp_path, [clicked(1, 1, "a", 0, 1)], sources=("search", "p4"))


def drop_last(batches):
    for batch in scores({})(batches):
        yield batch.slice(0, batch.num_rows - 1)


@pytest.mark.parametrize(
    "scorer",
    [drop_last, FakeScorer(lambda left, right: float("nan")), FakeScorer(lambda left, right: 1.5)],
    ids=["rows lost", "NaN", "above 1"],
)
def test_a_scorer_that_breaks_its_contract_is_refused(tmp_path, scorer):
    searches = [shown(1, 1, "a", 0, 1), clicked(2, 1, "b", 30, 2)]
    with pytest.raises(CropsError, match=r"scorer of theta gave 0 probabilities for 1 pairs"):
        run(tmp_path, searches, relevance=scorer)


@pytest.mark.parametrize("error", [ValueError("no model"), KeyboardInterrupt()])
def test_an_exception_of_the_scorer_arrives_unchanged_and_leaves_no_output(tmp_path, error):
    def broken(batches):
        next(batches)
        raise error
        yield

    searches = [shown(1, 1, "a", 0, 1), clicked(2, 1, "b", 30, 2)]
    with pytest.raises(type(error)) as caught:
        run(tmp_path, searches, relevance=broken)
    assert caught.value is error
    assert [entry.name for entry in tmp_path.iterdir()] == ["logs"]
