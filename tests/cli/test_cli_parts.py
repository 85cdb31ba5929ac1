"""A mining whose tables are folders of files, as a cluster writes them, gives what single files give."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.cli.llm import fitting_prompt
from crops.cli.logs import engine_report, expand, explain, export
from crops.cli.models import split, train
from crops.cli.serve import _samples_of, index
from crops.cli.simulate import annotate
from crops.cli.theta import brought_by, theta_fit
from crops.config import DailyConfig, DecayConfig, DocumentConfig, EngineConfig, LLMConfig
from crops.engine.daily import Job, merge_window, mine_daily
from crops.engine.documents import mined_click_queries
from crops.evaluation.raters import write_rating_sheet
from crops.llm.generate import training_requests
from crops.logs import open_logs
from crops.outputs import write_manifest
from crops.relevance.calibrate import log_pairs
from crops.retrieval import load_item_rows, load_queries

DAYS, NOON, DAY_US = ("2026-01-05", "2026-01-06", "2026-01-07"), 1_767_614_400_000_000, 86_400_000_000
TABLES = ("samples", "queries", "evidence", "items", "synthetic_items")


def in_parts(folder):
    """Make each table a folder of three files."""
    for name in TABLES:
        file = folder / f"{name}.parquet"
        rows = pq.read_table(file, partitioning=None)
        file.unlink()
        file.mkdir()
        cuts = [0, len(rows) // 3, len(rows) // 2, len(rows)]
        for number, (low, high) in enumerate(zip(cuts, cuts[1:], strict=False)):
            pq.write_table(rows.slice(low, high - low), file / f"part-{number:05d}.parquet")


@pytest.fixture(scope="module")
def world(tmp_path_factory, write_logs):
    """Three days on which each of 8 people words 6 needs in two ways, one after the other, and watches."""
    folder, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(0)
    items = [
        {"item_id": n, "ocr_cover": f"clip {n} of topic {n % 6}", "source_id": f"v{n}"} for n in range(1, 37)
    ]
    rows, feed, searches = [], [], []
    for day in range(3):
        for user in range(8):
            for need in range(6):
                at = NOON + day * DAY_US + (user * 6 + need) * 600_000_000
                for second, text in enumerate((f"topic {need}", f"a film on {need}")):
                    search = {"search_id": len(searches) + 1, "user_id": user, "query": text}
                    searches.append({"search_id": len(searches) + 1, "need_id": need})
                    for place, item in enumerate(rng.choice(np.arange(1, 37), 6, replace=False).tolist()):
                        row = {"searched_at": at + second * 60_000_000, "item_id": item}
                        seen = (
                            {"stage": "exposed", "clicked": item % 6 == need}
                            if place < 4
                            else {"stage": "filtered"}
                        )
                        rows.append(search | row | seen)
                feed.append(
                    {"user_id": user, "item_id": need + 1, "watched_at": at + 300_000_000, "clicked": True}
                )
    logs = write_logs(folder / "logs", items, rows, feed)
    (folder / "truth").mkdir()
    pq.write_table(pa.Table.from_pylist(searches), folder / "truth" / "searches.parquet")
    grades = [{"need_id": n % 6, "item_id": n, "grade": 3} for n in range(1, 37)]
    pq.write_table(pa.Table.from_pylist(grades), folder / "truth" / "grades.parquet")
    write_manifest(folder, "simulate", config={}, seconds={}, days={"train": DAYS[1], "test": DAYS[2]})
    written = [{"query": f"topic {n}", "ocr_cover": f"written {n}"} for n in range(4)]
    (folder / "written.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
    return folder, logs


@pytest.fixture(scope="module")
def builds(world):
    """A daily build of two days, and the same with its tables in parts."""
    folder, logs = world
    engine = EngineConfig.model_validate({"k": 2, "daily": {"window": 2}, "knowledge": {"min_users": 1}})
    text = DocumentConfig(fields=("ocr_cover", "click_query"), click_users=1)
    job = Job(engine, None, None, folder / "written.jsonl", document=text)
    mine_daily(open_logs(logs), folder / "whole", job, DAYS[:2])
    shutil.copytree(folder / "whole", folder / "parted")
    for mined in (folder / "parted").glob("[dw]*"):
        in_parts(mined)
    return folder / "whole", folder / "parted", engine


def test_a_window_is_merged_of_days_in_parts(builds, tmp_path):
    """With another decay, so that it is merged again."""
    config = builds[2].model_copy(update={"daily": DailyConfig(window=2, decay=DecayConfig(search=0.5))})
    merged = []
    for build in builds[:2]:
        out = shutil.copytree(build, tmp_path / build.name)
        report = merge_window(out, config, {})
        merged.append((report, *(pq.read_table(out / "window" / f"{name}.parquet") for name in TABLES)))
    assert merged[0] == merged[1]
    assert all(len(table) > 3 for table in merged[0][1:])


def files_of(folder):
    """Return the bytes of an output's files, but for what tells where and when it was made."""
    told = ("manifest.json", "store.json")
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in told
    }


def test_everything_that_reads_a_mining_reads_tables_in_parts(builds, world, tmp_path):
    folder, logs = world
    found = []
    for build in builds[:2]:
        window, out = build / "window", tmp_path / build.name
        out.mkdir()
        day = build / f"day={DAYS[1]}"
        pairs = pq.read_table(day / "samples.parquet", columns=["query_id", "item_id"], partitioning=None)
        ids = [column.to_numpy() for column in pairs.columns]
        export(build, out / "lines", owner=True)
        expand(build, out / "expanded", users=1)
        split(window, str(out / "buckets"), 3)
        train(window, str(out / "model"), steps=4, batch_queries=8, encoder="ngrams", seed=1)
        index(str(out / "model"), window, str(out / "index"), expanded=out / "expanded")
        judged = annotate(folder, day, out=out / "judged.csv", budget=80, noise=0.0)
        seen = {
            "files": {name: files_of(out / name) for name in ("lines", "expanded", "buckets")},
            "model": (out / "model" / "model.safetensors").read_bytes(),
            "index": files_of(out / "index" / "versions"),
            "judged": (out / "judged.csv").read_text(),
            "theta": theta_fit(judged, samples=day, out=out / "theta")["worth"],
            "explained": explain("topic 1", build, raw=True),
            "report": engine_report(build, out / "report", owner=True),
            "asked": list(training_requests(window, None, min_users=1)),
            "prompt": fitting_prompt(window, LLMConfig()),
            "pairs": log_pairs(window).relevant.tolist(),
            "sheet": (
                write_rating_sheet(build, out / "sheet.csv", each=5, k=1, seed=0),
                (out / "sheet.csv").read_text(),
            ),
            "brought": {name: one.tolist() for name, one in brought_by(day, *ids).items()},
            "clicks": mined_click_queries(day),
            "rows": load_item_rows(window),
            "queries": load_queries(window)[1],
            "of the table": load_queries(window / "queries.parquet")[1],
            "samples": _samples_of("ngrams", window) == window,
        }
        found.append(seen)
    whole, parted = found
    assert whole["pairs"]
    assert any(whole["brought"]["P1"])
    assert whole["asked"]
    for name in whole:
        assert whole[name] == parted[name], name
