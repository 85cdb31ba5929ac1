"""When does it help? The lift of each source while one property of platform or models is turned."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crops.platform import SIZES
from crops.report import Line, LineFigure, Section, TextTable
from crops.reproduce.cells import (
    CT,
    DEFAULT,
    QR,
    QR_TRUTH,
    TRUE,
    Cell,
    Plan,
    World,
    build_world,
    content_hash,
)
from crops.reproduce.make import write_atomically
from crops.reproduce.results import Measured, group

METHODS = ("fs_lr", "plus_p1", "plus_p2", "crops")
LIFTS = {
    "P1": {"plus_p1": 1.0, "fs_lr": -1.0},
    "P2": {"plus_p2": 1.0, "plus_p1": -1.0},
    "P3": {"crops": 1.0, "plus_p2": -1.0},
}
"""What each source adds to those before it."""
METRICS = {CT: "CT", QR: "QR", QR_TRUTH: "QR by truth", TRUE: "true recall"}
Value = float | str | bool


@dataclass(frozen=True)
class Dial:
    """One property, and the values that it is turned to; all else stays as it is by default."""

    name: str
    explanation: str
    values: tuple[Value, ...]
    worlds: Callable[[Value, str, int], World]
    """The world of a value at a size and with a seed."""
    turned: Callable[[Cell, Value], Cell] = lambda cell, _: cell
    """What else the value changes in a cell."""
    wrong: bool = False
    """Whether the value is the share of generated documents that are given to another query."""


def _platform(
    field: str, default: Value, names: Mapping[Value, str] | None = None
) -> Callable[[Value, str, int], World]:
    """Return worlds in which one setting of the platform is turned."""

    def worlds(value: Value, size: str, seed: int) -> World:
        world = build_world(DEFAULT, size, seed)
        if value == default:
            return world
        platform = world.platform.model_copy(update={field: value})
        return World((names or {}).get(value, f"{field}-{value}"), platform, seed)

    return worlds


def _log_size(value: Value, size: str, seed: int) -> World:
    world = build_world(DEFAULT, size, seed)
    if value == 1.0:
        return world
    sessions = round(float(value) * SIZES[size].sessions)
    return World(f"sessions-{value}", world.platform.model_copy(update={"sessions": sessions}), seed)


def _default(value: Value, size: str, seed: int) -> World:
    return build_world(DEFAULT, size, seed)


def _alpha(cell: Cell, value: Value) -> Cell:
    """Return the cell with another threshold of theta for P1 and P2; its test sets stay."""
    engine = cell.run.engine
    changes = {
        part: getattr(engine, part).model_copy(update={"relevance": value})
        for part in ("reformulation", "feed")
    }
    return dataclasses.replace(
        cell, run=cell.run.model_copy(update={"engine": engine.model_copy(update=changes)})
    )


DIALS = (
    Dial(
        "bubble",
        "how much the old system follows popularity and its own past",
        ("weak", "default", "strong"),
        _platform("bubble", "default", {"weak": "weak", "strong": "strong"}),
    ),
    Dial(
        "feed alignment",
        "P(a feed item near a search is about the searched sense)",
        (0.0, 0.25, 0.5, 0.9),
        _platform("feed_alignment", 0.25),
    ),
    Dial(
        "reformulation rate",
        "P(a searcher rewords | not satisfied)",
        (0.05, 0.22, 0.45),
        _platform("reformulate", 0.22),
    ),
    Dial(
        "informative rewordings",
        "whether later queries and the feed say anything about the need (no: the null world)",
        (False, True),
        _platform("informative", True, {False: "null"}),
    ),
    Dial(
        "theta",
        "threshold of theta for P1 and P2: higher keeps fewer and surer pairs",
        (0.0, 0.3, 0.6, 0.8),
        _default,
        _alpha,
    ),
    Dial(
        "LLM",
        "share of the generated documents that are given to another query",
        (0.0, 0.5, 1.0),
        _default,
        wrong=True,
    ),
    Dial("log size", "search sessions a day, as a share of the size's own", (0.25, 0.5, 1.0), _log_size),
)


@dataclass(frozen=True)
class MapCells:
    """The cells of the map."""

    by_value: dict[tuple[str, Value], list[Cell]]
    """By dial and value: each method with each seed."""
    files: dict[str, Path]
    """Generated documents by their hash."""


def map_cells(plan: Plan, size: str, seeds: Sequence[int], out: Path) -> MapCells:
    """Return the cells of every value of every dial; equal ones are made once, also with the tables'."""
    found: dict[tuple[str, Value], list[Cell]] = {}
    files: dict[str, Path] = {}
    for dial in DIALS:
        for value in dial.values:
            cells = []
            for world in (dial.worlds(value, size, seed) for seed in seeds):
                given, documents = plan, plan.documents(world)
                if documents is not None and dial.wrong and value:
                    given = dataclasses.replace(plan, generated={"": misplaced(documents, float(value), out)})
                own = [given.cell(world, method, settings="crops") for method in METHODS]
                files |= given.files(own)
                cells += [dial.turned(cell, value) for cell in own]
            found[dial.name, value] = cells
    return MapCells(found, files)


