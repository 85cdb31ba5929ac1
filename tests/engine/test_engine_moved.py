"""Outputs that are made from one directory and used from another, or moved together with what they name."""

from __future__ import annotations

import shutil

import pytest
from days import DAYS, hashed_job, write_days

from crops.config import EngineConfig
from crops.engine import mine
from crops.engine.daily import mine_daily
from crops.engine.mined import read_mined
from crops.errors import CropsError
from crops.logs import open_logs


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A folder with logs, a mining and a daily build; made from inside, by relative paths."""
    folder = tmp_path / "before"
    write_days(folder / "logs")
    monkeypatch.chdir(folder)
    mine(open_logs("logs"), "mined", EngineConfig(), relevance=None, similarity=None)
    mine_daily(open_logs("logs"), folder / "daily", hashed_job(), DAYS[:2])
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("name", ["mined", "daily", f"daily/day={DAYS[0]}"])
def test_logs_are_found_from_another_directory_and_after_a_move(made, tmp_path, name):
    assert list(read_mined(made / name).logs) == [str(made / "logs")]
    moved = made.rename(tmp_path / "deep")
    assert list(read_mined(moved / name).logs) == [str(moved / "logs")]
    read_mined(moved / name).open_logs(None)
    alone = shutil.move(moved / name, tmp_path / "alone")
    assert list(read_mined(alone).logs) == [str(made / "logs")]
    with pytest.raises(CropsError, match="are not there any more; give --logs"):
        read_mined(alone).open_logs(None)


def test_a_daily_build_goes_on_where_it_was_moved(made, tmp_path):
    moved = made.rename(tmp_path / "deep")
    mine_daily(open_logs(moved / "logs"), moved / "daily", hashed_job(), DAYS[:3])
    assert list(read_mined(moved / "daily").logs) == [str(moved / "logs")]
