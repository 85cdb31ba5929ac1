"""When does it help? The lift of each source while one factor of platform or models changes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from crops.platform import SIZES
from crops.report import Figure, Line, Section, Table
from crops.reproduce.design import (
    CT,
    DEFAULT,
    QR,
    QR_TRUTH,
    TRUE,
    Cell,
    Design,
    World,
    build_world,
    content_hash,
)
from crops.reproduce.make import write_atomically
from crops.reproduce.tables import Measured, group

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
class Factor:
    """One property, and the values that it takes; all else stays at its default."""

    name: str
    explanation: str
    values: tuple[Value, ...]
    setting: str = ""
    """The setting of the platform that is changed; empty where the world is the default one."""
    default: Value = ""
    """The value of the default world."""
    worlds: Mapping[Value, str] = field(default_factory=dict)
    """Names of worlds by value; the setting and the value where there is none."""

    def world(self, value: Value, size: str, seed: int) -> World:
        """Return the world of a value."""
        world = build_world(DEFAULT, size, seed)
        if not self.setting or value == self.default:
            return world
        # The log's size is a share of what is usual for the size of the platform.
        changed = round(float(value) * SIZES[size].sessions) if self.setting == "sessions" else value
        platform = world.platform.model_copy(update={self.setting: changed})
        return World(self.worlds.get(value, f"{self.setting}-{value}"), platform, seed)


THETA, LLM = "theta", "LLM"
"""Factors that are no settings of the platform."""

FACTORS = (
    Factor(
        "bubble",
        "how much the old system follows popularity and its own past",
        ("weak", "default", "strong"),
        "bubble",
        "default",
        {"weak": "weak", "strong": "strong"},
    ),
    Factor(
        "feed alignment",
        "P(a feed item near a search is about the searched sense)",
        (0.0, 0.25, 0.5, 0.9),
        "feed_alignment",
        0.25,
    ),
    Factor(
        "reformulation rate",
        "P(a searcher rewords | not satisfied)",
        (0.05, 0.22, 0.45),
        "reformulate",
        0.22,
    ),
    Factor(
        "informative rewordings",
        "whether later queries and the feed say anything about the need (no: the null world)",
        (False, True),
        "informative",
        True,
        {False: "null"},
    ),
    Factor(
        THETA,
        "threshold of theta for P1 and P2: higher keeps fewer and more certain pairs",
        (0.0, 0.3, 0.6, 0.8),
    ),
    Factor(LLM, "share of the generated documents that are given to another query", (0.0, 0.5, 1.0)),
    Factor(
        "log size",
        "search sessions a day, as a share of the size's own",
        (0.25, 0.5, 1.0),
        "sessions",
        1.0,
    ),
)


@dataclass(frozen=True)
class FactorCells:
    """The cells of the map, `crops reproduce map`."""

    by_value: dict[tuple[str, Value], list[Cell]]
    """By factor and value: each method with each seed."""
    files: dict[str, Path]
    """Generated documents by their hash."""


def map_cells(design: Design, size: str, seeds: Sequence[int], out: Path) -> FactorCells:
    """Return the cells of every value of every factor; equal ones are made once, also with the tables'."""
    found: dict[tuple[str, Value], list[Cell]] = {}
    files: dict[str, Path] = {}
    for factor in FACTORS:
        for value in factor.values:
            cells = []
            for world in (factor.world(value, size, seed) for seed in seeds):
                given, documents = design, design.documents(world)
                if documents is not None and factor.name == LLM and value:
                    given = replace(design, generated={"": misplaced(documents, float(value), out)})
                own = [given.cell(world, method, settings="crops") for method in METHODS]
                files |= given.files(own)
                cells += [_above(cell, value) for cell in own] if factor.name == THETA else own
            found[factor.name, value] = cells
    return FactorCells(found, files)


def _above(cell: Cell, threshold: Value) -> Cell:
    """Return the cell with another threshold of theta for P1 and P2; its test sets stay."""
    engine = cell.run.engine
    changes = {
        part: getattr(engine, part).model_copy(update={"relevance": threshold})
        for part in ("reformulation", "feed")
    }
    return replace(cell, run=cell.run.model_copy(update={"engine": engine.model_copy(update=changes)}))


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


def map_sections(cells: FactorCells, measured: Sequence[Measured], seeds: Sequence[int]) -> list[Section]:
    """Return a section for each factor: the lift of each source with its interval, as a table and drawn."""
    by_name = {one.folder.name: one for one in measured}
    return [_section(factor, cells, by_name, seeds) for factor in FACTORS]


def _section(
    factor: Factor, cells: FactorCells, by_name: Mapping[str, Measured], seeds: Sequence[int]
) -> Section:
    named = any(isinstance(value, (str, bool)) for value in factor.values)
    rows = []
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for place, value in enumerate(factor.values):
        names = [cell.name() for cell in cells.by_value[factor.name, value]]
        together = group([by_name[name] for name in names if name in by_name], METHODS, seeds)
        row = [str(value)]
        for metric, title in METRICS.items():
            resampled = together.resampled(metric) if len(together.methods) == len(METHODS) else None
            if resampled is None:
                row += ["–"] * (1 + len(LIFTS))
                continue
            row.append(f"{resampled.n:,}")
            for source, weights in LIFTS.items():
                lift = resampled.contrast(together.weights(weights))
                star = "*" if lift.p < 0.05 else ""
                row.append(f"{100 * lift.mean:+.1f}{star}\n{lift.ends('+.1f')}")
                x = float(place if named else value)
                points.setdefault((title, source), []).append((x, 100 * lift.mean))
        rows.append(row)
    head = [factor.name]
    for title in METRICS.values():
        head += [f"{title}: queries", *(f"{source}: {title}" for source in LIFTS)]
    figures = [
        Figure(
            f"{title}: lift in points by {factor.name}",
            [
                Line(source, [x for x, _ in drawn], [y for _, y in drawn], tone)
                for tone, source in enumerate(LIFTS, 1)
                if (drawn := points.get((title, source)))
            ],
            ", ".join(map(str, factor.values)) if named else factor.name,
        )
        for title in METRICS.values()
    ]
    note = "Points that each source adds to those before it, 95 % intervals; * p < 0.05, not corrected."
    return Section(factor.name, factor.explanation, [Table(factor.name, head, rows, note)], figures)
