"""Making cells: each step once, a failed or killed one, and going on. The steps are stand-ins."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from handmade_cells import write_cell

from crops import simulation
from crops.config import load_config
from crops.errors import CropsError
from crops.evaluation import Evaluation, Slices, TestSets
from crops.outputs import publish, write_manifest
from crops.reproduce import make, run
from crops.reproduce.design import Cell, base_run, build_world
from crops.reproduce.make import make_cell, make_samples
from crops.reproduce.run import make_cells

MADE: list[str] = []


def simulate(out, settings, days):
    MADE.append(f"simulate {settings.seed}")
    with publish(out, "simulate") as folder:
        write_manifest(
            folder, "simulate", config={}, seconds={}, days={"train": "2026-01-06", "test": "2026-01-08"}
        )


def check(logs, out, memory):
    MADE.append("check")
    with publish(out, "check") as folder:
        write_manifest(folder, "check", config={}, seconds={})


def mine(logs, day, out, settings, generated):
    MADE.append(f"mine {day}")
    with publish(out, "mine") as folder:
        (folder / "report.json").write_text(json.dumps({"days": [day]}))
        write_manifest(folder, "mine", config={}, seconds={})


def testsets(logs, day, truth, samples, settings):
    MADE.append(f"testsets {day}")
    nothing = pa.table({"query_id": pa.array([], pa.int64())})
    return TestSets((day,), 0, nothing, nothing, nothing, nothing, None, {})


testsets.__test__ = False  # pytest would collect a function of this name


def killed(world, out):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def made(monkeypatch):
    """The list of what was made; facts, training and evaluation are left out."""
    MADE.clear()
    for where, name, step in (
        (simulation, "simulate", simulate),
        (simulation, "check", check),
        (make, "mine_day", mine),
        (make, "day_testsets", testsets),
    ):
        monkeypatch.setattr(where, name, step)
    monkeypatch.setattr(make, "build_slices", lambda *_: None)
    monkeypatch.setattr(make, "save_slices", lambda *_: None)
    return MADE


def finish(cell, out, generated):
    """Stand for `make_cell`: what a cell shares is made, and a folder by hand."""
    make_samples(cell, out, generated)
    MADE.append(f"{cell.method} in {cell.world.label}")
    if cell.method == "dpr":
        raise CropsError("step 3: the loss is nan")
    folder = out / "cells" / cell.name()
    with publish(folder, "reproduce") as staging:
        source = write_cell(
            out / f"hand-{cell.name()}", cell.method, cell.world.seed, {"recall@100/ct": [0.5]}
        ).folder
        for file in source.iterdir():
            (staging / file.name).write_bytes(file.read_bytes())
        facts = json.loads((staging / "cell.json").read_text()) | {
            "metrics": {"recall@100/ct": {"mean": 0.5}}
        }
        (staging / "cell.json").write_text(json.dumps(facts))
        write_manifest(staging, "reproduce", config={}, seconds={})
    return folder


def cells(*methods, seeds=(0,)):
    worlds = [build_world("default", "tiny", seed) for seed in seeds]
    return [Cell(world, method, base_run(world, load_config())) for world in worlds for method in methods]


def test_what_cells_share_is_made_once(tmp_path, made, monkeypatch):
    monkeypatch.setattr(run, "make_cell", finish)
    outcome = make_cells(cells("fs_lr", "crops", "fs_lr", seeds=(0, 1)), tmp_path, {}, jobs=1)
    assert len(outcome.measured) == 4
    assert [name for name in made if name.startswith("simulate")] == ["simulate 0", "simulate 1"]
    assert [name for name in made if name.startswith("mine")] == ["mine 2026-01-06"] * 2
    assert made.count("testsets 2026-01-08") == 2
    made.clear()
    assert len(make_cells(cells("fs_lr", "crops"), tmp_path, {}, jobs=1).measured) == 2
    assert made == []
    # cells that differ in a setting alone are all made
    (plain,) = cells("fs_lr")
    other = dataclasses.replace(plain, point={"docs_per_source": 1})
    outcome = make_cells([plain, other], tmp_path, {}, jobs=1)
    assert [one.folder.name for one in outcome.measured] == [plain.name(), other.name()]


def test_queries_that_join_the_texts_are_mined_and_expanded_once(tmp_path, made, monkeypatch):
    def expand(mined, out, config):
        MADE.append(f"expand {len(config.sources)} source")
        with publish(out, "expand") as folder:
            write_manifest(folder, "expand", config={}, seconds={})

    monkeypatch.setattr(run, "make_cell", finish)
    monkeypatch.setattr(make, "expand", expand)
    make_cells(cells("fs_lr", "bm25_expanded", "fs_lr_expanded", "crops_expanded"), tmp_path, {}, jobs=1)
    assert [name for name in made if name.startswith(("mine", "expand"))] == [
        "mine 2026-01-06",
        "mine 2026-01-06",  # of rewordings
        "expand 1 source",
    ]


def test_a_failed_cell_is_named_and_the_others_go_on(tmp_path, made, monkeypatch):
    monkeypatch.setattr(run, "make_cell", finish)
    outcome = make_cells(cells("fs_lr", "dpr", "crops"), tmp_path, {}, jobs=1)
    assert [one.method for one in outcome.measured] == ["fs_lr", "crops"]
    assert outcome.failed == {cells("dpr")[0].name(): "step 3: the loss is nan"}
    made.clear()
    make_cells(cells("fs_lr", "dpr", "crops"), tmp_path, {}, jobs=1)
    assert made == ["dpr in tiny-default-0"]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, made, monkeypatch):
    def interrupted(cell, *rest):
        if cell.method == "crops":
            raise KeyboardInterrupt
        return finish(cell, *rest)

    monkeypatch.setattr(run, "make_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_cells(cells("fs_lr", "crops"), tmp_path, {}, jobs=1)
    monkeypatch.setattr(run, "make_cell", finish)
    made.clear()
    assert len(make_cells(cells("fs_lr", "crops"), tmp_path, {}, jobs=1).measured) == 2
    assert made == ["crops in tiny-default-0"]


def test_a_full_disk_stops_the_run_with_its_remedy(tmp_path, made, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run, "make_cell", full)
    with pytest.raises(CropsError, match="is full.*finished cells are kept"):
        make_cells(cells("fs_lr"), tmp_path, {}, jobs=1)


@pytest.mark.verify
def test_a_killed_process_is_told_and_leaves_nothing_half(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "make_world", killed)
    with pytest.raises(CropsError, match=r"a process was killed while it made worlds.*fewer --jobs"):
        make_cells(cells("fs_lr"), tmp_path, {}, jobs=2)
    assert list(tmp_path.rglob("manifest.json")) == []


PARENT = """
import multiprocessing, time
from crops.reproduce.run import _end_with_parent
if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=_end_with_parent)
    worker.start()
    print(worker.pid, flush=True)
    time.sleep(120)
