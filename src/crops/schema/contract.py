"""What a table is made of: columns, row rules, agreements between rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from crops.text import FILLERS

ARROW_TYPES: dict[str, pa.DataType] = {
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "VARCHAR": pa.string(),
}

EARLIEST_US = 946_684_800_000_000
"""2000-01-01 in microseconds: smaller times are in a wrong unit."""
LATEST_US = 4_102_444_800_000_000
"""2100-01-01 in microseconds."""
MAX_QUERY_CHARS = 1000
"""A longer query text is a fault of the logging, not a search."""
MAX_DURATION_MS = 604_800_000
"""Seven days: longer durations are in a wrong unit."""

VISIBLE = rf"[^\s\p{{Z}}\p{{Cc}}\p{{Cf}}\p{{M}}{FILLERS}]"
"""Regular expression (RE2) of a character to read, as in `crops.text.has_text`."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What decoders leave where bytes were not of the encoding they expected."""

STAGES = ("exposed", "unexposed", "filtered")
"""How far a document came for a query: shown; ranked, not shown; filtered between pre-rank and rank."""

Merge = Literal["min", "max", "bool_or", "bit_or", "furthest"]
"""How the values of rows with one key become one: an SQL aggregate, or the stage that came furthest. None
depends on the order of the rows, and nulls are left out."""


@dataclass(frozen=True)
class Column:
    """A column: SQL type, whether it may be null, whether it may be absent, and what it holds."""

    name: str
    type: str
    doc: str
    nullable: bool = False
    optional: bool = False
    prose: bool = False
    """Whether people wrote it: `crops check` turns control characters in it into spaces."""
    merge: Merge = "min"

    @property
    def measure(self) -> bool:
        """Whether this integer counts something, so that tools may hand it over as floats.

        pandas turns integers with gaps into floats: exact for counts and durations, lossy for ids, times and
        bit masks, which must be integers.
        """
        identifies = self.name.endswith(("_id", "_at")) or self.name == "routes"
        return self.type in ("BIGINT", "INTEGER") and not identifies


@dataclass(frozen=True)
class Rule:
    """A row rule: `bad` is a DuckDB predicate that is true where the row must be rejected."""

    reason: str
    column: str
    bad: str
    remedy: str


@dataclass(frozen=True)
class Agreement:
    """Rows of one `key` agree in `columns`; those that differ from the earliest acceptable one are rejected.

    Of rows of one time the one with the lowest values of `columns` counts.
    """

    reason: str
    key: str
    columns: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class Table:
    """A table of the contracts."""

    name: str
    doc: str
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()
    key: tuple[str, ...] = ()
    """No two rows share it: those that do become one (see `Column.merge`, or `latest_by`)."""
    latest_by: tuple[str, ...] = ()
    """Counters that only grow: of rows of one key the one with the highest is kept as it is, the others are
    older. Without them rows of one key are merged column by column."""
    agreement: Agreement | None = None
    time: str | None = None
    """The time that gives a row its day: the table is written as hive partitions `day=YYYY-MM-DD/`."""

    @property
    def partitioned(self) -> bool:
        """Whether the table is partitioned by day."""
        return self.time is not None

    def names(self) -> list[str]:
        """Return the column names in order."""
        return [column.name for column in self.columns]

    def arrow(self) -> pa.Schema:
        """Return the Arrow schema."""
        return pa.schema(
            [pa.field(column.name, ARROW_TYPES[column.type], column.nullable) for column in self.columns]
        )
