"""What `crops check` writes and raises: outputs are whole or absent, errors say what to do."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import resource
import signal
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from crops.errors import CropsError
from crops.logs import check, render
from crops.logs.rules import contract_rules
from crops.schema import LOG_TABLES

CHECK = importlib.import_module("crops.logs.check")
"""The module: `crops.logs.check` itself is the function."""
NOON = 1_767_614_400_000_000
"""2026-01-05 12:00:00 UTC."""
NAN = math.nan
GOOD = {"search_id": 99}


def test_nothing_usable_left_is_an_error_that_says_why(write_logs, tmp_path):
    seconds = [{"searched_at": NOON // 1_000_000, "search_id": i} for i in range(3)]
    logs = write_logs(tmp_path / "logs", impressions=seconds)
    with pytest.raises(
        CropsError, match=r"nothing usable is left: 3 of 3 rows of search_impressions"
    ) as caught:
        check(logs, tmp_path / "out")
    assert "time_unit (searched_at): 3 rows" in str(caught.value)
    assert "integer microseconds since 1970 UTC" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "out.failed"]
    rejected = pq.read_table(tmp_path / "out.failed/rejects/search_impressions")
    assert rejected["reasons"].to_pylist() == [["time_unit"]] * 3
    assert f"the rejected rows are in {tmp_path}/out.failed/rejects" in str(caught.value)
    with pytest.raises(CropsError, match=r"2 of 2 rows of items rejected"):
        check(write_logs(tmp_path / "textless", items=[{"item_id": i, "ocr_cover": ""} for i in (1, 2)]))


def damage(path):
    data = bytearray(path.read_bytes())
    data[4:400] = b"\xff" * 396
    path.write_bytes(data)


def test_a_file_damaged_behind_a_sound_footer_is_named(write_logs, tmp_path):
    logs = write_logs(tmp_path / "logs", impressions=[{"search_id": i} for i in range(500)])
    damage(logs / "search_impressions/day=2026-01-05/part-0.parquet")
    with pytest.raises(CropsError, match=r"part-0\.parquet is damaged"):
        check(logs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_output_folder_is_described_and_replaced_whole(write_logs, tmp_path):
    logs = write_logs(tmp_path / "logs", impressions=[GOOD, {"play_ms": NAN}])
    report = check(logs, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "accepted",
        "config.toml",
        "last",
        "manifest.json",
        "rejects",
        "report.json",
    ]
    written = (tmp_path / "out/report.json").read_text()
    assert json.loads(written, parse_constant=pytest.fail)["faults"][0]["example"]["play_ms"] == "nan"
    assert report.to_json().startswith("{")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["rows"]["search_impressions"] == {"rows": 2, "accepted": 1, "rejected": 1}
    check(write_logs(tmp_path / "clean"), tmp_path / "out")
    assert not (tmp_path / "out/rejects").exists()


def test_the_logs_are_never_overwritten_by_their_own_check(write_logs, tmp_path):
    logs = write_logs(tmp_path / "run/logs")
    (tmp_path / "run/manifest.json").write_text("{}")
    for out in (tmp_path / "run", logs):
        with pytest.raises(CropsError, match="holds the logs that are checked"):
            check(logs, out)
    assert (logs / "items.parquet").exists()


def test_an_interrupted_check_leaves_what_was_there(write_logs, tmp_path, monkeypatch):
    logs = write_logs(tmp_path / "logs", impressions=[GOOD, {"rank": 0}])
    check(logs, tmp_path / "out")
    before = (tmp_path / "out/report.json").read_text()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(CHECK, "write_rejects", interrupt)
    for out in ("out", "new"):
        with pytest.raises(KeyboardInterrupt):
            check(logs, tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "out"]
    assert (tmp_path / "out/report.json").read_text() == before


def test_ctrl_c_stops_a_query_at_once(write_logs, tmp_path, monkeypatch):
    logs = write_logs(tmp_path / "logs")

    def endless(db, *_):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        db.rows("select sum(sqrt(range)) from range(1000000000000)")

    monkeypatch.setattr(CHECK, "split", endless)
    # A test run in the background of a shell inherits that SIGINT is ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            check(logs, tmp_path / "out")
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_a_memory_limit_that_is_no_size_is_named(write_logs, tmp_path):
    with pytest.raises(CropsError, match=r"memory limit 'lots'.*give a size such as 2GB"):
        check(write_logs(tmp_path / "logs"), memory="lots")


def test_the_report_renders_faults_with_their_values_and_facts(write_logs, tmp_path):
    bad = [{"rank": rank, "search_id": n} for n, rank in enumerate((0, -1, 0, -2, -3))]
    logs = write_logs(tmp_path / "logs", impressions=[GOOD, *bad])
    console = Console(width=80)
    with console.capture() as captured:
        console.print(render(check(logs)))
    text = " ".join(captured.get().split())
    for part in (
        "Most rows of search_impressions are lost: 5 of 6",
        "search_impressions, rank: 5 rows rank_not_positive",
        "part-0.parquet, row 1: rank=0",
        "add 1 to zero-based positions; found: 0, -1, -2",
        "(valid)",
    ):
        assert part in text


def test_too_little_memory_is_an_error_that_names_the_limit(write_logs, tmp_path):
    logs = write_logs(tmp_path / "logs", impressions=[{"search_id": i} for i in range(20_000)])
    with pytest.raises(CropsError, match="a memory limit of 1MB is not enough"):
        check(logs, memory="1MB")


def test_counts_that_do_not_balance_stop_the_check(write_logs, tmp_path, monkeypatch):
    logs = write_logs(tmp_path / "logs")
    monkeypatch.setattr(CHECK, "keep_accepted", lambda *_: 7)
    with pytest.raises(CropsError, match="of 1 rows of items 7 were accepted and 0 rejected"):
        check(logs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_publishes_nothing(write_logs, tmp_path):
    # A limit on the size of files fails a write as a full disk does.
    logs = write_logs(tmp_path / "logs", impressions=[GOOD, {"rank": 0}])
    check(logs, tmp_path / "out")
    before = (tmp_path / "out/report.json").read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        for out in ("out", "new"):
            with pytest.raises(CropsError, match="nothing was published.*free disk space"):
                check(logs, tmp_path / out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "out"]
    assert (tmp_path / "out/report.json").read_text() == before


def test_text_that_is_not_utf8_is_named(write_logs, tmp_path):
    logs = write_logs(tmp_path / "logs")
    path = logs / "search_impressions/day=2026-01-05/part-0.parquet"
    table = pq.read_table(path, partitioning=None)
    latin = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer(b"caf\xe9"))
    at = table.column_names.index("query")
    pq.write_table(table.set_column(at, "query", latin), path)
    with pytest.raises(
        CropsError, match=r"part-0\.parquet holds text that is not UTF-8 .*write them as UTF-8"
    ):
        check(logs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_day_missing_in_the_window_is_said(write_logs, tmp_path):
    day = 86_400_000_000
    impressions = [{"search_id": i, "searched_at": NOON + i * day} for i in (0, 3)]
    facts = check(
        write_logs(tmp_path / "logs", impressions=impressions, feed=[{"watched_at": NOON + day}])
    ).facts
    assert facts.missing_days == {
        "search_impressions": ("2026-01-06", "2026-01-07"),
        "feed_events": ("2026-01-05", "2026-01-07", "2026-01-08"),
    }
    assert any("search_impressions has no rows on 2026-01-06 to 2026-01-07" in note for note in facts.notes())
    one = check(write_logs(tmp_path / "one")).facts
    assert one.missing_days == {}


def test_a_clean_file_in_the_contracts_types_is_copied_byte_by_byte(write_logs, tmp_path):
    impressions = [{"search_id": 1}, {"search_id": 2, "searched_at": NOON + 86_400_000_000}, {"rank": 0}]
    logs = write_logs(tmp_path / "logs", impressions=impressions)
    check(logs, tmp_path / "out")
    clean = "search_impressions/day=2026-01-06/part-0.parquet"
    assert (tmp_path / "out/accepted" / clean).read_bytes() == (logs / clean).read_bytes()
    dirty = "search_impressions/day=2026-01-05/part-0.parquet"
    assert (tmp_path / "out/accepted" / dirty).read_bytes() != (logs / dirty).read_bytes()


def test_the_tables_page_is_what_the_contracts_say(tmp_path):
    build = Path(__file__).parents[2] / "docs" / "build.py"
    spec = importlib.util.spec_from_file_location("build", build)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = build.with_name("tables.md").read_text()
    for table in LOG_TABLES:
        assert module.section(table) in page
        rules = contract_rules(table)
        assert len({rule.reason for rule in rules}) == len(rules)
        for rule in rules:
            assert f"| `{rule.reason}` |" in module.section(table)
