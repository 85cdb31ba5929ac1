"""Samples in buckets: every process reads its own, and all together train on the batches of one."""

import contextlib
import multiprocessing
import os
import pickle
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import share_worker
from sentence_transformers import SentenceTransformer

from crops.config import TrainingConfig
from crops.errors import CropsError
from crops.labels import Source
from crops.text import PLAIN
from crops.training import Samples, SplitSamples, read_log, split, train
from crops.training.buckets import Lanes, LaneSampler
from crops.training.groups import store_groups

BUCKETS = 6
DOCS = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture
def mined(write_mined):
    """50 queries with ids from both ends of 64 bits, each with 2 to 5 of 60 items; one text has no token."""
    random = np.random.default_rng(3)
    ids = np.sort(random.integers(-(2**63), 2**63 - 1, 50)).tolist()
    words = [f"d{topic}_{n}" for topic in range(6) for n in range(4)]
    items = {item: " ".join(random.choice(words, 1 + item % 3)) for item in range(1, 61)} | {61: "  "}
    rows = [
        (query, int(item), random.choice([Source.CLICKED, Source.EXPOSED, Source.FEED]))
        for query in ids
        for item in random.choice(61, random.integers(2, 6), replace=False) + 1
    ] + [(query, 62, Source.CLICKED) for query in ids]
    items[62] = "d0_0"
    queries = {query: (f"q{n % 6}_{n % 4} q{n % 5}_0", 1 + n % 7) for n, query in enumerate(ids)}
    return write_mined(sorted(set(rows)), items, queries)


@pytest.fixture
def store(mined, tmp_path):
    split(mined, (tmp_path / "store").as_uri(), BUCKETS, "500MB")
    return tmp_path / "store"


@pytest.fixture
def config(random_encoder):
    return TrainingConfig(
        init=str(random_encoder),
        batch_queries=9,
        docs_per_source=2,
        steps=6,
        learning_rate=1e-2,
        checkpoint_steps=2,
    )


def test_buckets_put_together_are_the_samples_and_hold_equally_many_whole_queries(mined, store):
    folders = sorted(store.glob("bucket=*"))
    parts = [pq.read_table(folder / "samples.parquet") for folder in folders]
    whole = pq.read_table(mined / "samples.parquet").sort_by(
        [("query_id", "ascending"), ("item_id", "ascending")]
    )
    rows = [row for part in parts for row in part.to_pylist()]
    assert rows == whole.to_pylist()
    queries = [set(part["query_id"].to_pylist()) for part in parts]
    assert [len(ids) for ids in queries] == [9, 8, 8, 9, 8, 8]
    assert sum(map(len, queries)) == len(set.union(*queries)) == 50
    for folder, part in zip(folders, parts, strict=True):
        items = pq.read_table(folder / "items.parquet")["item_id"].to_pylist()
        assert items == sorted(set(part["item_id"].to_pylist()))


def drawn(lanes, config, step):
    """The (query, document, label) that some buckets give to a step, and the positives left out."""
    batch = LaneSampler(lanes, BUCKETS, config, 0).draw(step)
    pairs = zip(batch.query_id[batch.query_index], batch.doc_id, batch.label, strict=True)
    known = zip(batch.query_id[batch.known_index], batch.known_id, strict=True)
    return Counter(map(tuple, pairs)), Counter(map(tuple, known)), len(batch.query_id)


def test_a_batch_is_the_same_whoever_draws_for_which_bucket(store, config, tmp_path):
    stores = [
        store_groups(Samples(folder), tmp_path / folder.name, PLAIN, 1, config.beta)
        for folder in sorted(store.glob("bucket=*"))
    ]
    for world in (2, 4):
        for step in (0, 7, 40):
            shares = [
                drawn(Lanes({b: stores[b] for b in range(rank, BUCKETS, world)}, ""), config, step)
                for rank in range(world)
            ]
            pairs, known, queries = drawn(Lanes(dict(enumerate(stores)), ""), config, step)
            assert sum((share[0] for share in shares), Counter()) == pairs
            assert sum((share[1] for share in shares), Counter()) == known
            assert sum(share[2] for share in shares) == queries == 9


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.verify)])
def test_processes_without_a_shared_disk_train_as_one_and_resume(mined, store, config, tmp_path, processes):
    """Each has a disk of its own, is stopped after step 3, and resumes from its checkpoint of step 2."""
    data = SplitSamples(str(store), Samples(mined))
    shutil.rmtree(mined)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        multiprocessing.get_context("fork").Process(
            target=share_worker.run,
            args=(
                data,
                config,
                tmp_path / f"disk{rank}",
                shared | {"RANK": str(rank), "GROUP_RANK": str(rank), "LOCAL_RANK": "0"},
            ),
        )
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(600)
    assert [process.exitcode for process in started] == [0] * processes
    facts = train(data, tmp_path / "one" / "model", config, seed=0)
    several = pickle.loads((tmp_path / "disk0" / "learned").read_bytes())
    for name in ("groups", "dropped_groups", "without_token"):
        assert facts[name] == several[name]
    assert facts["contrast"]["queries"] == several["contrast"]["queries"] == 9
    assert facts["contrast"]["contrasted"] == pytest.approx(several["contrast"]["contrasted"], rel=0.2)
    one, other = (read_log(tmp_path / disk / "model") for disk in ("one", "disk0"))
    for column, same in zip(one, other, strict=True):
        np.testing.assert_allclose(column, same, rtol=1e-5)
    texts = ["q0_0", "d1_1 d2_2"]
    vectors = [
        SentenceTransformer(str(tmp_path / disk / "model"), device="cpu").encode(texts)
        for disk in ("one", "disk0")
    ]
    np.testing.assert_allclose(*vectors, atol=1e-5)
    fetched = [pickle.loads((tmp_path / f"disk{rank}" / "fetched").read_bytes()) for rank in range(processes)]
    assert fetched == [set(range(rank, BUCKETS, processes)) for rank in range(processes)]
    assert sorted(path.name for path in (tmp_path / "disk1").iterdir()) == ["fetched", "learned"]


