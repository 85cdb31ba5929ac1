"""Forgetting equals a build from logs that never held them."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from days import DAY_S, DAYS, contents, hashed_job, plain_job, random_days, write_days
from handmade import Row, clicked, read_tables, shown, write_logs
from typer.testing import CliRunner

import crops.engine.forget
from crops.cli.app import app
from crops.engine.daily import mine_daily
from crops.engine.forget import forget
from crops.engine.subtract import read_content
from crops.errors import CropsError
from crops.logs import open_logs


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Logs of three days and a build of the first two."""
    folder = tmp_path_factory.mktemp("built")
    mine_daily(write_days(folder / "logs"), folder / "out", hashed_job(), DAYS[:2])
    return folder


@pytest.fixture
def out(tmp_path, built) -> Path:
    """A copy of the build."""
    return shutil.copytree(built / "out", tmp_path / "out")


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """Contents of the same build from logs that never held a user or an item."""

    @functools.cache
    def build(user: int | None = None, item: int | None = None) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("never")
        mine_daily(write_logs(folder / "logs", *others(user, item)), folder / "out", hashed_job(), DAYS[:2])
        return contents(folder / "out")

    return build


def others(user: int | None, item: int | None) -> list[list[Row]]:
    """Return the random searches and feed events but those of a user and an item."""
    return [
        [row for row in rows if row["user_id"] != user and row["item_id"] != item] for rows in random_days()
    ]


@pytest.mark.parametrize("gone", [{"user": 3}, {"item": 7}])
def test_forgetting_equals_logs_without(built, out, without, gone):
    """With caps per user and per stage that others fill up when a user goes."""
    before = contents(out)
    report = forget(out, hashed_job(), **{f"{name}s": [number] for name, number in gone.items()})
    assert contents(out) == without(**gone)
    assert not set(contents(out).values()) & set(before.values())
    assert report.rebuilt == DAYS[:2]
    manifest = json.loads((out / f"day={DAYS[0]}" / "manifest.json").read_text())
    assert manifest["logs"] == str(built / "logs")
    assert not list(out.glob(".logs-*"))


def test_only_days_that_held_them_are_mined_again(tmp_path):
    rows = [clicked(1, 1, "a", 0, 1), clicked(2, 2, "a", 1, 2), clicked(3, 1, "a", DAY_S, 1)]
    logs, out = write_logs(tmp_path / "logs", rows), tmp_path / "out"
    mine_daily(logs, out, plain_job())
    kept = (out / f"day={DAYS[1]}" / "manifest.json").stat()
    report = forget(out, plain_job(), users=[2])
    assert report.rebuilt == (DAYS[0],)
    assert (out / f"day={DAYS[1]}" / "manifest.json").stat() == kept
    assert {row["item_id"] for row in read_tables(out / "window")["samples"]} == {1}
    assert forget(out, plain_job(), users=[99]).rebuilt == ()


def test_later_builds_leave_them_out_too(tmp_path):
    rows = [clicked(10 * day + user, user, "a", day * DAY_S, user) for day in (0, 1) for user in (1, 2, 3)]
    logs, out = write_logs(tmp_path / "logs", rows), tmp_path / "out"
    mine_daily(logs, out, plain_job(), DAYS[:1])
    forget(out, plain_job(), users=[3])
    forget(out, plain_job(), users=[2])
    mine_daily(logs, out, plain_job(), DAYS[1:2])
    assert {row["item_id"] for row in read_tables(out / "window")["samples"]} == {1}
    assert read_tables(out / "window")["queries"][0]["searches"] == 2


def test_a_day_that_was_theirs_alone_goes(tmp_path):
    logs = write_logs(tmp_path / "logs", [clicked(1, 1, "a", 0, 1), clicked(2, 2, "b", DAY_S, 2)])
    out = tmp_path / "out"
    mine_daily(logs, out, plain_job())
    forget(out, plain_job(), users=[2])
    assert [path.name for path in out.glob("day=*")] == [f"day={DAYS[0]}"]
    forget(out, plain_job(), users=[1])
    assert not (out / "window").exists()


