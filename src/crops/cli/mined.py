"""`crops explain`: the evidence trail of every positive of a query."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from crops.cli.mine import NONE, job
from crops.cli.options import ConfigOption, LogsOption, RelevanceOption, command
from crops.config import load_config
from crops.engine.evidence import Explanation, Positive, Trail
from crops.engine.evidence import explain as explain_query
from crops.engine.export import FORMATS
from crops.engine.export import export as export_samples
from crops.engine.forget import ForgetReport, mined_with
from crops.engine.forget import forget as forget_ids
from crops.labels import Source
from crops.outputs import RESOLVED_CONFIG, console

_DID = {
    Source.CLICKED: "clicked or liked",
    Source.REFORMULATION: "consumed after rewording",
    Source.FEED: "consumed in the feed",
    Source.KNOWLEDGE: "written by an LLM",
}


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


# ------------------------------------------------------------------------------
# `crops export`: training samples in other forms.


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


# ------------------------------------------------------------------------------
# `crops forget`: users and items out of everything that was mined.


@command
def forget(
    samples: Annotated[Path, typer.Argument(help="Output of `crops mine`, daily or not.")],
    user: Annotated[list[int] | None, typer.Option(help="Id of a user; repeat for more.")] = None,
    item: Annotated[list[int] | None, typer.Option(help="Id of an item; repeat for more.")] = None,
    logs: LogsOption = None,
    models: Annotated[
        list[Path] | None,
        typer.Option(help="Folder to search for trained models.", show_default="the folder around SAMPLES"),
    ] = None,
    relevance: RelevanceOption = None,
    config: ConfigOption = None,
) -> ForgetReport:
    """Remove users and items from mined samples, exactly, and list the models that must be retrained.

    The days that held them are mined again from the logs without their rows, with the settings of the first
    time; theta must be the same. SAMPLES/forget-report.json says what was done and what is left to do.
    """
    folder, manifest = mined_with(samples)
    unscored = set(manifest["scorers"].values()) == {NONE}
    named = load_config(config, relevance__model=relevance or (NONE if unscored else None))
    run = load_config(folder / RESOLVED_CONFIG).model_copy(update={"relevance": named.relevance})
    report = forget_ids(
        samples,
        job(logs or Path(manifest["logs"]), run, None),
        users=user or (),
        items=item or (),
        logs=logs,
        models=models or [samples.absolute().parent],
    )
    console.print(f"mined again: {', '.join(report.rebuilt) or 'nothing held them'}")
    for model in report.retrain:
        console.print(f"[bold]retrain[/bold] {model}")
    for sentence in report.left:
        console.print(f"· {sentence}")
    return report
