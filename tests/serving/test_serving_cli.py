"""`crops serve`: what it opens, and what it refuses to start with."""

import copy
import importlib
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served_world import MODELS, fake_load_model
from typer.testing import CliRunner

from crops import retrieval
from crops.cli.app import app
from crops.config import ServingConfig
from crops.errors import CropsError
from crops.labels import SEARCH_SOURCES
from crops.retrieval import open_index
from crops.serving import app as server
from crops.serving import service as service_module
from crops.serving.searcher import Job

serve_module = importlib.import_module("crops.cli.serve")
demo_indexes = serve_module.demo_indexes


@pytest.fixture
def served(monkeypatch, fake_models):
    """What the server would have been started with."""
    calls = []
    monkeypatch.setattr(server, "run", lambda service, key: calls.append((service, key)))
    return calls


def run(*arguments, **environment):
    port = () if "--port" in arguments else ("--port", 0)
    return CliRunner().invoke(app, ["serve", *map(str, (*arguments, *port))], env=environment)


def test_options_reach_the_server(world, served, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("[serving]\nmax_k = 50\nport = 1\n")
    options = ("--baseline", world / "old", "--samples", world / "samples", "--port", 9999)
    more = ("--shown-users", 4, "--config", config)
    result = run(world / "new", *options, *more, CROPS_API_KEY="from the environment")
    assert result.exit_code == 0, result.output
    service, key = served[0]
    assert key == "from the environment"
    assert (service.config.port, service.config.max_k, service.evidence.k) == (9999, 50, 4)
    assert set(service.slots) == {"baseline", "index"}


def refusal(*arguments):
    result = run(*arguments)
    assert result.exit_code != 0
    assert isinstance(result.exception, CropsError), result.exception
    return str(result.exception)


def test_what_is_missing_is_named_before_the_server_starts(world, served, tmp_path):
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")
    assert "mine" in refusal(world / "new", "--samples", tmp_path)
    assert "truth" in refusal(world / "new", "--truth", tmp_path)
    assert "gone" in refusal(world / "new", "--samples", world / "samples", "--logs", tmp_path / "gone")
    assert "prt" in refusal(world / "new", "--config", _toml(tmp_path, "[serving]\nprt = 1\n"))
    assert served == []


def test_a_taken_port_is_told_before_anything_is_loaded(tmp_path, served):
    with server.listen(ServingConfig(port=0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1 port {port}" in refusal(tmp_path / "nowhere", "--port", port)
    assert served == []


@pytest.mark.parametrize("key", ["", " ", "secret\n"])
def test_an_empty_key_is_no_open_server(world, served, key):
    for result in (run(world / "new", CROPS_API_KEY=key), run(world / "new", "--api-key", key)):
        assert isinstance(result.exception, CropsError)
        assert "CROPS_API_KEY" in str(result.exception)
    assert served == []


def test_a_missing_model_folder_is_named(world, tmp_path, monkeypatch):
    """With the real loader: the index names a model that is not there."""
    monkeypatch.setattr(service_module, "load_model", retrieval.load_model)
    folder = shutil.copytree(world / "new", tmp_path / "index")
    manifest = folder / "versions" / "000001" / "manifest.json"
    gone = str(tmp_path / "model")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "model": gone}))
    assert gone in refusal(folder)


def test_another_model_is_refused(world, served, monkeypatch):
    monkeypatch.setattr(service_module, "load_model", lambda name: MODELS["old"])
    assert "another one" in refusal(world / "new")
    monkeypatch.setattr(service_module, "load_model", fake_load_model)
    assert "another one" in refusal(world / "new", "--model", "old")
    assert run(world / "new", "--model", "new").exit_code == 0


def test_the_indexes_of_a_demo_are_built_once_and_again_for_a_new_model(world, tmp_path, monkeypatch):
    (tmp_path / "models" / f"{int(SEARCH_SOURCES):03d}").mkdir(parents=True)
    with pytest.raises(CropsError, match="did not end"):
        demo_indexes(tmp_path)
    for mask in (79, 127):
        (tmp_path / "models" / f"{mask:03d}").mkdir()
    shutil.copytree(world / "logs", tmp_path / "samples")
    (tmp_path / "world").mkdir()
    loaded = {"015": MODELS["old"], "127": MODELS["new"]}
    monkeypatch.setattr(serve_module, "load_model", lambda name: loaded[name[-3:]])
    assert serve_module.is_demo(tmp_path)
    indexes = demo_indexes(tmp_path)
    assert [name for _, name in indexes.values()] == [
        "baseline: search labels only",
        "CroPS: search + P1 + P2 + P3",
    ]
    assert {key: open_index(uri).manifest.model_hash for key, (uri, _) in indexes.items()} == {
        "baseline": "hash-of-old",
        "index": "hash-of-new",
    }
    demo_indexes(tmp_path)
    assert open_index(indexes["index"][0]).manifest.version == "000001"
    loaded["127"] = MODELS["old"]
    demo_indexes(tmp_path)
    assert open_index(indexes["index"][0]).manifest.version == "000002"
    fields = ["ocr_cover", "click_query"]
    (tmp_path / "models/127/config.toml").write_text(f"[document]\nfields = {fields}\n")
    items = pq.read_table(world / "logs/items.parquet", columns=["item_id", "ocr_cover"])
    clicks = pa.array(["asked before"] * items.num_rows)
    pq.write_table(items.append_column("click_query", clicks), tmp_path / "samples/items.parquet")
    pq.write_table(pa.table({"query_id": pa.array([], pa.int64())}), tmp_path / "samples/samples.parquet")
    mined = {"command": "mine", "days": ["2026-01-06"], "click_query_days": ["2026-01-05"]}
    (tmp_path / "samples/manifest.json").write_text(json.dumps(mined))
    demo_indexes(tmp_path)
    index = open_index(indexes["index"][0])
    assert list(index.manifest.fields) == fields
    known = index.items(items["item_id"].to_numpy()[:2])
    assert known["click_query"].to_pylist() == ["asked before"] * 2
    for option in ("--baseline", "--samples", "--logs", "--truth"):
        assert f"its own {option}" in refusal(tmp_path, option, world / "old")


def _toml(folder, text):
    path = folder / "bad.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("host", "key", "warned"),
    [("0.0.0.0", None, True), ("::", None, True), ("0.0.0.0", "secret", False), ("127.0.0.1", None, False)],
)
def test_a_server_that_others_reach_without_a_key_says_so(service, monkeypatch, host, key, warned):
    said = []
    monkeypatch.setattr(server.uvicorn.Server, "run", lambda self, sockets: sockets[0].close())
    monkeypatch.setattr(server.signal, "signal", lambda *_: None)
    monkeypatch.setattr(server.console, "print", said.append)
    reached = copy.copy(service)
    reached.config = service.config.model_copy(update={"host": host, "port": 0})
    server.run(reached, key)
    assert any("no API key" in line and host in line for line in said) is warned


def test_words_alone_are_served_without_a_model_under_the_name_of_the_index(world, served):
    options = ("--baseline", f"hybrid:{world / 'new'}")
    result = run(f"bm25:{world / 'old'}", *options)
    assert result.exit_code == 0, result.output
    searchers = {name: slot.searcher for name, slot in served[0][0].slots.items()}
    assert {name: one.name for name, one in searchers.items()} == {"baseline": "new", "index": "old"}
    assert searchers["index"].answer([Job(3, "ficus")])[0].ids == [6]
    assert searchers["baseline"].answer([Job(3, "ficus")])[0].ids[0] == 6
