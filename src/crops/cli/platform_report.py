"""`crops platform-report`: does a simulated platform look like a real one, and how strong is its bubble?"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from crops.cli.evaluate import evaluate
from crops.cli.options import Options, command
from crops.config import RunConfig
from crops.errors import CropsError
from crops.logs import check
from crops.outputs import MANIFEST, console, publish, read_manifest, to_json, write_manifest
from crops.pipeline import BM25, mine_day, train_model
from crops.platform import ANCHORS, BUBBLE, ROUTES, Anchor, Days, distributions, observe
from crops.report import Cell, Curve, RealismReport, RealismRow, write_report

COMMAND = "platform-report"
BASELINE = "baseline"
"""Name of the multi-stage baseline in the anchors."""
_CTR = "CTR at rank "


@dataclass(frozen=True)
class _World:
    """A simulated world and what was measured of it."""

    name: str
    measured: dict[str, float]
    curves: dict[str, tuple[list[float], list[float]]]
    version: str


@command
def platform_report(
    world: Annotated[list[Path], typer.Argument(help="Folders that `crops simulate` wrote.")],
    out: Annotated[
        Path, typer.Option(help="Folder for report.html, realism.json and the old system's runs.")
    ],
    *,
    run: Annotated[RunConfig, Options()],
) -> Path:
    """Compare simulated platforms with public figures, row by row, and read the bubble off their logs.

    For each world the old system is evaluated as the paper does it: BM25 and the multi-stage baseline,
    trained on the training day and tested two days later. A world that OUT already holds is not evaluated
    again.
    """
    if len({folder.name for folder in world}) < len(world):
        raise CropsError("two worlds have the same folder name, which names them in the report; rename one")
    worlds = [_measure(folder, out / folder.name, run) for folder in world]
    report = _report(worlds)
    with publish(out / "report", COMMAND) as folder:
        write_report(report, folder / "report.html")
        (folder / "realism.json").write_text(to_json({one.name: one.measured for one in worlds}))
        write_manifest(
            folder, "platform-report", config=run.dump(), seconds={}, worlds=[one.name for one in worlds]
        )
    console.print(_printed(report))
    console.print(f"open [bold]{out / 'report' / 'report.html'}[/bold]")
    return out / "report" / "report.html"


def _measure(world: Path, out: Path, run: RunConfig) -> _World:
    manifest = read_manifest(world, "simulate")
    days = Days(manifest["days"]["train"], manifest["days"]["test"])
    logs, truth = world / "logs", world / "truth"
    measured = observe(logs, days, ROUTES, truth)
    if not _evaluated(out, manifest):
        _evaluate_old_system(logs, truth, days, out, run)
        write_manifest(out, COMMAND, config=run.dump(), seconds={}, world=manifest)
    summary = json.loads((out / "evaluation" / "summary.json").read_text())
    for model, metrics in summary.items():
        name = BM25 if model == BM25 else BASELINE
        measured |= {f"{name} {metric}": value["mean"] for metric, value in metrics.items() if value["n"]}
    return _World(world.name, measured, distributions(logs, days), manifest["platform"])


def _evaluated(out: Path, world: dict[str, Any]) -> bool:
    """Whether `out` holds the old system's evaluation on exactly this world."""
    return (out / MANIFEST).exists() and read_manifest(out, COMMAND)["world"] == world


def _evaluate_old_system(logs: Path, truth: Path, days: Days, out: Path, run: RunConfig) -> None:
    check(logs, out / "checked", run.engine.memory)
    accepted = out / "checked" / "accepted"
    engine = run.engine.model_copy(update={"sources": ("search",)})
    mine_day(accepted, days.train, out / "samples", run.model_copy(update={"engine": engine}))
    train_model(out / "samples", out / BASELINE, run.training, run.seed)
    models = [BM25, str(out / BASELINE)]
    evaluate(
        models,
        logs=accepted,
        day=days.test,
        truth=truth,
        samples=out / "samples",
        out=out / "evaluation",
        run=run,
    )


def _report(worlds: Sequence[_World]) -> RealismReport:
    realism = [_row(anchor, worlds) for anchor in ANCHORS]
    cells = [(row.name, cell.holds) for row in realism for cell in row.cells if cell is not None]
    held = [holds for _, holds in cells if holds is not None]
    failing = list(dict.fromkeys(name for name, holds in cells if holds is False))
    headline = [
        f"{sum(held)} of {len(held)} figures with a range are inside it, over {len(worlds)} world(s)."
    ]
    if failing:
        headline.append(f"Outside in at least one world: {', '.join(failing)}.")
    curves = [
        Curve(title, "", {**({"CosoBe": _cosobe()} if title == "CTR by rank" else {}), **lines})
        for title, lines in (
            (title, {one.name: one.curves[title] for one in worlds}) for title in worlds[0].curves
        )
    ]
    return RealismReport(
        title="Does the platform look real?",
        headline=headline,
        facts=[(one.name, f"platform {one.version}") for one in worlds],
        worlds=[one.name for one in worlds],
        realism=realism,
        bubble=[_row(Anchor(name, "-", ""), worlds) for name in BUBBLE],
        curves=curves,
    )


def _cosobe() -> tuple[list[float], list[float]]:
    points = [
        (float(anchor.name.removeprefix(_CTR)), float(anchor.figure))
        for anchor in ANCHORS
        if anchor.name.startswith(_CTR)
    ]
    return [x for x, _ in points], [y for _, y in points]


def _row(anchor: Anchor, worlds: Sequence[_World]) -> RealismRow:
    values = [one.measured.get(anchor.name, math.nan) for one in worlds]
    cells = [None if math.isnan(value) else Cell(value, anchor.holds(value)) for value in values]
    accepted = None if anchor.low is None or anchor.high is None else (anchor.low, anchor.high)
    return RealismRow(anchor.name, anchor.figure, anchor.source, accepted, cells)


def _printed(report: RealismReport) -> Table:
    caption = "a dash: the logs have no case of it"
    table = Table("row", "elsewhere", "accepted", *report.worlds, title=report.title, caption=caption)
    for row in (*report.realism, *report.bubble):
        accepted = "" if row.accepted is None else f"{row.accepted[0]:.2f}-{row.accepted[1]:.2f}"
        table.add_row(row.name, row.figure, accepted, *(_told(cell) for cell in row.cells))
    return table


def _told(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return f"[red]{cell.measured:.3f} ![/red]" if cell.holds is False else f"{cell.measured:.3f}"
