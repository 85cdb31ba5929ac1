"""Which days are taken where nobody names one."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from crops.errors import CropsError
from crops.logs import check
from crops.logs.days import days_before, newest_day, runs, spans, today, usual_days

LOGS = Path("logs")
WEEK = [f"2026-01-{number:02}" for number in range(5, 12)]


@pytest.fixture(autouse=True)
def late_january(monkeypatch):
    for module in ("crops.logs.days", "crops.logs.check"):
        monkeypatch.setattr(sys.modules[module], "today", lambda: "2026-01-31")


def test_today_is_never_behind_utc():
    assert today() >= datetime.now(UTC).date().isoformat()


def test_runs_and_spans():
    days = ["2026-02-28", "2026-03-01", "2026-01-01", "2026-03-03"]
    assert runs(days, 2) == [["2026-01-01"], ["2026-02-28", "2026-03-01", "2026-03-03"]]
    assert spans(days) == "2026-01-01, 2026-02-28 to 2026-03-01, 2026-03-03"
    assert runs([], 7) == []
    assert days_before("2026-03-01", 1) == "2026-02-28"


@pytest.mark.parametrize(("days", "newest", "taken"), [
    (WEEK, None, WEEK),
    ([*WEEK, "2027-03-01"], None, WEEK),
    (["2019-12-31", *WEEK], None, ["2019-12-31", *WEEK]),
    ([*WEEK, "2026-01-25"], WEEK[2], WEEK),
    ([*WEEK, "2026-01-25"], "2026-01-20", [*WEEK, "2026-01-25"]),
    (["2026-01-25"], WEEK[-1], []),
])  # fmt: skip
def test_days_that_may_be_taken_unasked(days, newest, taken):
    assert usual_days(LOGS, days, 7, newest) == taken


@pytest.mark.parametrize(("days", "message"), [
    ([], "logs: no day holds a search"),
    (["2027-03-01", "2027-03-02"], "all days are after today, 2026-01-31: 2027-03-01 to 2027-03-02;"),
    ([*WEEK, "2026-01-25"], "2026-01-25 is more than 7 days after the other days, 2026-01-05 to 2026"),
])  # fmt: skip
def test_days_that_are_not_clear(days, message):
    with pytest.raises(CropsError, match=message):
        newest_day(LOGS, days, 7)


def test_the_newest_day_is_not_that_of_a_wrong_clock():
    assert newest_day(LOGS, [*WEEK, "2026-02-01", "2027-03-01"], 7) == WEEK[-1]


def test_a_check_names_days_after_today_and_spans_of_missing_ones(write_logs, tmp_path):
    day = 86_400_000_000
    noon = 1_767_614_400_000_000
    rows = [{"search_id": n, "searched_at": noon + days * day} for n, days in enumerate((0, 1, 400))]
    notes = check(write_logs(tmp_path / "logs", impressions=rows)).facts.notes()
    assert "search_impressions has rows after today, 2026-01-31: 2027-02-09: was a clock wrong?" in notes
    assert "search_impressions has no rows on 2026-01-07 to 2027-02-08: is a day missing?" in notes
