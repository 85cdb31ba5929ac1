"""Days of the logs, YYYY-MM-DD: how they are counted, and which are taken where nobody names one.

A row of a wrong clock must not move all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from crops.errors import CropsError
from crops.outputs import console

DAY_US = 86_400_000_000
"""Microseconds of a day."""


def today() -> str:
    """Return the day that it is, by UTC or by this machine's time zone, whichever is later."""
    return max(datetime.now(UTC).date(), date.today()).isoformat()


def runs(days: Collection[str], window: int) -> list[list[str]]:
    """Return the days in order, cut where more than `window` days lie from one to the next."""
    found: list[list[str]] = []
    for day in sorted(days):
        if found and (date.fromisoformat(day) - date.fromisoformat(found[-1][-1])).days <= window:
            found[-1].append(day)
        else:
            found.append([day])
    return found


def usual_days(logs: Path | str, days: Collection[str], window: int, newest: str | None = None) -> list[str]:
    """Return the days of the logs that may be taken unasked; those that may not are named on the terminal.

    No day after today is taken, and none that is more than `window` days after the day before it: one row
    would make all others old. Without a `newest` day to go on from the last days of the logs are meant,
    unless an earlier run of days is longer.

    Args:
        logs: named in messages.
        days: YYYY-MM-DD.
        window: how far apart two days may lie that belong together.
        newest: the day that was taken last.

    Raises:
        CropsError: no day is left, or which days are meant is not clear.
    """
    now = today()
    past = [day for day in days if day <= now]
    if newest is not None:
        last = next(run[-1] for run in runs([*past, newest], window) if newest in run)
    else:
        last = _last(logs, days, runs(past, window), window)
    left = sorted(set(days) - {day for day in past if day <= last})
    for day in left:
        why = f"after today, {now}" if day > now else f"more than {window} days after {last}"
        console.print(
            f"[yellow]{day} is left out:[/yellow] it is {why}; name it with --day if that is no wrong clock",
            soft_wrap=True,
        )
    return sorted(set(days) - set(left))


def named_days(logs: Path | str, named: Sequence[str], days: Collection[str]) -> list[str]:
    """Return the days that are named one by one, or as a range.

    Args:
        logs: named in messages.
        named: each YYYY-MM-DD, or FIRST..LAST for those of `days` between them, both included.
        days: the days of the logs.

    Raises:
        CropsError: a day is written otherwise, or a range holds no day of the logs.
    """
    found = []
    for text in named:
        first, dots, last = text.partition("..")
        wrong = [one for one in (first, last if dots else first) if not is_day(one)]
        if wrong:
            raise CropsError(
                f"'{wrong[0]}' is no day: write YYYY-MM-DD, or FIRST..LAST for all days from one to the other"
            )
        inside = [day for day in days if first <= day <= last] if dots else [first]
        if not inside:
            raise CropsError(f"{logs}: no search from {first} to {last}; the days there are: {spans(days)}")
        found += inside
    return sorted(set(found))


def hold_out(logs: Path | str, days: Sequence[str], holdout: int, gap: int) -> tuple[list[str], list[str]]:
    """Return the days to mine, and the last ones, which are kept for evaluation; a lone day is mined.

    Args:
        logs: named in messages.
        days: YYYY-MM-DD, ascending.
        holdout: how many are kept.
        gap: how many before these are neither mined nor kept.

    Raises:
        CropsError: no day would be left to mine.
    """
    if len(days) == 1 or not holdout:
        return list(days), []
    last = len(days) - holdout - gap
    if last < 1:
        raise CropsError(
            f"{logs}: {len(days)} days hold searches, {spans(days)}; {holdout} kept for evaluation and a gap "
            f"of {gap} leave none to mine: lower --holdout or --gap, or name days with --day"
        )
    return list(days[:last]), list(days[len(days) - holdout :])


def newest_day(logs: Path | str, days: Collection[str], window: int) -> str:
    """Return the newest of the days that may be taken unasked (see `usual_days`)."""
    return usual_days(logs, days, window)[-1]


def _last(logs: Path | str, days: Collection[str], found: Sequence[Sequence[str]], window: int) -> str:
    if not days:
        raise CropsError(f"{logs}: no day holds a search")
    if not found:
        raise CropsError(
            f"{logs}: all days are after today, {today()}: {spans(days)}; correct the clock, or name days "
            "with --day"
        )
    longest = max(found, key=len)
    if len(longest) > len(found[-1]):
        raise CropsError(
            f"{logs}: {spans(found[-1])} is more than {window} days after the other days, "
            f"{spans(longest)}; name the days that you mean with --day"
        )
    return found[-1][-1]


def spans(days: Iterable[str]) -> str:
    """Return days in words, those that follow each other as one span."""
    parts = []
    for run in runs(list(days), 1):
        parts.append(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}")
    return ", ".join(parts)


def days_before(day: str, number: int) -> str:
    """Return the day so many days before another."""
    return (date.fromisoformat(day) - timedelta(days=number)).isoformat()


def day_of(number: int) -> str:
    """Return the day that is so many days after 1970-01-01."""
    return (date(1970, 1, 1) + timedelta(days=number)).isoformat()


def day_bounds(day: str) -> tuple[int, int]:
    """Return the first and the last microsecond of a UTC day, YYYY-MM-DD."""
    first = (date.fromisoformat(day) - date(1970, 1, 1)).days * DAY_US
    return first, first + DAY_US - 1


def is_day(text: str) -> bool:
    """Return whether a text is a day, YYYY-MM-DD."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
