"""Tables on the terminal, as Markdown, as JSON and as a page: one content, four forms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from crops.report import LineFigure, Section, TablesReport, TextTable, standalone, write_report
from crops.reproduce.folder import write_atomically
from crops.reproduce.record import cells_csv
from crops.reproduce.results import Measured
from crops.reproduce.verdicts import Verdict

PAGE, DATA, TEXT, VERDICTS = "report.html", "tables.json", "results.md", "verdicts.json"
RECORD = "cells.csv"


def write_all(report: TablesReport, verdicts: dict[str, list[Verdict]], out: Path) -> None:
    """Write report.html, results.md, tables.json and verdicts.json into a folder."""
    write_report(report, out / PAGE)
    write_atomically(out / TEXT, markdown(report))
    tables = {section.title: [asdict(table) for table in section.tables] for section in report.sections}
    write_atomically(
        out / DATA, json.dumps({"facts": dict(report.facts), "sections": tables}, indent=2) + "\n"
    )
    told = {world: [asdict(verdict) for verdict in own] for world, own in verdicts.items()}
    write_atomically(out / VERDICTS, json.dumps(told, indent=2) + "\n")


def verdict_tables(verdicts: Sequence[Verdict]) -> list[TextTable]:
    """Return a line for each claim, and below them the cells that each rests on."""
    rows = [[one.claim, one.metric or "–", one.ruling, one.why] for one in verdicts]
    cells = [[one.claim, one.metric or "–", "\n".join(one.cells)] for one in verdicts if one.cells]
    return [
        TextTable("The paper's claims", ["claim", "on", "verdict", "why"], rows, words=True),
        TextTable("Cells behind the verdicts", ["claim", "on", "cells"], cells, words=True),
    ]


def write_docs(report: TablesReport, cells: Sequence[Measured], page: Path) -> None:
    """Write the report as Markdown; its curves, as SVG, and its cells go into a folder of the page's name."""
    folder, curves = page.with_suffix(""), _curves(report)
    for name, figure in curves.items():
        write_atomically(folder / name, standalone(figure.drawn()))
    write_atomically(folder / RECORD, cells_csv(cells))
    record = f"- what each cell was, and what it found: [{RECORD}]({folder.name}/{RECORD})\n"
    write_atomically(page, markdown(report, folder.name) + record)
    for old in folder.glob("*.svg"):
        if old.name not in curves:
            old.unlink()


def _curves(report: TablesReport) -> dict[str, LineFigure]:
    """Return the figures of lines that there is data for, by the name of a file."""
    return {
        f"{place}-{number}.svg": figure
        for place, section in enumerate(report.sections, 1)
        for number, figure in enumerate(section.figures, 1)
        if isinstance(figure, LineFigure) and figure.drawn()
    }


def markdown(report: TablesReport, pictures: str | None = None) -> str:
    """Return the report as Markdown.

    Args:
        report: what to tell.
        pictures: folder of its curves as `write_docs` names them; they are only named when None.
    """
    curves = _curves(report)
    parts = [f"# {report.title}", *report.headline]
    for place, section in enumerate(report.sections, 1):
        parts += [f"## {section.title}", *([section.lead] if section.lead else [])]
        for table in section.tables:
            parts += [f"### {table.title}", *([table.note] if table.note else []), _grid(table)]
        drawn = {name: one.title for name, one in curves.items() if name.startswith(f"{place}-")}
        if pictures is None:
            parts += [f"Drawn in the page: {title}." for title in drawn.values()]
        else:
            parts += [f"{title}:\n\n![{title}]({pictures}/{name})" for name, title in drawn.items()]
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in report.notes)]
    parts += ["## How this was made", "\n".join(f"- {name}: {value}" for name, value in report.facts)]
    return "\n\n".join(parts) + "\n"


def _grid(table: TextTable) -> str:
    rows = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def show(section: Section, console: Console) -> None:
    """Print the first table of a section; the others are in the files."""
    for table in section.tables[:1]:
        printed = Table(*table.head, title=table.title, show_lines=True)
        for row in table.rows:
            printed.add_row(*row)
        console.print(printed)
