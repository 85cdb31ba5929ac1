import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from retrieval_hand import publish, unit, word_model

from crops.errors import CropsError
from crops.retrieval import current_version, open_index
from crops.retrieval.encoding import encode_shards
from crops.retrieval.folder import open_snapshot, writing

KILLED = """
    import json, os, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from retrieval_hand import publish, unit
    from crops.retrieval import open_index

    root, fatal = Path(sys.argv[2]), [int(step) for step in sys.argv[3:]]

    def publish_and_die(at):
        steps = 0
        def counted(real):
            def step(*args, **options):
                nonlocal steps
                steps += 1
                if steps == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **options)
            return step
        os.fsync = counted(os.fsync)
        Path.rename, Path.replace = counted(Path.rename), counted(Path.replace)
        publish(root, unit(40, 16, seed=1))
        os._exit(steps)

    for at in fatal:
        if (child := os.fork()) == 0:
            publish_and_die(at)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        index = open_index(str(root))
        vectors = unit(30, 16) if index.manifest.count == 30 else unit(40, 16, seed=1)
        found = index.search(vectors[:3], 1)[0][:, 0].tolist()
        print(json.dumps([at, code, index.manifest.count, found]))
"""


def test_a_kill_at_any_step_leaves_the_old_or_the_new_version_in_service(tmp_path):
    """Kill -9 early, before the folder's rename, before the pointer's replacement, and after it.

    The files of a version take 3 syncs, its manifest and folder 2 more; then come rename (6th), sync, sync of
    the pointer, replace (9th) and a last sync (10th). A process that is killed at step 0 lives.
    """
    root = tmp_path / "index"
    publish(root, unit(30, 16))
    fatal = [1, 5, 6, 7, 8, 9, 10, 0]
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(Path(__file__).parent), str(root)]
    out = subprocess.run(
        [*command, *map(str, fatal)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ).stdout
    found = [10, 20, 30]
    expected = [[at, -9, 30, found] for at in fatal[:6]] + [[10, -9, 40, found], [0, 10, 40, found]]
    assert [json.loads(line) for line in out.splitlines()] == expected
    assert not list((root / "versions").glob(".*.tmp"))


def test_an_open_index_serves_on_while_versions_come_and_go(tmp_path):
    vectors = unit(300, 16)
    publish(tmp_path, vectors, kind="ivf", int8=True)
    told = json.loads((tmp_path / "versions/000001/manifest.json").read_text())
    assert (told["kind"], told["int8"], told["count"], told["dim"]) == ("ivf", True, 300, 16)
    assert (told["model"], told["model_hash"]) == ("a model", "f" * 64)
    assert set(told["files"]) == {"ids.npy", "items.arrow", "structure.faiss", "vectors.faiss"}
    index = open_index(f"{tmp_path}")
    before = index.search(vectors[:5], 20)[0].tolist()
    for seed in (1, 2, 3):
        publish(tmp_path, unit(300, 16, seed))
    assert index.search(vectors[:5], 20)[0].tolist() == before
    assert index.items(np.array([10]))["item_id"].to_pylist() == [10]
    # the last two are kept
    assert (tmp_path / "current").read_text() == "000004\n"
    assert current_version(f"faiss:{tmp_path}") == current_version(f"exact:{tmp_path}") == "000004"
    assert sorted(path.name for path in (tmp_path / "versions").iterdir()) == ["000003", "000004"]


def test_an_update_builds_the_whole_index_anew(tmp_path):
    """89 of 100 items are left with the vectors that were there; the recall is measured again."""
    vectors = unit(100, 16)
    publish(tmp_path, vectors, kind="hnsw")
    none = pa.table({"item_id": pa.array([], pa.int64())})
    former = open_index(f"{tmp_path}")
    former.update(none, unit(0, 16), np.arange(10, 110, 10))
    former.update(none, unit(0, 16), np.array([110]))  # of the version in service, not of the one opened
    index = open_index(f"{tmp_path}")
    assert (index.manifest.version, index.manifest.count) == ("000003", 89)
    assert index.manifest.recall.source == "documents of the index"
    assert index.manifest.recall.queries == 89
    assert (index.vectors(np.arange(120, 1010, 10)) == vectors[11:]).all()
    assert index.search(vectors[11:14], 1)[0][:, 0].tolist() == [120, 130, 140]


def test_an_index_of_a_former_release_is_refused_and_can_be_published_over(tmp_path):
    """It held its vectors in vectors.npy, with what updates added beside them."""
    publish(tmp_path, unit(30, 16))
    manifest = tmp_path / "versions/000001/manifest.json"
    manifest.write_text(manifest.read_text().replace("vectors.faiss", "vectors.npy"))
    with pytest.raises(CropsError, match="written by a former release.*run `crops index` again"):
        open_index(f"{tmp_path}")
    publish(tmp_path, unit(40, 16))
    assert open_index(f"{tmp_path}").manifest.count == 40


@pytest.mark.parametrize("name", ["vectors.faiss", "items.arrow"])
def test_damaged_files_are_found_and_named(tmp_path, name):
    publish(tmp_path, unit(100, 16), kind="hnsw")
    file = tmp_path / "versions/000001" / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(CropsError, match=rf"{name} has {len(whole) - 1} bytes instead of {len(whole)}"):
        open_index(f"{tmp_path}")
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CropsError, match=rf"{name} was changed or damaged .*run `crops index` again"):
        open_index(f"{tmp_path}")
    file.unlink()
    with pytest.raises(CropsError, match=rf"{name} is missing: version 000001 cannot be served"):
        open_index(f"{tmp_path}")


