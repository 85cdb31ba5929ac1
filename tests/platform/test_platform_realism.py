"""Does the platform look real: the figures of a log by hand, and the command that compares them."""

import html
import json
import math
import re
import statistics
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_platform_judged_world import DOCS, QRELS, QUERIES, write_collection

import crops
from crops import simulation
from crops.cli.simulate import platform_report
from crops.errors import CropsError
from crops.platform import ANCHORS, BUBBLE, ROUTES, Anchor, Days, distributions, observe, platform_version

NOON = 1_767_614_400_000_000
DAY = 86_400_000_000
DAYS = Days("2026-01-05", "2026-01-06")
TWO_ROUTES = ("bm25", "dense")
BM25, DENSE = 1, 2


def shown(search, user, query, item, at, **more):
    row = {"search_id": search, "user_id": user, "query": query, "item_id": item, "searched_at": at}
    return row | {"rank": 1, "routes": BM25} | more


TRAIN_ROWS = [
    shown(1, 1, "bow", 1, NOON),
    shown(1, 1, "bow", 2, NOON, rank=2, clicked=True, play_ms=5_000),
]
TEST_ROWS = [
    # user 1 searches bow, pages 10 s later, rewords 30 s after that, and comes back an hour later
    shown(11, 1, "Bow", 1, NOON + DAY, clicked=True, play_ms=18_000),
    shown(11, 1, "Bow", 3, NOON + DAY, rank=2, routes=BM25 | DENSE, clicked=True, play_ms=4_000),
    shown(11, 1, "Bow", 4, NOON + DAY, stage="unexposed", rank=None, routes=DENSE),
    shown(11, 1, "Bow", 5, NOON + DAY, stage="filtered", rank=None, routes=DENSE),
    shown(12, 1, "ＢＯＷ  ", 5, NOON + DAY + 10_000_000),  # full-width: the same query
    shown(13, 1, "tie a bow", 3, NOON + DAY + 40_000_000),
    shown(14, 1, "knot", 2, NOON + DAY + 3_600_000_000, clicked=True, play_ms=9_000),
    # user 2 searches the new query once
    shown(15, 2, "knot", 2, NOON + DAY),
]
FEED = [
    {"user_id": 1, "item_id": 1, "watched_at": NOON + DAY, "play_ms": 10_000, "duration_ms": 40_000},
    {"user_id": 1, "item_id": 2, "watched_at": NOON + DAY, "play_ms": 18_000, "duration_ms": 30_000},
    {"user_id": 2, "item_id": 3, "watched_at": NOON + DAY, "play_ms": 9_000, "duration_ms": 9_000},
    {"user_id": 2, "item_id": 3, "watched_at": NOON, "play_ms": 1, "duration_ms": 9_000},
    # a length of 0 is unknown: the exposure is no long view, and has no share
    {"user_id": 2, "item_id": 4, "watched_at": NOON + DAY, "play_ms": 0, "duration_ms": 0},
    {"user_id": 2, "item_id": 5, "watched_at": NOON + DAY, "play_ms": None, "duration_ms": 9_000},
]
ITEMS = [{"item_id": item, "duration_ms": 20_000} for item in range(1, 201)]


