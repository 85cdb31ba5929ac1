"""What the texts of a source mean: each function takes the SQL of a text and returns the SQL of its value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crops.database import literal
from crops.schema import EARLIEST_US, LATEST_US


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
    made: Literal["", "columns", "row"] = ""
    """An id that is not the source's own: of several columns, or the number of the row."""


FACTORS = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "min": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
}
"""Microseconds in a unit of time."""
_NAMED = r"(?i:Z|(UTC|GMT)([+-][\d:]+)?|[a-z_]+/[a-z][a-z0-9_+/-]*)(\s|$)"
"""A zone by name. Others have several meanings (BST is London's or Dhaka's) and are none."""
_ZONED = rf":\d\d([.,]\d+)?\s*([+-]\d\d(:?\d\d(:\d\d)?)?\s*$|{_NAMED})"
"""A zone behind a time of day."""
_WORD = r":\d\d([.,]\d+)?\s*[A-Za-z]"
"""A word behind a time of day."""
_APART = r"(:\d\d(?:[.,]\d+)?)\s+([+-]\d\d[:\d]*\s*)$"
"""An offset that white space parts from the time: DuckDB wants none."""
_ZONES = (
    "; a zone as +08:00, UTC or Asia/Shanghai, not one such as BST or CST, which has several meanings: name"
    " it so, or cut it off (extract or replace) and set utc_offset"
)
_TIMES = {
    "iso": f"ISO 8601 such as 2026-01-05T12:00:00+08:00{_ZONES}",
    "any": f"ISO 8601 or a number of s, ms or us{_ZONES}",
}


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
    """Return an id as text; of "7.0", as pandas writes integers beside gaps, "7"."""
    return Value(rf"nullif(regexp_replace(trim({raw}), '^(-?\d+)\.0*$', '\1'), '')", raw)


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


def time(raw: str, unit: str, offset_minutes: int = 0, since: int = 0) -> Value:
    """Return microseconds UTC; times out of the contract's range are none.

    Args:
        raw: the text.
        unit: one of `FACTORS`: a number of them; `iso` for ISO 8601; `any` for ISO 8601 or a number of s, ms
            or us, as its size tells; or a format of strptime.
        offset_minutes: of the zone in which times without a zone are, ahead of UTC; a zone that is named
            (`Z`, `+08`, `+05:30:00`, ` UTC`, ` Europe/Berlin`, `%z`) wins. Times with another name, such as
            BST, are none.
        since: microseconds UTC from which numbers count.
    """
    number = f"try_cast({raw} as DOUBLE)"
    ahead = offset_minutes * FACTORS["min"]
    named = f"regexp_matches({raw}, '{_WORD}') then null"
    shift = f"case when regexp_matches({raw}, '{_ZONED}') then 0 when {named} else {ahead} end"
    joined = f"regexp_replace({raw}, '{_APART}', '\\1\\2')"
    iso = f"epoch_us(try_cast({joined} as TIMESTAMPTZ)) - {shift}"
    expected = _TIMES.get(unit, f"{unit} since {'then' if since else '1970 UTC'}, of a year that can be")
    if "%" in unit:
        shift = "0" if "%z" in unit else str(ahead)
        if "%Z" in unit:
            shift = f"case when regexp_matches({raw}, '(^|[\\s\\d]){_NAMED}') then 0 end"
        found = f"epoch_us(try_strptime(trim({raw}), {literal(unit)})) - {shift}"
        expected = f"times written as {unit}{_ZONES * ('%Z' in unit)}"
    elif unit == "iso":
        found = iso
    elif unit == "any":
        factor = f"case when {number} < 1e11 then 1000000 when {number} < 1e14 then 1000 else 1 end"
        found = f"case when isfinite({number}) then {_rounded(number, factor)} else {iso} end"
    else:
        found = f"case when isfinite({number}) then try({_rounded(number, str(FACTORS[unit]))} + {since}) end"
    in_range = f"case when {found} between {EARLIEST_US} and {LATEST_US} then {found} end"
    return Value(in_range, raw, expected=expected)


def _rounded(number: str, factor: str) -> str:
    return f"try_cast(round({number} * ({factor})) as BIGINT)"


_ELEMENT = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,\[\](){}'"]+"""
"""An element of a list as Python, numpy and Postgres write it."""
_PIECE = rf"(?s){_ELEMENT.replace(',', ',:')}|[\s,:\[\](){{}}]+|."
"""What a list is written in: strings, words and what stands between them."""


def elements(raw: str, separator: str | None = None) -> str:
    """Return the SQL of the texts of a list: in JSON, as Python, numpy or Postgres write it, or delimited.

    A struct is its JSON text; no text, or an empty one, is an empty list.

    Args:
        raw: the text.
        separator: of delimited texts; without it `,`, `;`, `|` and white space part them.
    """
    string = """'"' || replace(replace(piece[2:-2], '\\''', ''''), '"', '\\"') || '"'"""
    pieces = f"""list_transform(regexp_extract_all({raw}, {literal(_PIECE)}), lambda piece: case
        when piece = 'None' then 'null' when piece in ('True', 'False') then lower(piece)
        when len(piece) > 1 and left(piece, 1) = '''' then {string} else piece end)"""
    json = f"""case when regexp_matches({raw}, 'None|True|False|["\\\\]') then array_to_string({pieces}, '')
        else replace({raw}, '''', '"') end"""  # most need no pieces, which take seven times as long
    bare = f"regexp_split_to_array(trim({raw}), '\\s*[,;|\\s]\\s*')"
    if separator is not None:
        bare = f"string_split({raw}, {literal(separator)})"
    unquoted = "case when left(e, 1) in ('''', '\"') then e[2:-2] else e end"
    return f"""case when {given(raw)} is not true then []::VARCHAR[]
        when {_is_json(raw, "ARRAY")} then {_texts(raw)}
        when {_is_json(raw, "OBJECT")} and {raw} <> '{{}}' then [{raw}]
        when regexp_full_match({raw}, '(?s)\\s*[\\[({{].*[\\])}}]\\s*') then
            case when {_is_json(json, "ARRAY")} then {_texts(json)}
                else list_transform(regexp_extract_all({raw}, {literal(_ELEMENT)}), lambda e: {unquoted}) end
        else {bare} end"""


def _is_json(text: str, type_: str) -> str:
    return f"json_valid({text}) and json_type({text}) = '{type_}'"


def _texts(json: str) -> str:
    return f"list_transform(cast({json} as JSON[]), lambda e: e ->> '$')"
