"""Data that users bring: a judged collection, and raw logs with faults."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import crops
from crops.cli.app import app
from crops.errors import CropsError

TOPICS = {
    "water": "watering a ficus tree every week with a small can",
    "prune": "pruning shears cut the long branches of a bonsai",
    "bread": "sourdough bread with a crisp crust from a hot oven",
    "chord": "three easy guitar chords for a campfire song",
    "braid": "a dutch braid for short hair in five minutes",
}


@pytest.fixture
def judged(tmp_path):
    folder = tmp_path / "judged"
    folder.mkdir()
    docs = [(f"d{name}{i}", f"{text} part {i}") for name, text in TOPICS.items() for i in range(3)]
    queries = [
        (f"q{name}{i}", f"{' '.join(text.split()[:3])} {i}")
        for name, text in TOPICS.items()
        for i in range(2)
    ]
    qrels = [
        (q, d, 2 if q[1:6] == d[1:6] else 0)
        for q, _ in queries
        for d, _ in docs
        if q[1:6] == d[1:6] or d[-1] == "0"
    ]
    qrels.append(("qwater0", "nowhere", 2))
    tables = {
        "docs": (docs, ("doc_id", "text")),
        "queries": (queries, ("query_id", "text")),
        "qrels": (qrels, ("query_id", "doc_id", "grade")),
    }
    for name, (rows, columns) in tables.items():
        values = dict(zip(columns, zip(*rows, strict=True), strict=True))
        pq.write_table(pa.table(values), folder / f"{name}.parquet")
    return folder


def test_judged_demo_compares_both_losses_by_query(judged, tmp_path):
    settings = tmp_path / "run.toml"
    settings.write_text("[training]\nsteps = 3\n[evaluation]\nresamples = 100\nrecall_k = 3\n")
    page = crops.demo(tmp_path / "out", judged=judged, config=settings).read_text()
    assert "unknown_doc" in page
    summary = json.loads((tmp_path / "out" / "evaluation" / "summary.json").read_text())
    assert list(summary) == ["BM25", "minilm, untrained", "static, untrained", "infonce_binary", "h_infonce"]
    # every query is tested once, by a model of another fold
    assert {one["recall@3"]["n"] for one in summary.values()} == {10}
    # the queries repeat the words of their documents: the words alone find all three
    assert summary["BM25"]["recall@3"]["mean"] == 1.0
    assert len(list((tmp_path / "out" / "models").iterdir())) == 10


def test_raw_logs_are_checked_before_they_are_mined(tmp_path, write_logs):
    rows = [
        {"search_id": 1, "query": "bow", "item_id": 1, "clicked": True, "rank": 1},
        {"search_id": 1, "query": "bow", "item_id": 2, "rank": 0},
        {"search_id": 2, "query": "bat", "item_id": 2, "rank": 1},
    ]
    logs = write_logs(tmp_path / "logs", impressions=rows)
    report = crops.mine(logs, tmp_path / "mined", sources="search")
    assert report["input"]["searches"] == 2
    rejected = pq.read_table(tmp_path / "mined.checked" / "rejects" / "search_impressions")
    assert rejected["reasons"].to_pylist() == [["rank_not_positive"]]
    samples = pq.read_table(tmp_path / "mined" / "samples.parquet").to_pylist()
    assert sorted((row["item_id"], row["label"]) for row in samples) == [(1, 4), (2, 3)]
    assert "no unexposed documents in the logs: label 2 is absent" in report["notes"]


def test_check_prints_each_fault_with_its_remedy(tmp_path, write_logs):
    logs = write_logs(tmp_path / "logs", impressions=[{}, {"search_id": 2, "searched_at": 1_767_614_400}])
    result = CliRunner().invoke(app, ["check", str(logs), str(tmp_path / "checked")])
    assert result.exit_code == 0
    assert (tmp_path / "checked" / "accepted" / "items.parquet").exists()
    report = json.loads((tmp_path / "checked" / "report.json").read_text())
    assert [fault["reason"] for fault in report["faults"]] == ["time_unit"]


def test_logs_without_anything_usable_stop_with_the_reason(tmp_path, write_logs):
    logs = write_logs(tmp_path / "logs", impressions=[{"query": " "}])
    with pytest.raises(CropsError, match="nothing usable is left"):
        crops.mine(logs, tmp_path / "mined")
    assert not (tmp_path / "mined").exists()
