"""What a check found, as data and for people."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from crops.logs.days import spans, today


@dataclass(frozen=True)
class RowFault:
    """One reason for which rows of a table were rejected."""

    table: str
    reason: str
    column: str
    count: int
    """Rows with this reason; a row may have several."""
    files: int
    """Files with such rows."""
    file: str
    """File of the example, relative to the logs folder."""
    row: int
    """Row number of the example in its file, from 0."""
    example: dict[str, Any]
    """The example's values by contract column, nulls left out."""
    remedy: str


@dataclass(frozen=True)
class TableCounts:
    """Rows of one table: `rows == accepted + rejected`."""

    rows: int
    accepted: int
    rejected: int


@dataclass(frozen=True)
class Facts:
    """What the accepted rows hold."""

    searches: int
    searches_without_click: int
    """Valid: reformulation starts there, and shown documents still train as negatives."""
    users: int
    """Users who searched."""
    stages: tuple[str, ...]
    absent_labels: tuple[int, ...]
    """Labels that no row can earn because its stage is not logged."""
    p2: bool
    """Whether there are feed events to mine."""
    search_days: tuple[str, ...]
    feed_days: tuple[str, ...]
    missing_days: dict[str, tuple[str, ...]]
    """Days between the first and the last of the logs on which a table has no rows, by table."""
    absent_columns: dict[str, tuple[str, ...]]
    """Optional columns that no file has, by table."""
    other_case: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Columns that differ from one of those in case only, and are not read, by table."""

    def notes(self) -> list[str]:
        """Return the facts as sentences."""
        lines = [
            f"{self.searches:,} searches by {self.users:,} users on {len(self.search_days)} day(s),"
            f" {self.searches_without_click:,} of them without a click (valid)",
            f"stages present: {', '.join(self.stages)}",
        ]
        if self.absent_labels:
            labels = " and ".join(str(label) for label in self.absent_labels)
            lines.append(f"label {labels} will be absent: the logs hold no documents of that stage")
        if not self.p2:
            lines.append("P2 will be absent: there are no feed events")
        lines += [
            f"{table} has no rows on {spans(days)}: is a day missing?"
            for table, days in self.missing_days.items()
        ]
        lines += [
            f"{table} has rows after today, {today()}: {spans(days)}: was a clock wrong?"
            for table, days in self._future().items()
        ]
        lines += [
            f"{table} has no {', '.join(columns)}"
            for table, columns in self.absent_columns.items()
            if columns
        ]
        lines += [
            f"{table}: {', '.join(columns)} not read: names of columns are told by case"
            for table, columns in self.other_case.items()
        ]
        return lines

    def _future(self) -> dict[str, list[str]]:
        days = {"search_impressions": self.search_days, "feed_events": self.feed_days}
        future = {table: [day for day in found if day > today()] for table, found in days.items()}
        return {table: found for table, found in future.items() if found}


@dataclass(frozen=True)
class CheckReport:
    """The result of a check."""

    logs: str
    tables: dict[str, TableCounts]
    faults: tuple[RowFault, ...]
    facts: Facts
    merged: dict[str, int] = field(default_factory=dict)
    """By table the accepted rows that were merged from several of one key that differed."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each part."""
    control_characters: dict[str, dict[str, int]] = field(default_factory=dict)
    """Accepted rows in which control characters became spaces, by table and column."""

    def notes(self) -> list[str]:
        """Return what was found, as sentences."""
        changed = [
            f"{table}.{column}: control characters became spaces in {rows:,} rows"
            for table, columns in self.control_characters.items()
            for column, rows in columns.items()
        ]
        changed += [
            f"{count:,} rows of {name} were merged from several of one key that differed"
            for name, count in self.merged.items()
        ]
        return [*self.facts.notes(), *changed]

    def to_json(self) -> str:
        """Return the report as JSON; values that JSON does not know (NaN) are written as text."""
        return json.dumps(_plain(asdict(self)), indent=2) + "\n"


def explain(fault: RowFault) -> str:
    """Return a fault as one line."""
    return (
        f"{fault.table}: {fault.reason} ({fault.column}): {fault.count:,} rows,"
        f" e.g. {fault.file} row {fault.row}: {_example(fault)}; {fault.remedy}"
    )


def render(report: CheckReport) -> RenderableType:
    """Return the report as rich tables, the balance of rows first, and the facts."""
    counts = Table("table", *(_right(name) for name in ("rows", "accepted", "rejected")), title=report.logs)
    for name, table in report.tables.items():
        counts.add_row(name, f"{table.rows:,}", f"{table.accepted:,}", f"{table.rejected:,}")
    parts: list[RenderableType] = [counts]
    if report.faults:
        parts.append(_fault_table(report.faults))
    parts.append(Text("\n".join(f"· {note}" for note in report.notes())))
    return Group(*parts)


def _fault_table(faults: tuple[RowFault, ...]) -> Table:
    table = Table(
        "file", "column", "reason", "rows", "example", "remedy", title="rejected rows", show_lines=True
    )
    table.columns[3].justify = "right"
    for fault in faults:
        more = f" (and {fault.files - 1} more)" if fault.files > 1 else ""
        example = f"row {fault.row}: {_example(fault)}"
        cells = (fault.file + more, fault.column, fault.reason, f"{fault.count:,}", example, fault.remedy)
        table.add_row(*(Text(cell, overflow="fold") for cell in cells))
    return table


def _example(fault: RowFault) -> str:
    """Return the value of the faulty column, and what identifies the row."""
    faulty = fault.column.split(", ")
    known = [name for name in ("search_id", "user_id", "item_id") if name in fault.example]
    return ", ".join(f"{name}={fault.example.get(name)!r}" for name in dict.fromkeys([*faulty, *known]))


def _right(name: str) -> Column:
    return Column(name, justify="right")


def _plain(value: object) -> object:
    """Return `value` with ids and numbers that are not finite as text: many readers round above 2^53."""
    if isinstance(value, dict):
        ids = {key: str(part) for key, part in value.items() if key.endswith("_id") and isinstance(part, int)}
        return {key: _plain(part) for key, part in value.items()} | ids
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
