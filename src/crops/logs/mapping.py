"""What an importer says of its source: SQL from the source's columns to those of the contract.

`Importer` is a format that `crops import` knows, `Dataset` what it says of one folder. `text`, `integer`,
`time` and the like turn the texts of a source into values, NULL where they cannot. The importer of a team's
own tables is here too: one TOML names the files, the columns and their units.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from crops.database import literal, quoted
from crops.errors import CropsError, nearest
from crops.logs.sources import LISTS, find_files, read_sql
from crops.logs.tables import PLAIN
from crops.schema import EARLIEST_US, FEED_EVENTS, ITEMS, LATEST_US, SEARCH_IMPRESSIONS, Column, Table

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


# Values: each function takes the SQL of a text.

FACTORS = {"s": 1_000_000, "ms": 1_000, "us": 1}
"""Microseconds in a unit of time."""
_ZONED = r":\d\d([.,]\d+)?\s*([+-]\d\d(:?\d\d(:\d\d)?)?|[A-Za-z][A-Za-z0-9_+/-]*)\s*$"
"""A zone behind a time of day: an offset, `Z` or a name."""
_APART = r"(:\d\d(?:[.,]\d+)?)\s+([+-]\d\d[:\d]*\s*)$"
"""An offset that white space parts from the time: DuckDB wants none."""
_TIMES = {"iso": "ISO 8601 such as 2026-01-05T12:00:00+08:00", "any": "ISO 8601 or a number of s, ms or us"}


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


# A team's own tables.

_IDS = ("user_id", "item_id", "search_id")
_OFFSET = re.compile(r"([+-])(\d\d):(\d\d)")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ColumnMapping(_Section):
    """Where a column of the contract comes from: a column, or a constant."""

    column: str | None = None
    """Of the file; in JSON lines a path such as `object.id`."""
    value: bool | int | float | str | None = None
    """The same in every row."""
    unit: Literal["s", "ms", "us", "iso"] | None = None
    """Of a time or duration: they must say it. `iso` is ISO 8601, for times only."""
    base: Literal[0, 1] = 1
    """Of a position: the first is 0 or 1."""
    equals: tuple[str, ...] = ()
    """Of a truth value: true where the column holds one of these."""


class TableMapping(_Section):
    """One table of the contract."""

    files: str
    """Pattern below the folder: files or folders of .parquet, .csv, .tsv, .jsonl, also .gz."""
    columns: dict[str, str | ColumnMapping]
    """Column of the contract -> column of the files, or more about it."""


class Actions(_Section):
    """What the events of a UBI log mean."""

    click: tuple[str, ...] = ("click", "item_click", "product_click", "click_through", "watch")
    like: tuple[str, ...] = ("like", "add_to_cart", "add_to_favorites", "bookmark", "save", "purchase")


class MappingFile(_Section):
    """The whole file."""

    text: Literal["plain", "anonymised tokens"] = "plain"
    """`anonymised tokens` where texts are ids of words that no pre-trained model can read."""
    utc_offset: str = "+00:00"
    """Of ISO times that name no zone."""
    items: TableMapping | None = None
    search_impressions: TableMapping | None = None
    feed_events: TableMapping | None = None
    actions: Actions = Actions()
    """For UBI."""

    @property
    def offset_minutes(self) -> int:
        """Minutes ahead of UTC."""
        match = _OFFSET.fullmatch(self.utc_offset)
        if match is None:
            raise CropsError(f"utc_offset = '{self.utc_offset}': write it as +08:00")
        minutes = 60 * int(match[2]) + int(match[3])
        return -minutes if match[1] == "-" else minutes


def load_mapping(path: Path) -> MappingFile:
    """Read a mapping.

    Raises:
        CropsError: the file is unreadable, a key is unknown or a value is not of its kind.
    """
    try:
        return MappingFile.model_validate(tomllib.loads(path.read_text()))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CropsError(f"{path}: cannot read the mapping: {error}") from error
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise CropsError(f"{path}: {'; '.join(faults)}") from error


def mapped_table(
    table: Table, section: TableMapping, folder: Path, mapping: MappingFile, scratch: Path
) -> MappedTable:
    """Return one table of the contract from its section.

    Raises:
        CropsError: as in `own_tables`.
    """
    known = {column.name: column for column in table.columns}
    found = dict(section.columns)
    if table is SEARCH_IMPRESSIONS:
        found.setdefault("stage", ColumnMapping(value="exposed"))
    for name in found:
        if name not in known:
            raise CropsError(f"[{table.name}.columns] {name} is no column of it.{nearest(name, known)}")
    for column in table.columns:
        if not column.optional and column.name not in found:
            raise CropsError(f"[{table.name}.columns] lacks {column.name}: {column.doc}")
    how = {name: ColumnMapping(column=one) if isinstance(one, str) else one for name, one in found.items()}
    columns = {
        name: _value(f"[{table.name}.columns] {name}", known[name], one, mapping.offset_minutes)
        for name, one in how.items()
    }
    read = {one.column: one.column for one in how.values() if one.column}
    refused = {"malformed_json": "_problem = 'malformed_json'"}
    refused |= {f"{LISTS}{name}": f"_problem = {literal(LISTS + name)}" for name in read}
    return MappedTable(table, read_sql(find_files(folder, section.files), read, scratch), columns, refused)


def _value(where: str, column: Column, how: ColumnMapping, offset_minutes: int) -> Value:
    if (how.column is None) == (how.value is None):
        raise CropsError(f"{where}: give either column or value")
    if how.column is None:
        type_ = "VARCHAR" if column.name in _IDS else column.type
        return Value(f"cast({literal(str(how.value))} as {type_})")
    raw = quoted(how.column)
    if column.name.endswith(("_at", "_ms")):
        return _timed(where, column, how, raw, offset_minutes)
    if column.name in _IDS:
        return identifier(raw)
    if column.type == "BOOLEAN":
        wanted = ", ".join(literal(word) for word in how.equals)
        return Value(f"coalesce({raw} in ({wanted}), false)") if wanted else flag(raw)
    if column.type == "VARCHAR":
        return text(raw)
    if column.type == "DOUBLE":
        return Value(f"case when isfinite(try_cast({raw} as DOUBLE)) then try_cast({raw} as DOUBLE) end", raw)
    whole = f"try({integer(raw).sql} + {1 - how.base if column.name == 'rank' else 0})"
    return Value(f"try_cast({whole} as {column.type})", raw)


def _timed(where: str, column: Column, how: ColumnMapping, raw: str, offset_minutes: int) -> Value:
    if how.unit is None:
        raise CropsError(f'{where}: say its unit, e.g. {{ column = {raw}, unit = "ms" }}')
    if column.name.endswith("_at"):
        return time(raw, how.unit, offset_minutes)
    if how.unit == "iso":
        raise CropsError(f"{where}: a duration is a number of s, ms or us")
    return duration(raw, how.unit)


def own_tables(folder: Path, mapping: MappingFile, scratch: Path) -> Dataset:
    """Return the mapping of a team's own tables.

    Raises:
        CropsError: items or search_impressions are not mapped, a file or column is missing, a column of the
            contract is unknown or lacks its unit.
    """
    for name in ("items", "search_impressions"):
        if getattr(mapping, name) is None:
            raise CropsError(f"the mapping has no [{name}]; name its files and columns")
    sections = (
        (ITEMS, mapping.items),
        (SEARCH_IMPRESSIONS, mapping.search_impressions),
        (FEED_EVENTS, mapping.feed_events),
    )
    tables = [
        mapped_table(table, section, folder, mapping, scratch) for table, section in sections if section
    ]
    return Dataset(tuple(tables), text=mapping.text)


OWN_TABLES = Importer("table", own_tables, mapping="needed")
