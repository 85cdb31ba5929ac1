"""The whole house on a tiny platform, through the commands that a user types."""

import json
import re
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

import crops
from crops import simulation
from crops.cli import main
from crops.cli.app import app
from crops.cli.serve import is_demo
from crops.cli.simulate import choose_arms
from crops.config import load_config
from crops.errors import CropsError
from crops.labels import SEARCH_SOURCES, Source

SETTINGS = """
seed = 3
[platform]
size = "tiny"
[training]
steps = 4
batch_queries = 16
dim = 16
[evaluation]
resamples = 100
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "run.toml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory, settings) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    crops.demo(out, config=settings)
    return out


def test_demo_writes_a_report_with_every_arm(demo):
    page = (demo / "report.html").read_text()
    rows = ("BM25", "deployed", "baseline: search labels only", "+ P1", "P2", "ours: recommended")
    for words in (*rows, "true recall@100"):
        assert words in page
    # As many of the four rules as find a query of five people in so small a world.
    assert 1 <= page.count('<article class="case">') <= 4
    assert "How the bubble forms" in page
    assert not re.search(r'(src|href)="https?:', page)


def test_every_output_of_the_demo_is_whole_and_says_what_made_it(demo):
    for folder in ("world", "checked", "samples", "evaluation"):
        manifest = json.loads((demo / folder / "manifest.json").read_text())
        assert manifest["versions"]["duckdb"]
        assert (demo / folder / "config.toml").exists()
    assert json.loads((demo / "world" / "manifest.json").read_text())["seed"] == 3
    # simulated logs pass their own check
    report = json.loads((demo / "checked" / "report.json").read_text())
    assert report["faults"] == []
    counts = report["tables"]["search_impressions"]
    assert counts["rows"] == counts["accepted"] > counts["rejected"] == 0
    sources = pq.read_table(demo / "samples" / "samples.parquet")["sources"].to_pylist()
    assert any(one & int(Source.FEED) for one in sources)
    models = sorted((demo / "models").iterdir())
    assert f"{int(SEARCH_SOURCES):03d}" in [path.name for path in models]
    for path in models:
        assert len((path / "training_log.jsonl").read_text().splitlines()) == 4
    # a model is a plain SentenceTransformer; generated documents are in no index
    encode = SentenceTransformer(str(models[0])).encode
    query, same, other = encode(["why do transformers hum", "why do transformers hum", "sourdough"])
    assert query @ same == pytest.approx(1.0, abs=1e-5)
    assert query @ other < 0.9
    hits = crops.search(str(models[0]), "transformer", items=demo / "samples", k=50)
    assert len(hits) == 50
    assert min(int(item) for item, _, _ in hits) > 0
    day = json.loads((demo / "samples" / "report.json").read_text())["days"][0]
    with pytest.raises(CropsError, match=f"mined from {day}"):
        crops.evaluate(["bm25"], demo / "checked" / "accepted", day=day, samples=demo / "samples")


def test_search_and_evaluate_from_the_shell(demo, settings):
    runner = CliRunner()
    accepted = str(demo / "checked" / "accepted")
    found = runner.invoke(app, ["search", "bm25", "transformer", "--items", accepted, "--k", "3"])
    assert found.exit_code == 0, found.output
    result = runner.invoke(
        app,
        ["evaluate", "bm25", "--logs", accepted, "--truth", str(demo / "world" / "truth"),
         "--samples", str(demo / "samples"), "--config", str(settings), "--out", str(demo / "again")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = json.loads((demo / "again" / "summary.json").read_text())["bm25"]
    before = json.loads((demo / "evaluation" / "summary.json").read_text())["BM25"]
    # With the samples also by age, frequency and what had been shown.
    assert {metric: summary[metric] for metric in before} == before
    assert {"mrr@100/ct", "never_shown@100", "senses@100"} <= summary.keys() - before.keys()


def test_an_unknown_encoder_is_refused_before_a_world_is_made(tmp_path):
    (tmp_path / "run.toml").write_text('[training]\nencoder = "statik"\n')
    for command in (crops.demo, crops.experiment):
        with pytest.raises(CropsError, match="Did you mean 'static'"):
            command(out=tmp_path / "out", config=tmp_path / "run.toml")
    assert not (tmp_path / "out").exists()


def test_few_generated_documents_leave_p3_untested():
    arms, not_tested = choose_arms(0.049)
    assert list(arms) == ["baseline: search labels only", "+ P1", "P1 + P2"]
    assert "4.9 %" in not_tested["+ P3"]
    arms, not_tested = choose_arms(0.05)
    assert list(arms)[-1] == "+ P3 = CroPS"
    assert arms["+ P3 = CroPS"] == SEARCH_SOURCES | Source.REFORMULATION | Source.FEED | Source.KNOWLEDGE
    assert not not_tested


def test_settings_name_the_nearest_known_key(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[training]\nlearning_rte = 0.1\n")
    with pytest.raises(CropsError, match=r"training\.learning_rte.*Did you mean 'learning_rate'"):
        load_config(path)
    path.write_text("[training]\nsteps = 0\n")
    with pytest.raises(CropsError, match=r"training\.steps"):
        load_config(path)


def test_bad_input_ends_with_a_message_and_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["crops", "check", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "error:" in said
    assert "Traceback" not in said


def test_ctrl_c_in_the_simulation_leaves_nothing(tmp_path, settings, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulation, "write_truth", interrupted)
    monkeypatch.setattr(simulation, "_train_deployed", lambda *_: "minilm")
    monkeypatch.setattr(simulation, "load_retriever", FirstItems)
    with pytest.raises(KeyboardInterrupt):
        crops.simulate(tmp_path / "world", config=settings)
    assert list(tmp_path.iterdir()) == []


class FirstItems:
    """A retriever that finds the first items, whatever it is asked."""

    def __init__(self, *_: object) -> None:
        pass

    def search(self, queries, k):
        return np.tile(np.arange(1, k + 1), (len(queries), 1)), np.ones((len(queries), k))


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
    short = {name: " ".join(text.split()[:3]) for name, text in TOPICS.items()}
    docs = [(f"d{name}{i}", f"{text} part {i}") for name, text in TOPICS.items() for i in range(3)]
    queries = [(f"q{name}{i}", f"{text} {i}") for name, text in short.items() for i in range(2)]
    pairs = [(q, d, q[1:6] == d[1:6]) for q, _ in queries for d, _ in docs]
    qrels = [(q, d, 2 * same) for q, d, same in pairs if same or d[-1] == "0"]
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


def test_judged_demo_compares_both_losses_by_query(judged, tmp_path, monkeypatch):
    """In two folds; `tests/docs/test_docs_examples.py` has all five."""
    monkeypatch.setattr(sys.modules[choose_arms.__module__], "FOLDS", 2)
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
    assert len(list((tmp_path / "out" / "models").iterdir())) == 4


def test_a_demo_that_stops_leaves_nothing_of_the_former_beside_a_new_world(demo, tmp_path, monkeypatch):
    settings, out = tmp_path / "run.toml", tmp_path / "out"
    settings.write_text(SETTINGS.replace('"tiny"', '"tiny"\nsessions = 50'))
    shutil.copytree(demo, out)
    assert is_demo(out)
    (out / "models" / "my own").mkdir()
    monkeypatch.setattr("crops.cli.simulate.mine_day", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        crops.demo(out, config=settings, seed=4)
    left = {path.name for path in out.iterdir()}
    assert {"checked", "world"} <= left
    assert left.isdisjoint({"samples", "recommended", "evaluation", "report.html"})
    assert [path.name for path in (out / "models").iterdir()] == ["my own"]
    assert not is_demo(out)
