"""Your logs: `crops import`, `check`, `mine`, `expand`, `explain`, `engine-report` and `export`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from crops import logs as logs_room
from crops.cli.options import (
    DEFAULTS,
    LogsOption,
    Options,
    brought,
    command,
    of_recipe,
    option,
    say_baseline,
    shown,
    verdict,
)
from crops.config import RunConfig
from crops.engine.evidence import Explanation, Trail
from crops.engine.evidence import explain as explain_query
from crops.engine.export import FORMATS
from crops.engine.export import export as export_samples
from crops.engine.mined import WINDOW
from crops.engine.without import read_without
from crops.errors import CropsError, RejectedError
from crops.labels import ORIGINS, Source
from crops.logs import open_logs
from crops.logs.guess import UnsureError, known_format, write_guess
from crops.outputs import Scratch, console, ended, publish, write_manifest

LOGS = "LOGS"
URIS = "s3://..., delta:..., iceberg:..., hive:..., or logs.toml that names each table."


@command
def import_logs(
    format: Annotated[
        str,
        typer.Argument(
            metavar="KIND|SRC",
            help=f"{', '.join(logs_room.FORMATS)}, or FILE.py:NAME of your own. SRC alone: the files tell.",
        ),
    ],
    source: Annotated[
        Path | None,
        typer.Argument(metavar="SRC", help="Folder with the files to import.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Logs folder to write; with --guess the map (map.toml).", show_default=False),
    ] = None,
    mapping: Annotated[
        Path | None, typer.Option(help="TOML of your columns and units (table; ubi for its items).")
    ] = None,
    guess: Annotated[
        bool, typer.Option("--guess", help="Look at the files and write a starter map for --mapping.")
    ] = False,
    memory: Annotated[str, option("engine.memory")] = DEFAULTS.engine.memory,
    salt: Annotated[
        Path | None,
        typer.Option(
            help="File of the secret that users are numbered with, made if it is not there; keep it.",
            show_default="a new one, kept nowhere",
        ),
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add the days to those that OUT holds; needs --salt.")
    ] = False,
    replace_days: Annotated[
        bool, typer.Option("--replace-days", help="As --append; days that OUT holds are replaced.")
    ] = False,
) -> logs_room.ImportReport | Path | None:
    """Import logs: ids become numbers, times microseconds; rows that cannot be mapped go aside with reasons.

    For logs of your own: `crops import --guess SRC` writes map.toml, with three values behind each choice and
    what it could not tell. Look it over; then `crops import table SRC --mapping map.toml --out LOGS`.

    An item or a search has the same number in every import, and its own id stays beside it. Users have the
    same number wherever the same --salt is given. OUT/rejects holds what the source holds: keep it as safe.
    """
    kind = format if source else None
    source = source or Path(format)
    if guess:
        return _guess(kind, source, out or Path("map.toml"))
    if out is None:
        raise CropsError("say where the logs go: --out LOGS")
    if kind is None:
        kind = "table" if mapping else known_format(source)
        if kind is None:
            raise CropsError(
                f"{source}: no format that crops knows; for tables of your own: crops import --guess {source}"
            )
        console.print(f"{source} is imported as {kind}")
    report = logs_room.import_logs(
        kind, source, out, mapping, memory, salt=salt, append=append, replace_days=replace_days
    )
    console.print(logs_room.render_import(report))
    ended(f"logs in [bold]{out}[/bold]", f"crops check {out} CHECKED")
    return report


def _guess(kind: str | None, source: Path, out: Path) -> Path | None:
    """Write the map of unknown logs; return it, None where the format is known and needs none."""
    kind = kind if kind not in (None, "table") else known_format(source)
    if kind is not None:
        ended(f"{source} is {kind}, which needs no map", f"crops import {kind} {source} --out LOGS")
        return None
    unsure = None
    try:
        notes: Sequence[str] = write_guess(source, out).notes
    except UnsureError as error:
        unsure, notes = error, error.notes
    for note in notes:
        console.print(f"· {note}", markup=False)
    if unsure is not None:
        raise unsure
    folder = source if source.is_dir() else source.parent
    then = f"crops import table {folder} --mapping {out} --out LOGS"
    ended(f"map in [bold]{out}[/bold]: look it over", then)
    return out


@command
def check(
    logs: Annotated[
        str,
        typer.Argument(metavar=LOGS, help=f"Folder with items, search_impressions and feed_events; {URIS}"),
    ],
    out: Annotated[
        Path | None, typer.Argument(help="Folder for accepted/ and rejects/; without it, only report.")
    ] = None,
    max_rejected: Annotated[
        str | None,
        typer.Option(help="E.g. 5%: exit code 1 where a table loses a larger share of its rows."),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="HTML page to write.", show_default="report.html in OUT")
    ] = None,
    *,
    run: Annotated[
        RunConfig, Options(engine="engine.engine", master="engine.master", memory="engine.memory")
    ],
) -> logs_room.CheckReport:
    """Check logs against the table contracts, and say what they would bring: will this help?

    Rejected rows go aside with their reasons, nothing is lost. What the sources would bring is counted from
    the accepted rows alone, without a model; the last day counts as held out.

    With --engine spark the rules run on Spark and reject the same rows; OUT must be on a disk that all
    workers see. What the sources would bring is counted by DuckDB, from OUT.
    """
    from crops.engine.spark_rows import rows_engine

    allowed = None if max_rejected is None else _share(max_rejected)
    if out is None and run.engine.engine == "spark":
        raise CropsError("--engine spark writes what it accepts: name OUT, a folder that all workers see")
    report = logs_room.check(logs, out, run.engine.memory, rows_engine(run.engine))
    console.print(logs_room.render(report))
    results = report.facts.reworded is None
    if results:
        console.print(_would_help(report, logs, out, page, run))
    if out is not None:
        mining = f"crops mine {out / 'accepted'} MINED" if results else None
        ended(f"accepted rows in [bold]{out / 'accepted'}[/bold]", mining)
    worst = max(report.tables, key=lambda name: report.tables[name].share)
    lost = report.tables[worst]
    if allowed is not None and lost.share > allowed:
        raise RejectedError(
            f"{logs}: {lost.rejected:,} of {lost.rows:,} rows of {worst} were rejected, {lost.share:.1%}, "
            f"more than --max-rejected {max_rejected}; correct what the faults above name"
        )
    return report


def _share(text: str) -> float:
    """Return a share: "5%" or "0.05"."""
    number, percent, _ = text.partition("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise CropsError(f"--max-rejected {text}: write a share such as 5% or 0.05")
    return value


def _would_help(
    report: logs_room.CheckReport, logs: str, out: Path | None, page: Path | None, run: RunConfig
) -> Group:
    """Count what the accepted rows would bring, write the page if one is wanted, and return it as text."""
    from crops.evaluation.outlook import outlook
    from crops.logs.days import usual_days
    from crops.report import printed, write_page
    from crops.report.outlook import outlook_page

    with Scratch("crops-accepted-") as scratch:
        accepted = (logs if logs_room.is_uri(logs) else Path(logs)) if out is None else out / "accepted"
        if out is None and not report.clean:
            logs_room.check(logs, Path(scratch) / "checked", run.engine.memory)
            accepted = Path(scratch) / "checked" / "accepted"
        opened = open_logs(accepted)
        try:
            days = usual_days(opened.path, opened.search_days, run.engine.daily.window)
        except CropsError as error:  # which days are meant is not clear: all
            console.print(f"[yellow]all days are counted:[/yellow] {escape(str(error))}")
            days = list(opened.search_days)
        rejected = report.facts.rejected_stages
        made = outlook_page(outlook(opened, run.engine, days), run.engine, report.notes(), rejected)
    if target := page or (out and out / "report.html"):
        write_page(made, target)
    *sentences, conclusion = made.headline
    told: list[RenderableType] = [Text("\nWould it help?", style="bold"), *map(Text, sentences)]
    for section in made.sections:
        told.append(Text(f"\n{section.lead}" if section.lead else ""))
        for table in section.tables:
            told += [printed(table), *([Text(table.below, style="dim")] if table.below else [])]
    if target:
        told.append(Text(f"the same as a page: {target}"))
    return Group(*told, Text(f"\n{conclusion}", style="bold"))


@command
def mine(
    logs: Annotated[
        str, typer.Argument(metavar=LOGS, help=f"Logs folder, raw or accepted by `crops check`; {URIS}")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for samples, queries, evidence and items.")],
    generated: Annotated[
        Path | None, typer.Option(help="JSON lines of documents that an LLM wrote (P3).")
    ] = None,
    daily: Annotated[
        bool, typer.Option("--daily", help="Add the days to OUT/day=.../ and merge OUT/window.")
    ] = False,
    first: Annotated[
        str | None, typer.Option("--from", help="First day to mine, YYYY-MM-DD.", show_default="the first")
    ] = None,
    last: Annotated[
        str | None,
        typer.Option("--to", help="Last day to mine, YYYY-MM-DD.", show_default="the one before --holdout"),
    ] = None,
    day: list[str] | None = None,
    window: int | None = None,
    lookback: int | None = None,
    holdout: int | None = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Mine days again that are built already (--daily).")
    ] = False,
    without: Annotated[
        list[Path] | None,
        typer.Option(help="List of ids to leave out, users.txt or items.txt, one a line; repeat for both."),
    ] = None,
    salt: Annotated[
        Path | None, typer.Option(help="Salt of the import: users.txt then holds the source's own ids.")
    ] = None,
    *,
    run: Annotated[
        RunConfig,
        Options(
            recipe="recipe",
            day="engine.days",
            fields="document.fields",
            holdout="engine.holdout",
            gap="engine.gap",
            sources="engine.sources",
            engine="engine.engine",
            master="engine.master",
            memory="engine.memory",
            window="engine.daily.window",
            lookback="engine.daily.lookback",
            relevance="relevance.model",
            seed="seed",
        ),
    ],
) -> dict[str, Any]:
    """Mine graded samples: clicks and stages, reformulations (P1), feed (P2), LLM documents (P3).

    Consumed means clicked, liked or played for 18 s, or to the end if the item is shorter (a length of 0 is
    unknown). Of the pairs that one user adds to a query beyond the cap P1 stays first, then the higher theta;
    among equals --seed decides, as it does among the documents of a stage.

    The last day is kept for evaluation (--holdout), and as many days before it as --gap says are left out;
    --gap 1 is the paper's: trained on one day, tested two days later. Days that are named with --day, and the
    last one with --to, are mined. A log of one day is mined whole, and so is every day with --daily.

    Scores of theta are kept in the cache folder: a mining that was killed resumes from them. Raw logs are
    checked first: the accepted rows are mined, the rejected ones stay in OUT.checked/rejects.

    With --daily each day is mined once into a folder of its own, and OUT/window holds the last of them
    merged: what is older weighs less.

    With --without the result is that of logs that never held these users and items; report.json counts the
    rows. With --daily every day of the window that held them is mined again.
    """
    from crops.engine.daily import mine_daily
    from crops.logs.days import spans
    from crops.pipeline import accepted_logs, mine_logs, mining_job
    from crops.pretrained import NO_THETA
    from crops.report import printed
    from crops.report.training import sources_section, why_empty

    if salt is not None and without is None:
        raise CropsError("--salt tells which users --without means; name a list")
    if not daily and (window is not None or lookback is not None or rebuild):
        raise CropsError("--window, --lookback and --rebuild belong to daily builds; add --daily")
    if daily or last or day or (holdout and run.engine.days):
        if holdout:
            raise CropsError("--holdout keeps the last days; with --day, --to or --daily nothing is kept")
        if holdout is None and run.engine.holdout not in (0, DEFAULTS.engine.holdout):
            raise CropsError(
                f"engine.holdout = {run.engine.holdout} in the file of --config keeps the last days; with "
                "--day, --to or --daily nothing is kept: say --holdout 0"
            )
    left_out = None if without is None else read_without(without, salt)
    place = logs if logs_room.is_uri(logs) else Path(logs)
    accepted = accepted_logs(place, out.with_name(f"{out.name}.checked"), run)
    days, held = _days(open_logs(accepted), first, last, run, daily=daily)
    named = bool(run.engine.days or last)
    run = run.model_copy(update={"engine": run.engine.model_copy(update={"days": days or None})})
    if daily and run.relevance.evidence:
        raise CropsError(
            "relevance.evidence is not read in daily builds, where each day has an evidence of its own; mine "
            "the days without --daily, or leave it out"
        )
    if daily:
        job = mining_job(accepted, run, generated, left_out)
        report = mine_daily(open_logs(accepted), out, job, days, rebuild=rebuild)
    else:
        report = mine_logs(accepted, out, run, generated, left_out, held)
    if without is not None:
        left = report.get("input", {}).get("without", {})
        rows = ", ".join(f"{n:,} of {table}" for table, n in left.items() if n)
        console.print(f"rows left out: {rows or 'none, these users and items are not in the logs'}")
    samples = out / WINDOW if daily else out
    rows = report["input"]
    console.print(f"{rows['queries']:,} queries and {rows['searches']:,} searches of {spans(report['days'])}")
    for table in sources_section(report).tables:
        console.print(printed(table))
    for sentence in [*why_empty(report, run.engine), *report["notes"]]:
        console.print(f"· {sentence}", highlight=False, markup=False)
    options = of_recipe(run) + " --relevance none" * (run.relevance.model == NO_THETA)
    if held:
        then = verdict("MODEL", samples, accepted, held, options)
        console.print(f"kept for evaluation: [bold]{spans(held)}[/bold], later with: {then}", soft_wrap=True)
    elif not (daily or named):
        console.print("no day is kept for evaluation: the logs hold one day, or --holdout is 0")
    ended(f"samples in [bold]{samples}[/bold]", f"crops train {shown(samples)} MODEL{of_recipe(run)}")
    if run.recipe is None and brought(report):
        say_baseline(samples, "BASE", verdict("MODEL BASE", samples, accepted, held, options))
    return report


def _days(
    logs: logs_room.Logs, first: str | None, last: str | None, run: RunConfig, *, daily: bool
) -> tuple[tuple[str, ...], list[str]]:
    """Return the days to mine, and those kept for evaluation."""
    from crops.logs.days import hold_out, named_days, usual_days

    engine, known = run.engine, logs.search_days
    if engine.days and (first or last):
        raise CropsError("give --day, or --from and --to, not both")
    if engine.days:
        return tuple(named_days(logs.path, engine.days, known)), []
    if daily and not (first or last):
        return (), []
    if first or last:
        known = tuple(named_days(logs.path, [f"{first or known[0]}..{last or known[-1]}"], known))
    usual = usual_days(logs.path, known, engine.daily.window)
    if daily or last:
        return tuple(usual), []
    mined, held = hold_out(logs.path, usual, engine.holdout, engine.gap)
    return tuple(mined), held


@command
def expand(
    samples: Annotated[Path, typer.Argument(help="Output of `crops mine`, daily or not.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    logs: LogsOption = None,
    remove: Annotated[
        Path | None, typer.Option(help="Text file of queries to add to nothing, one a line.")
    ] = None,
    *,
    run: Annotated[
        RunConfig,
        Options(
            users="expansion.users",
            sources="expansion.sources",
            queries="expansion.queries",
            relevance="expansion.relevance",
        ),
    ],
) -> dict[str, int]:
    """Add queries to the texts of items: what was consumed after a rewording is found by the first wording.

    OUT/added.parquet says which query joins which item, and why: people and events behind it, the later
    query, theta and days. Any retriever reads it without training: `--expanded` of `crops index` and others.
    """
    from crops.engine.documents import expand as expand_items
    from crops.engine.mined import read_mined

    alpha = read_mined(samples).config.reformulation.relevance
    if alpha > run.expansion.relevance and "p1" in run.expansion.sources:
        console.print(
            f"[yellow]{samples} holds rewordings of theta above {alpha} only:[/yellow] expansion needs no "
            "theta; mine with engine.reformulation.relevance = 0 to add them all",
            soft_wrap=True,
        )
    removed: list[str] = []
    if remove is not None:
        try:
            removed = [one for one in remove.read_text(encoding="utf-8-sig").splitlines() if one.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise CropsError(f"--remove {remove}: cannot read the queries: {error}") from error
    counts = expand_items(samples, out, run.expansion, logs, removed)
    console.print(
        "{queries:,} queries join {items:,} items ({pairs:,} pairs)".format(**counts)
        + f" in [bold]{out}[/bold]; "
        f"next: crops index MODEL LOGS --expanded {out}"
    )
    return counts


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
        theta = "–" if positive.theta is None else f"{positive.theta:.3f}"
        because = "\n".join(_sentence(trail, found.k) for trail in positive.trails)
        shown = escape(positive.shown), escape(positive.text), f"{positive.weight:.3g}"
        table.add_row(str(positive.label), *shown, theta, because)
    console.print(table)
    if raw:
        console.print("Rows of the logs:")
        for row in found.rows:
            seen = datetime.fromtimestamp(row["seen_at"] / 1e6, UTC).isoformat(" ", "milliseconds")
            told = {**row, "source": Source(row["source"]).name, "seen_at": seen}
            values = ", ".join(f"{name} {value}" for name, value in told.items() if value is not None)
            console.print(f"  {escape(values)}", soft_wrap=True, highlight=False)
    return found


def _sentence(trail: Trail, k: int) -> str:
    if trail.source == Source.KNOWLEDGE:
        return _DID[trail.source]
    via = "".join(f" as “{escape(query)}”" for query in trail.via)
    counts = f"by fewer than {k} users"
    if trail.events is not None:
        counts = f"{trail.events:,} time(s) by {trail.users:,} user(s)"
    return f"{_DID[trail.source]}{via}: {counts}"


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
    console.print(f"{records:,} record{'' if records == 1 else 's'} in [bold]{out}[/bold]")
    return records


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

    There is no report unless at least engine.k users searched, and are behind the positives of each source;
    rows that fewer are behind have no counts. The owner of the logs sees all.
    """
    from crops.engine.report import insights
    from crops.report import printed, write_page
    from crops.report.training import mining_page

    found = insights(samples, logs, owner=owner)
    target = out or samples.with_name(f"{samples.name}.report")
    page = mining_page(found)
    with publish(target, "engine-report") as folder:
        write_page(page, folder / "report.html")
        (folder / "report.json").write_text(json.dumps(found, indent=2) + "\n")
        write_manifest(folder, "engine-report", config={}, seconds={}, samples=str(samples), owner=owner)
    for table in (one for section in page.sections for one in section.tables):
        console.print(printed(table))
    ended(f"open [bold]{target / 'report.html'}[/bold]")
    return found