def misplaced(documents: Path, share: float, out: Path) -> Path:
    """Write a copy of generated documents in which a share of them, drawn by chance, swap their queries."""
    path = out / "generated" / f"{content_hash([documents])}-wrong-{share:g}.jsonl"
    if not path.exists():
        rows = [json.loads(line) for line in documents.read_text().splitlines() if line.strip()]
        chosen = np.random.default_rng(0).permutation(len(rows))[: round(share * len(rows))]
        queries = [rows[place]["query"] for place in chosen]
        for place, query in zip(chosen, queries[1:] + queries[:1], strict=True):
            rows[place]["query"] = query
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def map_sections(cells: MapCells, measured: Sequence[Measured], seeds: Sequence[int]) -> list[Section]:
    """Return a section for each dial: the lift of each source with its interval, as a table and drawn."""
    by_name = {one.folder.name: one for one in measured}
    sections = []
    for dial in DIALS:
        rows = []
        lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for place, value in enumerate(dial.values):
            own = [
                by_name[cell.name()] for cell in cells.by_value[dial.name, value] if cell.name() in by_name
            ]
            together = group(own, METHODS, seeds)
            row = [str(value)]
            for metric, title in METRICS.items():
                resampled = together.resampled(metric) if len(together.methods) == len(METHODS) else None
                row.append("–" if resampled is None else f"{resampled.n:,}")
                for source, weights in LIFTS.items():
                    if resampled is None:
                        row.append("–")
                        continue
                    lift = resampled.contrast(together.weights(weights))
                    star = "*" if lift.p < 0.05 else ""
                    row.append(f"{100 * lift.mean:+.1f}{star}\n{lift.ends('+.1f')}")
                    x = float(place) if isinstance(value, (str, bool)) else float(value)
                    lines.setdefault((title, source), []).append((x, 100 * lift.mean))
            rows.append(row)
        sections.append(_section(dial, rows, lines))
    return sections


def _section(
    dial: Dial, rows: list[list[str]], lines: Mapping[tuple[str, str], list[tuple[float, float]]]
) -> Section:
    head = [dial.name]
    for title in METRICS.values():
        head += [f"{title}: queries", *(f"{source}: {title}" for source in LIFTS)]
    named = any(isinstance(value, (str, bool)) for value in dial.values)
    x_label = ", ".join(map(str, dial.values)) if named else dial.name
    figures = []
    for title in METRICS.values():
        drawn = [
            Line(source, [x for x, _ in lines[title, source]], [y for _, y in lines[title, source]], tone)
            for tone, source in enumerate(LIFTS, 1)
            if (title, source) in lines
        ]
        figures.append(LineFigure(f"{title}: lift in points by {dial.name}", x_label, drawn))
    note = "Points that each source adds to those before it, 95 % intervals; * p < 0.05, not corrected."
    return Section(f"{dial.name}", dial.explanation, [TextTable(dial.name, head, rows, note)], figures)
