"""What an importer says of its source: SQL from the source's columns to those of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from crops.logs.values import PLAIN, Value
from crops.schema import Table


@dataclass(frozen=True)
class MappedTable:
    """One table of the contract as SQL over a source."""

    table: Table
    rows: str
    """SELECT of the source's columns that are needed, no others, with `_file` and `_row`."""
    columns: Mapping[str, Value]
    """Column of the contract -> its value; ids as text. A row whose required value is NULL is rejected."""
    refused: Mapping[str, str] = field(default_factory=dict)
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