def test_an_interrupted_forget_is_finished_by_the_same_call(built, out, without, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(crops.engine.forget, "merge_window", stop)
        with pytest.raises(KeyboardInterrupt):
            forget(out, hashed_job(), users=[3])
    logs = open_logs(built / "logs")
    with pytest.raises(CropsError, match="`crops forget` did not finish; run it again"):
        mine_daily(logs, out, hashed_job(), DAYS[2:])
    assert forget(out, hashed_job(), users=[3]).rebuilt == ()  # both days were done
    assert contents(out) == without(user=3)
    assert not json.loads((out / "forgotten.json").read_text())["pending"]


def test_a_mining_of_one_go(tmp_path):
    logs, job = write_days(tmp_path / "logs"), hashed_job()
    job.mine(logs, tmp_path / "mined", None)
    assert forget(tmp_path / "mined", job, users=[3]).rebuilt == (str(tmp_path / "mined"),)
    forget(tmp_path / "mined", job, items=[7])
    job.mine(write_logs(tmp_path / "others", *others(3, 7)), tmp_path / "never", None)
    assert read_tables(tmp_path / "mined") == read_tables(tmp_path / "never")
    assert read_content(tmp_path / "mined")
    assert json.loads((tmp_path / "mined" / "forget-report.json").read_text())["items"] == ["7"]


def test_models_to_retrain_are_named(tmp_path):
    logs, out = (
        write_logs(tmp_path / "logs", [clicked(1, 1, "a", 0, 1), clicked(2, 2, "a", 1, 2)]),
        tmp_path / "out",
    )
    mine_daily(logs, out, plain_job())
    for name, command, samples in (
        ("models/old", "train", out / "window"),
        ("models/other", "train", tmp_path / "elsewhere"),
        ("models/unnamed", "train", None),
        ("evaluation", "evaluate", out / "window"),
        (".hidden/model", "train", out / "window"),
    ):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        manifest = {"command": command, "samples": samples and str(samples)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    report = forget(out, plain_job(), users=[2], models=[tmp_path])
    assert report.retrain == (str(tmp_path / "models" / "old"),)
    written = json.loads((out / "forget-report.json").read_text())
    assert written["retrain"] == [str(tmp_path / "models" / "old")]
    assert written["users"] == ["2"]


def test_what_cannot_be_forgotten(tmp_path, out):
    before = contents(out)
    with pytest.raises(CropsError, match="at least one --user or --item"):
        forget(out, hashed_job())
    with pytest.raises(CropsError, match=r"mined otherwise: .*scorers.relevance was relevance, now none"):
        forget(out, replace(hashed_job(), relevance=None), users=[3])
    with pytest.raises(CropsError, match="are gone; give --logs"):
        forget(out, hashed_job(), users=[3], logs=tmp_path / "nowhere")
    other = write_logs(tmp_path / "other", [shown(1, 3, "a", DAY_S, 1)])
    with pytest.raises(CropsError, match="has no 2026-01-05"):
        forget(out, hashed_job(), users=[3], logs=other.path)
    with pytest.raises(CropsError, match="is a part of a daily build; name"):
        forget(out / "window", hashed_job(), users=[3])
    with pytest.raises(CropsError, match="is not an output of `crops mine`"):
        forget(tmp_path / "nowhere", hashed_job(), users=[3])
    assert contents(out) == before
    assert not (out / "forgotten.json").exists()


def test_the_command(tmp_path):
    write_days(tmp_path / "logs")
    out = tmp_path / "out"
    options = ["--relevance", "none", "--day", DAYS[0], "--seed", "5", "--daily"]
    done = CliRunner().invoke(app, ["mine", str(tmp_path / "logs"), str(out), *options])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["forget", str(out), "--user", "3", "--item", "7"])
    assert done.exit_code == 0, done.output
    assert 7 not in pq.read_table(out / "window" / "items.parquet")["item_id"].to_pylist()
    logs = write_logs(tmp_path / "others", *others(3, 7))
    mine_daily(logs, tmp_path / "never", replace(plain_job(), seed=5), DAYS[:1])
    assert contents(out) == contents(tmp_path / "never")
