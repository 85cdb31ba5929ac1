"""What an importer says of its source: SQL from the source's columns to those of the contract.

`Importer` is a format that `crops import` knows, `Dataset` what it says of one folder. A mapping is one TOML
that names the files of a source, the columns and their units, which rows count, which lists are taken apart
and which tables belong together; `crops.logs.mapped` makes a `Dataset` of it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from crops.database import failing_as, literal, open_database
from crops.errors import CropsError
from crops.logs.sources import Layout
from crops.logs.tables import PLAIN
from crops.schema import EARLIEST_US, LATEST_US, Table

TOKENS = "anonymised tokens"
"""Texts are token ids: no pre-trained model can read them."""


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


@dataclass(frozen=True)
class MappedTable:
    """One table of the contract as SQL over a source."""

    table: Table
    rows: str
    """SELECT of the source's columns that are needed, no others, with `_file` and `_row`."""
    columns: MappingType[str, Value]
    """Column of the contract -> its value; ids as text. A row whose required value is NULL is rejected."""
    refused: MappingType[str, str] = field(default_factory=dict)
    """Reason -> predicate of rows that are rejected for it."""
    setup: tuple[str, ...] = ()
    """SQL statements that make what `rows` reads."""
    others: str = ""
    """SQL that counts the rows of the source that are of another kind; empty where there are none."""
    origins: MappingType[str, tuple[tuple[Path, ...], str]] = field(default_factory=dict)
    """Column of `rows` -> the files that must have it, and its path there."""


@dataclass(frozen=True)
class Dataset:
    """A source that can be imported."""

    tables: tuple[MappedTable, ...]
    """Items, search_impressions and, where there is a feed, feed_events."""
    setup: tuple[str, ...] = ()
    """SQL statements that make what the tables read."""
    text: str = PLAIN
    """What the texts are: words, or `TOKENS`."""
    notes: tuple[str, ...] = ()
    """What a user of the data should know."""


@dataclass(frozen=True)
class Importer:
    """A format that `crops import` reads: a new one is a file with one of these."""

    name: str
    read: Callable[[Path, MappingFile, Path], Dataset]
    """From the source's folder, what --mapping says and a folder for clean copies; raises CropsError where a
    file or column is missing."""
    mapping: Literal["none", "optional", "needed"] = "none"
    """Whether --mapping may or must be given."""


# A mapping.

_OFFSET = re.compile(r"([+-])(\d\d):([0-5]\d)")
_MAX_OFFSET = 14 * 60
_NULLS = ("\\N", "NULL", "null", "nan", "NaN", "None", "<NA>")
"""Texts that mean nothing, as databases, pandas and Python write them."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _same_names(value: Any) -> Any:  # noqa: ANN401 (what the file holds)
    names = [value] if isinstance(value, str) else value
    alike = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return dict(zip(names, names, strict=True)) if alike else value


_tuple = BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,))
_of_column = BeforeValidator(lambda value: {"column": value} if isinstance(value, str) else value)
Kinds = dict[str, Annotated[tuple[bool | int | float | str, ...], _tuple]]


def _demand_sql(value: str, what: str) -> None:
    try:
        with failing_as(what), open_database() as db:
            db.execute(f"select {value}")
    except CropsError as error:
        raise ValueError(str(error)) from error


class ColumnMapping(_Section):
    """Where a column of the contract comes from: one of `column` to `row`; the others say how it is read."""

    column: str | None = None
    """Of the file, or a path such as `object.id` (see `crops.logs.sources.path_text`)."""
    columns: tuple[Annotated[tuple[str, ...], _tuple], ...] = ()
    """Several: texts joined by a space, ids by `|`. Of an inner list the first that says something counts."""
    value: bool | int | float | str | None = None
    """The same in every row."""
    position: str | None = None
    """Of a position: the place in this list, which is taken apart, from 1."""
    listed: str | None = Field(None, alias="in")
    """Of a truth value: whether item_id is in this list. What is in it and was not shown becomes a row."""
    found: str | None = None
    """Of a truth value: whether this join found a row."""
    row: bool = False
    """Of an id: the number of the row."""
    optional: bool = False
    """Whether files may lack the column."""
    unit: Literal["us", "ms", "s", "min", "h", "d", "iso", "any"] | None = None
    """Of a time or duration: they must say it. For times only: `iso` is ISO 8601, `any` that or a number of
    s, ms or us since 1970, as its size tells."""
    since: str | None = None
    """Of a time that is a number: the date or time, in ISO 8601, from which it counts instead of 1970 UTC."""
    format: str | None = None
    """Of a time: as strptime has it, e.g. `%d/%m/%Y %H:%M:%S`."""
    base: Literal[0, 1, "lowest"] = 1
    """Of a position: the first is 0 or 1, or the lowest there is."""
    equals: tuple[bool | int | float | str, ...] = ()
    """Of a truth value: true where the column holds one of these; `7.0` is 7, and `True` is `true`."""
    integer: bool = False
    """Of an id: what is no whole number of 64 bits is none."""
    tokens: bool = False
    """Of a text: ids of words such as `[20, 34]`, which become `t20 t34`."""
    extract: str | None = None
    """Of a text or time: a regular expression with one group, which is what counts."""
    decode: Literal["url"] | None = None
    """Of a text: `url` where `%20` and `+` stand for a space."""
    replace: dict[str, str] = {}
    """Of a text or time: what becomes what."""

    @field_validator("extract")
    @classmethod
    def _one_group(cls, value: str | None) -> str | None:
        if value and "(" not in value:
            raise ValueError(f"{value!r}: put one group, in parentheses, around what counts")
        _demand_sql(f"regexp_extract('', {literal(value or '()')}, 1)", f"{value!r} is no regular expression")
        return value

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str | None) -> str | None:
        what = f"{value!r}: write it as %d/%m/%Y %H:%M:%S"
        if value and "%" not in value:
            raise ValueError(what)
        _demand_sql(f"cast(try_strptime('', {literal(value or '%Y')}) as VARCHAR)", what)
        return value

    def paths(self) -> tuple[str, ...]:
        """Return what it reads."""
        return tuple(filter(None, (self.column, *chain(*self.columns), self.listed, self.position)))


class Source(_Section):
    """Files of one table of the source."""

    files: str
    """Pattern below the folder: files or folders of .parquet, .csv, .tsv, .jsonl, .ndjson, .json, .txt, .log,
    also .gz."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Between columns of a text file: `,` in .csv, a tab in .tsv; others must say it."""
    names: tuple[str, ...] = ()
    """The columns in order, of text files without a header line."""
    quote: Literal["", '"'] = '"'
    """Around values of a text file; empty where quotes are letters."""
    null: tuple[str, ...] = _NULLS
    """Texts that mean nothing; an empty one always does."""
    where: Kinds = {}
    """Column -> the values of the rows that count; rows of another kind are counted and left out."""

    @property
    def layout(self) -> Layout:
        """Of its text files."""
        return Layout(self.delimiter, self.names, self.quote)


