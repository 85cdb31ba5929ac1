"""`crops bubble-loop`: does the filter bubble grow when a model learns every day from what it showed?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from crops.cli.experiment import MODELS, GeneratedOption, arm_names, mined_samples, with_days
from crops.cli.options import Options, command
from crops.config import RunConfig
from crops.errors import CropsError, nearest
from crops.online.bubble import Loop, Measured, SimulatedDays, measure_days, read_days, run_loop
from crops.online.experiment import preregister
from crops.outputs import console, to_json
from crops.pipeline import Simulated, Start, days_before, packaged_documents
from crops.platform import ROUTES, platform_version
from crops.report import Figure, Line, Page, Section, Table, write_page
from crops.report.page import count_range, percent
from crops.retrieval import load_items

Days = Mapping[str, Mapping[str, Measured]]

OBSERVABLES = {
    "top": ("Exposure on 1 % of the items", "share of all shown results that goes to the most shown 1 %"),
    "senses": (
        "Senses per ambiguous query",
        "exp of the entropy of what is shown over the senses of the word",
    ),
    "catalogue": ("Catalogue ever shown", "share of all items that any search has shown so far"),
    "unseen": (
        "Relevant, never shown",
        "share of what meets the needs behind a query that it was never shown",
    ),
    "again": ("Shown again", "share of shown results that the query was shown on an earlier day"),
    "own": ("Found by the own model", "share of shown results that the arm's model found"),
    "satisfied": ("Satisfied searches", "by truth"),
    "reformulated": (
        "Reformulated searches",
        "the next search, within 90 s, has other words for the same need, by truth",
    ),
    "recall": ("True recall@100 of the model", "of what meets the needs of the day's first searches"),
}
"""What is drawn and tabled, with headings and explanations."""
_COUNTS = {"senses"}
"""Observables that are no shares."""
_TOLD = ("top", "unseen", "satisfied", "recall")
"""Observables whose course is in the headline."""


@command
def bubble_loop(
    out: Annotated[Path, typer.Option(help="Folder for worlds, models, logs and the report.")],
    days: Annotated[int, typer.Option(help="Days that the loop runs.")] = 10,
    arms: Annotated[
        str, typer.Option(help="Comma-separated arms; each is a world of its own.")
    ] = "clicks,baseline,crops,-p1,-p2",
    model: Annotated[str, typer.Option(help="dense or sparse: what is trained again every day.")] = "dense",
    generated: GeneratedOption = None,
    *,
    run: Annotated[
        RunConfig,
        Options(size="platform.size", bubble="platform.bubble", relevance="relevance.model", seed="seed"),
    ],
) -> Path:
    """Let users search, mine the day's logs, train on them, deploy, and so on, in one world per arm.

    The report is rewritten after each day. An interrupted run resumes at its day and arm.
    """
    run = with_days(run, days)
    names = arm_names(arms)
    if model not in MODELS:
        raise CropsError(f"unknown model '{model}'; models: {', '.join(MODELS)}.{nearest(model, MODELS)}")
    start, documents = days_before(out, run), generated or packaged_documents()
    samples = mined_samples(out, run, documents)
    training = run.training.changed(encoder=MODELS[model])
    loop = Loop(out / "arms", Simulated(out).world, samples, model, run, training, documents)
    facts = {
        "bubble": run.platform.bubble,
        "seed": run.seed,
        "size": run.platform.size,
        "platform": platform_version(),
        "model": model,
    }
    preregister(out, [], {**facts, "last_day": run.platform.days})
    for _ in run_loop(loop, start, names, days):
        _report(out, loop, start, names, run)
    console.print(f"open [bold]{out / 'report.html'}[/bold]")
    return out / "report.html"


def _report(out: Path, loop: Loop, start: Start, names: Sequence[str], run: RunConfig) -> None:
    """Write loop.json and report.html from the days that all arms have."""
    measured = shared_days({name: read_days(loop, start, name) for name in names})
    written = {
        arm: {day: {key: asdict(one) for key, one in row.items()} for day, row in days.items()}
        for arm, days in measured.items()
    }
    (out / "loop.json").write_text(to_json(written))
    write_page(loop_page(measured, run), out / "report.html")


def shared_days(measured: Mapping[str, Days]) -> dict[str, Days]:
    """Return the days that all arms have: of a killed loop the first arms may be a day ahead."""
    days = set.intersection(*(set(own) for own in measured.values()))
    return {arm: {day: row for day, row in own.items() if day in days} for arm, own in measured.items()}


def loop_page(measured: Mapping[str, Days], run: RunConfig) -> Page:
    """Return the page of a loop: a chart and a table per observable.

    Args:
        measured: observables by arm and day; all arms have the same days.
        run: its settings.
    """
    days = sorted(next(iter(measured.values())))
    figures = [_figure(key, measured, days) for key in OBSERVABLES]
    tables = [_table(key, measured, days) for key in OBSERVABLES]
    return Page(
        title="The filter bubble over days",
        headline=[
            f"{len(measured)} worlds with the same people and needs; in each a model is trained every day "
            f"on the logs of the day before and deployed. {len(days)} days.",
            "Models of day 1 learned from the same logs; from day 2 on each world learns from itself.",
            *(_course(key, measured, days) for key in _TOLD),
        ],
        sections=[
            Section("At a glance", figures=figures),
            Section("Day by day", "Shares in %; senses as numbers.", tables=tables),
        ],
        made=[
            ("seed", str(run.seed)),
            ("platform", f"{run.platform.size}, bubble {run.platform.bubble}, {platform_version()}"),
            ("relevance (θ)", run.relevance.model),
        ],
        notes=[
            "One world and one seed: no interval; worlds of other seeds differ by more than their days do."
        ],
    )


def _course(key: str, measured: Mapping[str, Days], days: Sequence[str]) -> str:
    """Return what became of an observable from the first day to the last."""
    ends = (
        f"{arm} " + " to ".join(_told(_scaled(key, found[day]), 1) for day in (days[0], days[-1]))
        for arm, found in measured.items()
    )
    return f"{OBSERVABLES[key][0]}, first to last day, in %: {', '.join(ends)}."


def _figure(key: str, measured: Mapping[str, Days], days: Sequence[str]) -> Figure:
    lines = []
    for tone, (arm, found) in enumerate(measured.items(), start=1):
        values = [(number, _scaled(key, found[day])) for number, day in enumerate(days, start=1)]
        points = [(number, value) for number, value in values if value is not None]
        lines.append(Line(arm, [number for number, _ in points], [value for _, value in points], tone))
    return Figure(f"{OBSERVABLES[key][0]}{'' if key in _COUNTS else ', %'}", lines, "day")


def _table(key: str, measured: Mapping[str, Days], days: Sequence[str]) -> Table:
    title, note = OBSERVABLES[key]
    rows = [
        [arm, *(_told(_scaled(key, found[day]), 2 if key in _COUNTS else 1) for day in days)]
        for arm, found in measured.items()
    ]
    if any("–" in row for row in rows):
        note += "; a dash: no search of that day is such a case"
    return Table(title, ["arm", *(f"day {i}" for i in range(1, len(days) + 1))], rows, note)


def _scaled(key: str, row: Mapping[str, Measured]) -> float | None:
    """Return an observable of a day, shares in %; None where nothing of the day tells it."""
    found = row.get(key)
    if found is None or found.value is None:
        return None
    return found.value if key in _COUNTS else 100 * found.value


def _told(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


# How the bubble forms: what the platform's own logs show of it, day by day.


_FORMING = {
    "own": ("found by the own model", "share of shown results that the deployed retriever found"),
    "again": ("shown again", "share of shown results that this query had already been shown before"),
    "top": ("shown from 1 % of items", "share of all exposures that goes to the most shown 1 % of items"),
    "unseen": (
        "relevant, never shown",
        "share of what answers the query's needs that it was never shown",
    ),
}


def bubble_section(logs: Path, truth: Path) -> Section:
    """Return the observables of the bubble per simulated day, over that day's shown results.

    Args:
        logs: accepted logs of a simulation.
        truth: its truth; tells what the searchers needed.
    """
    evidence = SimulatedDays(
        logs=(logs,),
        searches=(f"{truth}/searches.parquet",),
        truth=truth,
        items=load_items(logs)[0].size,
        route=ROUTES.index("dense"),
    )
    measured = measure_days(evidence, list(_FORMING))
    rows: list[list[str]] = []
    counts: dict[str, set[int]] = {key: set() for key in _FORMING}
    for day, found in sorted(measured.items()):
        known = {key: one for key, one in found.items() if one.value is not None}
        rows.append([day, *(percent(known[key].value) if key in known else "–" for key in _FORMING)])
        for key, one in known.items():
            counts[key].add(one.n)
    head = ["Day", *(f"{label}\n%, n = {count_range(counts[key])}" for key, (label, _) in _FORMING.items())]
    terms = list(_FORMING.values())
    note = "The first day has no own model; one is then trained on that day's clicks and deployed."
    title = "How the bubble forms"
    return Section(title, note, [Table(title, head, rows, terms=terms, headed=False)])
