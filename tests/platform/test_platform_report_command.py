"""`crops simulate` and `crops platform-report`, from settings to the page."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_platform_judged_world import DOCS, QRELS, QUERIES, write_collection
from typer.testing import CliRunner

import crops
from crops import pipeline
from crops.cli.app import app
from crops.cli.platform_report import platform_report
from crops.errors import CropsError
from crops.platform import ANCHORS, BUBBLE, ROUTES, platform_version

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


def test_the_deployed_models_serve_from_the_second_day_on(world):
    def shares(day: str) -> dict[str, float]:
        routes = pq.read_table(world / "logs" / "search_impressions" / f"day={day}")["routes"].to_numpy()
        return {name: float(np.mean((routes >> bit) & 1)) for bit, name in enumerate(ROUTES)}

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


def test_every_anchor_is_measured(world, report):
    measured = json.loads((report.parent / "realism.json").read_text())["first"]
    assert {anchor.name for anchor in ANCHORS} <= set(measured)
    assert set(BUBBLE) <= set(measured)
    for name in ("searches with a click", "bm25 recall@100/ct", "baseline recall@100/qr_truth"):
        assert 0 < measured[name] < 1, name
    assert all(value is None or value >= 0 for value in measured.values())


def test_the_page_shows_every_row_beside_its_source(world, report):
    page = report.read_text()
    for anchor in ANCHORS:
        assert anchor.name.replace("&", "&amp;") in page.replace("&#39;", "'"), anchor.name
    for words in ("KuaiSAR", "Excite 1997", "CosoBe", "CroPS, Table 2", platform_version()):
        assert words in page, words
    for name in BUBBLE:
        assert name in page.replace("&#39;", "'"), name
    assert page.count("<svg") >= 3
    assert not re.search(r'(src|href)="https?:', page)
    assert "<script" not in page


def test_a_world_is_evaluated_once(world, report, settings, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(sys.modules["crops.cli.platform_report"], "_evaluate_old_system", never)
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


def test_two_worlds_of_one_name_are_refused(world, settings, tmp_path):
    with pytest.raises(CropsError, match="same folder name"):
        platform_report([world, tmp_path / "first"], out=tmp_path / "out", config=settings)


def test_a_folder_that_is_no_world_is_refused(tmp_path, settings):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CropsError, match=r"not an output of `crops simulate`"):
        platform_report([tmp_path / "empty"], out=tmp_path / "out", config=settings)


def test_both_commands_explain_their_dials():
    runner = CliRunner()
    simulate = runner.invoke(app, ["simulate", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    for option in ("--size", "--days", "--world", "--bubble", "--click-model", "--null", "--seed"):
        assert option in simulate, option
    assert "--out" in runner.invoke(app, ["platform-report", "--help"], env={"COLUMNS": "200"}).output


def test_a_judged_collection_runs_through_the_command(tmp_path, settings, monkeypatch):
    folder = write_collection(tmp_path / "collection", [*DOCS, ("d9", None, " ")], QUERIES, QRELS)
    monkeypatch.setattr(pipeline, "_train_deployed", lambda *_: "bm25")
    out = crops.simulate(tmp_path / "judged", config=settings, world=str(folder))
    rejects = pq.read_table(out / "rejects" / "judged.parquet").to_pylist()
    assert rejects == [{"table": "docs", "row": 6, "reason": "empty_text"}]
    assert len(pq.read_table(out / "logs" / "items.parquet")) == 6
    heads = pq.read_table(out / "truth" / "needs.parquet")["head"].to_pylist()
    assert sorted(heads) == ["boots", "boots", "oak"]
