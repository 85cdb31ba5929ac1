"""`crops engine-report`: what a mining did, as table, JSON and one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from crops.cli.options import LogsOption, command
from crops.engine.report import insights
from crops.labels import POSITIVE_ORIGINS
from crops.outputs import console, publish, write_manifest
from crops.report import Block, Disagreement, EngineReport, FrequencyRow, Influence, write_report
from crops.report.pages import source_counts

_SEARCH_SAID = {
    "clicked": "clicked",
    "exposed": "shown, no click",
    "unexposed": "ranked, not shown",
    "filtered": "filtered",
    "nothing": "not considered",
}
_NEGATIVES = ("exposed", "unexposed", "filtered")


@command
def engine_report(
    samples: Annotated[Path, typer.Argument(help="Output of `crops mine`, daily or not.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html and report.json.", show_default="SAMPLES.report"),
    ] = None,
    logs: LogsOption = None,
    owner: Annotated[
        bool, typer.Option("--owner", help="For the owner of the logs only: no limit k, and user ids.")
    ] = False,
) -> dict[str, Any]:
    """Report what a mining did: sources from candidates to kept, novelty, coverage, disagreements, influence.

    There is no report unless at least engine.k users searched, and stand behind the positives of each source;
    rows that fewer stand behind have no counts. The owner of the logs sees all.
    """
    found = insights(samples, logs, owner=owner)
    target = out or samples.with_name(f"{samples.name}.report")
    report = _report(found)
    with publish(target, "engine-report") as folder:
        write_report(report, folder / "report.html")
        (folder / "report.json").write_text(json.dumps(found, indent=2) + "\n")
        write_manifest(folder, "engine-report", config={}, seconds={}, samples=str(samples), owner=owner)
    for table in _tables(report):
        console.print(table)
    console.print(f"open [bold]{target / 'report.html'}[/bold]")
    return found


def _report(found: dict[str, Any]) -> EngineReport:
    novelty, rescued, days = found["novelty"]["all"], found["rescued"]["pairs"], found["days"]
    rows = found["input"]
    headline = [f"{sum(found['labels'].values()):,} samples from {rows['searches']:,} searches."]
    if novelty["share"] is not None:
        headline.append(
            f"{100 * novelty['share']:.1f} % of the positives the system had never shown for their query; "
            f"{rescued:,} would have been trained as negatives."
        )
    return EngineReport(
        title="What the mining did",
        headline=headline,
        facts=[
            ("days", f"{days[0]} to {days[-1]} ({len(days)})"),
            ("queries", f"{rows['queries']:,}"),
            ("users", f"{rows['users']:,}"),
            (
                "theta, similarity",
                f"{found['sources']['p1']['theta']}, {found['sources']['p1']['similarity']}",
            ),
        ],
        sources=source_counts(found),
        disagreements=[_disagreement(row) for row in found["disagreements"]],
        coverage=[_frequency(row) for row in found["coverage"]],
        influence=_influence(found["influence"]),
        k=found["k"],
        notes=found["notes"],
    )


def _disagreement(row: dict[str, Any]) -> Disagreement:
    also = {_named(name): row["also"].get(name) for name in (one.key for one in POSITIVE_ORIGINS)}
    search = {_SEARCH_SAID[stage]: count for stage, count in row["search"].items()}
    negatives = sum(row["search"][stage] for stage in _NEGATIVES)
    return Disagreement(_named(row["source"]), row["positives"], also, search, negatives)


def _frequency(row: dict[str, Any]) -> FrequencyRow:
    named = {_named(name): share for name, share in row["shares"].items()}
    return FrequencyRow(row["part"], row["queries"], row["searches"], row["least"], row["most"], named)


def _influence(found: dict[str, Any]) -> Influence:
    blocks = [
        Block(f"users {row['first']}–{row['last']}", row["contributions"], row["share"] or 0.0)
        for row in found["blocks"]
    ]
    total = found["contributions"]
    blocks += [
        Block(f"user {row['user_id']} (alone for {row['alone']:,})", row["pairs"], row["pairs"] / total)
        for row in found.get("top", ())
    ]
    return Influence(found["users"], found["pairs"], found["of_one_user"], blocks)


def _tables(report: EngineReport) -> list[Table]:
    sources = Table("source", "found", "similar", "relevant", "kept", "never shown", title="Positives")
    for row in report.sources.rows:
        counts = (row.candidates, row.after_similarity, row.after_relevance, row.kept, row.never_shown)
        sources.add_row(row.name, *(_told(count) for count in counts))
    first = report.disagreements[0]
    conflicts = Table(
        "source", *(f"also {name}" for name in first.also), *first.search, title="Agreement and disagreement"
    )
    for conflict in report.disagreements:
        told = [_told(count) for count in (*conflict.also.values(), *conflict.search.values())]
        conflicts.add_row(conflict.source, *told)
    names = list(dict.fromkeys(name for row in report.coverage for name in row.shares))
    coverage = Table("queries", "number", "searches", *names, title="Queries with a positive, %")
    for part in report.coverage:
        shares = [_share(part.shares[name], report.k) for name in names]
        coverage.add_row(part.name, _told(part.queries), _told(part.searches), *shares)
    influence = Table("users", "contributions", "share, %", title="Influence")
    for block in report.influence.blocks:
        influence.add_row(block.name, _told(block.contributions), f"{100 * block.share:.1f}")
    return [sources, conflicts, coverage, influence]


def _share(share: float | None, k: int) -> str:
    return f"< {k} users" if share is None else f"{100 * share:.1f}"


def _named(source: str) -> str:
    return source if source == "any" else source.upper()


def _told(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"
