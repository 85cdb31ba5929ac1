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
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from crops.database import failing_as, literal, open_database
from crops.errors import CropsError
from crops.logs.sources import Layout
from crops.logs.tables import PLAIN
from crops.logs.values import Value
from crops.schema import Table

TOKENS = "anonymised tokens"
"""Texts are token ids: no pre-trained model can read them."""


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


def _tuple(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


Kinds = dict[str, Annotated[tuple[bool | int | float | str, ...], BeforeValidator(_tuple)]]


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
    columns: tuple[str | tuple[str, ...], ...] = ()
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
        several = (one for part in self.columns for one in ((part,) if isinstance(part, str) else part))
        return tuple(filter(None, (self.column, *several, self.listed, self.position)))


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

    on: str | tuple[str, ...] | dict[str, str]
    """Columns of the same name in both, or ours -> theirs."""

    @property
    def pairs(self) -> dict[str, str]:
        """Our columns -> theirs."""
        if isinstance(self.on, dict):
            return self.on
        return {name: name for name in ((self.on,) if isinstance(self.on, str) else self.on)}


class TableMapping(Source):
    """One table of the contract."""

    columns: dict[str, str | ColumnMapping]
    """Column of the contract -> column of the files, or more about it."""
    explode: Annotated[tuple[str, ...], BeforeValidator(_tuple)] = ()
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
