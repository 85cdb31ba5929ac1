"""`crops explain` and `crops export`: what a mining found, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from crops.cli.options import LogsOption, command
from crops.engine.evidence import Explanation, Positive, Trail
from crops.engine.evidence import explain as explain_query
from crops.engine.export import FORMATS
from crops.engine.export import export as export_samples
from crops.labels import ORIGINS, Source
from crops.outputs import console

_DID = {row.bit: row.meaning for row in ORIGINS}


@command
def explain(
    query: Annotated[str, typer.Argument(help="The query, in any spelling.")],
    samples: Annotated[Path, typer.Argument(help="Output of `crops mine`, daily or not.")],
    logs: LogsOption = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="For the owner of the logs only: every count, and the rows.")
    ] = False,
) -> Explanation:
    """Print why each positive of a query is one: queries, trails and counts of at least engine.k users."""
    found = explain_query(query, samples, logs, raw=raw)
    searched = f"{found.searches:,} time(s) by {found.users:,} user(s)"
    console.print(f"[bold]{escape(found.query)}[/bold]: searched {searched}")
    table = Table("label", "item", "text", "weight", "theta", "because")
    for positive in found.positives:
        table.add_row(*_cells(positive, found.k))
    console.print(table)
    if raw:
        console.print(_raw_table(found))
    return found


def _cells(positive: Positive, k: int) -> list[str]:
    theta = "–" if positive.theta is None else f"{positive.theta:.3f}"
    because = "\n".join(_sentence(trail, k) for trail in positive.trails)
    return [
        str(positive.label),
        str(positive.item_id),
        escape(positive.text),
        f"{positive.weight:.3g}",
        theta,
        because,
    ]


def _sentence(trail: Trail, k: int) -> str:
    if trail.source == Source.KNOWLEDGE:
        return _DID[trail.source]
    via = "".join(f" as “{escape(query)}”" for query in trail.via)
    counts = (
        f"by fewer than {k} users"
        if trail.events is None
        else f"{trail.events:,} time(s) by {trail.users:,} user(s)"
    )
    return f"{_DID[trail.source]}{via}: {counts}"


def _raw_table(found: Explanation) -> Table:
    names = list(found.rows[0]) if found.rows else []
    table = Table(*names, title="Rows of the logs")
    for row in found.rows:
        shown = {**row, "source": Source(row["source"]).name}
        table.add_row(*("" if value is None else escape(str(value)) for value in shown.values()))
    return table


@command
def export(
    samples: Annotated[Path, typer.Argument(help="Output of `crops mine`, daily or not.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    format: Annotated[str, typer.Option(help=f"One of {', '.join(FORMATS)}.")] = "jsonl",
    logs: LogsOption = None,
    owner: Annotated[
        bool,
        typer.Option(
            "--owner", help="For the owner of the logs only: queries of fewer than engine.k users, too."
        ),
    ] = False,
) -> int:
    """Write samples as the paper's records (cpsqa) or as JSON lines (jsonl); as Parquet they lie in SAMPLES.

    Only queries of at least engine.k users are written, unless the reader owns the logs.
    """
    records = export_samples(samples, out, format, logs, owner=owner)
    console.print(f"{records:,} records in [bold]{out}[/bold]")
    return records