def write_truth(folder):
    folder.mkdir()
    tables = {
        # bow the weapon and bow the ribbon, and a need of another head
        "needs": {
            "need_id": [0, 1, 2],
            "head": ["bow", "bow", "knot"],
            "sense": ["archery", "ribbon", "rope"],
        },
        "searches": {"search_id": [1, 11, 12, 13, 14, 15], "need_id": [0, 0, 0, 1, 2, 2]},
        "items": {"item_id": [1, 2, 3, 4, 5], "need_id": [0, 2, 1, 0, 0]},
        "grades": {"need_id": [0, 0, 0, 1, 2], "item_id": [1, 4, 3, 3, 2], "grade": [3, 2, 1, 2, 3]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def hand_logs(tmp_path_factory, write_logs):
    folder = tmp_path_factory.mktemp("it's a world")  # a quote must not break the queries
    logs = write_logs(folder / "logs", items=ITEMS, impressions=TRAIN_ROWS + TEST_ROWS, feed=FEED)
    return logs, write_truth(folder / "truth")


@pytest.fixture(scope="module")
def figures(hand_logs):
    return observe(hand_logs[0], DAYS, TWO_ROUTES, hand_logs[1])


BY_HAND = {
    "searches": 5,
    "queries": 3,  # bow, tie a bow, knot: neither case nor width nor space counts
    "searches with a click": 2 / 5,
    "clicks per search": 3 / 5,
    "CTR at rank 1": 2 / 5,
    "CTR at rank 2": 1,
    "CTR at rank 3": math.nan,
    # (11, 12) is the same text again, (12, 13) a reformulation 30 s later; (13, 14) is an hour apart
    "same query again, of pairs within 90 s": 1 / 2,
    "reworded by the next search within 90 s, of searches": 1 / 5,
    "median gap of reformulations, s": 30,
    "test searches whose query is new": 3 / 5,
    "test queries that are new": 2 / 3,
    # of two clicks for a query that training knows (bow), one is on an item that it was not shown then
    "test clicks on items not shown for the query in training": 1 / 2,
    # six exposures on the test day; 1 % of 200 items are two: items 2 and 3 with two each
    "exposure that the top 1 % of items get": 4 / 6,
    "catalogue shown in search so far": 4 / 200,  # 1, 2, 3, 5
    "exposure that the query's top 10 items get": math.nan,  # no query has 20 searches
    # ranked on the test day: 6 shown and item 4; the filtered one does not count
    "ranked set found by dense": 2 / 7,
    "ranked set found by bm25": 6 / 7,
    "shown set found by dense": 1 / 6,
    "feed: mean share of a video watched": (0.25 + 0.6 + 1) / 3,
    # 18 s of 30 s and all of 9 s are long, 10 s of 40 s is not, nor is what has no length or was not played
    "feed: long views": 2 / 5,
    "search: long plays, of clicks": 1 / 3,
}
BY_TRUTH = {
    # shown on the test day (search:item): grade 3 (11:1, 14:2 clicked, 15:2 not), 2 (13:3), 1 (11:3, clicked)
    "P(click | shown, grade 0)": 0,
    "P(click | shown, grade 1)": 1,
    "P(click | shown, grade 2 or 3)": 2 / 4,
    # bow shows archery (1, 5) and ribbon (3); knot, the other head, shows rope
    "senses shown per ambiguous query": (2 + 1) / 2,
    # bow wants 1 and 4, shown: 1; tie a bow wants 3, shown; knot wants 2, shown
    "relevant items that the query was ever shown": 3 / 4,
}


def test_figures_by_hand(hand_logs, figures):
    known = BY_HAND | BY_TRUTH
    assert {name: figures[name] for name in known} == pytest.approx(known, nan_ok=True)
    told = observe(hand_logs[0], DAYS, TWO_ROUTES)  # without the truth
    assert set(figures) - set(told) == set(BY_TRUTH)
    assert told == pytest.approx({name: figures[name] for name in told}, nan_ok=True)


def test_the_law_of_frequencies(tmp_path, write_logs):
    # frequencies 16, 8, 4, 2 at places 1 to 4: the slope of the logarithms is known
    rows = [
        shown(100 * place + one, one + 1, f"query {place}", 1, NOON + DAY)
        for place, count in enumerate((16, 8, 4, 2))
        for one in range(count)
    ]
    logs = write_logs(tmp_path / "logs", items=ITEMS, impressions=[*TRAIN_ROWS, *rows], feed=FEED)
    x = [math.log(place) for place in (1, 2, 3, 4)]
    y = [math.log(count) for count in (16, 8, 4, 2)]
    slope = statistics.linear_regression(x, y).slope
    assert observe(logs, DAYS, TWO_ROUTES)["exponent of the query frequency law"] == pytest.approx(-slope)
    # 20 searches of one query show 11 items: nine of them twice and two once; a lighter query does not count
    items = [*range(1, 11), *range(1, 10), 11]
    rows = [shown(n, n, "heavy", item, NOON + DAY, rank=1) for n, item in enumerate(items, start=1)]
    rows += [shown(100, 50, "light", 99, NOON + DAY)]
    logs = write_logs(tmp_path / "heavy", items=ITEMS, impressions=[*TRAIN_ROWS, *rows], feed=FEED)
    found = observe(logs, DAYS, TWO_ROUTES)["exposure that the query's top 10 items get"]
    assert found == pytest.approx(19 / 20)


def test_curves_by_hand(hand_logs):
    curves = distributions(hand_logs[0], DAYS)
    assert curves["CTR by rank"] == ([1.0, 2.0], [pytest.approx(2 / 5), 1.0])
    assert curves["Gaps between a search and its reformulation (share of pairs)"] == ([30.0], [1.0])
    x, y = curves["Share of a feed video watched (share of views)"]
    assert x == pytest.approx([0.2, 0.6, 0.9])
    assert y == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    x, y = curves["Query frequency (log10 of searches by log10 of place)"]
    assert (x[0], y[0]) == (0.0, pytest.approx(math.log10(2)))


def test_anchors_are_measured_and_hold_inside_their_range_only(figures):
    bands = {anchor.name: (anchor.low, anchor.high) for anchor in ANCHORS}
    assert len(bands) == len(ANCHORS)
    papers = {
        "bm25 recall@100/ct": (0.35, 0.50),
        "bm25 recall@100/qr": (0.17, 0.30),
        "baseline recall@100/ct": (0.50, 0.70),
        "baseline recall@100/qr": (0.25, 0.40),
        "ranked set found by dense": (0.20, 0.40),
        "ranked set found by sparse": (0.14, 0.28),
    }
    assert bands | papers == bands
    for anchor in ANCHORS:
        assert (anchor.low is None) == (anchor.high is None) == (anchor.figure == "-"), anchor.name
        if anchor.low is not None and anchor.high is not None:
            assert 0 <= anchor.low <= float(anchor.figure) <= anchor.high <= 1
            assert anchor.source
    by_logs = {name for name in bands if not name.startswith(("bm25 ", "baseline "))}
    assert by_logs | set(BUBBLE) <= {*figures, "ranked set found by sparse"}
    anchor = Anchor("row", "0.5", "source", 0.4, 0.6)
    values = {0.39: False, 0.4: True, 0.6: True, 0.61: False, math.nan: False, math.inf: False}
    assert {value: anchor.holds(value) for value in values} == values
    assert Anchor("row", "-", "none").holds(0.5) is None


SETTINGS = """
seed = 1
[platform]
size = "tiny"
sessions = 60
[training]
steps = 4
batch_queries = 16
dim = 16
[evaluation]
resamples = 100
max_ct = 50
max_qr = 50
max_annotated = 20
[relevance]
model = "none"
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "run.toml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory, settings) -> Path:
    return crops.simulate(tmp_path_factory.mktemp("simulated") / "first", config=settings)


@pytest.fixture(scope="module")
def report(world, settings) -> Path:
    return platform_report([world], out=world.parent / "realism", config=settings)


def test_a_world_is_logs_truth_and_the_deployed_model(world):
    assert {path.name for path in world.iterdir()} == {
        "logs", "truth", "deployed_model", "manifest.json", "config.toml",
    }  # fmt: skip
    days = ["day=2026-01-05", "day=2026-01-06", "day=2026-01-07", "day=2026-01-08"]
    for table in ("search_impressions", "feed_events"):
        assert sorted(path.name for path in (world / "logs" / table).iterdir()) == days
    manifest = json.loads((world / "manifest.json").read_text())
    assert manifest["platform"] == platform_version()
    assert manifest["routes"] == list(ROUTES)
    assert manifest["days"] == {"warm_up": "2026-01-05", "train": "2026-01-06", "test": "2026-01-08"}
    assert manifest["seed"] == 1
    trained = json.loads((world / "deployed_model" / "manifest.json").read_text())
    assert trained["command"] == "train"
    assert not {"samples", "made_in"} & set(trained)  # of folders that are gone

    def shares(day: str) -> dict[str, float]:
        routes = pq.read_table(world / "logs" / "search_impressions" / f"day={day}")["routes"].to_numpy()
        return {name: float(np.mean((routes >> bit) & 1)) for bit, name in enumerate(ROUTES)}

    # the deployed models serve from the second day on
    first, later = shares("2026-01-05"), shares("2026-01-06")
    assert first["dense"] == first["sparse"] == first["co_click"] == first["similar"] == 0
    for name in ("dense", "sparse", "co_click", "similar", "bm25", "personal", "explore"):
        assert later[name] > 0, name


def test_counters_are_as_of_the_training_day(world):
    items = pq.read_table(world / "logs" / "items.parquet").to_pandas()
    test_day = pq.read_table(world / "logs" / "search_impressions" / "day=2026-01-08").to_pandas()
    train_days = [
        pq.read_table(world / "logs" / "search_impressions" / f"day=2026-01-0{day}").to_pandas()
        for day in (5, 6)
    ]
    known = {query for day in train_days for query in day["query"][day.clicked]}
    kept = {query for text in items.click_query.dropna() for query in text.split("|")}
    assert kept <= known
    assert not set(test_day["query"][test_day.clicked]) <= known  # there was more to know


def test_every_anchor_is_measured_and_shown_beside_its_source(world, report, settings, tmp_path):
    measured = json.loads((report.parent / "realism.json").read_text())["first"]
    names = {anchor.name for anchor in ANCHORS} | set(BUBBLE)
    assert names <= set(measured)
    for name in ("searches with a click", "bm25 recall@100/ct", "baseline recall@100/qr_truth"):
        assert 0 < measured[name] < 1, name
    assert all(value is None or value >= 0 for value in measured.values())
    page = html.unescape(report.read_text())
    for words in (*names, "KuaiSAR", "Excite 1997", "CosoBe", "CroPS, Table 2", platform_version()):
        assert words in page, words
    assert page.count("<svg") >= 3
    assert not re.search(r'(src|href)="https?:|<script', page)
    (tmp_path / "empty").mkdir()
    for folders, message in (
        ([world, tmp_path / "first"], "same folder name"),
        ([tmp_path / "empty"], r"not an output of `crops simulate`"),
    ):
        with pytest.raises(CropsError, match=message):
            platform_report(folders, out=tmp_path / "out", config=settings)


def test_a_world_is_evaluated_once(world, report, settings, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(sys.modules["crops.cli.simulate"], "_evaluate_old_system", never)
    before = (report.parent / "realism.json").read_text()
    platform_report([world], out=world.parent / "realism", config=settings)
    assert (report.parent / "realism.json").read_text() == before
    manifest = world / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"seed": 1', '"seed": 2'))
    try:
        with pytest.raises(AssertionError, match="evaluated again"):
            platform_report([world], out=world.parent / "realism", config=settings)
    finally:
        manifest.write_text(text)


def test_a_judged_collection_runs_through_the_command(tmp_path, settings, monkeypatch):
    folder = write_collection(tmp_path / "collection", [*DOCS, ("d9", None, " ")], QUERIES, QRELS)
    monkeypatch.setattr(simulation, "_train_deployed", lambda *_: "bm25")
    out = crops.simulate(tmp_path / "judged", config=settings, world=str(folder))
    rejects = pq.read_table(out / "rejects" / "judged.parquet").to_pylist()
    assert rejects == [{"table": "docs", "row": 6, "reason": "empty_text"}]
    assert len(pq.read_table(out / "logs" / "items.parquet")) == 6
    heads = pq.read_table(out / "truth" / "needs.parquet")["head"].to_pylist()
    assert sorted(heads) == ["boots", "boots", "oak"]
