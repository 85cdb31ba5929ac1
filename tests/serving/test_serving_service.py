"""New versions of an index while requests run."""

import asyncio
import gc
import shutil
import threading
import time
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served_world import MODELS, open_world
from starlette.testclient import TestClient

from crops.config import IndexConfig
from crops.errors import CropsError
from crops.retrieval import build_index, update_index
from crops.retrieval.folder import FolderIndex
from crops.serving import service as service_module
from crops.serving.app import make_app
from crops.serving.searcher import Job
from crops.serving.service import reload, watching

NEW_ITEM = 50


@pytest.fixture
def own_world(world, tmp_path, fake_models):
    """A copy of the world that a test may change."""
    return shutil.copytree(world, tmp_path / "world")


def publish(folder, title, tmp_path):
    """Put an item into the index; it becomes a new version."""
    path = tmp_path / "new.parquet"
    pq.write_table(pa.table({"item_id": [NEW_ITEM], "ocr_cover": [title]}), path)
    return update_index(f"faiss:{folder}", MODELS["new"], path, np.empty(0, dtype=np.int64)).version


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def version(client):
    return client.get("/healthz").json()["versions"]["index"]


def test_versions_go_into_service_while_requests_run_and_none_fails(own_world, tmp_path):
    service = open_world(own_world, reload_s=0.02)
    statuses, stop = [], threading.Event()
    with TestClient(make_app(service, background=partial(watching, service))) as client:

        def ask():
            while not stop.is_set():
                statuses.append(client.post("/search", json={"query": "jaguar"}).status_code)
                statuses.append(client.get("/", params={"q": "jaguar"}).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        for turn in range(3):
            published = publish(own_world / "new", f"zebra number {turn}", tmp_path)
            until(lambda published=published: version(client) == published)
            found = client.post("/search", json={"query": f"zebra number {turn}", "k": 1}).json()
            assert (found["version"], found["hits"][0]["item_id"]) == (published, str(NEW_ITEM))
            assert found["hits"][0]["title"] == f"zebra number {turn}"
        stop.set()
        thread.join()
        metrics = client.get("/metrics").text
    assert set(statuses) == {200}
    assert 'crops_reloads_total{index="index",result="done"} 3.0' in metrics
    assert f'crops_index_items{{index="index",version="{published}"}} 9.0' in metrics
    assert metrics.count('crops_index_items{index="index"') == 1


def test_a_version_that_cannot_be_read_is_told_once_and_its_repair_is_noticed(
    own_world, tmp_path, monkeypatch
):
    service = open_world(own_world, reload_s=0.02)
    current = own_world / "new" / "current"
    with TestClient(make_app(service, background=partial(watching, service))) as client:

        def failed(times):
            told = f'crops_reloads_total{{index="index",result="failed"}} {times}.0'
            until(lambda: told in client.get("/metrics").text)
            time.sleep(0.1)
            assert told in client.get("/metrics").text  # it is tried once, not ever again
            assert version(client) == "000001"
            assert client.post("/search", json={"query": "jaguar"}).status_code == 200
            current.write_text("000001\n")
            time.sleep(0.1)

        broken = own_world / "new" / "versions" / "000009"
        shutil.copytree(own_world / "new" / "versions" / "000001", broken)
        (broken / "vectors.faiss").write_bytes(b"garbage")
        current.write_text("000009\n")
        failed(1)
        current.write_bytes(b"\0\0\0")
        failed(2)
        with monkeypatch.context() as patch:  # what nobody expects does not end the watch
            patch.setattr("crops.serving.service.open_searcher", lambda *_: 1 / 0)
            publish(own_world / "new", "zebra", tmp_path)
            failed(3)
        published = publish(own_world / "new", "yak", tmp_path)
        until(lambda: version(client) == published)


def test_an_index_of_another_model_brings_its_model_and_evidence(own_world):
    service = open_world(own_world)
    former = service.explainer
    build_index(f"faiss:{own_world / 'new'}", MODELS["old"], own_world / "logs", IndexConfig())
    asyncio.run(reload(service, "index"))
    searcher = service.searcher("index")
    assert searcher.model is MODELS["old"]
    assert service.explainer is not former
    near = service.explainer.explain("spotted jaguar", [3]).queries[0]
    expected = searcher.encode(["spotted jaguar"]) @ searcher.encode([near.query.text]).T
    assert near.similarity == pytest.approx(float(expected[0, 0]), abs=1e-5)


def test_the_former_index_is_closed_when_its_last_user_is_done(own_world, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(FolderIndex, "close", lambda self: closed.append(self.manifest.version))
    service = open_world(own_world)
    user = service.searcher("index")
    publish(own_world / "new", "zebra", tmp_path)
    closed.clear()
    asyncio.run(reload(service, "index"))
    assert user.answer([Job(3, "jaguar")])[0].version == "000001"
    assert closed == []
    del user
    gc.collect()
    assert closed == ["000001"]


def test_what_does_not_fit_is_refused_at_the_start(own_world, monkeypatch):
    def other(name):
        return MODELS["old"]

    monkeypatch.setattr(service_module, "load_model", other)
    with pytest.raises(CropsError, match="another one"):
        service_module.open_searcher(str(own_world / "new"), "new")
    narrow = MODELS["new"]._replace(encoder=Narrow())
    with pytest.raises(CropsError, match="4 numbers"):
        service_module.open_searcher(str(own_world / "new"), "new", [narrow])
    with pytest.raises(CropsError):
        service_module.open_searcher(str(own_world / "nowhere"), "new")


class Narrow:
    """An encoder whose vectors are too narrow for the index."""

    def encode(self, texts, **_):
        return np.full((len(texts), 4), 0.5, dtype=np.float32)


def test_an_index_is_served_from_anywhere_and_moves_with_its_model(world, tmp_path, monkeypatch):
    asked = []

    def load(name):
        asked.append(name)
        return MODELS["new"]

    monkeypatch.setattr(service_module, "load_model", load)
    before, after = tmp_path / "before", tmp_path / "after"
    (before / "model").mkdir(parents=True)
    monkeypatch.chdir(before)
    build_index("index", MODELS["new"]._replace(name="model"), world / "logs", IndexConfig())
    monkeypatch.chdir(tmp_path)
    service_module.open_searcher("before/index", "new")
    before.rename(after)
    service_module.open_searcher(str(after / "index"), "new")
    publish(after / "index", "zebra", tmp_path)
    service_module.open_searcher(str(after / "index"), "new")
    assert asked == [str(before / "model"), str(after / "model"), str(after / "model")]
    shutil.rmtree(after / "model")
    with pytest.raises(CropsError, match="no such folder any more; say with --model where it is now"):
        service_module.open_searcher(str(after / "index"), "new")
    assert len(asked) == 3  # a path is no name to ask a hub for
    service_module.open_searcher(str(after / "index"), "new", [MODELS["new"]])