class Join(Source):
    """Another table of the source, of which each row finds at most one row, the first."""

    on: Annotated[dict[str, str], BeforeValidator(_same_names)]
    """Ours -> theirs; or columns, or one, of the same name in both."""


class TableMapping(Source):
    """One table of the contract."""

    columns: dict[str, Annotated[ColumnMapping, _of_column]]
    """Column of the contract -> column of the files, or more about it."""
    explode: Annotated[tuple[str, ...], _tuple] = ()
    """Lists to take apart, one row per element; several are in step. Where `ids` is taken apart, `ids` is the
    element and `ids.a` a field of it."""
    separator: str | None = None
    """Of lists in delimited text."""
    distinct: bool = False
    """Whether rows of one key are one: the fullest counts, and the others are rows of another kind."""
    join: dict[str, Join] = {}
    """Other tables; a column `c` of the join `j` is called `j.c`."""


class Actions(_Section):
    """What the events of a UBI log mean."""

    click: tuple[str, ...] = ("click", "item_click", "product_click", "click_through", "watch")
    like: tuple[str, ...] = ("like", "add_to_cart", "add_to_favorites", "bookmark", "save", "purchase")
    impression: tuple[str, ...] = ("impression",)


class MappingFile(_Section):
    """The whole file."""

    text: Literal["plain", "anonymised tokens"] = "plain"
    """`anonymised tokens` where texts are ids of words that no pre-trained model can read."""
    utc_offset: str = "+00:00"
    """Of times that name no zone."""
    notes: tuple[str, ...] = ()
    """What a user of the data should know."""
    items: TableMapping | None = None
    search_impressions: TableMapping | None = None
    feed_events: TableMapping | None = None
    actions: Actions = Actions()
    """For UBI."""

    @property
    def offset_minutes(self) -> int:
        """Minutes ahead of UTC."""
        match = _OFFSET.fullmatch(self.utc_offset)
        minutes = 60 * int(match[2]) + int(match[3]) if match else _MAX_OFFSET + 1
        if match is None or minutes > _MAX_OFFSET:
            raise CropsError(
                f"utc_offset = '{self.utc_offset}': write it as +08:00, between -14:00 and +14:00"
            )
        return -minutes if match[1] == "-" else minutes


def load_mapping(path: Path) -> MappingFile:
    """Read a mapping.

    Raises:
        CropsError: the file is unreadable, a key is unknown, a value is not of its kind, or a line that
            `crops import --guess` has marked TO DO is not filled in.
    """
    try:
        text = path.read_text()
        mapping = MappingFile.model_validate(tomllib.loads(text))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CropsError(f"{path}: cannot read the mapping: {error}") from error
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise CropsError(f"{path}: {'; '.join(faults)}") from error
    columns: MappingType[str, Any] = {}
    section, left = "", []
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.match(r"\[(\w+)", line):
            section = found[1]
            columns = getattr(getattr(mapping, section, None), "columns", {})
        asked = re.match(r"# TO DO, (\w+):", line)
        if asked and asked[1] not in columns:
            left.append(f"{asked[1]} of [{section}] (line {number})")
    if left:
        raise CropsError(
            f"{path} has lines marked TO DO that nobody has filled in: {', '.join(left)}; take the # off one "
            "of the lines below each and correct it, or delete what you can do without"
        )
    return mapping


# Values: each function takes the SQL of a text and returns the SQL of what it means.


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
