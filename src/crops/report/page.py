"""A page from plain values: sections of tables and figures in one self-contained file.

It has no script and asks nothing of any server; every text is escaped unless it is Markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import rich.table
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.markup import escape
from rich.text import Text

from crops.outputs import write_text
from crops.report.charts import Figure, Line, draw


@dataclass(frozen=True)
class Table:
    """Texts as they are to be read, in columns and rows.

    Lines of a cell or heading after its first stand small below it. A row that is shorter than the head says
    in its last cell why it has no figures.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    """Above the table."""
    reference: int | None = None
    """The row that others are compared with."""
    words: Sequence[int] = ()
    """Columns of words, not figures."""
    terms: Sequence[tuple[str, str]] = ()
    """Names in it, and what they mean."""
    below: str = ""
    """In small print."""
    beside: Figure | None = None
    """Drawn beside it where there is room."""
    headed: bool = True
    """Whether its title is seen, or only read aloud."""
    narrow: bool = False
    folded: bool = False
    """Whether it opens on demand, by its title."""


@dataclass(frozen=True)
class Section:
    """A heading with what is below it: tables, then figures, then ready HTML."""

    title: str
    lead: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    html: Markup = Markup("")
    folded: bool = False
    """Whether what is below its heading opens on demand."""


@dataclass(frozen=True)
class Page:
    """A page; what is empty is left out."""

    title: str
    headline: Sequence[str] = ()
    """Two or three plain sentences with the result."""
    sections: Sequence[Section] = ()
    made: Sequence[tuple[str, str]] = ()
    """How it was made, by name: seed, size of the world, versions, minutes."""
    notes: Sequence[str] = ()
    small_print: str = ""


def write_page(page: Page, path: str | Path) -> None:
    """Write the page to `path`; the file appears whole or not at all.

    Raises:
        CropsError: as `render_page`.
    """
    write_text(Path(path), render_page(page), errors="replace")


def render_page(page: Page) -> str:
    """Return the page as HTML.

    Raises:
        CropsError: a number to be drawn is not finite, or a part is larger than its whole.
    """
    return environment().get_template("page.html").render(page=page)


@cache
def environment() -> Environment:
    """Return the templates of the pages; all that is put in is escaped."""
    templates = Environment(
        loader=PackageLoader("crops.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["drawn"] = drawn
    templates.filters["has_small_lines"] = lambda table: any("\n" in c for row in table.rows for c in row[1:])
    return templates


def drawn(figures: Sequence[Figure]) -> list[tuple[str, Markup]]:
    """Return title and chart of each figure that there is data for."""
    return [(figure.title, chart) for figure in figures if (chart := draw(figure))]


def standalone(figure: Figure) -> str:
    """Return a chart as an SVG file of its own, in the colours of the pages, light and dark."""
    style = resources.files("crops.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    colours = style.split("* {", 1)[0]
    rules = [line for line in style.splitlines() if line.startswith((".chart ", ".tone-"))]
    sheet = "\n".join([colours, "svg { background: var(--paper); }", *rules])
    # Of a plain text: Markup would escape what is put in.
    drawing = str(draw(figure)).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return drawing.replace("<title>", f"<style>\n{sheet}\n</style><title>", 1) + "\n"


def printed(table: Table, *, lines: bool = False) -> rich.table.Table:
    """Return the table for a terminal; `lines` draws them between its rows."""
    shown = rich.table.Table(
        *(escape(name) for name in table.head),
        title=Text(table.title),
        caption=Text(table.note) if table.note else None,
        title_justify="left",
        show_lines=lines,
    )
    for row in table.rows:
        shown.add_row(*(Text(Markup(cell).striptags() if isinstance(cell, Markup) else cell) for cell in row))
    return shown


def markdown(page: Page, pictures: str | None = None) -> str:
    """Return the page as Markdown, without its folded tables.

    Args:
        pictures: folder of the `curves`, as SVG; they are only named when None.
    """
    named = curves(page)
    parts = [f"# {page.title}", *page.headline]
    for place, section in enumerate(page.sections, 1):
        parts += [f"## {section.title}", *([section.lead] if section.lead else [])]
        for table in (one for one in section.tables if not one.folded):
            rows = [table.head, ["---"] * len(table.head), *table.rows]
            cells = [[cell.replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in rows]
            grid = "\n".join(f"| {' | '.join(row)} |" for row in cells)
            parts += [f"### {table.title}", *([table.note] if table.note else []), grid]
        drawn = {name: one.title for name, one in named.items() if name.startswith(f"{place}-")}
        if pictures is None:
            parts += [f"Drawn in the page: {title}." for title in drawn.values()]
        else:
            parts += [f"{title}:\n\n![{title}]({pictures}/{name})" for name, title in drawn.items()]
    if page.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in page.notes)]
    parts += ["## How this was made", "\n".join(f"- {name}: {value}" for name, value in page.made)]
    return "\n\n".join(parts) + "\n"


def curves(page: Page) -> dict[str, Figure]:
    """Return the figures of lines that there is data for, by the name of a file."""
    return {
        f"{place}-{number}.svg": figure
        for place, section in enumerate(page.sections, 1)
        for number, figure in enumerate(section.figures, 1)
        if all(isinstance(one, Line) for one in figure.series) and draw(figure)
    }


def percent(value: float | None) -> str:
    """Write a share in %, without the sign."""
    return "–" if value is None else f"{100 * value:.1f}"


def count(value: int | None) -> str:
    """Write a number of things."""
    return "–" if value is None else f"{value:,}"


def count_range(values: Iterable[int]) -> str:
    """Write numbers of things as one, or as a range where they differ."""
    known = set(values)
    if not known:
        return "–"
    return f"{min(known):,}" if len(known) == 1 else f"{min(known):,}–{max(known):,}"
