"""SQL expressions that turn the texts of a source file into the contract's values; NULL where they cannot."""

from __future__ import annotations

from dataclasses import dataclass

from crops.schema import EARLIEST_US, LATEST_US

FACTORS = {"s": 1_000_000, "ms": 1_000, "us": 1}
"""Microseconds in a unit of time."""
TOKENS = "anonymised tokens"
"""Texts are token ids: no pre-trained model can read them."""
_ZONED = r":\d\d([.,]\d+)?\s*([+-]\d\d(:?\d\d(:\d\d)?)?|[A-Za-z][A-Za-z0-9_+/-]*)\s*$"
"""A zone behind a time of day: an offset, `Z` or a name."""
_APART = r"(:\d\d(?:[.,]\d+)?)\s+([+-]\d\d[:\d]*\s*)$"
"""An offset that white space parts from the time: DuckDB wants none."""
_TIMES = {"iso": "ISO 8601 such as 2026-01-05T12:00:00+08:00", "any": "ISO 8601 or a number of s, ms or us"}
PLAIN = "plain"
"""Texts are words."""


@dataclass(frozen=True)
class Value:
    """What a column becomes."""

    sql: str
    raw: str | None = None
    """The text that it is made from, if there is one."""
    unread: str | None = None
    """Predicate of texts that cannot be read; None: those that are there while `sql` is NULL."""
    expected: str = ""
    """What can be read, in words; empty where the contract's words for the column say it."""


def text(raw: str) -> Value:
    """Return the text without white space around it; an empty one is none."""
    return Value(f"nullif(trim({raw}), '')", raw)


def tokens(raw: str) -> Value:
    """Return token ids such as "[20, 34, 3]" as the words "t20 t34 t3"."""
    ids = f"list_transform(regexp_extract_all({raw}, '[0-9]+'), lambda id: 't' || id)"
    return Value(f"nullif(array_to_string({ids}, ' '), '')", raw)


def integer(raw: str) -> Value:
    """Return a whole number that fits 64 bits; "7.0", as pandas writes integers beside gaps, is one."""
    whole = rf"regexp_full_match(trim({raw}), '[+-]?\d+(\.0*)?')"
    return Value(f"case when {whole} then try_cast(split_part(trim({raw}), '.', 1) as BIGINT) end", raw)


def identifier(raw: str) -> Value:
    """Return an id as text, whole numbers in one form."""
    return Value(f"coalesce(cast({integer(raw).sql} as VARCHAR), nullif(trim({raw}), ''))", raw)


def integer_identifier(raw: str) -> Value:
    """Return an id as text; ids that are not whole numbers of 64 bits are none."""
    return Value(f"cast({integer(raw).sql} as VARCHAR)", raw)


def flag(raw: str) -> Value:
    """Return whether a count or a truth value is positive; what is absent or unreadable is false."""
    number = f"try_cast({raw} as DOUBLE)"
    is_true = f"case when isfinite({number}) then {number} > 0 end"
    found = f"coalesce({is_true}, try_cast({raw} as BOOLEAN))"
    return Value(
        f"coalesce({found}, false)",
        raw,
        f"{given(raw)} and {found} is null",
        "a number or a truth value (or name the texts that mean yes: equals = [...])",
    )


def duration(raw: str, unit: str) -> Value:
    """Return milliseconds from a number of `unit`; negative and infinite ones, and NaN, stand for unknown."""
    number = f"try_cast({raw} as DOUBLE)"
    known = f"isfinite({number}) and {number} between 0 and 1e15"
    return Value(
        f"case when {known} then cast(round({number} * {FACTORS[unit]} / 1000) as BIGINT) end",
        raw,
        f"{given(raw)} and {number} is null",
        f"a number of {unit}",
    )


def given(raw: str) -> str:
    """Return the predicate of texts that say something."""
    return f"nullif(trim({raw}), '') is not null"


def time(raw: str, unit: str, offset_minutes: int = 0) -> Value:
    """Return microseconds UTC; times out of the contract's range are none.

    Args:
        raw: the text.
        unit: `s`, `ms` or `us` since 1970 UTC; `iso` for ISO 8601; `any` for ISO 8601 or a number whose unit
            its size tells.
        offset_minutes: of the zone in which ISO times without a zone are, ahead of UTC; a zone that is named
            (`Z`, `+08`, `+05:30:00`, ` UTC`, ` Europe/Berlin`) wins.
    """
    number = f"try_cast({raw} as DOUBLE)"
    zoned = f"regexp_matches({raw}, '{_ZONED}')"
    shift = f"case when {zoned} then 0 else {offset_minutes * 60_000_000} end"
    joined = f"regexp_replace({raw}, '{_APART}', '\\1\\2')"
    iso = f"epoch_us(try_cast({joined} as TIMESTAMPTZ)) - {shift}"
    if unit == "iso":
        found = iso
    elif unit == "any":
        factor = f"case when {number} < 1e11 then 1000000 when {number} < 1e14 then 1000 else 1 end"
        found = f"case when isfinite({number}) then {_rounded(number, factor)} else {iso} end"
    else:
        found = f"case when isfinite({number}) then {_rounded(number, str(FACTORS[unit]))} end"
    return Value(
        f"case when {found} between {EARLIEST_US} and {LATEST_US} then {found} end",
        raw,
        expected=_TIMES.get(unit, f"{unit} since 1970 UTC, of a year that can be"),
    )


def _rounded(number: str, factor: str) -> str:
    return f"try_cast(round({number} * ({factor})) as BIGINT)"
