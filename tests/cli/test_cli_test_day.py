"""The day that `crops evaluate` tests on where none is named."""

from __future__ import annotations

import pytest

from crops.config import load_config
from crops.errors import CropsError
from crops.pipeline import day_testsets

DAY_US = 86_400_000_000
NOON_US = 1_767_614_400_000_000


@pytest.fixture
def tested(monkeypatch, write_logs, tmp_path):
    """Return a function from days after 2026-01-05 with a search to the test day."""
    monkeypatch.setattr("crops.logs.days.today", lambda: "2026-03-31")
    monkeypatch.setattr("crops.pipeline.build_testsets", lambda logs, day, *_, **__: day)
    run = load_config(None, relevance__model="none")

    def test_day(*numbers: int, day: str | None = None):
        rows = [{"search_id": n, "searched_at": NOON_US + n * DAY_US} for n in numbers]
        return day_testsets(write_logs(tmp_path / "logs", impressions=rows), day, None, None, run)

    return test_day


def test_a_row_from_the_future_is_no_test_day(tested):
    assert tested(0, 1, 2, 400) == "2026-01-07"


def test_a_lone_day_far_from_the_others_must_be_named(tested):
    with pytest.raises(CropsError, match="2026-03-06 lies more than 7 days after the other days"):
        tested(0, 1, 2, 60)


def test_a_named_day_is_taken(tested):
    assert tested(0, 1, 2, 400, day="2027-02-09") == "2027-02-09"
