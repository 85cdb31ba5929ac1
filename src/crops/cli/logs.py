"""`crops import` and `crops check`: foreign logs become a logs folder; rows keep the contract or go aside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crops import logs as logs_room
from crops.cli.options import DEFAULTS, command, option
from crops.outputs import console


@command
def import_logs(
    format: Annotated[
        str, typer.Argument(help=f"{', '.join(logs_room.FORMATS)}, or FILE.py:NAME of your own.")
    ],
    source: Annotated[Path, typer.Argument(help="Folder with the files to import.")],
    out: Annotated[Path, typer.Option(help="Logs folder to write.")],
    mapping: Annotated[
        Path | None, typer.Option(help="TOML of your columns and units (table; ubi for its items).")
    ] = None,
    memory: Annotated[str, option("engine.memory")] = DEFAULTS.engine.memory,
) -> logs_room.ImportReport:
    """Import logs: ids become numbers, times microseconds; rows that cannot be mapped go aside with reasons.

    OUT/id_maps and OUT/rejects hold original ids: keep them as safe as the source.
    """
    report = logs_room.import_logs(format, source, out, mapping, memory)
    console.print(logs_room.render_import(report))
    console.print(f"logs in [bold]{out}[/bold]; next: crops check {out} CHECKED")
    return report


@command
def check(
    logs: Annotated[Path, typer.Argument(help="Folder with items, search_impressions and feed_events.")],
    out: Annotated[
        Path | None, typer.Argument(help="Folder for accepted/ and rejects/; without it, only report.")
    ] = None,
    memory: Annotated[str, option("engine.memory")] = DEFAULTS.engine.memory,
) -> logs_room.CheckReport:
    """Check logs against the table contracts: rejected rows go aside with their reasons, nothing is lost."""
    report = logs_room.check(logs, out, memory)
    console.print(logs_room.render(report))
    if out is not None:
        console.print(
            f"accepted rows in [bold]{out / 'accepted'}[/bold]; next: crops mine {out / 'accepted'} MINED"
        )
    return report