def test_the_remedy_names_the_version_before(tmp_path):
    publish(tmp_path, unit(30, 16))
    publish(tmp_path, unit(31, 16))
    manifest = tmp_path / "versions/000002/manifest.json"
    manifest.write_text(manifest.read_text()[:-20])
    with pytest.raises(CropsError, match=r"manifest\.json is damaged.*serve version 000001"):
        open_index(f"{tmp_path}")
    (tmp_path / "current").write_text("000001\n")
    assert open_index(f"{tmp_path}").manifest.count == 30


def test_a_version_that_is_replaced_while_it_is_opened_gives_its_successor(tmp_path, monkeypatch):
    publish(tmp_path, unit(30, 16))
    publish(tmp_path, unit(31, 16))
    answers = iter(["000009", "000002", "000002"])
    monkeypatch.setattr("crops.retrieval.folder.current_name", lambda root: next(answers))
    assert open_snapshot(tmp_path).manifest.count == 31


def test_one_writer_at_a_time_and_no_foreign_folder(tmp_path):
    with writing(tmp_path / "index"), pytest.raises(CropsError, match="another process writes to"):
        publish(tmp_path / "index", unit(30, 16))
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(CropsError, match="holds files that are no index"):
        publish(tmp_path, unit(30, 16))
    with pytest.raises(CropsError, match="is a file"):
        publish(tmp_path / "thesis.txt", unit(30, 16))


def test_what_is_no_index_is_refused(tmp_path):
    for uri, message in (
        (f"faiss:{tmp_path}", "is no index .*make an index with `crops index`"),
        (f"faiss:{tmp_path / 'nowhere'}", "nowhere does not exist; make an index with `crops index`"),
        ("fais:x", r"'fais:x' names no index.*Did you mean 'faiss'\?"),
        ("milvus:", "'milvus:' says no place"),
        ("bm25:x", "is searched by words"),
    ):
        with pytest.raises(CropsError, match=message):
            open_index(uri)
    with pytest.raises(CropsError, match="none does not exist"):
        current_version(f"{tmp_path / 'none'}")


@pytest.mark.parametrize(("kind", "most"), [("exact", 1000), ("exact", 100_000), ("hnsw", 260_000)])
def test_a_disk_that_is_full_leaves_the_version_in_service(tmp_path, kind, most):
    """Files end at `most` bytes: the ids, the vectors (256,000 bytes) or what searches them is too large."""
    shards, tmp_path = tmp_path / "shards", tmp_path / "index"
    publish(tmp_path, unit(50, 64))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    shards.mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(CropsError, match="cannot be written.*free disk space"):
            publish(tmp_path, unit(1000, 64), kind=kind, target_recall=0.1)
        if most == 1000:
            with pytest.raises(CropsError, match="cannot be written"):
                encode_shards(word_model(), [f"text {number}" for number in range(100)], shards)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(shards.iterdir()) == []
    assert [path.name for path in (tmp_path / "versions").iterdir()] == ["000001"]
    assert open_index(str(tmp_path)).manifest.count == 50
    assert publish(tmp_path, unit(1000, 64), kind=kind, target_recall=0.1).manifest.version == "000002"
    assert open_index(str(tmp_path)).manifest.count == 1000


@pytest.mark.parametrize(("file", "junk", "told"), [
    *(
        ("current", junk, r"current is damaged.*`crops index` again, or serve version 000001")
        for junk in (b"\0\0\0", b"\xff\xfe\n", b"", b"../../other\n")
    ),
    *(
        ("versions/000001/manifest.json", junk, r"manifest.json is damaged or of another release; run")
        for junk in (b"\xff\xfe\n", b"[]")
    ),
])  # fmt: skip
def test_a_damaged_pointer_or_manifest_is_a_sentence_and_can_be_published_over(tmp_path, file, junk, told):
    root = tmp_path / "index"
    publish(root, unit(30, 16))
    (root / file).write_bytes(junk)
    with pytest.raises(CropsError, match=told):
        open_index(str(root))
    if file == "current":
        with pytest.raises(CropsError, match="current is damaged"):
            current_version(str(root))
    publish(root, unit(40, 16))
    assert (current_version(str(root)), open_index(str(root)).manifest.count) == ("000002", 40)
    assert (root / "versions" / "000001").is_dir()  # a reader may hold it