def test_a_store_of_objects_holds_the_same_bytes_as_a_folder(mined, store, tmp_path, monkeypatch):
    pytest.importorskip("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            made = urllib.request.Request(f"http://127.0.0.1:{port}/lake", method="PUT")
            for _ in range(600):
                with contextlib.suppress(urllib.error.URLError):
                    urllib.request.urlopen(made).read()
                    break
                time.sleep(0.1)
            split(mined, "s3://lake/samples", BUCKETS, "500MB")
            remote, local = (SplitSamples(uri, Samples(mined)) for uri in ("s3://lake/samples", str(store)))
            assert remote.facts() == local.facts()
            for number in (2, 3, 2):  # the folder holds another bucket in between
                sha256 = remote.facts()["buckets"][number]["sha256"]
                remote.fetch(number, sha256, tmp_path / "fetched")
            for file in (store / "bucket=002").iterdir():
                assert (tmp_path / "fetched" / file.name).read_bytes() == file.read_bytes()
            assert remote.sample_texts() == local.sample_texts() != []
            with pytest.raises(CropsError, match="s3://none/there"):
                SplitSamples("s3://none/there", Samples(mined)).facts()
        finally:
            server.terminate()


def test_what_cannot_be_read_or_shared_out_is_one_sentence(mined, store, config, tmp_path):
    with pytest.raises(CropsError, match="60 buckets for 50 queries; give 1 to 50"):
        split(mined, str(tmp_path / "other"), 60, "500MB")
    data = SplitSamples(str(store), Samples(mined))
    with pytest.raises(CropsError, match="batch_queries = 4 for 6 buckets"):
        train(data, tmp_path / "model", config.model_copy(update={"batch_queries": 4}), seed=0)
    with (store / "bucket=003" / "queries.parquet").open("ab") as file:
        file.write(b"half")
    with pytest.raises(CropsError, match="bucket=003 is not what was written; `crops split` it again"):
        train(data, tmp_path / "model", config, seed=0)
    (store / "bucket=003" / "queries.parquet").unlink()
    with pytest.raises(CropsError, match="queries.parquet.*; check the address"):
        train(data, tmp_path / "model", config, seed=0)
    (store / "store.json").unlink()
    with pytest.raises(CropsError, match=r"not a whole output of `crops split` \(no store.json in it\)"):
        train(data, tmp_path / "model", config, seed=0)
    with pytest.raises(CropsError, match="s4://there: no store that is read; known are s3://"):
        split(mined, "s4://there/is", 2, "500MB")


def test_fewer_buckets_leave_none_of_the_former_split(mined, tmp_path):
    for buckets in (3, 2):
        split(mined, str(tmp_path / "store"), buckets, "500MB")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["bucket=000", "bucket=001",
                                                                            "store.json"]  # fmt: skip


@pytest.mark.verify
def test_the_documented_command_line_trains_on_two_nodes(store, random_encoder, tmp_path):
    (line,) = re.findall(r"^(torchrun .*--rdzv.*)$", DOCS.read_text(), re.MULTILINE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = shlex.split(line, comments=True)
    words[words.index("--nproc-per-node") + 1] = "1"
    words[words.index("--rdzv-endpoint") + 1] = f"127.0.0.1:{port}"
    words[words.index("crops")] = str(Path(sys.executable).with_name("crops"))
    words[-2] = store.as_uri()
    words[0] = str(Path(sys.executable).with_name("torchrun"))
    options = ["--init", str(random_encoder), "--steps", "3", "--batch-queries", "9"]
    nodes = []
    for number in range(2):
        words[-1] = str(tmp_path / f"node{number}" / "model")
        (tmp_path / f"node{number}").mkdir()
        nodes.append(subprocess.Popen([*words, *options], env={**os.environ, "OMP_NUM_THREADS": "1"}))
    assert [process.wait(timeout=600) for process in nodes] == [0, 0]
    models = list(tmp_path.glob("node*/model"))
    assert len(models) == 1
    assert len(read_log(models[0]).step) == 3
