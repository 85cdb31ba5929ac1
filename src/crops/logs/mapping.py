"""What an importer says of its source: SQL from the source's columns to those of the contract."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from crops.database import literal, quoted
from crops.errors import CropsError, nearest
from crops.logs.sources import LISTS, find_files, read_sql
from crops.logs.values import PLAIN, Value, duration, flag, identifier, integer, text, time
from crops.schema import FEED_EVENTS, ITEMS, SEARCH_IMPRESSIONS, Column, Table


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
    """What the texts are: words, or `crops.logs.values.TOKENS`."""
    notes: tuple[str, ...] = ()
    """What a user of the data should know."""


# ------------------------------------------------------------------------------
# A team's own tables: one TOML names the files, the columns and their units.


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
