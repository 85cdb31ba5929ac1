"""What an import did, as data and for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text


@dataclass(frozen=True)
class ImportCounts:
    """Rows of one table: `rows == imported + rejected`."""

    rows: int
    imported: int
    rejected: int
    reasons: Mapping[str, int]
    """Rejected rows by reason; a row may have several."""
    lost: Mapping[str, int]
    """Unreadable values of optional columns, by column: null in rows that were imported."""


@dataclass(frozen=True)
class ImportReport:
    """The result of an import."""

    format: str
    tables: Mapping[str, ImportCounts]
    malformed_lines: int
    """Lines that could not be taken apart: wrong number of fields, broken quotes, not UTF-8."""
    ids: Mapping[str, str]
    """`kept` or `numbered`, by column."""
    text: str
    notes: tuple[str, ...]


def render_import(report: ImportReport) -> RenderableType:
    """Return the report as a rich table with its notes."""
    counts = (Column(name, justify="right") for name in ("rows", "imported", "rejected"))
    table = Table("table", *counts, Column("why, and values lost", overflow="fold"), title=report.format)
    for name, one in report.tables.items():
        why = [f"{reason} {rows:,}" for reason, rows in one.reasons.items()]
        why += [f"{column} unreadable {rows:,}" for column, rows in one.lost.items()]
        table.add_row(name, f"{one.rows:,}", f"{one.imported:,}", f"{one.rejected:,}", ", ".join(why))
    ids = ", ".join(f"{column} {kind}" for column, kind in report.ids.items())
    notes = [f"ids: {ids}", f"texts: {report.text}", *report.notes]
    if report.malformed_lines:
        notes.insert(0, f"{report.malformed_lines:,} lines could not be taken apart (rejects/lines.parquet)")
    return Group(table, Text("\n".join(f"· {note}" for note in notes)))
