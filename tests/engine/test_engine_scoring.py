"""Every distinct pair is scored once ever: by scorer, query and text; a killed job goes on where it was."""

import os
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import FakeScorer, clicked, hashed, run, shown, write_logs

from crops.config import EngineConfig
from crops.engine import mine
from crops.engine.scoring import CachedScorer
from crops.errors import CropsError

SEARCHES = [shown(1, 1, "a", 0, 1), *(clicked(2, 1, "b", 30, item) for item in range(2, 32))]


def mined(folder, scorer, cache, **settings):
    return run(folder, SEARCHES, relevance=CachedScorer(scorer, cache), **settings)


def test_a_second_run_asks_nothing_and_gives_the_same(tmp_path):
    first, second, other = (FakeScorer(hashed) for _ in range(3))
    cache = tmp_path / "cache"
    one = mined(tmp_path / "one", first, cache)
    (part,) = cache.iterdir()
    (cache / "part-again.parquet").write_bytes(part.read_bytes())  # two writers of one pair do no harm
    assert mined(tmp_path / "two", second, cache) == one
    mined(tmp_path / "three", other, tmp_path / "model-2")  # another folder is another scorer
    assert [len(scorer.asked) for scorer in (first, second, other)] == [30, 0, 30]
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(CropsError, match=f"{part.name}: not a readable score cache"):
        mined(tmp_path / "four", FakeScorer(hashed), cache)
    with pytest.raises(CropsError, match="the scorer of theta gave 0 probabilities for 30 pairs"):
        mined(tmp_path / "five", FakeScorer(lambda left, right: 2.0), tmp_path / "wrong")
    assert list((tmp_path).glob("wrong/*")) == []


def test_an_item_with_another_text_is_scored_again_one_with_another_id_is_not(tmp_path):
    searches = [shown(1, 1, "a", 0, 1), *(clicked(2, 1, "b", 9, item) for item in (2, 3, 4))]
    logs = write_logs(tmp_path / "logs", searches)
    asked = []
    runs = ("one", "two", "three", "two"), ("one", "new", "three", "two"), ("x", "three", "two", "new")
    for titles in runs:
        pq.write_table(pa.table({"item_id": [1, 2, 3, 4], "ocr_cover": titles}), logs.path / "items.parquet")
        scorer = FakeScorer(hashed)
        kept = CachedScorer(scorer, tmp_path / "cache")
        mine(logs, tmp_path / "out", EngineConfig(), relevance=kept, similarity=None)
        asked.append(sorted(scorer.asked))
    # "two" stands for items 2 and 4 in the first run, and is asked once.
    assert asked == [[("a", "three"), ("a", "two")], [("a", "new")], []]


def test_what_was_scored_before_an_error_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("crops.engine.backend.BATCH_ROWS", 4)
    monkeypatch.setattr("crops.engine.scoring.FILE_ROWS", 8)

    def broken(batches):
        for number, batch in enumerate(FakeScorer(hashed)(batches)):
            if number == 3:
                raise RuntimeError("the model crashed")
            yield batch

    with pytest.raises(RuntimeError, match="the model crashed"):
        mined(tmp_path / "one", broken, tmp_path / "cache")
    rest = FakeScorer(hashed)
    mined(tmp_path / "two", rest, tmp_path / "cache")
    assert len(rest.asked) == 30 - 3 * 4


_KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import crops.engine.backend, crops.engine.scoring
crops.engine.backend.BATCH_ROWS = crops.engine.scoring.FILE_ROWS = 10
from handmade import FakeScorer
from handmade import hashed
from test_engine_scoring import mined

def slow(batches):
    for number, batch in enumerate(FakeScorer(hashed)(batches)):
        yield batch
        print("scored", flush=True)
        if number == 1:
            time.sleep(60)

folder = Path(sys.argv[2])
mined(folder / "killed", slow, folder / "cache")
"""


def test_after_kill_9_only_the_rest_is_scored(tmp_path):
    command = [sys.executable, "-c", _KILLED, os.path.dirname(__file__), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"scored\n"
        assert process.stdout.readline() == b"scored\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "killed" / "mined").exists()
    rest = FakeScorer(hashed)
    tables, _ = mined(tmp_path / "again", rest, tmp_path / "cache")
    assert len(rest.asked) == 10
    assert tables == mined(tmp_path / "fresh", FakeScorer(hashed), tmp_path / "other")[0]
