"""Figures 6 and 7: how often the sources are right, and where the temperature goes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from crops.evaluation.source_precision import source_precision
from crops.outputs import publish, write_manifest
from crops.report import Bar, BarFigure, Line, LineFigure, Section, TextTable
from crops.reproduce.cells import Cell, mined_name
from crops.reproduce.folder import FIGURES, is_done
from crops.reproduce.measure import COMMAND, make_samples, make_world
from crops.reproduce.paper import FIG6, FIG7
from crops.reproduce.results import Measured
from crops.reproduce.stages import Stages
from crops.retrieval import BM25Retriever, load_items

WINDOW = 60
"""Points of a drawn curve: means over as many equal windows, or the noise hides it."""


def unfiltered(cell: Cell) -> Cell:
    """Return the cell mined so that what theta would reject is there with its score."""
    engine = cell.run.engine
    changes = {
        "reformulation": engine.reformulation.model_copy(update={"relevance": 0.0}),
        "feed": engine.feed.model_copy(update={"relevance": 0.0}),
    }
    run = cell.run.model_copy(update={"engine": engine.model_copy(update=changes)})
    return Cell(cell.world, cell.method, run, cell.generated)


def make_precision(cell: Cell, out: Path, stages: Stages, generated: Path | None) -> Path:
    """Return the folder with the precision of a world's sources by truth; measure it first if need be."""
    wide = unfiltered(cell)
    folder = out / FIGURES / mined_name(wide)
    if not is_done(folder):
        samples = make_samples(wide, out, stages, generated)
        world = make_world(cell.world, out, stages)
        relevance, _ = stages.theta(world / "checked" / "accepted", cell.run)
        found = source_precision(
            samples,
            world / "world" / "truth",
            [cell.run.engine.feed.relevance],
            catalogue=BM25Retriever(*load_items(samples)),
            theta=relevance,
        )
        rows = [{**asdict(one), "share": one.share} for one in found]
        with publish(folder, COMMAND) as staging:
            (staging / "precision.json").write_text(json.dumps(rows, indent=2) + "\n")
            write_manifest(staging, COMMAND, config=cell.run.dump(), seconds={})
    return folder


def precision_section(folders: Sequence[Path]) -> Section:
    """Return Figure 6: the precision of each source before and after theta, the mean over worlds.

    Args:
        folders: what `make_precision` wrote, one for each seed.
    """
    worlds = [json.loads((folder / "precision.json").read_text()) for folder in folders]
    by_row: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for rows in worlds:
        for row in rows:
            by_row.setdefault((row["source"], row["alpha"]), []).append(row)
    table = [
        [
            source,
            "all found" if alpha is None else f"theta above {alpha:g}",
            f"{mean(one['pairs'] for one in rows):,.0f}",
            ", ".join("–" if one["share"] is None else f"{100 * one['share']:.1f}" for one in rows),
        ]
        for (source, alpha), rows in by_row.items()
    ]
    bars = [
        Bar(
            f"{source}, {'all' if alpha is None else 'by theta'}",
            mean(shares),
            tone=1 if alpha is None else 2,
        )
        for (source, alpha), rows in by_row.items()
        if (shares := [one["share"] for one in rows if one["share"] is not None])
    ]
    published = ", ".join(f"{100 * share:.1f} % {name}" for name, share in FIG6.items())
    return Section(
        "Figure 6: how often the sources are right",
        f"The paper judged 1,000 generated documents: {published}. Here the truth of the simulation judges "
        "all pairs: right = grade 2 or 3 for a need behind the search; a generated document stands for the "
        "real item nearest to it (BM25): its figure says where it points, not whether its facts are true.",
        [TextTable("Precision by truth", ["source", "filter", "pairs, mean", "right, %, by seed"], table)],
        [BarFigure("Share of pairs that are right, mean over worlds", bars)],
    )


def temperature_section(cells: Mapping[str, Sequence[Measured]]) -> Section:
    """Return Figure 7: the learnt temperature over the steps.

    Args:
        cells: cells with a training log, by the name of the line.
    """
    from crops.training import read_log, settles  # torch takes seconds to import: not for --help

    rows, lines = [], []
    for tone, (name, own) in enumerate(cells.items(), 1):
        logs = [read_log(cell.folder) for cell in own]
        for cell, log in zip(own, logs, strict=True):
            value, step = settles(log)
            settled = "still moves" if step is None else f"step {step:,}"
            rows.append([f"{name}, seed {cell.seed}", f"{log.temperature[0]:.4f}", f"{value:.4f}", settled])
        steps = np.array_split(logs[0].step, min(WINDOW, len(logs[0].step)))
        tau = np.array_split(np.mean([log.temperature for log in logs], axis=0), len(steps))
        x, y = [float(part.mean()) for part in steps], [float(part.mean()) for part in tau]
        lines.append(Line(name, x, y, tone))
    head = ["training", "start", "mean of the last tenth", "within 1 % of that from"]
    return Section(
        "Figure 7: the temperature",
        f"In the paper it goes from {FIG7[0]} to about {FIG7[1]} and stays there.",
        [TextTable("Where the temperature goes", head, rows)],
        [LineFigure("Temperature, mean over worlds", "step", lines)],
    )
