"""`crops export`: training samples in other forms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crops.cli.command import command
from crops.cli.options import LogsOption
from crops.engine.export import FORMATS
from crops.engine.export import export as export_samples
from crops.outputs import console


@command
def export(
    samples: Annotated[Path, typer.Argument(help="Output of `crops mine`, daily or not.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    format: Annotated[str, typer.Option(help=f"One of {', '.join(FORMATS)}.")] = "parquet",
    logs: LogsOption = None,
    owner: Annotated[
        bool,
        typer.Option(
            "--owner", help="For the owner of the logs only: queries of fewer than engine.k users, too."
        ),
    ] = False,
) -> int:
    """Write samples as the paper's records (cpsqa), JSON lines, one flat Parquet file, or a Delta table.

    Only queries of at least engine.k users are written, unless the reader owns the logs.
    """
    records = export_samples(samples, out, format, logs, owner=owner)
    console.print(f"{records:,} records in [bold]{out}[/bold]")
    return records