"""


@pytest.mark.verify
def test_workers_end_with_a_killed_parent(tmp_path):
    """Else they would go on to write where the next run writes."""
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True
    ) as parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)  # it is there
        parent.kill()
    for _ in range(600):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker went on without its parent")


def test_a_model_that_was_not_evaluated_is_not_trained_again(tmp_path, made, monkeypatch):
    """Killed between training and evaluation: the second run goes on with the model that is there."""

    def learn(cell, samples, model):
        made.append("learn")
        with publish(model, "train") as folder:
            write_manifest(folder, "train", config={}, seconds={})
        return {"cpu_seconds": 7.0}

    def stop(*_):
        raise KeyboardInterrupt

    (cell,) = cells("fs_lr")
    day = testsets(None, "2026-01-08", None, None, None)
    monkeypatch.setattr(make, "load_testsets", lambda _: day)
    monkeypatch.setattr(make, "load_slices", lambda _: Slices(day.queries, day.ct, day.ct, None))
    monkeypatch.setattr(make, "_described", lambda *_: day.queries)
    monkeypatch.setattr(make, "learn", learn)
    monkeypatch.setattr(make, "_evaluate", stop)
    with pytest.raises(KeyboardInterrupt):
        make_cell(cell, tmp_path, None)
    samples = Path(make_samples(cell, tmp_path, None))
    (samples / "report.json").write_text(
        json.dumps({"days": ["2026-01-06"], "labels": {}, "p3_coverage": {}})
    )
    monkeypatch.setattr(make, "_evaluate", lambda *_: Evaluation(pa.table({"metric": ["x"]}), {}))
    folder = make_cell(cell, tmp_path, None)
    assert made.count("learn") == 1
    assert json.loads((folder / "cell.json").read_text())["training"] == {"cpu_seconds": 7.0}
    assert not any((tmp_path / "models").iterdir())


def test_a_cell_whose_samples_hold_the_test_day_is_not_made(tmp_path, made, monkeypatch):
    (cell,) = cells("fs_lr")
    samples = Path(make_samples(cell, tmp_path, None))
    (samples / "report.json").write_text(json.dumps({"days": ["2026-01-08"]}))
    day = testsets(None, "2026-01-08", None, None, None)
    monkeypatch.setattr(make, "load_testsets", lambda _: day)
    monkeypatch.setattr(make, "load_slices", lambda _: None)
    with pytest.raises(CropsError, match="was mined from 2026-01-08, the test day"):
        make_cell(cell, tmp_path, None)
    assert not (tmp_path / "cells").exists()
