"""Faulty and odd logs: named and refused, or mined as they are; a failed job publishes nothing."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import DAY, clicked, labels, run, shown, watched, write_logs

from crops.config import EngineConfig
from crops.engine import mine
from crops.engine.backend import open_parquet
from crops.errors import CropsError
from crops.logs import open_logs
from crops.schema import LATEST_US

SEARCHES = [shown(1, 1, "a", 0, 1), clicked(2, 1, "b", 30, 2)]


def mine_plainly(logs, out, **settings):
    return mine(logs, out, EngineConfig.model_validate(settings), relevance=None, similarity=None)


def feed_file(folder):
    return folder / "feed_events" / f"day={DAY}" / "0.parquet"


def test_a_truncated_file_is_named(tmp_path):
    write_logs(tmp_path / "logs", SEARCHES, [watched(1, 3, 5)])
    file = feed_file(tmp_path / "logs")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CropsError, match=f"feed_events/day={DAY}/0.parquet"):
        mine_plainly(open_logs(tmp_path / "logs"), tmp_path / "out")


def test_a_file_damaged_behind_a_sound_footer_is_named_and_nothing_is_published(tmp_path):
    events = [watched(1, item, item) for item in range(1, 900)]
    logs = write_logs(tmp_path / "logs", SEARCHES, events)
    file = feed_file(tmp_path / "logs")
    content = bytearray(file.read_bytes())
    content[4:2000] = b"\xff" * 1996
    file.write_bytes(bytes(content))
    with pytest.raises(CropsError, match=f"{file} is damaged"):
        mine_plainly(logs, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_a_file_that_vanished_is_named(tmp_path):
    logs = write_logs(tmp_path / "logs", SEARCHES, [watched(1, 3, 5)])
    feed_file(tmp_path / "logs").unlink()
    with pytest.raises(CropsError, match=f"day={DAY}/0.parquet"):
        mine_plainly(logs, tmp_path / "out")


def test_ids_that_do_not_fit_are_refused(tmp_path):
    write_logs(tmp_path / "logs", SEARCHES)
    (file,) = (tmp_path / "logs").glob("search_impressions/*/*.parquet")
    table = pq.read_table(file)
    index = table.schema.get_field_index("user_id")
    pq.write_table(table.set_column(index, "user_id", pa.array([2**64 - 1, 1], pa.uint64())), file)
    with pytest.raises(CropsError, match="column user_id is uint64"):
        open_logs(tmp_path / "logs")


def test_clocks_that_disagree_lose_nothing(tmp_path):
    """Rows out of order, feed clocks ahead and far off: only what is in the windows counts."""
    searches = [clicked(2, 1, "b", 30, 2), shown(1, 1, "a", 0, 1)]
    feed = [watched(1, 5, 1700), watched(1, 4, -1700), watched(1, 3, 10)]
    late = {**watched(1, 6, 0), "watched_at": LATEST_US}
    tables, _ = run(tmp_path, searches, [*feed, late])
    assert set(labels(tables, ["a", "b"])) == {
        *(("a", item) for item in (1, 2, 3, 4, 5)),
        *(("b", item) for item in (2, 3, 4, 5)),
    }


def test_queries_of_any_length_and_of_control_characters(tmp_path):
    texts = [
        "x" * 100_000,
        "null\u0000byte",
        "tab\tand\nline",
        "'; drop table samples; --",
        "\u202eright to left",
        "💥",
    ]
    searches = [clicked(number, 1, text, 1000 * number, 1) for number, text in enumerate(texts, 1)]
    tables, _ = run(tmp_path, searches)
    expected = {"x" * 100_000, "null byte", "tab and line", *texts[3:]}
    assert {row["query"] for row in tables["queries"]} == expected
    assert len(tables["samples"]) == len(texts)


def test_too_little_memory_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    feed = [watched(user, item, item) for user in range(1, 60) for item in range(1, 300)]
    searches = [shown(user * 1000 + n, user, f"q{n}", n, 1) for user in range(1, 60) for n in range(40)]
    logs = write_logs(tmp_path / "logs", searches, feed)
    monkeypatch.setattr("crops.engine.backend.duckdb_limit", lambda memory: 4_000_000)
    with pytest.raises(CropsError, match=r"engine.memory = '1MB' is not enough"):
        mine_plainly(logs, tmp_path / "out", memory="1MB")
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_a_full_disk_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    """The full device is met while tables are written; what was there before stays."""
    logs = write_logs(tmp_path / "logs", SEARCHES)
    mine_plainly(logs, tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    monkeypatch.setattr(
        "crops.engine.backend.open_parquet", lambda target, schema: open_parquet(Path("/dev/full"), schema)
    )
    with pytest.raises(CropsError, match="(?s)nothing was published.*No space left on device"):
        mine_plainly(logs, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "out"]
